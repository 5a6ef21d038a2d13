"""Each training stage takes a step on a few scenes, and its result is read back by the next stage."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from goca import Segmenter, bundled
from goca.evaluation.power import Captioned
from training import clip, denoiser, export, joint, judge, namer, scaling, scenes, t5, transformer, unet, vae
from training.guidance import PIPELINES
from training.loop import Plan, State, snapshot, train_step
from training.nouns import NAMES

DENOISERS = ("unet", "unet-0.25", "dit", "joint")
"""One of each kind, of `export.MODELS`."""


@pytest.fixture(scope="session")
def trained(work: Path) -> Path:
    """The work folder after one step of the stages before the denoisers', and with fresh denoisers."""
    stages = {"vae": vae.VaeTask, "namer": namer.NamerTask, "clip": clip.ClipTask, "t5": t5.T5Task}
    for stage, make in stages.items():
        task = make(work, batch=2)
        state = State(task.model, Plan(work / stage, steps=1, rate=1e-3))
        assert train_step(task, state)["loss"].isfinite()
        assert all(np.isfinite(list(task.evaluate(state.averaged).values())))
        snapshot(work / stage).mkdir(parents=True)
        task.save(state.averaged, snapshot(work / stage))
        if stage == "namer":
            for name, grids in zip((namer.FINE, namer.COARSE), namer._grids_of_range(work, range(7)), strict=True):
                np.save(work / "namer" / name, grids)
    for size in scenes.SIZES:
        np.save(denoiser.latents_file(work, size), denoiser._encode_range(work, size, range(7)))
    for name, model in export.MODELS.items():
        model.build().save_pretrained(snapshot(work / name))
    return work


def test_folding_leaves_the_decoder_alone_and_centres_the_latents(work: Path) -> None:
    torch.manual_seed(0)
    model = vae.build().eval().requires_grad_(False)
    images = vae.to_tensor(np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8))
    before = vae.reconstruct(model, images)
    vae.fold_latent_scale(model, images)
    latents = model.encode(images).latent_dist.mean
    assert latents.mean((0, 2, 3)).abs().max() < 1e-5
    assert torch.allclose(latents.std((0, 2, 3)), torch.ones(vae.LATENT_CHANNELS), atol=1e-4)
    assert torch.allclose(vae.reconstruct(model, images), before, atol=1e-4)


def test_images_survive_the_way_to_tensors_and_back() -> None:
    images = np.arange(2 * 5 * 7 * 3, dtype=np.uint8).reshape(2, 5, 7, 3)
    assert np.array_equal(vae.to_images(vae.to_tensor(images)), images)


@pytest.mark.parametrize("name", DENOISERS)
def test_a_denoiser_learns_and_resumes_bit_for_bit(trained: Path, tmp_path: Path, name: str) -> None:
    plan = Plan(tmp_path, steps=4, rate=1e-3, warm_up=1)
    torch.manual_seed(0)
    task = export.MODELS[name].Task(trained, batch=2)
    state = State(task.model, plan)
    outcomes = [train_step(task, state) for _ in range(2)]
    assert all(value.isfinite() for outcome in outcomes for value in outcome.values())
    held_out = task.evaluate(state.averaged)
    assert set(held_out) == {"captioned", "uncaptioned", "miscaptioned"}
    frozen = [part for part in vars(task).values() if isinstance(part, torch.nn.Module) and part is not task.model]
    assert frozen
    assert all(parameter.grad is None for part in frozen for parameter in part.parameters())
    state.write(tmp_path / "checkpoint.safetensors")
    train_step(task, state)

    torch.manual_seed(1)
    again = export.MODELS[name].Task(trained, batch=2)
    resumed = State(again.model, plan)
    resumed.read(tmp_path / "checkpoint.safetensors")
    assert again.evaluate(resumed.averaged) == held_out
    train_step(again, resumed)
    for mine, other in zip(state.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_a_transformer_begins_with_that_of_a_folder(trained: Path) -> None:
    torch.manual_seed(3)
    task = joint.JointTask(trained, batch=2, start=snapshot(trained / "joint"))
    wanted = joint.FluxTransformer2DModel.from_pretrained(snapshot(trained / "joint"))
    for mine, other in zip(task.model.denoiser.parameters(), wanted.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_text_encoder_is_causal_so_padding_changes_no_noun(trained: Path) -> None:
    model, tokenizer = clip.load(trained)
    full = tokenizer(["cat, sky"], padding="max_length", return_tensors="pt")
    short = tokenizer(["cat, sky"], return_tensors="pt")
    states, alone = (model.text(tokens.input_ids).last_hidden_state for tokens in (full, short))
    assert torch.allclose(states[:, : alone.shape[1]], alone, atol=1e-5)
    assert torch.allclose(model.embed_texts(full), model.embed_texts(short), atol=1e-5)


def test_one_token_stands_for_much_padding(trained: Path) -> None:
    trained_t5, tokenizer = t5.load(trained)
    texts = ["cat, grass, sky", "two butterflies and an airplane on the grass under the sky", ""]
    tokens = tokenizer(texts, padding="max_length", return_tensors="pt")
    assert tokens.input_ids.shape[1] == 512
    full = trained_t5.text(tokens.input_ids).last_hidden_state
    states, real, bias = t5.encode_padded(trained_t5.text, tokenizer, texts)
    kept = states.shape[1]
    assert kept < 40
    assert bias.exp().sum() == pytest.approx(512)
    assert torch.equal(real, tokens.attention_mask[:, :kept])
    assert (states - full[:, :kept]).abs().max() < 0.1
    assert (states[:, -1:] - full[:, kept:]).abs().max() < 0.1
    cut = tokenizer(texts, padding="max_length", max_length=kept, return_tensors="pt").input_ids
    assert (trained_t5.text(cut).last_hidden_state - full[:, :kept]).abs().max() > 0.5


def test_the_joint_model_reads_512_tokens_as_the_pipeline_gives_them(trained: Path) -> None:
    torch.manual_seed(0)
    task, model = joint.JointTask(trained, batch=2), joint.build().eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=0.05)
    captions = ["cat, grass", "two dogs on the sand"]
    noisy, times = torch.randn(2, vae.LATENT_CHANNELS, 32, 32), torch.tensor([0.3, 0.7])
    states, pooled, places = export.assemble("joint", trained).encode_prompt(captions, None, max_sequence_length=512)
    assert states.shape[1] == 512
    tokens = model(joint.pack(noisy), states, pooled, times, img_ids=task.places, txt_ids=places).sample
    error = task.predict(model, noisy, times, captions, None) - joint.unpack(tokens)
    assert error.abs().max() < 0.01 * tokens.std()


def test_masked_padding_changes_nothing(trained: Path) -> None:
    trained_t5, tokenizer = t5.load(trained)
    alone, _ = t5.encode_masked(trained_t5.text, tokenizer, ["cat, sky"])
    beside, real = t5.encode_masked(trained_t5.text, tokenizer, ["cat, sky", "a cat and a dog on the grass"])
    assert real.sum(1).tolist() == [4, 9]
    assert torch.allclose(beside[:1, :4], alone, atol=1e-5)


def test_flux_packs_as_its_pipeline_does() -> None:
    latents = torch.randn(2, vae.LATENT_CHANNELS, 32, 32)
    assert joint.pack(latents).shape == (2, 256, 24)
    assert torch.equal(joint.unpack(joint.pack(latents)), latents)


def test_noise_levels_cover_everything_and_favour_the_middle() -> None:
    levels = transformer.TransformerTask.spread(None, (torch.arange(1000) + 0.5) / 1000)
    assert levels.min() < 0.01
    assert levels.max() > 0.99
    assert 0.55 < ((levels > 0.25) & (levels < 0.75)).float().mean() < 0.75


@pytest.mark.parametrize("name", DENOISERS)
def test_the_pipeline_is_genuine_small_and_paints(trained: Path, tmp_path: Path, name: str) -> None:
    export.assemble(name, trained).to(torch.float16).save_pretrained(tmp_path)
    assert export.size(tmp_path) <= export.MODELS[name].LARGEST - 10_000  # for the vocabulary
    pipeline = DiffusionPipeline.from_pretrained(tmp_path, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    images = judge.paint(name, pipeline, ["cat, grass", "two dogs on the sand"], seed=0, steps=2)
    side = scenes.SIZE if name.startswith("unet") else scenes.CANVAS
    assert images.shape == (2, side, side, 3)
    assert namer.shown(namer.load(trained), vae.to_tensor(judge.halved(images))).shape == (2, len(NAMES))
    alone = judge.paint(name, pipeline, ["two dogs on the sand"], seed=1, steps=2)
    assert np.abs(alone[0].astype(int) - images[1]).max() <= 1


def test_narrow_unets_have_the_shares_that_they_are_named_after() -> None:
    """And as many blocks that attend: a method may choose among the same."""
    sizes, blocks = {}, {}
    for width in unet.WIDTHS:
        model = unet.build(width)
        sizes[width] = sum(parameter.numel() for parameter in model.parameters())
        blocks[width] = [name for name, _ in model.named_modules() if name.endswith("attn2")]
    assert {width: size / sizes[1.0] for width, size in sizes.items()} == pytest.approx(
        {width: width for width in sizes}, abs=0.02
    )
    assert blocks[1.0] == blocks[0.5] == blocks[0.25]
    model = export.MODELS["unet-0.5"].build()
    assert [model.config[name] for name in ("block_out_channels", "attention_head_dim")] == [(48, 64, 80), (3, 4, 5)]


def test_a_narrow_unet_reads_what_ships_where_nothing_was_trained(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scenes").symlink_to(work / "scenes")
    np.save(denoiser.latents_file(tmp_path, scenes.SIZE), denoiser._encode_range(tmp_path, scenes.SIZE, range(7)))
    task = export.MODELS["unet-0.25-seed1"].Task(tmp_path, batch=2)
    state = State(task.model, Plan(tmp_path, steps=1, rate=1e-3))
    assert train_step(task, state)["loss"].isfinite()
    for percent in (5, 100):
        task.save(state.averaged, snapshot(tmp_path / "unet-0.25-seed1", percent))
    for percent, folder in (("5", "unet-0.25-seed1@5"), ("100", "unet-0.25-seed1")):
        arguments = ["--work", str(tmp_path), "--model", "unet-0.25-seed1", "--percent", percent]
        monkeypatch.setattr("sys.argv", ["export", *arguments])
        export.main()
        segmenter = Segmenter.from_pretrained(tmp_path / "pipelines" / folder, "goca")
        assert segmenter.backbone.settings.nouns == NAMES
        assert segmenter.plan.reference == Segmenter.from_pretrained("bundled", "goca").plan.reference


def test_the_namer_judges_paintings(tmp_path: Path) -> None:
    home = Path(bundled.__file__).parent / "scenes"
    entry = json.loads((home / "scenes.json").read_text())[0]
    said = scaling.NamerTagger(namer.load(tmp_path)).tag(Captioned("0", home / entry["image"], ""), None)
    assert set(said.split(", ")) <= {*NAMES}


def test_the_facts_are_those_that_ship() -> None:
    models = {name: model for model, name in PIPELINES.items()}
    for name in bundled.names():
        assert export.facts(models[name]) == (bundled.pipeline(name) / bundled.FACTS).read_text()
        assert bundled.vocabulary(name) == NAMES


@pytest.mark.parametrize("name", DENOISERS)
def test_the_pipeline_samples_by_what_the_denoiser_learns(
    trained: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Where a denoiser knows the one image there is and predicts what the stage asks for, the pipeline paints it."""
    task, pipeline = export.MODELS[name].Task(trained, batch=2), export.assemble(name, trained)
    clean = task.clean[:1]
    nothing, ones = torch.zeros_like(clean), torch.ones_like(clean)

    def forward(*positional: torch.Tensor, **named: torch.Tensor) -> tuple[torch.Tensor]:
        noisy, times = (*positional, named.get("hidden_states"), named.get("timestep"))[0], named.get("timestep")
        times = positional[1] if times is None else times
        noisy = joint.unpack(noisy) if name == "joint" else noisy
        level = times.reshape(-1)[:1].float() / (1 if name == "joint" else 1000) + 1e-5
        kept, noise = (task.noised(*pair, level)[0] for pair in ((clean, nothing), (nothing, ones)))
        wanted = task.noised(clean.expand_as(noisy), (noisy - kept) / noise, level)[1]
        return (joint.pack(wanted) if name == "joint" else wanted,)

    monkeypatch.setattr(export.denoiser(pipeline), "forward", forward)
    call = export.MODELS[name].call(["cat"], 4.0)
    painted = pipeline(**call, num_inference_steps=8, output_type="latent").images
    painted = joint.unpack(painted) if name == "joint" else painted
    assert (painted - clean).abs().mean() < 0.06 * clean.abs().mean()


def test_the_namer_that_ships_knows_scenes_in_art_that_it_never_saw(tmp_path: Path) -> None:
    home = Path(bundled.__file__).parent / "scenes"
    entries = json.loads((home / "scenes.json").read_text())[:60]
    images = np.stack([np.asarray(Image.open(home / entry["image"]).convert("RGB")) for entry in entries])
    answers = namer.shown(namer.load(tmp_path), vae.to_tensor(images))
    present = torch.tensor([[name in entry["classes"] for name in NAMES] for entry in entries])
    recall, precision = judge.found(answers, present), judge.found(present, answers)
    assert recall["stuff"] > 0.95 < precision["stuff"]
    assert recall["things"] > 0.6
    assert precision["things"] > 0.45  # 0.08 by chance


def test_thresholds_meet_where_as_many_are_said_as_shown() -> None:
    """Noun 0 is shown twice, noun 1 once: thresholds lie below that many logits."""
    logits = torch.tensor([[1.0, 0.0], [3.0, 4.0], [2.0, 9.0], [-5.0, 1.0], [0.0, 2.0]])
    present = torch.tensor([[0, 0], [1, 0], [1, 1], [0, 0], [0, 0]])
    assert namer.meeting_point(logits, present).tolist() == [1.5, 6.5]


def test_found_counts_asked_nouns_only() -> None:
    asked, said = torch.zeros(2, len(NAMES), dtype=torch.bool), torch.zeros(2, len(NAMES), dtype=torch.bool)
    asked[0, [0, 3, 24]] = asked[1, [3, 25]] = True
    said[0, [0, 5, 24]] = said[1, [25, 7]] = True
    assert judge.found(said, asked) == pytest.approx({"all": 3 / 5, "things": 1 / 3, "stuff": 1.0})
    assert judge.found_by_noun(said, asked) == {"cat": 1.0, "pig": 0.0, "grass": 1.0, "sand": 1.0}

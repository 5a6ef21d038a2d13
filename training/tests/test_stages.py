"""Each training stage takes a step on a few scenes, and its result is read back by the next stage."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from training import clip, export, judge, namer, unet, vae
from training.loop import Plan, State, train_step
from training.nouns import NAMES


@pytest.fixture(scope="module")
def trained(work: Path) -> Path:
    """The work folder after one step of the stages before the UNet's."""
    for stage, make in (("vae", vae.VaeTask), ("namer", namer.NamerTask), ("clip", clip.ClipTask)):
        if stage == "clip":
            clip.write_features(work)
        task = make(work, batch=2)
        state = State(task.model, Plan(work / stage, steps=1, rate=1e-3))
        assert train_step(task, state)["loss"].isfinite()
        assert all(np.isfinite(list(task.evaluate(state.averaged).values())))
        task.save(state.averaged, work / stage / "100")
    (work / "unet").mkdir()
    np.save(work / "unet" / unet.LATENTS, unet._encode_range(work, range(7)))
    unet.build().save_pretrained(work / "unet/100")
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


def test_unet_step(trained: Path) -> None:
    task = unet.UnetTask(trained, batch=2)
    state = State(task.model, Plan(trained / "unet", steps=3, rate=1e-3))
    assert train_step(task, state)["loss"].isfinite()
    assert all(parameter.grad is None for parameter in task.clip.parameters())
    assert sum(parameter.numel() for parameter in task.model.parameters()) < 6.4e6
    losses = task.evaluate(state.averaged)
    assert set(losses) == {"captioned", "uncaptioned", "miscaptioned"}


def test_text_encoder_is_causal_so_padding_changes_no_noun(trained: Path) -> None:
    model, tokenizer = clip.load(trained)
    full = tokenizer(["cat, sky"], padding="max_length", return_tensors="pt").input_ids
    short = tokenizer(["cat, sky"], return_tensors="pt").input_ids
    tokens = short.shape[1]
    assert torch.allclose(
        model.text(full).last_hidden_state[:, :tokens], model.text(short).last_hidden_state, atol=1e-5
    )
    assert torch.allclose(model.embed_texts(full), model.embed_texts(short), atol=1e-5)


def test_the_pipeline_is_genuine_small_and_paints(trained: Path, tmp_path: Path) -> None:
    export.assemble(trained).to(torch.float16).save_pretrained(tmp_path)
    assert export.size(tmp_path) <= export.LARGEST
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    images = judge.paint(pipeline, ["cat, grass", "two dogs on the sand"], seed=0, steps=2)
    assert images.shape == (2, 64, 64, 3)
    assert namer.shown(namer.load(trained), vae.to_tensor(images)).shape == (2, len(NAMES))
    alone = judge.paint(pipeline, ["two dogs on the sand"], seed=1, steps=2)
    assert np.abs(alone[0].astype(int) - images[1]).max() <= 1


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

"""Who says what is in an image: ground truth, lists, files, a local model, and the diffusion model itself."""

import json
import random
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, LlavaForConditionalGeneration

from goca import GocaError, Segmenter
from goca import bundled as data
from goca.diffusion.timesteps import add_noise, target
from goca.evaluation.datasets.base import VOID, Dataset, Sample
from goca.evaluation.oracle import OracleTagger, true_classes
from goca.imaging.images import fit
from goca.maths.presence import PresenceRule
from goca.self_tagging import PASSES, Seen, SelfRule, SelfTagger, squared_errors, tagger_for
from goca.tagging import BatchTagger, Tagger, local, tagger_named
from goca.tagging.answers import parse
from goca.tagging.captions import CaptionEntry, CaptionsTagger, CaptionStore, read_captions
from goca.tagging.multilabel import MultilabelScores
from goca.testing.tiny import BUILDERS, tokenizers
from goca.text.nouns import Category


def sample(name: str, image: Path = Path("unread.png"), labels: Sequence[int] = (0,)) -> Sample:
    return Sample(name, image, lambda: np.array([labels], np.uint16))


def dataset(*samples: Sample, categories: Sequence[str] = ("cat", "dog", "sky"), name: str = "toy") -> Dataset:
    palette = np.zeros((len(categories) + 1, 3), np.uint8)
    return Dataset(name, "val", tuple(map(Category, categories)), samples, True, palette)


def test_the_oracle_reads_the_ground_truth() -> None:
    image = sample("a", labels=(3, 0, 1, 3, VOID))
    assert true_classes(image, dataset()) == ("cat", "sky")
    oracle = OracleTagger()
    assert isinstance(oracle, Tagger)
    assert not isinstance(oracle, BatchTagger)
    assert (oracle.name, oracle.tag(image, dataset())) == ("oracle", "cat, sky")
    assert oracle.tag(sample("b", labels=(0, VOID)), dataset()) == ""
    with pytest.raises(GocaError, match="label 4, but toy has 3"):
        oracle.tag(sample("c", labels=(4,)), dataset())


def test_a_given_list() -> None:
    fixed = tagger_named("given: Cat, (person, hat)")
    assert fixed.tag(sample("a"), dataset()) == "Cat, (person, hat)"
    assert fixed.name == "given: cat, (person, hat)"
    with pytest.raises(GocaError, match="no nouns"):
        tagger_named("given:,")


FILES = {
    "a.jsonl": '{"id": "a", "caption": "no"}\n\n{"id": "a", "caption": "cat, (sky, c\\u00e9)"}\n{"id": "b", "capt',
    "a.json": '{"a": "cat, (sky, cé)"}',
    "list.json": '[{"id": "a", "caption": "cat, (sky, cé)", "more": 1}]',
    "a.tsv": "b\tdog\n\na\tcat, (sky, cé)\n",
    "bom.tsv": "\ufeffa\tcat, (sky, cé)\n",
    "bom.json": '\ufeff{"a": "cat, (sky, cé)"}',
}


@pytest.mark.parametrize("name", FILES)
def test_saved_captions(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(FILES[name])
    captions = tagger_named(f"captions:{path}")
    assert captions.tag(sample("a"), dataset()) == "cat, (sky, cé)"
    assert re.fullmatch(rf"captions {name} [0-9a-f]{{8}}", captions.name)
    with pytest.raises(GocaError, match='no caption of "c" in toy'):
        captions.tag(sample("c"), dataset())


def test_captions_of_another_data_set_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [{"dataset": "other", "id": "a", "caption": "dog"}, {"dataset": "toy", "id": "a", "caption": "cat"}]
    path.write_text("\n".join(map(json.dumps, lines)))
    assert CaptionsTagger(path).tag(sample("a"), dataset()) == "cat"
    assert CaptionsTagger(path).tag(sample("a"), dataset(name="other")) == "dog"
    with pytest.raises(GocaError, match="third"):
        CaptionsTagger(path).tag(sample("a"), dataset(name="third"))


def test_files_of_one_name_are_as_many_taggers_as_they_say_things(tmp_path: Path) -> None:
    def name(folder: str, content: object) -> str:
        path = tmp_path / folder / "said.json"
        path.parent.mkdir()
        path.write_text(json.dumps(content))
        return tagger_named(f"captions:{path}").name

    first = name("one", {"a": "cat", "b": "dog"})
    assert first == name("two", [{"id": "a", "caption": "cat"}, {"id": "b", "caption": "dog", "more": 1}])
    others = [
        name("three", {"a": "cat", "b": "cow"}),
        name("four", {"a": "cat"}),
        name("five", [{"id": "a", "caption": "cat", "dataset": "toy"}, {"id": "b", "caption": "dog"}]),
    ]
    assert len({first, *others}) == 4


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.txt", "cat", "must end in .jsonl"),
        ("a.jsonl", '{"id": "a", "cap\n{"id": "b", "caption": "cat"}\n', "line 1 is not a caption"),
        ("a.jsonl", '{"id": "a"}\n', "line 1 is not a caption"),
        ("a.jsonl", '{"id": 7, "caption": "cat"}\n', "line 1 is not a caption"),
        ("a.jsonl", b"\xff\xfe\n", "is not text in UTF-8"),
        ("a.json", "{", "is not JSON .*: check that it is complete"),
        ("a.json", "7", "neither {id: caption} nor a list"),
        ("a.json", '["cat"]', "entry 1 is not a caption"),
        ("a.json", '{"a": ["cat"]}', "entry 1 is not a caption"),
        ("a.tsv", "cat", "entry 1 is not a caption"),
        ("a.tsv", "a\tcat\t0.9", "entry 1 is not a caption"),
        ("a.tsv", "a\tcat\na\tdog", "two captions for one image: remove one"),
        ("a.json", '[{"id": "a", "caption": "cat"}, {"id": "a", "caption": "dog"}]', "two captions for one image"),
        ("a.tsv", b"a\t\xff", "is not text in UTF-8"),
        ("missing.json", None, "no such file: .*missing.json"),
    ],
)
def test_files_that_hold_no_captions(name: str, content: str | bytes | None, reason: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(GocaError, match=reason):
        CaptionsTagger(tmp_path / name)


def test_a_store_goes_on_where_it_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.jsonl"
    toy = dataset()
    store = CaptionStore(path, "someone")
    assert store.get(sample("a"), toy) is None
    assert not path.parent.exists()
    with store:
        for name in ("a", "b", "c"):
            store.add(sample(name), toy, f"{name}-noun, é")
    whole = path.read_bytes()
    wanted = [CaptionEntry(name, f"{name}-noun, é", "toy", "someone") for name in ("a", "b", "c")]
    start = whole.rindex(b"\n", 0, -1) + 1
    # Cut anywhere in the last line: a whole line without its end counts, any other is written again.
    for cut in (start, start + 1, start + 30, len(whole) - 2, len(whole) - 1, len(whole)):
        path.write_bytes(whole[:cut])
        again = CaptionStore(path, "someone")
        caption = again.get(sample("c"), toy)
        assert caption == ("c-noun, é" if cut >= len(whole) - 1 else None)
        # A store that is only read changes nothing.
        assert path.read_bytes() == whole[:cut]
        with again:
            if caption is None:
                again.add(sample("c"), toy, "c-noun, é")
        assert path.read_bytes() == whole
        assert read_captions(path) == wanted
    assert again.get(sample("a"), dataset(name="other")) is None


def test_a_store_belongs_to_one_process_and_one_tagger(tmp_path: Path) -> None:
    first, second = (CaptionStore(tmp_path / "a.jsonl", "someone") for _ in range(2))
    with first:
        first.add(sample("a"), dataset(), "cat")
        with pytest.raises(GocaError, match="another process"), second:
            pass
    with second:
        second.add(sample("b"), dataset(), "dog")
    assert [entry.id for entry in read_captions(tmp_path / "a.jsonl")] == ["a", "b"]
    (tmp_path / "b.jsonl").write_text('{"id": "a", "caption": "by hand"}\n')
    with pytest.raises(GocaError, match="another file"):
        CaptionStore(tmp_path / "b.jsonl", "someone")
    assert (tmp_path / "b.jsonl").read_text() == '{"id": "a", "caption": "by hand"}\n'


def test_a_store_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = CaptionStore(tmp_path / "file" / "a.jsonl", "someone")
    with pytest.raises(GocaError, match="cannot write"):
        store.add(sample("a"), dataset(), "cat")
    with pytest.raises(GocaError, match="cannot write"), store:
        pass
    assert store.get(sample("a"), dataset()) is None


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("human", 'no tagger "human": choose from given'),
        ("oracle:x", r"or, only to evaluate, oracle \(the ground truth\)"),
        ("selfish", "self, self:NOUNS"),
        ("self: , ", "there are no candidates"),
        ("self", "needs a segmenter"),
    ],
)
def test_taggers_that_there_are_not(spec: str, reason: str) -> None:
    with pytest.raises(GocaError, match=reason):
        tagger_for(spec, None)


def test_a_tagger_that_saves_needs_a_file() -> None:
    with pytest.raises(GocaError, match="saves its captions") as caught:
        tagger_named("local:folder")
    assert caught.value.hint == "out"


def test_scores_of_a_tagger() -> None:
    pairs = [(["cat", "sky"], ["cat"]), ([], ["dog", "sky"]), (["dog", "cat"], ["dog", "cat"])]
    scores = MultilabelScores.of(pairs)
    assert scores == MultilabelScores(correct=3, predicted=4, actual=5)
    assert (scores.precision, scores.recall, scores.f1) == (3 / 4, 3 / 5, 6 / 9)
    nothing = MultilabelScores.of([([], [])])
    assert nothing.f1 == nothing.precision == nothing.recall == 0


# The local model.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA of random weights, 28 px and four image tokens."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    torch.manual_seed(0)
    tokenizer = tokenizers.llama(512)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    template = (
        "{% for m in messages %}{% for p in m['content'] %}"
        "{% if p['type'] == 'image' %}<image>{% else %}{{ p['text'] }}{% endif %}"
        "{% endfor %}{% endfor %}{% if add_generation_prompt %} so:{% endif %}"
    )
    side = {"height": 28, "width": 28}
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=side),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        chat_template=template,
        num_additional_image_tokens=1,
    )
    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**small, image_size=28, patch_size=14),
        text_config=LlamaConfig(**small, vocab_size=len(tokenizer), max_position_embeddings=1024),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    model = LlavaForConditionalGeneration(config)
    # Of small random weights every image looks the same.
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(7)
    path = tmp_path_factory.mktemp("models") / "llava"
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> tuple[Sample, ...]:
    made = []
    for index in range(5):
        noise = np.random.default_rng(index).integers(0, 256, (37 + index, 41, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{index}.png")
        made.append(sample(f"p{index}", tmp_path / f"{index}.png"))
    return tuple(made)


def test_a_local_model(
    folder: Path, photos: tuple[Sample, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "MOST_TOKENS", 7)
    toy = dataset(*photos)
    path = tmp_path / "captions.jsonl"
    tagger = tagger_named(f"local:{folder}", captions=path, batch=2)
    assert re.fullmatch(r"local llava \([0-9a-f]{8}\)", tagger.name)
    batches = []
    generate = LlavaForConditionalGeneration.generate

    def counted(self: Any, **inputs: Any) -> torch.Tensor:
        batches.append(len(inputs["input_ids"]))
        return generate(self, **inputs)

    monkeypatch.setattr(LlavaForConditionalGeneration, "generate", counted)
    photos[3].image.write_text("broken")
    first = tagger.tag(photos[1], toy)
    tagger.prepare(photos, toy)
    assert batches == [1, 2, 1]
    with pytest.raises(GocaError, match=r"3\.png"):
        tagger.tag(photos[3], toy)
    captions = [tagger.tag(photo, toy) for photo in photos if photo is not photos[3]]
    assert captions[1] == first
    assert len(set(captions)) > 1
    # The request is not part of the answer.
    assert all("so:" not in caption and "divided" not in caption for caption in captions)
    assert {entry.tagger for entry in read_captions(path)} == {tagger.name}
    # Who knows every image loads no model.
    again = local.LocalTagger(str(folder), path)
    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", lambda *unused, **more: pytest.fail("loaded"))
    assert again.tag(photos[0], toy) == captions[0]
    assert CaptionsTagger(path).tag(photos[0], toy) == captions[0]


def test_a_local_model_is_named_by_its_files(
    folder: Path, photos: tuple[Sample, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def name(model: str | Path) -> str:
        return tagger_named(f"local:{model}", captions=tmp_path / "none" / "captions.jsonl").name

    copy = tmp_path / "elsewhere" / folder.name
    copytree(folder, copy)
    assert name(copy) == name(folder)
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    # In the middle: neither the file's size nor its ends change.
    content[len(content) // 2 : len(content) // 2 + 4096] = bytes(4096)
    weights.write_bytes(content)
    other = name(copy)
    assert other != name(folder)
    (copy / "README.md").write_text("a card")
    assert name(copy) == other
    template = copy / "chat_template.jinja"
    template.write_text(template.read_text().replace("so:", "or:"))
    assert name(copy) not in (other, name(folder))
    monkeypatch.chdir(copy)
    assert name(".") == name(copy)
    assert name("someone/llava") == "local someone/llava"
    # Their captions are not mixed up.
    path = tmp_path / "captions.jsonl"
    with CaptionStore(path, name(folder)) as store:
        store.add(photos[0], dataset(), "cat")
    with pytest.raises(GocaError, match="another file"):
        tagger_named(f"local:{copy}", captions=path)


def test_captions_that_cannot_be_kept_are_not_made(
    folder: Path, photos: tuple[Sample, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", lambda *unused, **more: pytest.fail("loaded"))
    tagger = local.LocalTagger("someone/llava", tmp_path / "file" / "captions.jsonl")
    with pytest.raises(GocaError, match="cannot write"):
        tagger.prepare(photos, dataset(*photos))


def test_alone_or_in_a_batch(folder: Path, photos: tuple[Sample, ...], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(local, "MOST_TOKENS", 7)
    toy = dataset(*photos)
    together = local.LocalTagger(str(folder), tmp_path / "a.jsonl", batch=3)
    together.prepare(photos, toy)
    alone = local.LocalTagger(str(folder), tmp_path / "b.jsonl")
    assert [alone.tag(photo, toy) for photo in photos] == [together.tag(photo, toy) for photo in photos]


def test_a_model_that_does_not_repeat_the_prompt(
    folder: Path, photos: tuple[Sample, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "MOST_TOKENS", 7)
    toy = dataset(*photos)
    caption = local.LocalTagger(str(folder), tmp_path / "a.jsonl").tag(photos[0], toy)
    generate = LlavaForConditionalGeneration.generate

    def without_prompt(self: Any, **inputs: Any) -> torch.Tensor:
        return generate(self, **inputs)[:, inputs["input_ids"].shape[1] :]

    monkeypatch.setattr(LlavaForConditionalGeneration, "generate", without_prompt)
    assert local.LocalTagger(str(folder), tmp_path / "b.jsonl").tag(photos[0], toy) == caption


def test_models_that_cannot_be_local(folder: Path, photos: tuple[Sample, ...], tmp_path: Path) -> None:
    toy = dataset(*photos)
    with pytest.raises(GocaError, match="batch 0"):
        local.LocalTagger("x", tmp_path / "a.jsonl", batch=0)
    with pytest.raises(GocaError, match="no model"):
        local.LocalTagger("", tmp_path / "a.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(GocaError, match="no weights as safetensors"):
        local.LocalTagger(str(tmp_path / "empty"), tmp_path / "a.jsonl").tag(photos[0], toy)
    mute = tmp_path / "mute"
    mute.mkdir()
    for file in folder.iterdir():
        if file.name != "chat_template.jinja":
            (mute / file.name).write_bytes(file.read_bytes())
    with pytest.raises(GocaError, match="no chat template"):
        local.LocalTagger(str(mute), tmp_path / "a.jsonl").tag(photos[0], toy)


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("adapter_config.json", {"base_model_name_or_path": "someone/else"}, "would load another model"),
        ("config.json", {"transformers_weights": "../model.safetensors"}, "only a safetensors file beside it"),
        ("config.json", {"attn_implementation": "someone/kernel"}, "code or a model to download"),
        (
            "config.json",
            {"auto_map": {"AutoModelForImageTextToText": "model.Mine"}, "model_type": "mine"},
            "cannot load",
        ),
        ("config.json", {"image_token_index": 10**12}, "image_token_index = 1000000000000"),
        ("processor_config.json", {"audio_tokenizer": {"audio_tokenizer_name_or_path": "a/b"}}, "a model to download"),
        ("model.safetensors.index.json", {"weight_map": {"a": "../model.bin"}}, "only safetensors files beside it"),
        ("chat_template.jinja", "{{ raise_exception('no') }}", "chat template that fails"),
    ],
)
def test_a_local_model_whose_folder_leads_elsewhere(
    file: str, content: Any, reason: str, folder: Path, photos: tuple[Sample, ...], tmp_path: Path
) -> None:
    broken = Path(copytree(folder, tmp_path / "model"))
    (broken / "model.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    path = broken / file
    if isinstance(content, dict):
        content = json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **content})
    path.write_text(content)
    with pytest.raises(GocaError, match=reason):
        local.LocalTagger(str(broken), tmp_path / "a.jsonl").tag(photos[0], dataset(*photos))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("seed", range(3))
def test_a_local_model_that_lacks_a_tensor(seed: int, folder: Path, photos: tuple[Sample, ...], tmp_path: Path) -> None:
    broken = Path(copytree(folder, tmp_path / "model"))
    tensors = load_file(broken / "model.safetensors")
    lost = random.Random(seed).choice(sorted(tensors))
    del tensors[lost]
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(GocaError, match=re.escape(".".join(lost.split(".")[-3:]))):
        local.LocalTagger(str(broken), tmp_path / "a.jsonl").tag(photos[0], dataset(*photos))


# The diffusion model itself.


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where what images without content say is kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def scheduler(kind: str) -> Any:
    return SimpleNamespace(
        config=SimpleNamespace(prediction_type=kind), alphas_cumprod=torch.tensor([0.99, 0.64, 0.36])
    )


def test_what_a_denoiser_should_say() -> None:
    image = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(1))
    noisy = add_noise(scheduler("epsilon"), image, 1, seed=4)
    noise = target(scheduler("epsilon"), image, 1, seed=4)
    assert torch.allclose(noisy, 0.8 * image + 0.6 * noise, atol=1e-6)
    assert torch.equal(noise[0], noise[1])
    velocity = target(scheduler("v_prediction"), image, 1, seed=4)
    assert torch.allclose(0.8 * noisy - 0.6 * velocity, image, atol=1e-6)
    assert torch.equal(target(scheduler("sample"), image, 1, seed=4), image)
    flow = scheduler("flow_prediction")
    assert torch.allclose(add_noise(flow, image, 300, 4) - 0.3 * target(flow, image, 300, 4), image, atol=1e-6)
    with pytest.raises(GocaError, match='"guess" is not supported'):
        target(scheduler("guess"), image, 1, seed=4)


@pytest.mark.parametrize("layout", ["plain", "with a variance", "backwards"])
def test_errors_are_those_of_each_caption_place_by_place(layout: str) -> None:
    """A denoiser that knows cats on the left quarter and clouds on the rest, and is wrong by 1 elsewhere."""
    pipeline, names = BUILDERS["sd3"](), ["dog", "clouds", "cat"]
    backbone = Segmenter.from_pipeline(pipeline, size=64).backbone
    with torch.no_grad():
        embedded = {
            name: pipeline.encode_prompt(name, name, name, do_classifier_free_guidance=False)[0] for name in names
        }
    clean = backbone.latents([Image.new("RGB", (64, 32))], (32, 64))

    def answer(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        noisy, timestep = kwargs["hidden_states"], int(kwargs["timestep"].flatten()[0])
        truth = (noisy - clean) / (timestep / 1000)
        wrong = torch.ones_like(noisy)
        quarter = noisy.shape[-1] // 4
        for row, text in zip(wrong, kwargs["encoder_hidden_states"], strict=True):
            (caption,) = (name for name, embedding in embedded.items() if torch.allclose(embedding[0], text, atol=1e-5))
            row[..., :quarter] -= float(caption == "cat")
            row[..., quarter:] -= float(caption == "clouds")
        prediction = truth + wrong
        answers = {"with a variance": torch.cat([prediction, prediction + 9], 1), "backwards": -prediction}
        return (answers.get(layout, prediction),)

    handle = pipeline.transformer.register_forward_hook(answer, with_kwargs=True)
    with torch.no_grad():
        errors = squared_errors(backbone.session(), clean, names, timestep=500, batch=2)
    handle.remove()
    quarter = errors.shape[-1] // 4
    expected = torch.ones_like(errors)
    expected[1, :, quarter:] = expected[2, :, :quarter] = 0
    torch.testing.assert_close(errors, expected, atol=1e-3, rtol=0)


def test_both_kinds_of_evidence_by_hand() -> None:
    rule = SelfRule(errors=PresenceRule(sharpness=1e6, window=0.0, half=2.0), weight=3.0)
    # Of four places the first candidate in doubt explains three and the second one none; the rest needs neither.
    errors = torch.tensor([[0.5, 1, 1, 1], [1, 0, 0, 0], [2, 2, 2, 2]])[:, None]
    evidence = torch.tensor([0.25, 0.9, 0.5])
    combined = rule.combined(Seen(evidence, (2, 1), errors))
    # 3 / 4 of the image is 9 / 4 of what one of three rows would have by chance: odds of 9 / 8, to the power of 3.
    odds = (9 / 8) ** 3
    assert combined.tolist() == pytest.approx([0.25, 0, odds / (1 + odds)])
    assert evidence.tolist() == pytest.approx([0.25, 0.9, 0.5])
    assert rule.combined(Seen(evidence, (), torch.empty(0, 1, 1))).tolist() == evidence.tolist()


@contextmanager
def counted(unet: Any) -> Iterator[list[int]]:
    """The rows of every batch that the denoiser works on; calls that are stopped before it do not count."""
    batches: list[int] = []
    handle = unet.conv_in.register_forward_hook(lambda module, args, output: batches.append(len(output)))
    yield batches
    handle.remove()


WORDS = [f"{first}{second}" for first in "bcdfghjklm" for second in ("ale", "ine", "ark", "ost")]


@pytest.mark.parametrize(
    ("count", "options", "shape", "rows"),
    [
        (3, {}, (32, 32), 1 + 1 + 3),
        (40, {}, (32, 32), PASSES),
        (12, {"seeds": 2, "flip": True}, (32, 32), PASSES),
        (12, {"window": True}, (64, 32), PASSES),
        (3, {"seeds": 10}, (32, 32), 10),  # the look alone
    ],
)
def test_ten_rows_are_the_most(
    count: int, options: Any, shape: tuple[int, int], rows: int, sd15: Any, image: Any, cache: Path
) -> None:
    tagger = SelfTagger(Segmenter.from_pipeline(sd15, size=32, batch=3, **options))
    tagger.shown(image(32, 32), WORDS[:count])  # what images without content say of these candidates is measured once
    with counted(sd15.unet) as batches:
        seen = tagger.seen(image(*shape), WORDS[:count])
    assert sum(batches) == rows
    assert len(seen.errors) == (len(seen.doubtful) + 1 if seen.doubtful else 0)
    assert len(seen.evidence) == count


@pytest.mark.parametrize("family", ["pixart_sigma", "flux", "flux2", "wan", "z_image"])
def test_errors_of_every_layout(family: str, image: Any) -> None:
    """Cells, patches of cells, frames of cells, and a list of images."""
    backbone = Segmenter.from_pipeline(BUILDERS[family](), size=64).backbone
    latents = backbone.latents([image()], fit(image(), 64, backbone.size_multiple))
    with torch.no_grad():
        errors = squared_errors(backbone.session(), latents, ["cat", "a cat, a dog", "dog"], timestep=500, batch=2)
    assert len(errors) == 3
    assert errors.shape[-1] / errors.shape[-2] == latents.shape[-1] / latents.shape[-2]
    # An untrained model predicts nothing of the noise, nor of the image.
    assert 0.1 < float(errors.mean()) < 10


def test_a_model_tags_scenes(bundled: Segmenter, tmp_path: Path, cache: Path) -> None:
    scenes = list(data.scenes())[:2]
    candidates = tuple(dict.fromkeys(name for scene in scenes for name in scene.classes))
    tagger, toy = tagger_for("self", bundled), dataset(categories=candidates)
    assert tagger.name == "self"
    captions = []
    for index, scene in enumerate(scenes):
        scene.image.save(tmp_path / f"{index}.png")
        captions.append(tagger.tag(sample("a", tmp_path / f"{index}.png"), toy).split(", "))
    assert all(set(names) <= set(candidates) for names in captions)
    scores = MultilabelScores.of(zip(captions, [scene.classes for scene in scenes], strict=True))
    # Saying everything has a precision of as many classes as a scene has, of all candidates.
    assert scores.precision > 1.5 * scores.actual / (len(scenes) * len(candidates))
    assert scores.recall > 0.3


def test_candidates_and_their_synonyms(bundled: Segmenter, tmp_path: Path, cache: Path) -> None:
    scene = next(data.scenes())
    scene.image.save(tmp_path / "a.png")
    photo = sample("a", tmp_path / "a.png")
    listed = tagger_for("self:sand, road", bundled)
    assert listed.tag(photo, dataset()) == "sand"
    with pytest.raises(GocaError, match='does not know "spoon"'):
        tagger_for("self:spoon, cat", bundled).tag(photo, dataset())
    # A class goes by its own name, also where the model only knows another word for it.
    toy = replace(dataset(), categories=(Category("dune", ("sand",)), Category("lane", ("road",))))
    assert tagger_for("self", bundled).tag(photo, toy) == "dune"


def test_who_sees_nothing_says_the_likeliest_only_where_one_has_to_be_there(bundled: Segmenter, cache: Path) -> None:
    tagger = SelfTagger(bundled, rule=SelfRule(floor=0.999, clear=1.0))
    image = next(data.scenes()).image
    candidates = ["snow", "sand", "road", "brick", "cow", "bus", "cat", "dog", "pig", "car"]
    assert tagger.shown(image, candidates) == ()
    assert tagger.shown(image, candidates, background=False) == ("sand",)


class Photos:
    """Images that are of no data set."""

    name = ""
    class_names = ()
    categories = ()
    background = True


def test_taggers_need_no_data_set(bundled: Segmenter, tmp_path: Path, cache: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    photo = SimpleNamespace(id="a.png", image=tmp_path / "a.png")
    assert tagger_named("given:cat").tag(photo, Photos()) == "cat"
    with CaptionStore(tmp_path / "captions.jsonl", "someone") as store:
        store.add(photo, Photos(), "cat, sky")
    assert CaptionsTagger(tmp_path / "captions.jsonl").tag(photo, Photos()) == "cat, sky"
    # Without classes to choose from, the model chooses among the nouns that it knows.
    vocabulary = bundled.backbone.settings.nouns
    tagger = tagger_for("self", bundled)
    assert {noun for group in parse(tagger.tag(photo, Photos())) for noun in group} <= set(vocabulary)
    free = Segmenter.from_pipeline(BUILDERS["sd15"](), size=64)
    with pytest.raises(GocaError, match="there are no candidates"):
        tagger_for("self", free).tag(photo, Photos())

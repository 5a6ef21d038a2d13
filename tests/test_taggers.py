"""Who says what is in an image: ground truth, lists, files, a local model, and the diffusion model itself."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from shutil import copytree
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from goca import GocaError, Segmenter
from goca import bundled as data
from goca.diffusion.timesteps import add_noise, target
from goca.evaluation.datasets.base import VOID, Category, Dataset, Sample
from goca.evaluation.oracle import true_classes
from goca.tagging import Means, Preparing, Tagger, local, prepare, tagger_named
from goca.tagging.captions import Captions, Entry, Record, read
from goca.tagging.multilabel import Agreement
from goca.tagging.self_pruning import ByError, ByMap, SelfPruning
from goca.testing.tiny import BUILDERS, tokenizers


def sample(name: str, image: Path = Path("unread.png"), labels: Sequence[int] = (0,)) -> Sample:
    return Sample(name, image, lambda: np.array([labels], np.uint16))


def dataset(*samples: Sample, categories: Sequence[str] = ("cat", "dog", "sky"), name: str = "toy") -> Dataset:
    palette = np.zeros((len(categories) + 1, 3), np.uint8)
    return Dataset(name, "val", tuple(map(Category, categories)), samples, True, palette)


def test_the_oracle_reads_the_ground_truth() -> None:
    one = sample("a", labels=(3, 0, 1, 3, VOID))
    assert true_classes(one, dataset()) == ("cat", "sky")
    oracle = tagger_named("oracle")
    assert isinstance(oracle, Tagger)
    assert not isinstance(oracle, Preparing)
    assert (oracle.name, oracle.tag(one, dataset())) == ("oracle", "cat, sky")
    assert oracle.tag(sample("b", labels=(0, VOID)), dataset()) == ""
    with pytest.raises(GocaError, match="label 4, and toy has 3"):
        oracle.tag(sample("c", labels=(4,)), dataset())


def test_a_given_list() -> None:
    given = tagger_named("given: Cat, (person, hat)")
    assert given.tag(sample("a"), dataset()) == "Cat, (person, hat)"
    assert given.name == "given: cat, (person, hat)"
    with pytest.raises(GocaError, match="no nouns"):
        tagger_named("given:,")


FILES = {
    "a.jsonl": '{"id": "a", "caption": "no"}\n\n{"id": "a", "caption": "cat, (sky, c\\u00e9)"}\n{"id": "b", "capt',
    "a.json": '{"a": "cat, (sky, cé)"}',
    "list.json": '[{"id": "a", "caption": "cat, (sky, cé)", "more": 1}]',
    "a.tsv": "b\tdog\n\na\tcat, (sky, cé)\n",
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
    assert Captions(path).tag(sample("a"), dataset()) == "cat"
    assert Captions(path).tag(sample("a"), dataset(name="other")) == "dog"
    with pytest.raises(GocaError, match="third"):
        Captions(path).tag(sample("a"), dataset(name="third"))


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
        ("a.txt", "cat", "ends in .jsonl"),
        ("a.jsonl", '{"id": "a", "cap\n{"id": "b", "caption": "cat"}\n', "line 1 is no caption"),
        ("a.jsonl", '{"id": "a"}\n', "line 1 is no caption"),
        ("a.jsonl", '{"id": 7, "caption": "cat"}\n', "line 1 is no caption"),
        ("a.jsonl", b"\xff\xfe\n", "line 1 is no caption"),
        ("a.json", "{", "no JSON"),
        ("a.json", "7", "holds no captions"),
        ("a.json", '["cat"]', "entry 1 is no caption"),
        ("a.json", '{"a": ["cat"]}', "entry 1 is no caption"),
        ("a.tsv", "cat", "line 1 is no caption"),
        ("a.tsv", b"a\t\xff", "UTF-8"),
        ("missing.json", None, "cannot read .* No such file"),
    ],
)
def test_files_that_hold_no_captions(name: str, content: str | bytes | None, reason: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(GocaError, match=reason):
        Captions(tmp_path / name)


def test_a_record_goes_on_where_it_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.jsonl"
    toy = dataset()
    record = Record(path, "someone")
    assert record.get(sample("a"), toy) is None
    assert not path.parent.exists()
    for name in ("a", "b", "c"):
        record.add(sample(name), toy, f"{name}-noun, é")
    whole = path.read_bytes()
    wanted = [Entry(name, f"{name}-noun, é", "toy", "someone") for name in ("a", "b", "c")]
    start = whole.rindex(b"\n", 0, -1) + 1
    # Cut anywhere in the last line: a whole line without its end counts, any other is written again.
    for cut in (start, start + 1, start + 30, len(whole) - 2, len(whole) - 1, len(whole)):
        path.write_bytes(whole[:cut])
        again = Record(path, "someone")
        known = again.get(sample("c"), toy)
        assert known == ("c-noun, é" if cut >= len(whole) - 1 else None)
        # Who only reads changes nothing.
        assert path.read_bytes() == whole[:cut]
        if known is None:
            again.add(sample("c"), toy, "c-noun, é")
        again.open()
        assert path.read_bytes() == whole
        assert list(read(path)) == wanted
    assert again.get(sample("a"), dataset(name="other")) is None


def test_a_record_that_cannot_be_kept(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    record = Record(tmp_path / "file" / "a.jsonl", "someone")
    for write in (record.open, lambda: record.add(sample("a"), dataset(), "cat")):
        with pytest.raises(GocaError, match="cannot write the captions"):
            write()
    assert record.get(sample("a"), dataset()) is None
    (tmp_path / "b.jsonl").write_text('{"id": "a", "caption": "by hand"}\n')
    with pytest.raises(GocaError, match="name another file"):
        Record(tmp_path / "b.jsonl", "someone")
    assert (tmp_path / "b.jsonl").read_text() == '{"id": "a", "caption": "by hand"}\n'


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("human", 'no tagger "human": there are oracle, given'),
        ("oracle:x", "no tagger"),
        ("self:guess", "self:error, self:map"),
        ("self:map:", "self:error, self:map"),
        ("self:map", "a segmenter has to be given"),
        ("local:folder", r"\(--out RUN\)"),
    ],
)
def test_taggers_that_there_are_not(spec: str, reason: str) -> None:
    with pytest.raises(GocaError, match=reason):
        tagger_named(spec)


def test_agreement() -> None:
    found = Agreement.of([(["cat", "sky"], ["cat"]), ([], ["dog", "sky"]), (["dog", "cat"], ["dog", "cat"])])
    assert found == Agreement(right=3, said=4, true=5)
    assert (found.precision, found.recall, found.f1) == (3 / 4, 3 / 5, 6 / 9)
    assert Agreement.of([([], [])]).f1 == Agreement(0, 0, 0).precision == 0


# The local model.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA of random weights, 28 px and four image tokens."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
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
    tagger = tagger_named(f"local:{folder}", Means(captions=path, batch=2))
    assert re.fullmatch(r"local llava \([0-9a-f]{8}\)", tagger.name)
    batches = []
    shown = tagger._captions
    monkeypatch.setattr(tagger, "_captions", lambda part, request: batches.append(len(part)) or shown(part, request))
    done: list[int] = []
    photos[3].image.write_text("broken")
    first = tagger.tag(photos[1], toy)
    prepare(tagger, photos, toy, lambda: done.append(1))
    assert len(done) == 5
    assert batches == [1, 2, 1]
    with pytest.raises(GocaError, match=r"3\.png"):
        tagger.tag(photos[3], toy)
    captions = [tagger.tag(one, toy) for one in photos if one is not photos[3]]
    assert captions[1] == first
    assert len(set(captions)) > 1
    # The request is not part of the answer.
    assert all("so:" not in caption and "divided" not in caption for caption in captions)
    assert {entry.tagger for entry in read(path)} == {tagger.name}
    # Who knows every image loads no model.
    again = local.Local(str(folder), path)
    monkeypatch.setattr(local.Local, "_loaded", property(lambda self: pytest.fail("loaded")))
    assert again.tag(photos[0], toy) == captions[0]
    assert Captions(path).tag(photos[0], toy) == captions[0]


def test_a_local_model_is_named_by_its_files(
    folder: Path, photos: tuple[Sample, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def name(model: str | Path) -> str:
        return tagger_named(f"local:{model}", Means(captions=tmp_path / "none" / "captions.jsonl")).name

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
    Record(path, name(folder)).add(photos[0], dataset(), "cat")
    with pytest.raises(GocaError, match="name another file"):
        tagger_named(f"local:{copy}", Means(captions=path))


def test_captions_that_cannot_be_kept_are_not_made(
    photos: tuple[Sample, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(local.Local, "_loaded", property(lambda self: pytest.fail("loaded")))
    tagger = local.Local("someone/llava", tmp_path / "file" / "captions.jsonl")
    with pytest.raises(GocaError, match="cannot write the captions"):
        prepare(tagger, photos, dataset(*photos))


def test_alone_or_in_a_batch(folder: Path, photos: tuple[Sample, ...], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(local, "MOST_TOKENS", 7)
    toy = dataset(*photos)
    together = local.Local(str(folder), tmp_path / "a.jsonl", batch=3)
    prepare(together, photos, toy)
    alone = local.Local(str(folder), tmp_path / "b.jsonl")
    assert [alone.tag(one, toy) for one in photos] == [together.tag(one, toy) for one in photos]


def test_answers_begin_behind_the_prompt() -> None:
    prompt = torch.tensor([5, 3])
    assert local._behind(torch.tensor([5, 3, 7]), prompt).tolist() == [7]
    assert local._behind(torch.tensor([9, 3, 7]), prompt).tolist() == [9, 3, 7]
    assert local._behind(torch.tensor([5]), prompt).tolist() == [5]


def test_models_that_cannot_be_local(folder: Path, photos: tuple[Sample, ...], tmp_path: Path) -> None:
    toy = dataset(*photos)
    with pytest.raises(GocaError, match="batch 0"):
        local.Local("x", tmp_path / "a.jsonl", batch=0)
    with pytest.raises(GocaError, match="no model"):
        local.Local("", tmp_path / "a.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(GocaError, match="is the folder complete"):
        local.Local(str(tmp_path / "empty"), tmp_path / "a.jsonl").tag(photos[0], toy)
    mute = tmp_path / "mute"
    mute.mkdir()
    for file in folder.iterdir():
        if file.name != "chat_template.jinja":
            (mute / file.name).write_bytes(file.read_bytes())
    with pytest.raises(GocaError, match="no chat template"):
        local.Local(str(mute), tmp_path / "a.jsonl").tag(photos[0], toy)


# The diffusion model itself.


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
def test_errors_are_compared_place_by_place(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A denoiser that knows cats on the left quarter and skies on the rest, and is wrong by 1 elsewhere."""
    segmenter = Segmenter.from_pipeline(BUILDERS["sd3"](), batch=2, size=64)
    backbone = segmenter.backbone
    told = []

    def forward(latents: Any, captions: Sequence[str], level: int, seed: int, *unused: Any) -> torch.Tensor:
        told.append((level, seed, len(captions)))
        right = target(backbone.pipeline.scheduler, latents, level, seed)
        wrong = torch.ones(len(captions), 1, 8, 16)
        for row, caption in zip(wrong, captions, strict=True):
            row[..., :4] -= float(caption == "cat")
            row[..., 4:] -= float(caption == "clouds")
        said = right + wrong
        return {"plain": said, "with a variance": torch.cat([said, said + 9], 1), "backwards": -said}[layout]

    monkeypatch.setattr(backbone, "forward", forward)
    monkeypatch.setattr(backbone, "latents", lambda images, size: torch.zeros(1, 4, 8, 16))
    judge = ByError(levels=(500, 900), window=0.0)
    # Captions of another length wait for a batch of their own.
    monkeypatch.setattr(backbone, "prompt", lambda caption, prompts: SimpleNamespace(shape=len(caption)))
    scores = judge.scores(segmenter, Image.new("RGB", (64, 32)), ["dog", "clouds", "cat"])
    assert scores.tolist() == [0, 0.75, 0.25]
    assert told == [(500, 0, 2), (500, 0, 1), (900, 1, 2), (900, 1, 1)]


@pytest.mark.parametrize("family", ["sd15", "pixart_sigma", "sd3"])
def test_errors_of_real_layouts(family: str, image: Any) -> None:
    segmenter = Segmenter.from_pipeline(BUILDERS[family](), batch=2, size=64)
    scores = ByError(levels=(300,)).scores(segmenter, image(64, 96), ["cat", "dog", "sky"])
    assert float(scores.sum()) == pytest.approx(1)


def test_packed_answers_are_refused(image: Any) -> None:
    segmenter = Segmenter.from_pipeline(BUILDERS["flux"](), batch=2, size=64)
    with pytest.raises(GocaError, match="self:map"):
        ByError(levels=(300,)).scores(segmenter, image(), ["cat", "dog"])
    scores = ByMap().scores(segmenter, image(), ["cat", "dog"])
    assert scores.shape == (2,)
    assert bool((scores >= 0).all())


def test_the_map_asks_again_about_the_better_half(bundled: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    stream = Segmenter.stream

    def listening(self: Segmenter, questions: Any, **unused: Any) -> Any:
        (question,) = questions
        asked.append(list(question.classes))
        return stream(self, [question])

    monkeypatch.setattr(Segmenter, "stream", listening)
    scene = next(data.scenes())
    known = bundled.backbone.settings.nouns[:11]
    scores = ByMap(few=3).scores(bundled, scene.image, known)
    assert [len(names) for names in asked] == [11, 6, 3]
    assert set(asked[2]) < set(asked[1]) < set(known)
    assert {name for name, score in zip(known, scores.tolist(), strict=True) if score >= 0} == set(asked[2])


@pytest.mark.parametrize("judge", ["error", "map"])
def test_a_model_tags_scenes(judge: str, bundled: Segmenter, tmp_path: Path) -> None:
    scenes = list(data.scenes())[:2]
    candidates = tuple(dict.fromkeys(name for scene in scenes for name in scene.classes))
    for index, scene in enumerate(scenes):
        scene.image.save(tmp_path / f"{index}.png")
    toy = dataset(categories=candidates)
    tagger = tagger_named(f"self:{judge}", Means(segmenter=bundled))
    assert tagger.name == f"self {judge}"
    said = [tagger.tag(sample("a", tmp_path / f"{index}.png"), toy).split(", ") for index in range(len(scenes))]
    assert all(set(names) <= set(candidates) for names in said)
    found = Agreement.of(zip(said, [scene.classes for scene in scenes], strict=True))
    # Saying everything has a precision of as many classes as a scene has, of all candidates.
    assert found.precision > 1.5 * found.true / (len(scenes) * len(candidates))
    assert found.recall > 0.3


class Fixed:
    """A judge whose mind is made up."""

    name, threshold = "fixed", 0.5

    def __init__(self, *scores: float) -> None:
        self._scores = torch.tensor(scores)

    def scores(self, *unused: Any) -> torch.Tensor:
        return self._scores


def test_candidates_and_threshold(bundled: Segmenter, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    one = sample("a", tmp_path / "a.png")
    assert SelfPruning(bundled, Fixed(0.5, 0.4, 0.7)).tag(one, dataset()) == "cat, sky"
    # Who is sure of nothing says the likeliest.
    assert SelfPruning(bundled, Fixed(0.1, -torch.inf, 0.3)).tag(one, dataset()) == "sky"
    listed = tagger_named("self:map:fish, road", Means(segmenter=bundled))
    assert isinstance(listed, SelfPruning)
    assert listed.candidates == ("fish", "road")
    assert set(listed.tag(one, dataset()).split(", ")) <= {"fish", "road"}
    for judge in ("error", "map"):
        with pytest.raises(GocaError, match='does not know "spoon"'):
            tagger_named(f"self:{judge}:spoon, cat", Means(segmenter=bundled)).tag(one, dataset())

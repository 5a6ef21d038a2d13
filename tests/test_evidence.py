"""Evidence in results: what reaches the floor is asked for, nothing else; and what an image without content says."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import Outcome
from PIL import Image
from torch import Tensor, nn

from goca import GOCA, GOCA_BALANCED, GOCA_OPEN, GocaError, Recipe, Segmenter
from goca.diffusion.fingerprint import fingerprint
from goca.evidence import CONTENT_FREE, MARGIN, ContentFree, class_maps
from goca.maths.background import Background, constant
from goca.plan import Options
from goca.request import RequestNouns, SegmentationRequest
from goca.segmentation import Segmentation
from goca.testing.tiny import BUILDERS
from goca.text.nouns import Noun

Make = Callable[..., Image.Image]
OPEN = replace(GOCA_OPEN, evidence="attention")
CLASSES = ["cat", "grass", "dog"]
FAMILIES = ["sd15", "sdxl", "pixart_sigma", "sana", "flux", "sd3"]


@dataclass
class Says:
    """A tagger that says the same of every image."""

    caption: str
    name: str = "says"

    def tag(self, sample: Any, dataset: Any) -> str:
        return self.caption


def built(name: str, recipe: Recipe = OPEN, **settings: Any) -> Segmenter:
    return Segmenter.from_pipeline(BUILDERS[name](), recipe, size=64, **settings)


def at_floor(segmenter: Segmenter, floor: float) -> Segmenter:
    return segmenter.with_plan(replace(segmenter.plan, floor=floor))


def splitting(result: Segmentation) -> tuple[str, float]:
    """The class with the most evidence, and a floor that it alone reaches."""
    (name, most), (_, second) = sorted(zip(result.classes, result.evidence, strict=True), key=lambda pair: -pair[1])[:2]
    assert second < most
    return name, (most + second) / 2


@pytest.fixture(scope="module")
def open_sd15() -> Segmenter:
    return built("sd15", floor=0.0)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "goca" / "content-free"


@contextmanager
def rows(segmenter: Segmenter) -> Iterator[list[int]]:
    """How many rows each pass of a UNet has that looks at whole images, and not at the smallest for keys."""
    sizes: list[int] = []

    def count(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        if args[0].shape[-1] > 4:
            sizes.append(len(args[0]))

    handle = segmenter.backbone.pipeline.unet.conv_in.register_forward_hook(count)
    yield sizes
    handle.remove()


# ---- the floor


@pytest.mark.parametrize("name", FAMILIES)
def test_what_reaches_the_floor_is_asked_for_and_nothing_else(name: str, image: Make) -> None:
    segmenter = built(name, floor=0.0)
    everything = segmenter(image(), CLASSES)
    pipeline = segmenter.backbone.pipeline
    balanced = Segmenter.from_pipeline(pipeline, GOCA_BALANCED, size=64)
    plain = balanced(image(), CLASSES)
    assert np.array_equal(everything.labels, plain.labels)
    assert np.array_equal(everything.scores.grid, plain.scores.grid)
    assert all(0 <= evidence <= 1 for evidence in everything.evidence)

    best, floor = splitting(everything)
    result = at_floor(segmenter, floor)(image(), CLASSES)
    assert result.evidence == everything.evidence
    alone = balanced(image(), [best], result.plan.background_classes)
    index = CLASSES.index(best)
    assert np.array_equal(result.labels, np.array([0, index + 1], np.uint16)[alone.labels])
    assert np.array_equal(result.scores.grid[index], alone.scores.grid[0])
    others = [other for other in CLASSES if other != best]
    assert all(result.present[other].share == 0 < result.present[other].evidence for other in others)
    assert f"too little evidence for {', '.join(others)}: no pixels" in result.plan.notes
    (low,) = result.relabelled([Background(constant, 0.0)])
    assert set(np.unique(low)) <= {0, index + 1}

    nothing = at_floor(segmenter, 1.0)(image(), CLASSES)
    assert not nothing.labels.any()
    assert nothing.evidence == everything.evidence
    assert nothing.plan.captions == ()
    assert nothing.overlay().width >= 160


@pytest.mark.parametrize("name", FAMILIES)
def test_evidence_depends_on_no_order_and_on_no_other_image(name: str, image: Make) -> None:
    segmenter = built(name, floor=0.0)
    requests = [
        SegmentationRequest(image(), CLASSES),
        SegmentationRequest(image(64, 96, 1), {"boat": ["ship"], "sky": []}),
        SegmentationRequest(image(), CLASSES[::-1]),
    ]
    first, other, reverse = (result for _, result in segmenter.stream(requests))
    alone = segmenter(image(64, 96, 1), {"boat": ["ship"], "sky": []})
    assert isinstance(first, Segmentation)
    assert isinstance(other, Segmentation)
    assert isinstance(reverse, Segmentation)
    assert reverse.evidence[::-1] == pytest.approx(first.evidence, abs=1e-6)
    assert other.evidence == pytest.approx(alone.evidence, abs=1e-6)


def test_without_a_background_one_class_at_least_remains(open_sd15: Segmenter, image: Make) -> None:
    classes = ["cat", "dog", "boat", "house", "car", "bird", "lamp", "bus", "pig", "ball"]
    result = at_floor(open_sd15, 0.999)(image(), classes, background="none")
    best = max(classes, key=lambda name: result.present[name].evidence)
    assert set(np.unique(result.labels)) == {classes.index(best) + 1}
    few = at_floor(open_sd15, 0.999)(image(), CLASSES, background=None)
    assert few.asked == (0, 1, 2)


def test_a_threshold_is_the_background_s_among_what_remains(open_sd15: Segmenter, image: Make) -> None:
    best, floor = splitting(open_sd15(image(), CLASSES, background=0.4))
    result = at_floor(open_sd15, floor)(image(), CLASSES, background=0.4)
    assert result.plan.to_json()["background"] == {"rule": "constant", "threshold": 0.4}
    assert set(np.unique(result.labels)) == {0, CLASSES.index(best) + 1}


def test_one_class_with_nothing_beside_it(open_sd15: Segmenter, image: Make) -> None:
    result = open_sd15(image(), ["cat"], background_classes=[])
    assert 0 <= result.evidence[0] <= 1
    assert not at_floor(open_sd15, 1.0)(image(), ["cat"], background_classes=[]).labels.any()


def test_mirroring_windows_noises_and_edges(image: Make) -> None:
    segmenter = built("sd15", flip=True, timestep=(100, 300), refine_edges=True, batch=3, floor=0.0)
    plain, mirrored = (segmenter(each, CLASSES) for each in (image(), image().transpose(Image.FLIP_LEFT_RIGHT)))
    assert mirrored.evidence == pytest.approx(plain.evidence, abs=1e-4)
    best, floor = splitting(plain)
    result = at_floor(segmenter, floor)(image(), CLASSES)
    assert result.uncertainty is not None
    assert result.uncertainty.max() > 0
    assert set(np.unique(result.labels)) <= {0, CLASSES.index(best) + 1}
    windows = built("sd15", window=True, seeds=2, batch=3, floor=0.0)(image(), CLASSES)
    assert any("windows" in note for note in windows.plan.notes)
    assert all(0 <= evidence <= 1 for evidence in windows.evidence)


def test_half_precision(image: Make) -> None:
    whole, half = (
        Segmenter.from_pipeline(BUILDERS["sd15"]().to(dtype), OPEN, size=64)(image(), CLASSES)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert half.evidence == pytest.approx(whole.evidence, abs=0.02)


def test_a_tagger_chooses_first(open_sd15: Segmenter, image: Make) -> None:
    everything = open_sd15(image(), CLASSES)
    result = open_sd15(image(), CLASSES, tagger=Says("dog, cat"))
    assert result.asked == (0, 2)
    assert result.evidence == everything.evidence
    result = at_floor(open_sd15, 1.0)(image(), CLASSES, tagger=Says("dog"))
    assert not result.labels.any()
    assert "too little evidence for dog: no pixels" in result.plan.notes  # of the others the tagger said so
    result = at_floor(open_sd15, 0.5)(image(), CLASSES, tagger=Says("spoon"))
    assert result.asked == ()
    assert not any("too little evidence" in note for note in result.plan.notes)


def test_a_caption_of_the_user_s_is_the_prompt_of_what_remains(open_sd15: Segmenter, image: Make) -> None:
    classes = ["cat", "dog"]
    _, floor = splitting(open_sd15(image(), classes, caption="a cat and a dog"))
    result = at_floor(open_sd15, floor)(image(), classes, caption="a cat and a dog")
    assert result.plan.captions == ("a cat and a dog",)
    with pytest.raises(GocaError, match="caption"):
        at_floor(open_sd15, 1.0).check(SegmentationRequest("", ["boat"], caption="a cat"))


def test_words_of_a_vocabulary(bundled: Segmenter, image: Make) -> None:
    segmenter = Segmenter.from_pipeline(bundled.backbone.pipeline, OPEN, floor=0.0)
    result = segmenter(image(), {"Cats": [], "fungus": ["mushroom"], "lawn": ["grass"]})
    assert result.classes == ("Cats", "fungus", "lawn")
    same = segmenter(image(), ["cat", "mushroom", "grass"])
    assert result.evidence == same.evidence


def test_nouns_that_cannot_be_looked_for_cost_no_other_image(open_sd15: Segmenter, image: Make) -> None:
    unspeakable = SegmentationRequest(image(), ["cat", "the"])
    requests = [unspeakable, SegmentationRequest(image(), CLASSES), SegmentationRequest(b"broken", CLASSES)]
    outcomes = [outcome for _, outcome in open_sd15.stream(requests)]
    assert [isinstance(outcome, GocaError) for outcome in outcomes] == [True, False, True]
    assert "stop words" in str(outcomes[0])
    with pytest.raises(GocaError, match="stop words"):
        open_sd15.check(unspeakable)


# ---- images without content


def test_images_without_content_are_looked_at_once(own_cache: Path, image: Make) -> None:
    segmenter = built("sd15", floor=0.0)
    with rows(segmenter) as sizes:
        first = segmenter(image(), CLASSES)
        assert sum(sizes) == CONTENT_FREE + 2
        sizes.clear()
        segmenter(image(seed=1), CLASSES[::-1])
        assert sum(sizes) == 2
    again = built("sd15", floor=0.0, flip=True)  # the same weights, loaded once more
    with rows(again) as sizes:
        again(image(), CLASSES)
    assert sum(sizes) == 4
    with rows(again) as sizes:
        again(image(), [*CLASSES, "boat"])
    assert sum(sizes) == 4 + CONTENT_FREE
    (file, _) = sorted(own_cache.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    file.write_text("[NaN")
    healed = built("sd15", floor=0.0)
    assert healed(image(), CLASSES).evidence == first.evidence
    assert file.read_text() != "[NaN"


@pytest.mark.parametrize("damage", ["[1.0, 2.0]", '["cat"]', "[NaN", ""])
def test_a_damaged_answer_is_measured_again(sd15: Any, open_sd15: Segmenter, tmp_path: Path, damage: str) -> None:
    asked: list[int] = []

    def measure(images: Sequence[Image.Image], nouns: Sequence[Noun]) -> list[Tensor]:
        asked.append(len(images))
        return [torch.full((len(nouns), 2, 2), 0.5) for _ in images]

    def prior() -> Tensor:
        return ContentFree(sd15, open_sd15.plan, tmp_path).prior([Noun("cat", ("cat",))], "weights", measure)

    expected = prior()
    (file,) = tmp_path.iterdir()
    whole = file.read_text()
    file.write_text(damage)
    assert torch.equal(prior(), expected)
    assert file.read_text() == whole
    assert asked == [CONTENT_FREE, CONTENT_FREE]
    assert torch.equal(prior(), expected)
    assert asked == [CONTENT_FREE, CONTENT_FREE]


def test_other_weights_are_asked_anew(own_cache: Path, image: Make) -> None:
    segmenter = built("sd15", floor=0.0)
    before = segmenter(image(), CLASSES)
    with torch.no_grad():
        for parameter in segmenter.backbone.denoiser.parameters():
            parameter.mul_(1.25)
    with rows(segmenter) as sizes:
        after = segmenter(image(), CLASSES)
    assert sum(sizes) == CONTENT_FREE + 2
    fresh = Segmenter.from_pipeline(segmenter.backbone.pipeline, OPEN, size=64, floor=0.0)(image(), CLASSES)
    assert after.evidence == fresh.evidence != before.evidence


def test_a_lora_and_its_weight_are_in_the_fingerprint(sd15: Any) -> None:
    peft = pytest.importorskip("peft")
    marks = [fingerprint(sd15)]
    sd15.unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_k"], init_lora_weights=False), "style")
    marks.append(fingerprint(sd15))
    sd15.unet.set_adapters("style", 0.5)
    marks.append(fingerprint(sd15))
    sd15.unet.disable_adapters()
    marks.append(fingerprint(sd15))
    assert len(set(marks)) == 4


def test_what_is_said_of_an_offloaded_model_is_kept_for_its_process_alone(
    sd15: Any, open_sd15: Segmenter, tmp_path: Path
) -> None:
    sd15.unet.to("meta")
    asked: list[int] = []

    def measure(images: Sequence[Image.Image], nouns: Sequence[Noun]) -> list[Tensor]:
        asked.append(len(images))
        return [torch.full((len(nouns), 2, 2), 0.5) for _ in images]

    content_free = ContentFree(sd15, open_sd15.plan, tmp_path)
    for _ in range(2):
        prior = content_free.prior([Noun("cat", ("cat",))], fingerprint(sd15), measure)
        torch.testing.assert_close(prior, torch.tensor([0.5]).log(), rtol=1e-4, atol=0)
    assert asked == [CONTENT_FREE]
    assert not list(tmp_path.iterdir())


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image: Make) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    segmenter = built("sd15", floor=0.0)
    with rows(segmenter) as sizes:
        first, second = segmenter([image(), image()], CLASSES)
        segmenter(image(), CLASSES)
    assert sum(sizes) == CONTENT_FREE + 6
    assert first.evidence == pytest.approx(second.evidence)


# ---- what shows it


def test_results_show_evidence_and_plans_how_it_is_measured(open_sd15: Segmenter, image: Make) -> None:
    result = at_floor(open_sd15, 0.25)(image(), CLASSES)
    facts = json.loads(json.dumps(result.to_json()))
    assert [entry["evidence"] for entry in facts["classes"]] == list(result.evidence)
    plan = facts["plan"]
    assert (plan["evidence"], plan["floor"]) == ("attention", 0.25)
    assert plan["evidence_blocks"] == list(open_sd15.plan.evidence_blocks)
    assert open_sd15.plan.origin["floor"] == "user"
    assert open_sd15.plan.origin["evidence"] == "recipe"
    shown = result._repr_html_()
    assert "<th>evidence</th>" in shown
    assert all(f"<td>{evidence:.2f}</td>" in shown for evidence in result.evidence)


def test_a_noun_that_is_much_likelier_leaves_a_cell_to_the_background() -> None:
    cat, dog, sky = (Noun(name, (name,)) for name in ("cat", "dog", "sky"))
    nouns = RequestNouns((cat, dog), (sky,), by_default=False, kept=None, notes=())
    # In turn the cat, the sky, another noun and the class that was dropped are likeliest, the last two twice.
    others = torch.tensor([0.0, 1.0, MARGIN - 0.1, MARGIN + 0.1, MARGIN - 0.1, MARGIN + 0.1])
    logits = torch.zeros(4, 1, 6)  # cat, dog, sky, cow
    for column, row in enumerate((0, 2, 3, 3, 1, 1)):
        logits[row, 0, column] = others[column]
    logits[2, 0, [0, 2, 3, 4, 5]] = -1.0
    maps = class_maps(logits, nouns, [0])
    assert maps.background is not None
    assert (maps.classes[0] > maps.background)[0].tolist() == [True, False, True, False, True, False]
    # Nothing but the other nouns can be the background where none is named.
    alone = class_maps(logits[[0, 1, 3]], replace(nouns, background_classes=()), [0, 1])
    assert alone.background is not None
    assert (alone.classes.amax(0) >= alone.background)[0].tolist() == [True, True, False, False, True, True]


@pytest.mark.parametrize("floor", [-0.1, 1.5, float("nan")])
def test_a_floor_is_a_number_from_0_to_1(floor: Any) -> None:
    for make in (lambda: Options(floor=floor), lambda: replace(GOCA_OPEN, floor=floor)):
        with pytest.raises(GocaError, match="is not a number from 0 to 1: give one, 0 to keep every class") as error:
            make()
        assert error.value.hint == "floor"


def test_a_floor_needs_a_recipe_that_measures_evidence(sd15: Any) -> None:
    with pytest.raises(GocaError, match='recipe "goca" measures no evidence'):
        Segmenter.from_pipeline(sd15, GOCA, floor=0.5)
    assert Segmenter.from_pipeline(sd15, GOCA, floor=0.0).plan.floor == 0
    with pytest.raises(GocaError, match="needs prototypes"):
        Segmenter.from_pipeline(sd15, replace(GOCA_OPEN, evidence="prototypes"))
    with pytest.raises(GocaError, match="evidence 'guess' is not valid"):
        replace(GOCA_OPEN, evidence="guess")


def test_the_command_line(
    goca: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image: Make
) -> None:
    monkeypatch.chdir(tmp_path)
    image().save("photo.png")
    ask = ("segment", "photo.png", "--classes", "cat, grass", "--recipe", "goca-open")
    done = goca(*ask, "--floor", "1")
    assert (done.code, len(done.err.splitlines())) == (0, 1)
    assert "evidence" in done.out
    assert "(background)  100.0%" in " ".join(done.out.split()).replace(") ", ")  ")
    assert "note: too little evidence for cat, grass: no pixels" in done.out
    facts = json.loads(Path("goca-out/photo.json").read_text())
    assert facts["plan"]["floor"] == facts["options"]["floor"] == 1
    assert all(f"{entry['evidence']:.2f}" in done.out for entry in facts["classes"])
    for wrong in ("2", "-1", "nan", "much"):
        failed = goca(*ask, f"--floor={wrong}")
        assert failed.code == 2
        assert "--floor" in failed.err
        assert len(failed.err.splitlines()) == 1
    failed = goca("segment", "photo.png", "--classes", "cat", "--floor", "0.5", "--recipe", "goca")
    assert failed.code == 2
    assert 'recipe "goca" measures no evidence' in failed.err

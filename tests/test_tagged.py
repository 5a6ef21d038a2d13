"""Classes as a tagger's candidates: what is asked, what has no pixels, and what a folder's run keeps of it."""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Outcome
from PIL import Image

from goca import GOCA, GocaError, Segmenter
from goca.folders import ImageOutcome, ModelOptions, TaggingProgress, plan_outputs, segment_images
from goca.maths.background import Background, constant
from goca.parallel import Executor
from goca.request import SegmentationRequest
from goca.tagging.base import Estimate

Make = Callable[..., Image.Image]
CLASSES = ["cat", "grass", "dog", "sky"]


@dataclass
class Says:
    """A tagger that says the same of every image, or nothing of an image of that file's name."""

    caption: str
    silent: str = ""
    name: str = "says"
    seen: list[str] = field(default_factory=list)

    def tag(self, sample: Any, dataset: Any) -> str:
        self.seen.append(sample.id)
        if self.silent and sample.id.endswith(self.silent):
            raise GocaError(f"nobody knows {sample.id}")
        return self.caption


def test_absent_classes_have_no_pixels_and_the_others_are_asked_for_alone(bundled: Segmenter, image: Make) -> None:
    result = bundled(image(), CLASSES, ["water"], tagger=Says("sky, a Dog, spoon"))
    alone = bundled(image(), ["dog", "sky"], ["water"])
    assert result.classes == tuple(CLASSES)
    assert np.array_equal(result.labels, np.array([0, 3, 4], np.uint16)[alone.labels])
    assert np.array_equal(result.scores.grid[2:], alone.scores.grid)
    assert not result.scores.grid[:2].any()
    assert result.present["cat"] == (0, 0)
    assert result.present["dog"] == alone.present["dog"]
    facts = result.to_json()
    assert (facts["tagger"], facts["kept"]) == ("says", ["dog", "sky"])
    assert any("says" in note for note in result.plan.notes)
    # Other backgrounds keep to the same classes.
    (low,), (low_alone,) = (list(each.relabelled([Background(constant, 0.2)])) for each in (result, alone))
    assert np.array_equal(low, np.array([0, 3, 4], np.uint16)[low_alone])
    assert set(np.unique(low)) == {0, 3, 4}
    assert "kept" not in alone.to_json()


def test_passes_and_edges_agree_with_the_kept_classes_alone(image: Make) -> None:
    segmenter = Segmenter.from_pretrained("bundled", GOCA, seeds=2, refine_edges=True)
    result = segmenter(image(), CLASSES, ["water"], tagger=Says("sky, dog"))
    alone = segmenter(image(), ["dog", "sky"], ["water"])
    assert np.array_equal(result.labels, np.array([0, 3, 4], np.uint16)[alone.labels])
    assert result.scores.ensemble_std is not None
    assert np.array_equal(result.scores.ensemble_std[2:], alone.scores.ensemble_std)


def test_synonyms_name_their_class(bundled: Segmenter, image: Make) -> None:
    classes = {"cat": ["kitty"], "grass": [], "dog": []}
    with pytest.raises(GocaError, match="does not know"):
        bundled(image(), {"kitty": []})
    result = bundled(image(), classes, ["water"], tagger=Says("kitties, grass"))
    assert result.kept is not None
    assert result.kept.classes == ("cat", "grass")


def test_an_image_that_shows_none_is_background(bundled: Segmenter, image: Make) -> None:
    result = bundled(image(51, 37), CLASSES, tagger=Says("spoon"))
    assert result.labels.shape == (37, 51)
    assert not result.labels.any()
    assert result.to_json()["kept"] == []
    assert json.loads(json.dumps(result.to_json()))["classes"][0]["evidence"] == 0
    assert [labels.any() for labels in result.relabelled([Background(constant, 0.2)])] == [False]
    assert result.overlay().size[0] >= 51


def test_without_a_background_one_class_is_everywhere_and_none_means_all(bundled: Segmenter, image: Make) -> None:
    one = bundled(image(), CLASSES, background=None, tagger=Says("dog"))
    assert set(np.unique(one.labels)) == {3}
    assert one.present["dog"] == (1, 1)
    nothing = bundled(image(), CLASSES, background="none", tagger=Says("spoon"))
    everything = bundled(image(), CLASSES, background="none")
    assert np.array_equal(nothing.labels, everything.labels)


def test_a_tagger_sees_each_image_once_and_a_failure_leaves_it_out(bundled: Segmenter, image: Make) -> None:
    buffer = io.BytesIO()
    image().save(buffer, "PNG")
    buffer.seek(0)
    tagger = Says("dog, sky", silent="b.png")
    requests = [SegmentationRequest(source, CLASSES) for source in (buffer, "missing/b.png", b"broken", image())]
    outcomes = [outcome for _, outcome in bundled.stream(requests, tagger=tagger)]
    assert [isinstance(outcome, GocaError) for outcome in outcomes] == [False, True, True, False]
    assert str(outcomes[1]) == "nobody knows missing/b.png"
    assert len(tagger.seen) == 3
    # The same pixels are the same image, whatever it came as.
    assert tagger.seen[0] == tagger.seen[2]
    assert np.array_equal(outcomes[0].labels, outcomes[3].labels)  # type: ignore[union-attr]


def test_taggers_by_name(bundled: Segmenter, image: Make) -> None:
    whole = bundled(image(), CLASSES)
    assert np.array_equal(bundled(image(), CLASSES, tagger="given").labels, whole.labels)
    result = bundled(image(), CLASSES, tagger="self")
    assert result.kept is not None
    assert result.kept.tagger == "self"
    assert set(result.kept.classes) <= set(CLASSES)
    for spec, reason in {"human": "no tagger", "oracle": "no tagger", "local:a/b": "saves its captions"}.items():
        with pytest.raises(GocaError, match=reason):
            bundled(image(), CLASSES, tagger=spec)


def test_a_class_that_no_caption_can_name_is_refused(sd15: Any, image: Make) -> None:
    segmenter = Segmenter.from_pipeline(sd15, GOCA, size=64)
    with pytest.raises(GocaError, match="cannot be in a list of nouns"):
        segmenter(image(), ["cat", "wall (brick)"], tagger=Says("cat"))


# --- Folders


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image: Make) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    for seed, name in enumerate("abc"):
        image(48 + 8 * seed, 40, seed).save(f"in/{name}.png")


def run(out: str, tagger: Any, **options: Any) -> list[Any]:
    jobs = plan_outputs([Path("in")], Path(out))
    request = SegmentationRequest("", CLASSES, ["water"])
    return list(segment_images(jobs, request, ModelOptions(batch=2), out=Path(out), tagger=tagger, **options))


def kept(events: Sequence[Any]) -> list[Any]:
    outcomes = [event.result for event in events if isinstance(event, ImageOutcome)]
    return [str(result) if isinstance(result, GocaError) else result["kept"] for result in outcomes]


def test_a_folder_is_tagged_before_it_is_segmented(photos: None) -> None:
    events = run("out", Says("sky, dog", silent="b.png"))
    tagging = [event.done for event in events if isinstance(event, TaggingProgress)]
    assert tagging == [0, 3]
    assert all(isinstance(event, TaggingProgress) for event in events[: len(tagging)])
    assert kept(events) == [["dog", "sky"], "nobody knows in/b.png", ["dog", "sky"]]
    facts = json.loads(Path("out/a.json").read_text())
    assert (facts["tagger"], facts["kept"], facts["request"]["tagger"]) == ("says", ["dog", "sky"], "says")
    # What is there is kept, what was left out is tagged again.
    tagger = Says("sky, dog")
    assert kept(run("out", tagger, resume=True)) == [["dog", "sky"]] * 3
    assert tagger.seen == ["in/b.png"]
    for other in (Says("sky, dog", name="another"), None, "given", "self"):
        with pytest.raises(GocaError, match=r"other tagger: choose another output folder"):
            run("out", other, resume=True)


@pytest.mark.slow
def test_workers_agree_with_one_process(photos: None) -> None:
    alone, shared = (
        run(out, Says("sky, dog", silent="b.png"), executor=Executor(workers=workers))
        for out, workers in (("alone", 1), ("shared", 2))
    )
    assert kept(alone) == kept(shared)
    for name in ("a.labels.png", "a.json", "c.labels.png", "c.json"):
        assert Path("alone", name).read_bytes() == Path("shared", name).read_bytes()


def test_captions_of_a_file_by_path_or_by_name(photos: None, goca: Callable[..., Outcome]) -> None:
    Path("captions.json").write_text(json.dumps({"in/a.png": "cats, spoon", "b.png": "(dog, tail), sky"}))
    command = ("segment", "in", "--classes", ", ".join(CLASSES), "--tagger", "captions:captions.json")
    outcome = goca(*command, "--json")
    assert outcome.code == 1
    first, second, third = map(json.loads, outcome.out.splitlines())
    assert (first["kept"], second["kept"]) == (["cat"], ["dog", "sky"])
    assert 'no caption of "in/c.png"' in third["error"]


class Paid(Says):
    """One that costs money, and cannot start without a key."""

    def ready(self) -> None:
        raise GocaError("no key: set one")

    def estimate(self, samples: Sequence[Any], dataset: Any) -> Estimate:
        return Estimate(images=len(samples), read=7, written=5, cost=0.5)


def test_nothing_is_loaded_or_paid_before_the_cheap_checks(photos: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Segmenter, "from_pretrained", lambda *unused, **more: pytest.fail("loaded"))
    with pytest.raises(GocaError, match="no key"):
        run("out", Paid("dog"))
    monkeypatch.setattr(Paid, "ready", lambda self: None)
    jobs = plan_outputs([Path("in")], Path("out"))
    request = SegmentationRequest("", ["cat", "dog (old)"])
    with pytest.raises(GocaError, match="cannot be in a list"):
        next(segment_images(jobs, request, ModelOptions(name="x/y"), tagger=Paid("")))


def test_a_paid_tagger_says_what_it_takes_first(photos: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Paid, "ready", lambda self: None)
    tagger = Paid("dog")
    events = segment_images(
        plan_outputs([Path("in")], Path("out")), SegmentationRequest("", CLASSES), ModelOptions(), tagger=tagger
    )
    assert next(events) == Estimate(images=3, read=7, written=5, cost=0.5)
    assert tagger.seen == []
    events.close()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--tagger", "human"), 'no tagger "human"'),
        (("--tagger", "clip:nowhere"), 'no model "nowhere"'),
        (("--tagger", "clip:"), "no model is named"),
        (("--tagger", "captions:missing.json"), "no such file"),
        (("--tagger", "self:"), "there are no candidates"),
        (("--tagger", "local:nowhere"), 'no model "nowhere"'),
        (("--prices", "1,2"), "only applies to --tagger vlm:MODEL"),
    ],
)
def test_mistakes_on_the_command_line(
    options: tuple[str, str], reason: str, photos: None, goca: Callable[..., Outcome], monkeypatch: Any
) -> None:
    monkeypatch.setattr(Segmenter, "from_pretrained", lambda *unused, **more: pytest.fail("loaded"))
    line = goca("segment", "in", "--classes", "cat, dog", *options).mistake()
    assert reason in line
    assert not Path("goca-out").exists()

"""What notebooks show of results: well-formed, escaped, small, in the page's own colours, nothing from outside."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from goca import GOCA, GOCA_COMPOUND, VANILLA, Segmenter, guide, trace
from goca.checking.verdict import Verdict
from goca.evaluation.ablate import AblationRow
from goca.evaluation.compare import ComparedRun, FinishedRun
from goca.evaluation.generation_metrics import Distance, Measurement
from goca.evaluation.power import Power
from goca.evaluation.protocol import Protocol
from goca.evaluation.records import ImageRecord
from goca.evaluation.report import Report
from goca.evaluation.runner import Finished
from goca.evaluation.scaling_study import RecipeScore, ScalingStudy
from goca.generation import Generated, GuidedImage, explain
from goca.imaging.html import Rows
from goca.inspection.pixel import PixelAttention, WordShare
from goca.segmentation import ScoreMaps, Segmentation, Segmentations
from goca.tagging.caption_nouns import HONEST
from goca.testing.tiny import BUILDERS
from goca.tracing.animation import Animation

EVIL = """<img src=x onerror="alert('&')"></td>"""
LONGEST = 700_000
"""Letters, of images that are all noise; of photographs it is a third."""
ALLOWED = {"div", "p", "table", "tr", "th", "td", "img", "br", "span"}
VOID = {"img", "br"}
PROTOCOL = Protocol(name=EVIL, dataset=EVIL, split="", images=3, tags=EVIL, nouns=HONEST)


class Page(HTMLParser):
    """Reads a form, and fails at what is not well-formed, or would do more than show."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images = 0
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ALLOWED
        given = dict(attrs)
        assert given.keys() <= {"style", "alt", "src", "width"}
        assert tag != "img" or str(given["src"]).startswith("data:image/")
        # The colours are the page's, but for the squares of class colours, which hold no text.
        style = str(given.get("style", ""))
        assert "color" not in style
        assert tag == "span" or "background" not in style
        self.images += tag == "img"
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        assert self.open[-1:] != ["span"]
        self.text += data


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """What compresses worst."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def pipe() -> Any:
    pipeline = BUILDERS["sd15"]()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def segmenter(pipe: Any) -> Segmenter:
    return Segmenter.from_pipeline(pipe, GOCA, size=64)


@pytest.fixture(scope="module")
def result(segmenter: Segmenter) -> Segmentation:
    """Of a large image with 150 classes, of which many have an odd name."""
    small = segmenter(noise(64, 48), ["cat", "dog"])
    names = tuple(f"{EVIL}{number}" for number in range(150))
    labels = np.zeros((3000, 4001), np.uint16)
    labels[:, 2000:], labels[:700] = 1, 150
    grid = np.zeros((150, 8, 8), np.float32)
    return Segmentation(noise(4001, 3000), names, labels, ScoreMaps(grid, None), small.plan, (0.25,) * 150)


@pytest.fixture(scope="module")
def kept(pipe: Any) -> tuple[Any, Any]:
    """What traced and guided nine images of a prompt with markup."""
    with trace(pipe, keep="steps") as tr, guide(pipe) as guided:
        pipe([f"{EVIL}, a cat on grass"] * 9, num_inference_steps=2, height=64, width=64, guidance_scale=3.0)
    return tr, guided


@pytest.fixture(scope="module")
def report() -> Report:
    names = tuple(f"{EVIL}{number}" for number in range(60))
    counts = {"none": tuple((label, 1, 10 + label) for label in range(1, 61))}
    return Report(names, PROTOCOL, tuple(ImageRecord(f"{EVIL}{number}", counts=counts) for number in range(3)))


@pytest.fixture(scope="module")
def forms(segmenter: Segmenter, result: Segmentation, kept: tuple[Any, Any], report: Report) -> dict[str, Any]:
    tr, guided = kept
    score_of = RecipeScore(0.5, (0.4, 0.6), (0.5,))
    labels = [f"{EVIL}{number}" for number in range(40)]
    shares = tuple(WordShare(f"{EVIL}{number}", 0.5, 0.25) for number in range(77))
    interval = (0.125, 0.875)
    generated = Generated(noise(512, 512), 3, tr[0], GuidedImage(guided.steps, guided.region_names[0], noise(512, 512)))
    fid = Distance(12.5, EVIL, 10, EVIL, 2048)
    return {
        "Segmentation": result,
        "list": Segmentations([result] * 30),
        "Presence": result.present[result.classes[0]],
        "Instance": result.instances()[0],
        "Segmenter": segmenter,
        "Plan": replace(result.plan, model=EVIL),
        "Recipe": replace(VANILLA, cross=(EVIL,) * 100),
        "Trace": tr,
        "TracedImage": tr[0],
        "Animation": Animation(tuple(noise(512, 512, step) for step in range(60))),
        "Inspection": segmenter.inspect(noise(128, 96), [EVIL, "cat"], keep="heads"),
        "PixelAttention": PixelAttention(3, 4, shares, np.ones((8, 8), np.float32), noise(1024, 1024)),
        "Guide": guided,
        "Generated": generated,
        "Explained": explain(generated),
        "Report": report,
        "Finished": Finished(report, {"key": "value" * 100_000}),
        "FinishedRun": FinishedRun(Path(EVIL), EVIL, {"key": "value" * 100_000}, report),
        "Comparison": Rows([ComparedRun(EVIL, EVIL, 0.5, interval, 0.5, "none", 0.0, interval)] * 40),
        "Ablation": Rows([AblationRow(EVIL, 0.5, interval, 0.5, 0.1, interval, (44.3, 51.1))] * 12),
        "ScalingStudy": ScalingStudy(
            dict.fromkeys(labels, EVIL),
            PROTOCOL,
            (Power(EVIL, True, dict.fromkeys(labels, 0.5)),),
            {label: {EVIL: score_of, "goca": score_of} for label in labels},
            (),
            (),
            (),
        ),
        "Measurement": Measurement(EVIL, 3, {}, fid, {"clip_score": {"a": 0.5, "b": 0.25}}),
        "Verdict": Verdict(EVIL, "failed", {EVIL: 0.5}, EVIL, EVIL),
        "Verdicts": Rows([Verdict(EVIL, "failed", {EVIL: 0.5}, EVIL, EVIL * 10)] * 17),
        "no verdicts": Rows([]),
        "no image": Segmentations([]),
        "no report": Report((EVIL,), PROTOCOL, (ImageRecord(EVIL, left_out=EVIL),)),
    }


IMAGES = {
    **{
        "Segmentation": 1,
        "list": 12,
        "no image": 0,
        "Presence": 0,
        "Instance": 1,
        "Segmenter": 0,
        "Plan": 0,
        "Recipe": 0,
    },
    **{"Trace": 4 * 7, "TracedImage": 7, "Animation": 1, "Inspection": 1, "PixelAttention": 1, "Guide": 12},
    **{"Generated": 4, "Explained": 7, "Report": 0, "no report": 0, "Finished": 0, "FinishedRun": 0, "Comparison": 0},
    **{"Ablation": 0, "ScalingStudy": 0, "Measurement": 0, "Verdict": 0, "Verdicts": 0, "no verdicts": 0},
}
"""{what is shown: how many images its form has}"""
NAMELESS = {"Presence", "Guide", "Segmenter", "Animation", "no verdicts", "no image"}
"""What has no text of others in it."""


@pytest.mark.parametrize("name", IMAGES)
def test_a_form_is_whole_escaped_and_small(forms: dict[str, Any], name: str) -> None:
    form = forms[name]._repr_html_()
    page = Page(form)
    assert page.images == IMAGES[name]
    assert name in NAMELESS or EVIL in page.text
    # Base64 has slashes, texts and attributes no address.
    assert "//" not in re.sub(r"base64,[^\"]*", "", form)
    assert len(form) < LONGEST
    assert len(repr(forms[name])) < 20_000  # which lies beside it in the notebook's file


def test_the_repr_of_a_recipe_says_what_differs_from_the_published_one() -> None:
    assert repr(GOCA) == "Recipe()"
    assert repr(VANILLA) == "Recipe(heads='mean', layers='mean', rescale=('blur', 'minmax'))"
    assert "background='max 0.4'" in repr(GOCA_COMPOUND)

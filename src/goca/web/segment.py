"""The tab Segment: labels the pixels of images by class names, to look at and to download."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gradio as gr

from goca.errors import GocaError
from goca.exports import EXPORTERS
from goca.imaging.draw import overlay
from goca.imaging.files import MAX_PIXELS
from goca.plan import Options
from goca.recipe import AUTO, RECIPES
from goca.request import SegmentationRequest
from goca.segmentation import Segmentation
from goca.segmenter import Segmenter
from goca.text.clean import one_line
from goca.web import legend
from goca.web.controls import Runs, class_tags, classes_of, content_of, number, numbers, whole
from goca.web.downloads import download, offer
from goca.web.messages import note, progress
from goca.web.results import Results, Run, pixels

MAX_TIMESTEP = 999
MAX_IMAGES, MAX_SEEDS, MAX_TIMESTEPS = 16, 8, 8
"""Limits of a run."""
MAX_MODELS = 8
"""Most segmenters that are kept for different choices; all share the model's weights."""
THUMBNAIL = 320
BACKGROUNDS = {"automatic": AUTO, "none: every pixel gets a class": None}
CONTROLS = {
    "files": "Images",
    "classes": "Classes",
    "background": "Background",
    "recipe": "Recipe",
    "timestep": "Timestep",
    "seeds": "Noise seeds",
    "floor": "Floor",
    "formats": "Format",
}
"""{hint of a GocaError: label of the control here}."""


@dataclass(frozen=True)
class Choices:
    """How to segment: the controls under "More"."""

    recipe: str
    timestep: tuple[int, ...] | None
    seeds: int
    flip: bool
    refine_edges: bool
    floor: float | None


@dataclass
class SegmentTab:
    """The tab and its actions.

    Attributes:
        segmenter: The model; the controls start with its recipe, floor and refinement.
        folder: Folder for downloads.
    """

    segmenter: Segmenter
    folder: Path
    results: Results[Run] = field(default_factory=lambda: Results("segment again", pixels, MAX_PIXELS))
    _models: dict[Choices, Segmenter] = field(default_factory=dict)

    def run(
        self, files: Sequence[str] | None, tags: Any, background: Any, *more: Any
    ) -> Generator[Sequence[Any], None, None]:
        """Segment files; yields the progress, and finally the values of all components.

        Raises:
            GocaError: No file can be segmented.
        """
        if not files:
            raise GocaError("no image: drop one, or choose a file", "files")
        if len(files) > MAX_IMAGES:
            raise GocaError(f"{len(files)} images are too many for the page: drop at most {MAX_IMAGES}", "files")
        request = SegmentationRequest("", classes_of(tags), background=BACKGROUNDS.get(str(background), AUTO))
        model = self._model(choices_of(*more))
        yield [progress(0, len(files), "image")]
        session = model.check(request)
        run: Run = {}
        left_out: list[str] = []
        for done, file in enumerate(map(Path, files), start=1):
            ((_, outcome),) = model.stream([replace(request, image=content_of(file))], session)
            if isinstance(outcome, GocaError):
                if len(files) == 1:
                    raise outcome
                left_out.append(f"{one_line(file.name)}: {outcome}")
            elif sum(result.labels.size for result in (outcome, *run.values())) > MAX_PIXELS:
                left_out.append(
                    f"{one_line(file.name)}: with the images before it, it exceeds the pixels that the page keeps"
                )
            else:
                run[_stem(file, run)] = outcome
            yield [progress(done, len(files), "image")]
        if not run:
            raise GocaError(f"none of the images can be used: {left_out[0]}")
        yield self._shown(run, left_out)

    def _model(self, choices: Choices) -> Segmenter:
        if choices not in self._models:
            while len(self._models) >= MAX_MODELS:
                del self._models[next(iter(self._models))]
            options = Options(**{name: value for name, value in vars(choices).items() if name != "recipe"})
            model = self.segmenter
            self._models[choices] = Segmenter(model.backbone, choices.recipe, options, model.batch, model.prototypes)
        return self._models[choices]

    def build(self) -> None:
        """Add the tab's components and events to the page that is being built."""
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                files = gr.File(
                    file_count="multiple", file_types=["image"], label="Images", height=150, elem_id="segment-files"
                )
                tags = class_tags(self.segmenter.backbone.settings.nouns, "segment-classes")
                background = gr.Radio(list(BACKGROUNDS), value="automatic", label="Background")
                more = self._more()
                with gr.Row():
                    start = gr.Button("Segment", variant="primary", elem_id="segment-run")
                    stop = gr.Button("Stop", elem_id="segment-stop")
            with gr.Column(scale=3, min_width=320):
                message = gr.HTML(note("Drop images, name classes and press Segment."), elem_id="segment-message")
                slider = gr.ImageSlider(
                    label="Image and masks", interactive=False, format="png", max_height=640, visible=False
                )
                thumbnails = gr.Gallery(
                    label="Results",
                    height="auto",
                    allow_preview=False,
                    interactive=False,
                    visible=False,
                    buttons=[],
                    elem_classes="goca-thumbs",
                )
                table = legend.component()
                with gr.Row(visible=False) as downloads:
                    form = gr.Dropdown(
                        list(EXPORTERS), value="labels", label="Format", filterable=False, elem_id="segment-format"
                    )
                    save = gr.Button("Download", elem_id="segment-download", min_width=120, scale=0)
        token, index, styles = gr.State(), gr.State(0), gr.State(())
        runs = Runs(message, CONTROLS)
        shown = (slider, table, thumbnails, downloads, token, index, styles)
        runs.add(start, stop, self.run, [files, tags, background, *more], shown)
        runs.paint(table.input, self._restyled, [token, index], [slider, styles])
        runs.paint(thumbnails.select, self._chosen, [token, styles], [slider, table, index])
        offer(runs, save, self._downloaded, [token, form])

    def _more(self) -> tuple[gr.components.Component, ...]:
        plan = self.segmenter.plan
        with gr.Accordion("More", open=False):
            recipe = gr.Dropdown(list(RECIPES), value=plan.recipe, label="Recipe", filterable=False)
            timestep = gr.Textbox(
                label="Timestep",
                placeholder="the model's",
                info=f"0 to {MAX_TIMESTEP}; several are averaged: 100, 50",
                max_length=60,
            )
            seeds = gr.Slider(
                1, MAX_SEEDS, value=1, step=1, label="Noise seeds", info="Number of seeds to average over."
            )
            floor = gr.Textbox(
                f"{plan.floor:g}" if plan.origin["floor"] == "user" else "",
                label="Floor",
                placeholder="the recipe's",
                info="Evidence, 0 to 1, that a class needs to get pixels; 0 keeps every class.",
            )
            flip = gr.Checkbox(label="Average with a pass over the mirrored image")
            refine = gr.Checkbox(plan.refine_edges, label="Align masks with the image's edges")
        return recipe, timestep, seeds, flip, refine, floor

    def _shown(self, run: Run, left_out: Sequence[str]) -> tuple[Any, ...]:
        first = next(iter(run.values()))
        styles = legend.default_styles(len(first.classes))
        notes = dict.fromkeys(remark for result in run.values() for remark in result.plan.notes)
        remarks = [*(f"left out: {line}" for line in left_out), *notes, *_not_found(run)]
        return (
            note("; ".join(remarks)),
            gr.ImageSlider(legend.pair(first, styles), visible=True),
            gr.HTML(legend.table(first, styles), visible=True),
            gr.Gallery([(_thumbnail(result), stem) for stem, result in run.items()], visible=len(run) > 1),
            gr.Row(visible=True),
            self.results.put(run),
            0,
            styles,
        )

    def _restyled(self, told: Mapping[str, Any], token: str | None, index: int) -> tuple[Any, ...]:
        result = list(self.results.get(token).values())[index]
        styles = legend.styles_of(told.get("styles"), len(result.classes))
        return gr.skip(), legend.pair(result, styles), styles

    def _chosen(self, told: Mapping[str, Any], token: str | None, styles: Sequence[legend.Style]) -> tuple[Any, ...]:
        run = self.results.get(token)
        index = min(max(int(told["index"]), 0), len(run) - 1)
        result = list(run.values())[index]
        return gr.skip(), legend.pair(result, styles), legend.table(result, styles), index

    def _downloaded(self, token: str | None, form: str) -> Path:
        return download(self.results.get(token), str(form), self.folder)


def choices_of(recipe: Any, timestep: Any, seeds: Any, flip: Any, refine_edges: Any, floor: Any) -> Choices:
    """The values of "More" from a browser. Raises GocaError for numbers that are not valid or out of range."""
    steps = numbers(timestep, "timestep", "timestep", 0, MAX_TIMESTEP, MAX_TIMESTEPS)
    if any(step != int(step) for step in steps):
        raise GocaError(f"the timestep is not a whole number: give one from 0 to {MAX_TIMESTEP}", "timestep")
    return Choices(
        str(recipe),
        tuple(map(int, steps)) or None,
        whole(seeds, "number of noise seeds", "seeds", 1, MAX_SEEDS) or 1,
        flip is True,
        refine_edges is True,
        number(floor, "floor", "floor", 0, 1),
    )


def _stem(file: Path, run: Run) -> str:
    """A name that differs from those of the run's other images in more than case."""
    taken, first = {stem.lower() for stem in run}, one_line(file.stem)[:80] or "image"
    numbered = (first, *(f"{first}-{number}" for number in range(2, len(run) + 2)))
    return next(stem for stem in numbered if stem.lower() not in taken)


def _thumbnail(result: Segmentation) -> Any:
    step = max(1, round(max(result.image.size) / THUMBNAIL))
    return overlay(result.image.reduce(step), result.labels[::step, ::step], result.classes, legend=False)


def _not_found(run: Run) -> Sequence[str]:
    labelled = any(result.labels.any() for result in run.values())
    return () if labelled else ("no class was found: lower the floor under More; 0 keeps every class",)

"""The tab Inspect: the words that a pixel attends to, and the maps of a word by layer and head."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from goca.errors import GocaError
from goca.imaging import draw
from goca.inspection import Inspection, Layer
from goca.segmenter import Segmenter
from goca.web.controls import Runs, class_tags, classes_of, content_of, whole
from goca.web.images import SHOWN, factors, scaled, tiny
from goca.web.messages import bar, note, text
from goca.web.results import MAX_BYTES, Results

STAGES = ("raw", "shared", "rescaled", "refined")
OF_BACKGROUND = 2
"""Number of stages, from the first, that background classes have."""
MOST_LAYERS, MOST_SINKS = 24, 6
"""Most layers that are shown: those with the most weight."""
CONTROLS = {"files": "Image", "classes": "Classes", "x": "x", "y": "y"}
"""{hint of a GocaError: label of the control here}."""

# Reports which word's button is pressed.
_SCRIPT = """
element.addEventListener('click', event => {
  const button = event.target.closest('button');
  if (button) trigger('input', {word: button.value});
});
"""


@dataclass
class InspectTab:
    """The tab and its actions."""

    segmenter: Segmenter
    results: Results[Inspection] = field(default_factory=lambda: Results("inspect again", _size, MAX_BYTES))

    def run(self, file: Any, tags: Any, heads: Any) -> Generator[Sequence[Any], None, None]:
        """Inspect a file; yields a message, and then the values of all components.

        Raises:
            GocaError: The file cannot be inspected.
        """
        if not isinstance(file, str):
            raise GocaError("no image: drop one, or choose a file", "files")
        classes = classes_of(tags)
        yield [note("Inspecting ...")]
        keep = ("heads",) if heads is True else ()
        inspection = self.segmenter.inspect(content_of(Path(file)), classes, keep=keep)
        image, word = inspection.image, inspection.classes[0]
        x, y = image.width // 2, image.height // 2
        yield (
            *_pixel(inspection, x, y),
            gr.Number(x, label=f"x, 0 to {image.width - 1}"),
            gr.Number(y, label=f"y, 0 to {image.height - 1}"),
            gr.Radio(list(inspection.classes), value=word),
            *_word(inspection, word, STAGES[-1]),
            _sinks(inspection),
            self.results.put(inspection),
            gr.Row(visible=True),
            gr.Row(visible=True),
        )

    def build(self) -> None:
        """Add the tab's components and events to the page that is being built."""
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                file = gr.File(file_types=["image"], label="Image", height=150, elem_id="inspect-file")
                tags = class_tags(self.segmenter.backbone.settings.nouns, "inspect-classes")
                heads = gr.Checkbox(
                    True, label="Head by head", info="Otherwise only layer by layer, which takes less memory."
                )
                with gr.Row():
                    start = gr.Button("Inspect", variant="primary", elem_id="inspect-run")
                    stop = gr.Button("Stop", elem_id="inspect-stop")
            with gr.Column(scale=3, min_width=320):
                message = gr.HTML(note("Drop an image, name classes and press Inspect."), elem_id="inspect-message")
                with gr.Row(visible=False) as of_pixel:
                    picture = gr.Image(label="Click a pixel", elem_id="inspect-picture", **SHOWN)
                    looks = gr.Image(label="Where its patch attends", **SHOWN)
        with gr.Row(visible=False) as of_words:
            with gr.Column(scale=2, min_width=320):
                with gr.Row():
                    x = gr.Number(label="x", min_width=120, elem_id="inspect-x")
                    y = gr.Number(label="y", min_width=120, elem_id="inspect-y")
                words = gr.HTML(js_on_load=_SCRIPT, elem_classes="goca-bars", elem_id="inspect-words")
                sinks = gr.HTML(elem_classes="goca-bars", elem_id="inspect-sinks")
            with gr.Column(scale=3, min_width=320):
                word = gr.Radio(label="Word", elem_id="inspect-word")
                stage = gr.Radio(
                    STAGES,
                    label="Stage of the map",
                    info="raw: share of all attention; shared: share among the words; rescaled: as in the recipe; "
                    "refined: smoothed by self-attention.",
                    elem_id="inspect-stage",
                )
                heat = gr.Image(elem_id="inspect-heat", **SHOWN)
        layers = gr.HTML(elem_classes="goca-layers", elem_id="inspect-layers")

        token, runs = gr.State(), Runs(message, CONTROLS)
        pixel, shown = (picture, looks, words), (stage, heat, layers)
        outputs = [*pixel, x, y, word, *shown, sinks, token, of_pixel, of_words]
        runs.add(start, stop, self.run, [file, tags, heads], outputs)
        runs.paint(picture.select, self._clicked, [token], [*pixel, x, y])
        # A single event, so that the last change wins.
        runs.paint(partial(gr.on, [x.input, y.input]), self._moved, [token, x, y], pixel)
        runs.paint(words.input, self._named, [token, stage], [*shown, word])
        runs.paint(partial(gr.on, [word.input, stage.input]), self._chosen, [token, word, stage], shown)

    def _clicked(self, told: Mapping[str, Any], token: str | None) -> tuple[Any, ...]:
        inspection = self.results.get(token)
        index, (factor, step) = told.get("index"), factors(inspection.image)
        if not (isinstance(index, list) and len(index) == 2 and all(isinstance(number, int) for number in index)):
            raise GocaError("no pixel was clicked: click on the image, or give x and y")
        cells = zip((number * step // factor for number in index), inspection.image.size, strict=True)
        x, y = (
            side - 1 if cell == side else cell for cell, side in cells
        )  # a click on the far edge is reported one pixel too far
        return *_pixel(inspection, x, y), x, y

    def _moved(self, _: Any, token: str | None, x: Any, y: Any) -> tuple[Any, ...]:
        inspection = self.results.get(token)
        column = whole(x, "x of the pixel", "x", 0, inspection.image.width - 1)
        row = whole(y, "y of the pixel", "y", 0, inspection.image.height - 1)
        # A field is empty while a new number is typed.
        return (gr.skip(),) * 4 if column is None or row is None else _pixel(inspection, column, row)

    def _named(self, told: Mapping[str, Any], token: str | None, stage: Any) -> tuple[Any, ...]:
        word = str(told.get("word"))
        return gr.skip(), *_word(self.results.get(token), word, stage), word

    def _chosen(self, _: Any, token: str | None, word: Any, stage: Any) -> tuple[Any, ...]:
        return gr.skip(), *_word(self.results.get(token), str(word), stage)


def _size(inspection: Inspection) -> int:
    return inspection.nbytes + 5 * inspection.segmentation.labels.size  # its image, and labels of two bytes


def _pixel(inspection: Inspection, x: int, y: int) -> tuple[Any, ...]:
    """Values of the message, the image with the pixel marked, where it attends, and its words."""
    pixel, image = inspection.at(x, y), scaled(inspection.image)
    factor, step = factors(inspection.image)
    centre = ((x + 0.5) * factor / step, (y + 0.5) * factor / step)
    looks, remark = None, ""
    if pixel.affinity is None:
        remark = " The recipe does not refine, so where the patch attends is not known."
    else:
        heat = draw.heatmap(image, pixel.affinity / max(float(pixel.affinity.max()), 1e-12))
        looks = draw.ringed(heat, *centre)
    rows = (
        (f'<button type="button" value="{text(word)}">{text(word)}</button>', share, f"{share:.0%}")
        for word, share, _ in pixel.words
    )
    first = pixel.words[0]
    return (
        note(f"Pixel {x}, {y}: {first.word} gets {first.share:.0%} of its attention to words.{remark}"),
        draw.ringed(image, *centre),
        gr.Image(looks, visible=looks is not None),
        _bars("The pixel's words by raw attention; press one to see its map", rows),
    )


def _word(inspection: Inspection, word: str, stage: Any) -> tuple[Any, ...]:
    """Values of a word's stage, heat map and layers; for a stage that it lacks, the last one it has."""
    stages = STAGES if word in inspection.segmentation.classes else STAGES[:OF_BACKGROUND]
    stage = stage if stage in stages else stages[-1]
    scores = inspection.map(word, stage)
    most, label = float(scores.max()), f"{word}, {stage}"
    if stage in STAGES[:OF_BACKGROUND]:
        scores, label = scores / max(most, 1e-12), f"{label}: brightest is {most:.1%}"
    heat = draw.heatmap(scaled(inspection.image), scores)
    return gr.Radio(stages, value=stage), gr.Image(heat, label=label), _layers(inspection, word)


def _sinks(inspection: Inspection) -> str:
    shares = list(inspection.sinks.items())
    parts = [*shares[:MOST_SINKS], ("the words", 1 - sum(share for _, share in shares))]
    if rest := shares[MOST_SINKS:]:
        parts.insert(-1, (f"{len(rest)} other tokens", sum(share for _, share in rest)))
    return _bars("Where attention goes: sinks, and words", ((text(name), part, f"{part:.1%}") for name, part in parts))


def _bars(caption: str, rows: Iterator[tuple[str, float, str]]) -> str:
    """A table as HTML. rows: (name as HTML, length of the bar from 0 to 1, its label)."""
    cells = "".join(f'<tr><th scope="row">{name}</th><td>{bar(part, label)}</td></tr>' for name, part, label in rows)
    return f"<table><caption>{text(caption)}</caption><tbody>{cells}</tbody></table>"


def _layers(inspection: Inspection, word: str) -> str:
    """A row per layer: its name, grid and weight, and the word's map in it and in each head, with weights."""
    layers = inspection.layers
    heaviest = sorted(layers, key=lambda layer: -layer.weight)[:MOST_LAYERS]
    which = (
        ""
        if len(heaviest) == len(layers)
        else f" Shown are the {MOST_LAYERS} of {len(layers)} layers with the most weight."
    )
    rows = "".join(_layer(inspection, word, layer) for layer in layers if layer in heaviest)
    return (
        f"<h2>{text(word)}, layer by layer</h2><p>With the weight of each layer and of each head in it. Each map is "
        f"brightest where it attends most to the word.{which}</p><ol>{rows}</ol>"
    )


def _layer(inspection: Inspection, word: str, layer: Layer) -> str:
    figures = []
    try:
        figures.append(_figure(inspection, word, layer, None, "all heads"))
        for head, weight in enumerate(layer.heads):
            figures.append(_figure(inspection, word, layer, head, f"{head}: {weight:.0%}"))
    except GocaError:  # heads were not requested, or the layer did not fit in memory
        pass
    # A long name may break after a dot.
    name = text(layer.name).replace(".", ".<wbr>")
    return (
        f"<li><header><b>{name}</b> <span>{layer.grid[0]} x {layer.grid[1]}</span> "
        f"{bar(layer.weight, f'{layer.weight:.0%}')}</header>"
        f"<div>{''.join(figures) or 'Its maps did not fit in memory.'}</div></li>"
    )


def _figure(inspection: Inspection, word: str, layer: Layer, head: int | None, caption: str) -> str:
    address = tiny(inspection.layer_map(word, layer.name, head))
    where = f"{layer.name}, {'all heads' if head is None else f'head {head}'}"
    return (
        f'<figure><img src="{address}" alt="{text(f"{word} in {where}")}"><figcaption>{caption}</figcaption></figure>'
    )

"""An inspection on one page: classes, heads, layers, where attention goes, and pixels."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32
from PIL import Image

from goca.imaging import draw
from goca.imaging.legend import legible, percent
from goca.imaging.sheet import GAP, SIDE, Bar, Cell, chart, contact_sheet, fit, heading, stacked
from goca.inspection.pixel import PixelAttention

if TYPE_CHECKING:
    from goca.inspection import Inspection, Layer

SHOWN = 8
"""Most classes, heads, words, sinks and pixels that a sheet shows."""
SHOWN_LAYERS = 24
WIDTH = 4 * SIDE + 5 * GAP
"""Width in pixels, which the rows of classes fill unless the image is upright."""
HEAD_SIDE = 96


def sheet(inspection: "Inspection", pixels: Sequence[PixelAttention], heads_of: "Layer | None") -> Image.Image:
    """The page. heads_of: the layer whose single heads' maps are shown."""
    segmentation = inspection.segmentation
    plan, small = segmentation.plan, fit(segmentation.image, SIDE)
    labels = {name: legible(name, f"class {number}") for number, name in enumerate(inspection.classes, start=1)}
    classes = segmentation.classes[:SHOWN]
    title = f"{plan.recipe} on {plan.model}, timestep {plan.timestep[0]}: {', '.join(labels.values())}"
    cut = [
        f"{len(many)} {what}, of which {SHOWN} are shown"
        for many, what in ((segmentation.classes, "classes"), (pixels, "pixels"))
        if len(many) > SHOWN
    ]
    parts = [heading((title, *plan.notes, *cut), WIDTH)]
    parts.append(contact_sheet([_stages(inspection, small, name, labels[name]) for name in classes]))
    if heads_of is not None:
        parts.append(heading([f"the heads of {heads_of.name} with the most weight"], WIDTH))
        parts.append(contact_sheet([_heads(inspection, small, heads_of, name, labels[name]) for name in classes]))
    parts.append(_layers(sorted(inspection.layers, key=lambda layer: -layer.weight)))
    sinks = _bars({f"sink {name}": part for name, part in inspection.sinks.items()})
    parts.append(chart("where attention goes", [*_bars(inspection.attention, labels), *sinks], WIDTH))
    return stacked([*parts, *(_pixel(pixel, labels) for pixel in pixels[:SHOWN])])


def _stages(inspection: "Inspection", small: Image.Image, name: str, label: str) -> list[Cell]:
    """The cells of a class: its pixels, and its maps; the raw one is scaled to its maximum."""
    segmentation = inspection.segmentation
    rows, columns = (
        np.arange(few) * many // few
        for few, many in zip((small.height, small.width), segmentation.labels.shape, strict=True)
    )
    pixels = segmentation.labels[np.ix_(rows, columns)] == segmentation.classes.index(name) + 1
    raw = inspection.map(name, "raw")
    maps = {"raw": _over_largest(raw)} | {stage: inspection.map(name, stage) for stage in ("shared", "refined")}
    share = percent(segmentation.present[name].share)
    others = small.convert("L").point(lambda value: value // 3).convert("RGB")
    mask = Image.composite(small, others, Image.fromarray(pixels))
    return [
        Cell(mask, f"{share}: {label}"),
        *(Cell(draw.heatmap(small, scores), f"{stage}: {label}") for stage, scores in maps.items()),
    ]


def _heads(inspection: "Inspection", small: Image.Image, layer: "Layer", name: str, label: str) -> list[Cell]:
    """A class in a layer's heads, each map scaled to its maximum."""
    heaviest = sorted(enumerate(layer.heads), key=lambda head: -head[1])[:SHOWN]
    return [
        Cell(
            draw.heatmap(small, _over_largest(inspection.layer_map(name, layer.name, number))),
            f"{number} ({percent(weight)}): {label}",
            side=HEAD_SIDE,
        )
        for number, weight in heaviest
    ]


def _layers(layers: "Sequence[Layer]") -> Image.Image:
    """The weights of layers, heaviest first."""
    rest = layers[SHOWN_LAYERS:]
    more = f"; {len(rest)} more have {sum(layer.weight for layer in rest):.1%}" if rest else ""
    largest = max((layer.weight for layer in layers), default=1.0)
    bars = [
        Bar(
            "{} x {}  {}".format(*layer.grid, layer.name),
            layer.weight / largest,
            f"{layer.weight:.1%}",
            [weight / max(layer.heads) for weight in layer.heads],
        )
        for layer in layers[:SHOWN_LAYERS]
    ]
    return chart(f"layers and their weights, and those of their heads{more}", bars, WIDTH)


def _bars(shares: Mapping[str, float], labels: Mapping[str, str] | None = None) -> list[Bar]:
    """The largest shares, by the names' labels."""
    largest = sorted(shares.items(), key=lambda item: -item[1])[:SHOWN]
    return [Bar((labels or {}).get(name, name), part, f"{part:.1%}") for name, part in largest]


def _pixel(pixel: PixelAttention, labels: Mapping[str, str]) -> Image.Image:
    """The places that a pixel's patch attends to, beside its words."""
    looks = "" if pixel.affinity is None else " attends here"
    left = contact_sheet([[Cell(pixel.marked(), f"({pixel.x}, {pixel.y}){looks}")]])
    bars = _bars({entry.word: entry.share for entry in pixel.words}, labels)
    return stacked([left, chart("its words", bars, WIDTH - SIDE - 2 * GAP)], beside=True)


def _over_largest(scores: Float32[np.ndarray, "height width"]) -> Float32[np.ndarray, "height width"]:
    return scores / max(float(scores.max()), 1e-12)

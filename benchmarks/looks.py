"""What models attend to in one of the shipped scenes, before and after the changes that beyond.py tries.

    python benchmarks/looks.py [--models bundled,DIR] [--scene INDEX] --out IMAGE

A row of panels for each model. Sinks: what pixels on the whole look at, the mean row of the self-attention that
refines, times the number of cells, and the same under `affinity="distinct"`. The weights of layers under two rules,
on the layers' own grids; of heads, which are equal before GoCA, by `goca` and by `goca-refined`. Last the labels.
"""

import argparse
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from goca import (
    GOCA,
    GOCA_BALANCED,
    GOCA_REFINED,
    VANILLA,
    GocaError,
    Inspection,
    SegmentationRequest,
    Segmenter,
    bundled,
)
from goca.bundled import Scene
from goca.imaging.palette import palette
from goca.maths.refine import Affinity, distinct

RECIPES = {"vanilla": VANILLA, "goca": GOCA, "goca-balanced": GOCA_BALANCED, "goca-refined": GOCA_REFINED}
LAYER_RULES = {"goca": "#d1495b", "goca-balanced": "#2e6fdb"}


def refining(segmenter: Segmenter, scene: Scene) -> Affinity:
    """The self-attention that refines a scene."""
    session, plan = segmenter.backbone.session(), segmenter.plan
    with segmenter.inference():
        prepared = segmenter.prepare(SegmentationRequest(scene.image, scene.classes), session)
        if isinstance(prepared, GocaError):
            raise prepared
        latents = segmenter.backbone.latents(prepared.tiles, prepared.size)
        (attention,) = segmenter.attend([prepared], [latents], plan.timestep[0], plan.seeds[0], session)
        (aggregator,) = attention.aggregators
        aggregator.global_map()
    return aggregator.affinity


def mean_row(affinity: Affinity) -> Float[Tensor, "height width"]:
    """What the rows of an affinity have on average, times the number of cells: 1 everywhere without a sink."""
    assert affinity.common is not None
    height, width = affinity.common
    rows = [affinity.row(pixel, (height, width)) for pixel in range(height * width)]
    mean = torch.stack([row for row in rows if row is not None]).mean(0)
    return mean / mean.mean()


def head_weights(inspection: Inspection) -> Float[Tensor, "layer head"]:
    """What each head of a layer weighs, in parts of what it would among equal ones; NaN where there is none."""
    layers = inspection.layers
    weights = torch.full((len(layers), max(len(layer.heads) for layer in layers)), torch.nan)
    for index, layer in enumerate(layers):
        weights[index, : len(layer.heads)] = torch.tensor(layer.heads) * len(layer.heads)
    return weights


def draw_row(
    axes: Sequence[Any], model: str, scene: Scene, affinity: Affinity, inspections: dict[str, Inspection]
) -> None:
    """The panels of one model."""
    panels = [("sinks", affinity), ('under "distinct"', affinity.under(distinct, affinity.common or (1, 1)))]
    axes[0].imshow(scene.image)
    axes[0].set_ylabel(model)
    axes[0].set_title(", ".join(scene.classes))
    for panel, (title, each) in zip(axes[1:3], panels, strict=True):
        row = mean_row(each)
        panel.imshow(row.sqrt(), cmap="magma", vmin=0)
        panel.set_title(f"{title}: up to {row.max():.1f}")
    layers = inspections["goca"].layers
    for number, (name, colour) in enumerate(LAYER_RULES.items()):
        weights = [layer.weight for layer in inspections[name].layers]
        axes[3].barh(
            [index + (number - 0.5) * 0.4 for index in range(len(layers))], weights, 0.4, color=colour, label=name
        )
    axes[3].axvline(1 / len(layers), color="#8a8f98", linewidth=0.8)
    axes[3].set_yticks(range(len(layers)), ["{} x {}".format(*layer.grid) for layer in layers])
    axes[3].invert_yaxis()
    axes[3].set_title("layers (line: equal)")
    axes[3].legend(fontsize=6, loc="lower right")
    for panel, name in zip(axes[4:6], ("goca", "goca-refined"), strict=True):
        panel.imshow(head_weights(inspections[name]), cmap="RdBu_r", vmin=0, vmax=2, aspect="auto")
        panel.set_yticks([])
        panel.set_title(f"heads, {name}")
    colours = torch.tensor(palette(len(scene.classes)), dtype=torch.uint8)
    for panel, (name, inspection) in zip(axes[6:], inspections.items(), strict=True):
        labels = torch.from_numpy(inspection.segmentation.labels.astype("int64"))
        panel.imshow(colours[labels])
        right = float((labels == torch.from_numpy(scene.labels.astype("int64"))).float().mean())
        panel.set_title(f"{name}: {right:.0%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", default=",".join(bundled.names()), help="names or folders, between commas (%(default)s)"
    )
    parser.add_argument("--scene", type=int, default=0, help="which of the shipped scenes (%(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="the image to write")
    options = parser.parse_args()
    import matplotlib

    matplotlib.use("agg")
    from matplotlib.figure import Figure

    scene = next(islice(bundled.scenes(), options.scene, None))
    models = options.models.split(",")
    columns = 6 + len(RECIPES)
    figure = Figure(figsize=(1.5 * columns, 1.75 * len(models)), layout="constrained")
    with matplotlib.rc_context({"font.size": 7, "axes.titlesize": 7}):
        rows = figure.subplots(len(models), columns, squeeze=False)
        for axes, model in zip(rows, models, strict=True):
            backbone = Segmenter.from_pretrained(model, GOCA, device="cpu").backbone
            inspections = {
                name: Segmenter(backbone, recipe).inspect(scene.image, scene.classes, background=None)
                for name, recipe in RECIPES.items()
            }
            affinity = refining(Segmenter(backbone, GOCA_REFINED), scene)
            draw_row(axes, Path(model).name, scene, affinity, inspections)
            for index in (0, 1, 2, *range(6, columns)):
                axes[index].set_xticks([])
                axes[index].set_yticks([])
        figure.savefig(options.out, dpi=110)


if __name__ == "__main__":
    main()

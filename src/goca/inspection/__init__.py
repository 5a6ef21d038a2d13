"""Inspection: what a model attends to in an image, and how that became the image's segmentation.

inspection = segmenter.inspect("photo.jpg", ["cat", "grass"])
inspection.at(120, 80).words
inspection.map("cat", "raw")
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from operator import index
from typing import Any, SupportsIndex

import numpy as np
from jaxtyping import Float32
from PIL import Image

from goca.aggregation import AttentionAggregator
from goca.class_maps import rescaled
from goca.errors import GocaError
from goca.imaging import html
from goca.inspection.layer_maps import LayerMaps
from goca.inspection.pixel import PixelAttention, array, cell_of, ranked, sinks
from goca.inspection.sheet import sheet
from goca.maths import Grid
from goca.maths.rescale import share
from goca.plan import Plan
from goca.request import PreparedImage
from goca.segmentation import Segmentation
from goca.text.tokens import Token

__all__ = ["Inspection", "Layer", "PixelAttention"]

EVERY_CLASS = "every class is in the prompt: this recipe would otherwise leave out classes without evidence"
"""The note if the recipe measures evidence."""
ONE_PASS = "only the first of {passes} passes is inspected"
"""The note if the recipe, or the user, averages several passes."""
BY_PROTOTYPES = (
    "this recipe labels by prototypes; its attention is inspected, at timestep {timestep}, and gives other labels"
)
"""The note if the recipe's own labels do not come from attention."""


@dataclass(frozen=True)
class Layer:
    """A layer that takes part in the maps.

    Attributes:
        name: The path of its block inside the denoiser.
        grid: (height, width) of its map.
        weight: Its weight; the weights of all layers sum to 1.
        heads: The weight of each head, averaged over pixels; they sum to 1.
    """

    name: str
    grid: Grid
    weight: float
    heads: tuple[float, ...]


def inspectable(plan: Plan) -> Plan:
    """The plan of an inspection: one pass over the whole image, with every class in the prompt.

    Raises:
        GocaError: The recipe has no map for each token.
    """
    if plan.maps is not None or plan.keys != "caption":
        raise GocaError(
            f'recipe "{plan.recipe}" makes no maps of the prompt\'s own tokens: choose another one for an inspection',
            hint="recipe",
        )
    return replace(
        plan, evidence=None, floor=0.0, timestep=plan.timestep[:1], seeds=plan.seeds[:1], flip=False, window=False
    )


class Inspection:
    """What a model attends to in an image; made by `Segmenter.inspect`, which documents what is kept.

    Attributes:
        segmentation: The result of the same pass.
        layers: The layers that take part, in the order in which they run.
        tokens: All tokens that are attended to, including special ones.
        shares: {index of a token: its share of all attention, averaged over the image}; they sum to 1.
    """

    def __init__(
        self,
        image: PreparedImage,
        aggregator: AttentionAggregator,
        layer_maps: LayerMaps,
        tokens: Sequence[Token],
        segmentation: Segmentation,
    ) -> None:
        """Read an aggregator that has seen the pass that made the segmentation."""
        plan, nouns = aggregator.plan, aggregator.tokens
        mass, global_map, weights = aggregator.token_mass(), aggregator.global_map(), aggregator.layer_weights()
        self.segmentation, self.tokens = segmentation, tuple(tokens)
        self.layers = tuple(
            Layer(block, aggregator.grids[block], weight, tuple(aggregator.heads[block].tolist()))
            for block in aggregator.heads
            if (weight := weights.get(block)) is not None
        )
        self.shares = dict(enumerate(global_map.mean((-2, -1)).tolist()))
        names = (noun.name for noun in (*image.nouns.classes, *image.nouns.background_classes))
        self._indices = dict(zip(names, nouns.nouns, strict=True))
        self._columns = {token: array(global_map[token]) for token in nouns.content}
        self._maps: dict[str, Float32[np.ndarray, "noun height width"]] = {
            "raw": array(mass.raw),
            "shared": array(share(mass.raw, mass)),
            "rescaled": array(rescaled(plan, mass, nouns)[: len(nouns.classes)]),
            "refined": segmentation.scores.grid,
        }
        self._affinity, self._layer_maps = aggregator.affinity, layer_maps

    def __repr__(self) -> str:
        return f"Inspection({len(self.layers)} layers, {len(self.tokens)} tokens, {self.segmentation!r})"

    def _repr_html_(self) -> str:
        """HTML for notebooks: the sheet, and the layers with their weights."""
        rows = []
        for layer in self.layers:
            heads = " ".join(f"{weight:.0%}" for weight in layer.heads)
            rows.append((layer.name, "{} x {}".format(*layer.grid), f"{layer.weight:.1%}", heads))
        return html.figure(repr(self), self.sheet(), ("layer", "grid", "weight", "heads"), rows, most=html.SHEET)

    @property
    def image(self) -> Image.Image:
        """The image, upright."""
        return self.segmentation.image

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes, then the background classes that were named in the prompt."""
        return tuple(self._indices)

    @property
    def nbytes(self) -> int:
        """Bytes of all maps that are kept, including the self-attention."""
        maps = sum(kept.nbytes for kept in (*self._maps.values(), *self._columns.values()))
        return maps + self._affinity.nbytes + self._layer_maps.nbytes

    @property
    def sinks(self) -> dict[str, float]:
        """{special token: its share of all attention, 0 to 1, averaged over the image}, the largest first.

        Tokens with one name, such as padding, count together. In most models such a token gets most of the attention.
        """
        return sinks(self.tokens, self.shares)

    @property
    def attention(self) -> dict[str, float]:
        """{class or background class: its tokens' share of all attention, 0 to 1, averaged over the image}."""
        return {name: sum(self.shares[token] for token in indices) for name, indices in self._indices.items()}

    def map(self, name: str, stage: str = "refined") -> Float32[np.ndarray, "height width"]:
        """The map of a class on the common grid, at one of its stages.

        Args:
            name: A class; background classes, which are then merged, only have the first two stages.
            stage: "raw", the mean over its tokens of their share of all attention; "shared", its share of what nouns
                get; "rescaled", as in the recipe; "refined", the scores of the result.

        Raises:
            GocaError: There is no such class or stage.
        """
        if stage not in self._maps:
            raise GocaError(f"there is no stage {stage!r}: choose from {', '.join(self._maps)}")
        number = self.classes.index(self._known(name))
        maps = self._maps[stage]
        if number >= len(maps):
            raise GocaError(f'background classes are merged when they are rescaled: choose raw or shared for "{name}"')
        return maps[number]

    def layer_map(
        self, name: str, layer: str, head: SupportsIndex | None = None
    ) -> Float32[np.ndarray, "height width"]:
        """The map of a class in a layer, on the layer's grid: the mean over its tokens of their share of all attention.

        Args:
            name: A class, or a background class.
            layer: The name of one of `layers`.
            head: One of its heads, from 0, with `keep="heads"`; by default all, by their weights.

        Raises:
            GocaError: There is no such class, layer or head.
        """
        return array(self._layer_maps.map(layer, self._indices[self._known(name)], head))

    def at(self, x: SupportsIndex, y: SupportsIndex) -> PixelAttention:
        """What a pixel attends to: the classes ranked, and the places that its patch attends to.

        Raises:
            GocaError: The image has no such pixel.
        """
        row, column = cell_of(x, y, self.image, self._grid)
        shares = ranked({token: float(part[row, column]) for token, part in self._columns.items()}, self._indices)
        looks = self._affinity.row(row * self._grid[1] + column, self._grid)
        return PixelAttention(index(x), index(y), shares, None if looks is None else array(looks), self.image)

    def affinity(self, x: SupportsIndex, y: SupportsIndex) -> Float32[np.ndarray, "height width"]:
        """The places that a pixel's patch attends to, see `PixelAttention.affinity`.

        Raises:
            GocaError: The image has no such pixel, or the recipe does not refine.
        """
        return self.at(x, y).looks

    def sheet(self, pixels: Iterable[tuple[int, int]] = ()) -> Image.Image:
        """Everything on one page: a row for each class with its mask and its maps, raw (scaled to 1), shared and
        refined; the maps of the heaviest layer's heads, if they are kept; weights of layers and heads; the attention
        that words and sinks get; and what pixels attend to. Long lists are cut.

        Args:
            pixels: (x, y) of each pixel.

        Raises:
            GocaError: The image has no such pixel, or the argument is not a list of pixels.
        """
        heads = self._layer_maps.grids if self._layer_maps.each_head else {}
        kept = [layer for layer in self.layers if layer.name in heads]
        heads_of = max(kept, key=lambda layer: layer.weight, default=None)
        return sheet(self, self._at_each(pixels), heads_of)

    def to_json(self, pixels: Iterable[tuple[int, int]] = ()) -> dict[str, Any]:
        """Everything but maps as JSON: the segmentation, tokens and their shares, sinks, layers, and what pixels attend
        to; docs/inspecting.md has the shape.

        Args:
            pixels: (x, y) of each pixel.

        Raises:
            GocaError: The image has no such pixel, or the argument is not a list of pixels.
        """
        facts, attention = self.segmentation.to_json(), self.attention
        nouns = [
            {"name": name, "attention": attention[name], "tokens": [*map(int, indices)]}
            for name, indices in self._indices.items()
        ]
        # Evidence by attention is not the recipe's own measure, and could be mistaken for it.
        classes = [{key: value for key, value in entry.items() if key != "evidence"} for entry in facts.pop("classes")]
        return {
            **{"height": facts.pop("height"), "width": facts.pop("width")},
            "classes": [entry | noun for entry, noun in zip(classes, nouns, strict=False)],
            "background_classes": nouns[len(classes) :],
            "tokens": [asdict(token) | {"attention": self.shares.get(token.index, 0.0)} for token in self.tokens],
            "sinks": [{"name": name, "attention": part} for name, part in self.sinks.items()],
            "layers": [asdict(layer) for layer in self.layers],
            "pixels": [
                {"x": pixel.x, "y": pixel.y, "words": [entry._asdict() for entry in pixel.words]}
                for pixel in self._at_each(pixels)
            ],
            **facts,
        }

    def _at_each(self, pixels: Iterable[tuple[int, int]]) -> list[PixelAttention]:
        pairs = list(pixels)
        if not all(isinstance(pair, Sequence) and len(pair) == 2 for pair in pairs):
            raise GocaError(f"pixels {pairs!r} are not a list of (x, y): give [(x, y)] for one", hint="at")
        return [self.at(x, y) for x, y in pairs]

    @property
    def _grid(self) -> Grid:
        height, width = self._maps["raw"].shape[-2:]
        return height, width

    def _known(self, name: str) -> str:
        if name not in self._indices:
            raise GocaError(f"there is no class {name!r}: choose from {', '.join(self._indices)}", hint="classes")
        return name

"""A rule of your own in a recipe: heads are weighted by the square of their share of the layer's output."""

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from goca import GOCA, Segmenter
from goca.maths.heads import output_share


def squared_share(parts: Tensor, weight: Tensor) -> Tensor:
    """parts: (pixel, head, dim) outputs of the heads; weight: (head, dim, model) their projections."""
    return output_share(parts, weight).clamp(min=0) ** 2


segmenter = Segmenter.from_pretrained("bundled", replace(GOCA, heads=squared_share))
result = segmenter(Path(__file__).with_name("cat.png"), ["cat", "water", "sky"], background="none")
print(result.plan.to_json()["heads"], {name: f"{there.share:.0%}" for name, there in result.present.items()})
result.overlay().save("own_rule.png")

"""Frames of a video as one tall map, in which the rules for images can be applied to all of them at once."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

MARGIN = 2
"""Rows that keep a frame from its neighbours: as far as the rule that blurs can see."""


def apart(maps: Float[Tensor, "*map all_rows width"], frames: int) -> Float[Tensor, "*map padded_rows width"]:
    """Frames that lie one under the other, each continued above and below as an image is when it is blurred."""
    each = maps.reshape(-1, frames, maps.shape[-2] // frames, maps.shape[-1])
    mode = "reflect" if each.shape[-2] > MARGIN else "replicate"
    return F.pad(each, (0, 0, MARGIN, MARGIN), mode=mode).reshape(*maps.shape[:-2], -1, maps.shape[-1])


def together(maps: Float[Tensor, "padded_rows width"], frames: int) -> Float[Tensor, "frame height width"]:
    """The frames of a map that was kept apart."""
    return maps.unflatten(0, (frames, -1))[:, MARGIN:-MARGIN]

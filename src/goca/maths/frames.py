"""Frames of a video as one tall map, in which the rules for images can be applied to all of them at once."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

MARGIN = 2
"""Rows between a frame and its neighbours: the reach of the blur."""


def apart(maps: Float[Tensor, "*map all_rows width"], frames: int) -> Float[Tensor, "*map padded_rows width"]:
    """Stacked frames with each frame padded above and below like an image that is blurred."""
    each = maps.reshape(-1, frames, maps.shape[-2] // frames, maps.shape[-1])
    mode = "reflect" if each.shape[-2] > MARGIN else "replicate"
    return F.pad(each, (0, 0, MARGIN, MARGIN), mode=mode).reshape(*maps.shape[:-2], -1, maps.shape[-1])


def together(maps: Float[Tensor, "padded_rows width"], frames: int) -> Float[Tensor, "frame height width"]:
    """The frames of a map from `apart`."""
    return maps.unflatten(0, (frames, -1))[:, MARGIN:-MARGIN]

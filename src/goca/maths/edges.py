"""Edge refinement: class scores that follow the image's own edges, by a guided filter (He, Sun and Tang 2010).

In the window round each pixel the scores are fitted by a linear function of the colours, slope . colour + offset; a
pixel gets the mean of its windows' functions, at its own colour. Scores are as coarse as their grid, so on images of
many pixels the functions are fitted on a smaller copy and resized (the fast guided filter, He and Sun 2015). Window and
epsilon were tried on one image, examples/cat.png, and on no benchmark.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from goca.maths import Grid
from goca.maths.resize import resize, resize_rows

FINEST = 8
"""Functions are fitted on at most this many pixels per side of a score's cell; a window reaches one cell each way."""
EPSILON = 1e-3
"""Added to the variances of a window's colours, which are from 0 to 1: smaller differences are not edges."""


def box(maps: Float[Tensor, "*channel height width"], radius: int) -> Float[Tensor, "*channel height width"]:
    """The mean over the (2 radius + 1)^2 window round each pixel, as far as it is in the image; by running sums."""
    for axis in (-1, -2):
        size = maps.shape[axis]
        index = torch.arange(size, device=maps.device)
        first, past = (index - radius).clamp(min=0), (index + radius + 1).clamp(max=size)
        sums = F.pad(maps.cumsum(axis), (1, 0) if axis == -1 else (0, 0, 1, 0))
        inside = past - first
        window = sums.index_select(axis, past) - sums.index_select(axis, first)
        maps = window / (inside if axis == -1 else inside[:, None])
    return maps


class GuidedFilter:
    """The parts that depend only on the guide, computed once for all its maps; both in float64."""

    def __init__(self, guide: Float[Tensor, "colour height width"], radius: int, epsilon: float = EPSILON) -> None:
        self.guide, self.radius = guide, radius
        self.mean = box(guide, radius)
        rows = [[box(first * second, radius) for second in guide] for first in guide]
        squares = rearrange(torch.stack([torch.stack(row) for row in rows]), "i j h w -> h w i j")
        mean = rearrange(self.mean, "colour h w -> h w colour")
        ridge = epsilon * torch.eye(len(guide), dtype=guide.dtype, device=guide.device)
        self.inverse = torch.linalg.inv(squares - mean[..., None] * mean[..., None, :] + ridge)

    def fit(
        self, scores: Float[Tensor, "height width"]
    ) -> tuple[Float[Tensor, "colour height width"], Float[Tensor, "height width"]]:
        """(slope, offset) of the mean of each pixel's windows' functions."""
        mean = box(scores, self.radius)
        covariance = box(self.guide * scores, self.radius) - self.mean * mean
        slope = torch.einsum("hwij,jhw->ihw", self.inverse, covariance)
        offset = mean - (slope * self.mean).sum(0)
        return box(slope, self.radius), box(offset, self.radius)


class Edges:
    """The edges of an image, for scores on a grid of `cells` over it."""

    def __init__(self, image: UInt8[Tensor, "height width 3"], cells: Grid) -> None:
        self.image = image
        height, width, _ = image.shape
        self.size = (height, width)
        cell = math.sqrt(height * width / math.prod(cells))
        shrunk = min(1.0, FINEST / cell)
        self.small = (max(1, round(height * shrunk)), max(1, round(width * shrunk)))
        radius = max(1, round(cell * shrunk))
        # Area, so that every pixel of the image is in the small one; a colour at a time, because images are large.
        small = [F.interpolate(colour[None, None].float(), self.small, mode="area")[0] for colour in image.unbind(-1)]
        # Float64, in which running sums are exact enough for small variances; on the CPU if the device lacks it.
        self.home = torch.device("cpu") if image.device.type == "mps" else image.device
        self.filter = GuidedFilter(torch.cat(small).to(self.home).double() / 255, radius)

    def fit(self, scores: Float[Tensor, "h w"]) -> Float[Tensor, "4 small_height small_width"]:
        """The functions of the colours that the scores follow: three slopes, and the offset."""
        slope, offset = self.filter.fit(resize(scores[None].to(self.home).double(), self.small)[0])
        return torch.cat([slope, offset[None]]).float().to(self.image.device)

    def follow(self, functions: Float[Tensor, "4 small_height small_width"], rows: slice) -> Float[Tensor, "row width"]:
        """Some rows, at the image's size, of the scores that the functions were fitted to."""
        *slopes, total = resize_rows(functions, self.size, rows)
        for slope, colour in zip(slopes, self.image[rows].unbind(-1), strict=True):
            total += slope * (colour / 255)
        return total

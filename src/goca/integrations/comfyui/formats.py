"""Images, names and results in ComfyUI's formats."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from goca.errors import GocaError
from goca.imaging.palette import palette
from goca.recipe import AUTO
from goca.segmentation import Segmentation
from goca.text.class_list import classes_to_find, parse_class_list


class Drawn(NamedTuple):
    """Results in ComfyUI's formats.

    Attributes:
        masks: 0 or 1, one for each name of each image, in order.
        scores: The scores of each name as grey images, 0 to 1.
        labels: Each image's classes in flat colours, 0 to 1.
        overlay: Each image under its coloured masks, 0 to 1.
        names: The names, one per line.
    """

    masks: Float[Tensor, "mask height width"]
    scores: Float[Tensor, "mask height width 3"]
    labels: Float[Tensor, "image height width 3"]
    overlay: Float[Tensor, "image height width 3"]
    names: str

    @classmethod
    def of(cls, results: Sequence[Segmentation]) -> "Drawn":
        """Draw results of one size with the same classes."""
        names = results[0].classes
        colours = palette(len(names))
        return cls(
            torch.from_numpy(np.stack([result[name] for result in results for name in names])).float(),
            as_tensor(result.heatmap(name) for result in results for name in names),
            as_tensor(colours[result.labels] for result in results),
            as_tensor(result.overlay(legend=False) for result in results),
            "\n".join(names),
        )


def as_tensor(images: Iterable[Any]) -> Float[Tensor, "image height width 3"]:
    """Images in ComfyUI's format: channels last, 0 to 1."""
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).float() / 255


def as_images(images: Float[Tensor, "image height width channel"]) -> list[Image.Image]:
    """ComfyUI's images as PIL images, RGB. Raises GocaError for an empty batch."""
    if not len(images):
        raise GocaError("the batch has no images: connect at least one")
    values = (images[..., :3].detach().cpu().float().clamp(0, 1) * 255).round().byte().numpy()
    return [Image.fromarray(value) for value in values]


def names_in(text: str) -> Mapping[str, Sequence[str]]:
    """{class: synonyms} of a list, see `goca.text.class_list`. Raises GocaError for an empty one."""
    return classes_to_find(parse_class_list(text, "the list of names"), "the list of names")


def background_in(text: str) -> str | float:
    """A background from typed text: "auto", "none" or a threshold, 0 to 1."""
    try:
        return float(text)
    except ValueError:
        return text.strip().lower() or AUTO

"""The images in a denoiser's input: the size of the generated one, and those of reference images."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from torch import Tensor

from goca.diffusion.backbone import Backbone
from goca.errors import GocaError
from goca.maths import Grid


@dataclass(frozen=True)
class LatentLayout:
    """The images of a row of a denoiser call.

    Attributes:
        size: (height, width) in cells of the generated image.
        references: (height, width) in cells of the reference images, in order.
        frames: Number of frames of that size, more than one in a video.
    """

    size: Grid
    references: tuple[Grid, ...] = ()
    frames: int = 1


def layout_of(
    backbone: Backbone,
    size: Grid | None,
    cells: Grid | None,
    latent: Tensor,
    timestep: Tensor,
    inputs: Mapping[str, Any],
) -> LatentLayout:
    """The layout of a denoiser call.

    Args:
        backbone: The pipeline.
        size: (height, width) in pixels for which it prepared latents, if known.
        cells: Their (height, width) in cells, if they are not packed.
        latent: The denoiser's input for the prompts, (image, ...).
        timestep: The denoiser's timestep.
        inputs: All named inputs of the denoiser.

    Raises:
        GocaError: A row is not a single image, or the sizes of its reference images are unknown.
    """
    kind = type(backbone.pipeline).__name__
    if timestep.ndim == 1 and len(timestep.unique()) > 1:
        raise GocaError(f"{kind} cannot be traced: it denoises several steps in one pass; {plain_remedy(backbone)}")
    frames = latent.shape[2] if latent.ndim == 5 else 1
    if frames > 1 and not backbone.family.makes_videos:
        parameters = inspect.signature(backbone.pipeline.__call__).parameters
        remedy = "generate one frame, num_frames=1" if "num_frames" in parameters else "trace a pipeline for images"
        raise GocaError(f"a video of {frames} latent frames cannot be traced: {remedy}")
    if latent.ndim > 3:
        height, width = latent.shape[-2], latent.shape[-1]
        if cells not in (None, (height, width)):
            raise _refused_part(backbone, (height, width), cells)
        return LatentLayout((height, width), frames=frames)
    if size is None:
        raise GocaError(
            f"{kind} cannot be traced: it packs its latents, and its prepare_latents has no height "
            f"and width, from which goca takes the image's size; {plain_remedy(backbone)}"
        )
    height, width = (2 * (side // (2 * backbone.vae_scale_factor)) for side in size)
    positions = latent.shape[1]
    if positions > height * width // 4:
        references = references_of(inputs, height * width // 4)
        if sum(rows * columns for rows, columns in references) != 4 * positions - height * width:
            raise GocaError(
                "the denoiser gets a reference image of unknown size: "
                "leave the reference image out, or trace a pipeline without one"
            )
        return LatentLayout((height, width), references)
    if positions < height * width // 4:
        raise GocaError(
            f"{kind} cannot be traced: its denoiser gets {positions} of the {height * width // 4} patches of "
            f"the image, and the attention of a part is not that of the image; {plain_remedy(backbone)}"
        )
    return LatentLayout((height, width))


def references_of(inputs: Mapping[str, Any], pixels: int) -> tuple[Grid, ...]:
    """The (height, width) in cells of the images after the first `pixels` patches of 2 x 2; () if unknown.

    The denoiser gets the position of each patch: by the sizes of the images (`img_shapes`: frames, height and width of
    each, for every row of the batch), or patch by patch (`img_ids`: the image, its row and its column).
    """
    shapes, ids = inputs.get("img_shapes"), inputs.get("img_ids")
    if shapes is not None and isinstance(shapes[0], Sequence) and isinstance(shapes[0][0], Sequence):
        return tuple((2 * height, 2 * width) for _, height, width in shapes[0][1:])
    if isinstance(ids, Tensor):
        return tuple(_grids(ids if ids.ndim == 2 else ids[0], pixels))
    return ()


def _grids(ids: Tensor, pixels: int) -> Iterator[Grid]:
    """The sizes in cells of the images, each of which has a number of its own, from a patch on."""
    places = ids[pixels:, :3].tolist()
    for _, patches in groupby(places, key=lambda place: place[0]):
        _, rows, columns = zip(*patches, strict=True)
        yield 2 * int(max(rows) - min(rows) + 1), 2 * int(max(columns) - min(columns) + 1)


def plain_remedy(backbone: Backbone) -> str:
    """Advice on a pipeline that cannot be traced, although another one with its parts can."""
    kind = "its class"
    if backbone.family.component == "unet" and not backbone.family.pipelines:
        is_xl = getattr(backbone.pipeline, "text_encoder_2", None) is not None
        kind = "StableDiffusionXLPipeline" if is_xl else "StableDiffusionPipeline"
    return f"trace the plain pipeline with the same parts instead, {kind}.from_pipe(pipe)"


def _refused_part(backbone: Backbone, given: Grid, prepared: Grid) -> GocaError:
    kind, factor = type(backbone.pipeline).__name__, backbone.vae_scale_factor
    (height, width), (whole_height, whole_width) = ([factor * side for side in size] for size in (given, prepared))
    if height > whole_height or width > whole_width:
        return GocaError(
            f"{kind} cannot be traced: it prepared latents for {whole_height} x {whole_width} pixels and denoises "
            f"others for {height} x {width}; {plain_remedy(backbone)}"
        )
    return GocaError(
        f"{kind} denoises its image of {whole_height} x {whole_width} pixels in parts of {height} x {width}, and "
        f"the attention of a part is not that of the image: generate an image of height={height} and width={width}, "
        f"or {plain_remedy(backbone)}"
    )

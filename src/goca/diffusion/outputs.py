"""What a denoiser and a pipeline return: noise predictions, images and videos."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def prediction(output: Any) -> Tensor:
    """A denoiser's prediction as one tensor (row, ...)."""
    return torch.stack(output[0]) if isinstance(output[0], list) else output[0]


def with_prediction(output: Any, noise_pred: Tensor) -> Any:
    """A denoiser's output with its prediction replaced, in the same form."""
    answer = list(noise_pred) if isinstance(output[0], list) else noise_pred
    if isinstance(output, tuple):
        return (answer, *output[1:])
    return replace(output, **{next(iter(output)): answer})


def videos(answer: Any) -> list[list[Any]]:
    """A pipeline's output, each image or video as its frames; empty for latents."""
    if isinstance(answer, Tensor):
        answer = np.moveaxis(answer.float().cpu().numpy(), -3, -1)
    if isinstance(answer, np.ndarray):
        frames = answer if answer.ndim == 5 else answer[:, None]
        return list(map(list, frames)) if frames.ndim == 5 and frames.shape[-1] == 3 else []
    return [video if isinstance(video, list) else [video] for video in answer]


def spread(video: list[Any], count: int) -> tuple[Image.Image, ...]:
    """`count` frames of a video, evenly spread from its first to its last, or only its first."""
    chosen = [video[round(number * (len(video) - 1) / max(count - 1, 1))] for number in range(count)]
    return tuple(frame if isinstance(frame, Image.Image) else _image(frame) for frame in chosen)


def _image(frame: np.ndarray) -> Image.Image:
    return Image.fromarray((frame * 255).round().clip(0, 255).astype(np.uint8))

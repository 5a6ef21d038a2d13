"""Prototypes: where each noun's pixels lie in the denoiser's feature space, as a file beside a model.

They tell what a pixel shows without a caption that names it: one pass with the empty caption gives each noun a map
of log posteriors. `goca.prototype_learning` makes them.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from goca.diffusion.attention_call import AttentionCall
from goca.diffusion.backbone import Backbone, BatchItem
from goca.errors import GocaError
from goca.maths import Grid
from goca.maths.resize import resize
from goca.maths.windows import Windows
from goca.storage.atomic import write_atomic
from goca.storage.reading import json_value, require_regular, whole
from goca.text.nouns import Noun
from goca.text.spelling import forms, plain

FILE = "prototypes.safetensors"
"""The file's name beside the model_index.json of a diffusers folder, where it is found automatically."""
CAPTION = ""
"""The caption under which the denoiser's features are read."""
_KEY = "goca_prototypes"  # a single metadata key: the order of several would vary


@dataclass(frozen=True, eq=False)
class Prototypes:
    """Log posteriors of nouns, linear in a model's features: the queries of every block that attends to the text.

    Attributes:
        nouns: The nouns.
        channels: {block: number of channels of its features}, in the order in which the blocks run.
        timestep: Noise level of the pass that gives the features.
        gaussians: Number of Gaussians of each noun, stored consecutively in `weight` and `bias`.
        weight, bias: See `goca.maths.prototypes.discriminants`; `weight` has the blocks' channels side by side.
        sample: Sample of the denoiser's weights, see `weight_sample`.
        facts: How they were made, as JSON.
    """

    nouns: tuple[str, ...]
    channels: Mapping[str, int]
    timestep: int
    gaussians: tuple[int, ...]
    weight: Float[Tensor, "gaussian channel"]
    bias: Float[Tensor, " gaussian"]
    sample: Float[Tensor, " matrix"]
    facts: Mapping[str, Any]

    def __repr__(self) -> str:
        return f"Prototypes({len(self.nouns)} nouns of {self.facts.get('model')}, timestep {self.timestep})"

    def among(self, nouns: Sequence[str]) -> "Prototypes":
        """The prototypes of these nouns only, in this order. Raises GocaError for a noun that has none."""
        if missing := [noun for noun in nouns if noun not in self.nouns]:
            raise GocaError(
                f'there is no prototype of "{missing[0]}": learn prototypes of it, or name one of '
                f"{', '.join(self.nouns)}",
                hint="classes",
            )
        indices = [self.nouns.index(noun) for noun in nouns]
        parts = (each.split(self.gaussians) for each in (self.weight, self.bias))
        weight, bias = (torch.cat([part[index] for index in indices]) for part in parts)
        gaussians = tuple(self.gaussians[index] for index in indices)
        return replace(self, nouns=tuple(nouns), gaussians=gaussians, weight=weight, bias=bias)

    def indices(self, noun: Noun) -> list[int]:
        """The rows of the noun's words, singular or plural; empty for a noun that has no prototype."""
        return list(dict.fromkeys(self._rows[plain(word)] for word in noun.words if plain(word) in self._rows))

    @cached_property
    def _rows(self) -> Mapping[str, int]:
        rows = tuple(enumerate(self.nouns))
        return {form: row for row, noun in rows for form in forms(noun)} | {plain(noun): row for row, noun in rows}

    def fits(self, backbone: Backbone) -> bool:
        """Whether these prototypes are of exactly this model; its precision does not matter."""
        sample = weight_sample(backbone.denoiser)
        # A UNet's blocks do not run in the order of its modules.
        if self.channels.keys() != set(backbone.blocks) or len(sample) != len(self.sample):
            return False
        readable = ~(sample.isnan() | self.sample.isnan())
        return torch.allclose(sample[readable], self.sample[readable], rtol=1e-2, atol=1e-6)

    def check(self, backbone: Backbone) -> None:
        """Raise GocaError unless these prototypes fit the model."""
        if not self.fits(backbone):
            raise GocaError(
                f"the prototypes are of another model ({self.facts.get('model')}) than {backbone.name}, or of other "
                "weights: learn them with this one",
                hint="prototypes",
            )

    def save(self, path: str | Path) -> Path:
        """Write them to a safetensors file, whole or not at all. Raises GocaError if that fails."""
        declared = {
            "nouns": self.nouns,
            "gaussians": self.gaussians,
            "channels": dict(self.channels),
            "timestep": self.timestep,
            "facts": dict(self.facts),
        }
        tensors = {name: getattr(self, name).float().cpu().contiguous() for name in ("weight", "bias", "sample")}
        write_atomic({Path(path): save(tensors, {_KEY: json.dumps(declared)})})
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> "Prototypes":
        """Read a file. Raises GocaError unless it is complete and consistent."""
        require_regular(path)
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is not a dictionary
            return cls(**_declared(metadata.get(_KEY)), **_checked(tensors))._consistent()
        except (SafetensorError, OSError, ValueError) as error:
            raise GocaError(f"{path} does not hold complete prototypes ({error}): learn them again") from None

    def _consistent(self) -> "Prototypes":
        expected = sum(self.gaussians), sum(self.channels.values())
        if (
            len(self.gaussians) != len(self.nouns)
            or tuple(self.weight.shape) != expected
            or tuple(self.bias.shape) != expected[:1]
            or self.sample.ndim != 1
        ):
            raise ValueError("the shapes of its tensors do not match its metadata")
        return self


def load_beside(folder: str | Path) -> Prototypes | None:
    """The prototypes in a diffusers folder, if there are any. Raises GocaError for a damaged file."""
    path = Path(folder) / FILE
    return Prototypes.load(path) if path.exists() else None


def _declared(text: str | None) -> dict[str, Any]:
    """The metadata as arguments of `Prototypes`. Raises ValueError for anything else."""
    content = json_value(text or "null")
    match content:
        case {
            "nouns": [*nouns],
            "gaussians": [*gaussians],
            "channels": dict(channels),
            "timestep": timestep,
            "facts": dict(facts),
        }:
            if not nouns or not all(isinstance(noun, str) for noun in nouns) or len(set(nouns)) < len(nouns):
                raise ValueError("its nouns are not distinct names")
            return {
                "nouns": tuple(nouns),
                "gaussians": tuple(whole(count, least=1) for count in gaussians),
                "channels": {block: whole(count, least=1) for block, count in channels.items()},
                "timestep": whole(timestep, most=999),
                "facts": facts,
            }
    raise ValueError("its metadata are missing or malformed")


def _checked(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The tensors as arguments of `Prototypes`, in float32. Raises ValueError if one is missing or not finite."""
    if tensors.keys() != {"weight", "bias", "sample"}:
        raise ValueError("tensors are missing or unexpected")
    if not all(tensor.is_floating_point() for tensor in tensors.values()) or not all(
        bool(tensors[name].isfinite().all()) for name in ("weight", "bias")
    ):
        raise ValueError("its numbers are not finite")
    return {name: tensor.float() for name, tensor in tensors.items()}


def weight_sample(denoiser: torch.nn.Module) -> Float[Tensor, " matrix"]:
    """The middle value of every weight matrix, which identifies a model in any precision; NaN if it is packed."""
    matrices = [matrix.data for matrix in denoiser.parameters() if matrix.ndim > 1]
    readable = [type(matrix) is Tensor and matrix.is_floating_point() and not matrix.is_meta for matrix in matrices]
    values = [
        float(matrix.reshape(-1)[matrix.numel() // 2]) if is_readable else torch.nan
        for matrix, is_readable in zip(matrices, readable, strict=True)
    ]
    return torch.tensor(values, dtype=torch.float32)


def features_of(call: AttentionCall) -> Float[Tensor, "channel pixel"]:
    """The pixels' queries of all heads, before position encoding, which depends on the pixel's position."""
    if call.query is not None:
        return call.query.float().T
    return rearrange(call.q.float(), "head pixel dim -> (head dim) pixel")


class LogPosterior:
    """The nouns' log posteriors in one window: `add` while the denoiser runs, then `logits`.

    The prototypes are linear, so each block's part is made on its own grid, resized and added; features are not kept.

    Args:
        prototypes: Those of the requested nouns, see `Prototypes.among`.
        grid: (height, width) of the window on the common grid.
    """

    def __init__(self, prototypes: Prototypes, grid: Grid) -> None:
        self.prototypes, self.grid = prototypes, grid
        starts = [0, *accumulate(prototypes.channels.values())]
        self._columns = {block: slice(*ends) for block, ends in zip(prototypes.channels, pairwise(starts), strict=True)}
        self._total: Float[Tensor, "gaussian height width"] | None = None

    def add(self, call: AttentionCall) -> None:
        """Take the features of a block that attends to the text. Raises GocaError for one of another model."""
        if call.text is None:
            return
        features = features_of(call)
        if self.prototypes.channels.get(call.block) != len(features):
            raise GocaError(
                f"the prototypes are of another model ({self.prototypes.facts.get('model')}), which does not have "
                f"{len(features)} channels in {call.block}: learn them with this one"
            )
        part = self.prototypes.weight[:, self._columns[call.block]].to(features) @ features
        maps = resize(rearrange(part, "gaussian (h w) -> gaussian h w", h=call.grid[0]), self.grid)
        self._total = maps if self._total is None else self._total.add_(maps)

    def logits(self) -> Float[Tensor, "noun height width"]:
        """The log posteriors; their softmax over the nouns is the posterior under a uniform prior."""
        assert self._total is not None  # a text-to-image model attends to the text
        logits = self._total + self.prototypes.bias.to(self._total)[:, None, None]
        return torch.stack([each.logsumexp(0) for each in logits.split(self.prototypes.gaussians)])


@dataclass(frozen=True)
class ImageLogits:
    """The log posteriors over an image: those of its windows, joined.

    A pass with `CAPTION` at the prototypes' timestep computes them: `session.run(logits.items(...), batch)`.
    """

    windows: Windows
    parts: tuple[LogPosterior, ...]

    @classmethod
    def of(cls, prototypes: Prototypes, windows: Windows) -> "ImageLogits":
        """An empty instance, with nothing added yet."""
        return cls(windows, tuple(LogPosterior(prototypes, (box.height, box.width)) for box in windows.boxes))

    def items(
        self, latents: Float[Tensor, "window channel height width"], size: Grid, seed: int = 0
    ) -> Iterator[BatchItem]:
        """The rows of the pass. latents, size: those of the windows, as in `goca.request.PreparedImage`."""
        for latent, part in zip(latents.split(1), self.parts, strict=True):
            yield BatchItem(latent, size, CAPTION, part.prototypes.timestep, seed, part.add)

    def logits(self) -> Float[Tensor, "noun height width"]:
        """The log posteriors on the common grid of the whole image."""
        return self.windows.join([part.logits() for part in self.parts])

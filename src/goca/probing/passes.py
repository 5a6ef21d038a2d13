"""The passes of a probe: the denoiser runs on a little noise, in which one input may be negated."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from goca.diffusion.attention_hook import AttentionHook
from goca.diffusion.attention_modules import native
from goca.diffusion.backbone import Backbone
from goca.diffusion.conditioning import EncodedPrompt, record_prompt
from goca.diffusion.exclusive import restoring
from goca.diffusion.families import encoder_of
from goca.diffusion.latents import latent_channels
from goca.maths import Grid
from goca.text.tokens import Tokens

TIMESTEP = 400
"""The timestep of every pass; image and text both matter there."""
OPPOSITE = -3.0
"""Factor of a negated vector: a norm could undo a shift or a scaling."""
ROUNDING = 1e-3
"""Differences below this share of the longest vector count as none."""
OUTLIER = 3.0
"""How many times more than the median a position must change to be the changed one."""


@dataclass(frozen=True)
class RecordedAttention:
    """One softmax attention of a pass: its block, and its first head's queries and keys."""

    block: str
    q: Float[Tensor, "position dim"]
    k: Float[Tensor, "key dim"]


class AttentionRecorder(AttentionHook):
    """While it is entered, records the softmax attention of a denoiser, whatever its layout."""

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__(denoiser, (), lambda *_: None, linear_self_attention=True)
        self.recorded: list[RecordedAttention] = []

    def _see(self, output: Tensor, query: Tensor, key: Tensor, *others: Any, **options: Any) -> None:
        attention, _ = self._running[-1]
        self._calls[attention] += 1
        self.recorded.append(RecordedAttention(attention.block, query[0, 0], key[0, 0]))

    @property
    def linear(self) -> bool:
        """Whether an attention module ran without softmax attention; a check ensures that it is a linear one."""
        return not all(self._calls.values())


@dataclass(frozen=True)
class ProbePass:
    """One denoiser pass.

    Attributes:
        attentions: Its softmax attentions, in order.
        linear: Whether it has linear attention too.
        prompt: The caption as the pipeline encoded it.
        timestep: The denoiser's timestep; None if the argument's name is unknown.
    """

    attentions: tuple[RecordedAttention, ...]
    linear: bool
    prompt: EncodedPrompt
    timestep: float | None


@torch.no_grad()
def run_pass(backbone: Backbone, size: Grid, caption: str, **turn: Any) -> ProbePass:
    """One pass, its attention recorded, with `denoiser_call`'s arguments. Raises whatever the pipeline raises."""
    with denoiser_call(backbone, size, caption, **turn) as (args, kwargs, prompt):
        recorder = AttentionRecorder(backbone.denoiser)
        with recorder:
            backbone.denoiser(*args, **kwargs)
        return ProbePass(tuple(recorder.recorded), recorder.linear, prompt, _timestep(args, kwargs))


@contextmanager
def denoiser_call(
    backbone: Backbone,
    size: Grid,
    caption: str,
    cell: Grid | None = None,
    token: tuple[str, Tokens, int] | None = None,
) -> Iterator[tuple[tuple[Any, ...], dict[str, Any], EncodedPrompt]]:
    """Prepare a denoiser call of a pipeline, whose family may be a guess, on always the same noise.

    The noise has `size` latent cells, of which `cell` is negated; `token` is (tokenizer, its tokens of the caption,
    index) of the token whose embedding is negated. Yields the call's positional and named arguments,
    and the encoded prompt.
    """
    noise = torch.randn(1, latent_channels(backbone.pipeline), *size, generator=torch.Generator().manual_seed(0))
    if cell is not None:
        noise[..., cell[0], cell[1]] *= OPPOSITE
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    with restoring(backbone.pipeline) as pipeline, native(backbone.denoiser, backbone.family.component):
        with nullcontext() if token is None else turned(encoder_of(pipeline, token[0]), *token[1:]):
            prompt = record_prompt(
                pipeline, caption, lambda: calls.append(backbone.inputs(pipeline, noise, [caption], TIMESTEP))
            )
        yield *calls[0], prompt


def _timestep(args: tuple[Any, ...], kwargs: dict[str, Any]) -> float | None:
    named = [kwargs[name] for name in ("timestep", "timesteps", "t") if name in kwargs]
    value = named[0] if named else args[1] if len(args) > 1 else None
    return float(value.flatten()[0]) if isinstance(value, Tensor) and value.numel() and value.ndim <= 1 else None


def moved(before: Float[Tensor, "position dim"], after: Float[Tensor, "position dim"]) -> tuple[int, ...]:
    """The position that differs most between two passes, then those with half as much; () if all differ alike.

    Pooled words or pixels change every position a little.
    """
    distance = (after.float() - before.float()).norm(dim=-1)
    most, least = float(distance.max()), ROUNDING * float(before.float().norm(dim=-1).max())
    if most <= max(least, OUTLIER * float(distance.median())):
        return ()
    return tuple(int(index) for index in distance.argsort(descending=True) if float(distance[index]) >= most / 2)


@contextmanager
def turned(encoder: nn.Module, tokens: Tokens, index: int) -> Iterator[None]:
    """Negate the embedding of one token of a caption in its text encoder's output, inside a `with` block.

    The caption up to the token is searched among the ids that the encoder is given, wherever a template or padding put
    it; a call without them is left alone. Whichever part of the encoder a pipeline calls, the outermost counts.
    """
    first = tokens.special.index(False)
    wanted = list(tokens.ids[first : index + 1])
    running: list[tuple[int, int] | None] = []

    def starts(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        batches = [ids for ids in (*args, *kwargs.values()) if isinstance(ids, Tensor) and ids.ndim == 2]
        positions = [_find(wanted, row.tolist()) for ids in batches if not ids.is_floating_point() for row in ids]
        start = next((position for position in positions if position is not None), None)
        running.append(None if start is None else (start + index - first, batches[0].shape[1]))

    def ends(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        position = running.pop()
        return _turned(output, *position) if position is not None and not running else None

    with ExitStack() as stack:
        for module in encoder.modules():
            stack.callback(module.register_forward_pre_hook(starts, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(ends, always_call=True).remove)
        yield


def _find(wanted: list[int], ids: list[int]) -> int | None:
    """The last position at which a list occurs in another."""
    starts = range(len(ids) - len(wanted), -1, -1)
    return next((start for start in starts if ids[start : start + len(wanted)] == wanted), None)


def _turned(value: Any, position: int, length: int) -> Any:
    """An encoder's output with its embeddings at one position negated; a pooled one has no position."""
    if isinstance(value, Tensor):
        # ChatGLM has the batch axis after the positions.
        axes = [axis for axis in (1, 0) if value.ndim == 3 and value.shape[axis] == length]
        if not axes or not value.is_floating_point():
            return value
        changed = value.clone()
        changed.select(axes[0], position).mul_(OPPOSITE)
        return changed
    change: Callable[[Any], Any] = partial(_turned, position=position, length=length)
    if isinstance(value, dict):  # a ModelOutput
        return type(value)(**{name: change(part) for name, part in value.items()})
    return type(value)(map(change, value)) if type(value) in (tuple, list) else value

"""What a probe does to a pipeline: run it on a little noise, turn one thing into its opposite, and look again."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from goca.diffusion.attention_hook import AttentionHook, LastAttentionReached
from goca.diffusion.attention_modules import AttentionModule, native
from goca.diffusion.conditioning import EncodedPrompt, record_prompt
from goca.diffusion.exclusive import restoring
from goca.maths import Grid
from goca.text.tokens import Tokens

CAPTIONS = (
    "cat, traffic light, grass",
    "cat, traffic light, grass, dog",
    "sky, grass, wall, dog, cat, person, tree, road, house, boat, bird, car, bus, cup, fish, horse, sheep, table, "
    "plant, chair, sofa, train, bottle, bicycle, river, sand, snow, rock, cloud, door, window, bridge, flower, bread",
)
"""Of three lengths: what is padded in front moves with them, and what is padded to a multiple has several."""
TIMESTEP = 400
"""The timestep of every pass: any at which image and text both matter."""
OPPOSITE = -3.0
"""What a vector is multiplied by: were it shifted or made longer, what normalises it would undo that."""
TELLING = 1e-3
"""How much of the longest vector a difference has to be, so that rounding moves nothing."""
STANDS_OUT = 3.0
"""How many times further than most a position has to move to be the one."""


@dataclass(frozen=True)
class Attention:
    """One attention as it was computed: its first head's queries and keys.

    site: the module that made the call, None for one outside of every attention module. handed: whether the module was
    handed a text.
    """

    site: AttentionModule | None
    handed: bool
    q: Float[Tensor, "position dim"]
    k: Float[Tensor, "key dim"]


@dataclass(frozen=True)
class Look:
    """One denoiser pass: its attentions in their order, the attention modules that made none, and its caption.

    told: the timestep that the pipeline handed to the denoiser, None where it goes by an unknown name.
    """

    attentions: tuple[Attention, ...]
    silent: tuple[AttentionModule, ...]
    prompt: EncodedPrompt
    told: float | None


class Watch(AttentionHook):
    """A tap that expects no layout; `LastAttentionReached` is raised behind attention number `last`."""

    def __init__(self, denoiser: nn.Module, last: int | None) -> None:
        super().__init__(denoiser, (), lambda image, call: None)
        self.last = last
        self.attentions: list[Attention] = []

    def __enter__(self) -> "Watch":
        super().__enter__()
        return self

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func is F.scaled_dot_product_attention:
            query, key = (
                args[at] if len(args) > at else (kwargs or {})[name] for at, name in ((0, "query"), (1, "key"))
            )
            site, handed = self._running[-1] if self._running else (None, False)
            self.attentions.append(Attention(site, handed, query[0, 0], key[0, 0]))
            if site is not None:
                self._calls[site] += 1
            if len(self.attentions) - 1 == self.last:
                raise LastAttentionReached
        return output

    @property
    def silent(self) -> tuple[AttentionModule, ...]:
        """The modules that ran without an attention that can be seen."""
        return tuple(site for site, count in self._calls.items() if not count)

    def _check(self) -> None:
        """Judging what was seen is the probe's part."""


@dataclass(frozen=True)
class Asking:
    """Asks a backbone's denoiser, whose family is still a guess."""

    backbone: Any
    channels: int

    @torch.no_grad()
    def look(
        self,
        size: Grid,
        caption: str,
        cell: Grid | None = None,
        token: tuple[str, Tokens, int] | None = None,
        last: int | None = None,
    ) -> Look:
        """One pass over noise of `size` latent cells, always the same.

        cell: the latent cell that is turned into its opposite. token: (tokenizer, what it made of the caption, place)
        of the token whose embedding is. last: the number of the last attention of interest. Raises whatever the
        pipeline raises.
        """
        noise = torch.randn(1, self.channels, *size, generator=torch.Generator().manual_seed(0))
        if cell is not None:
            noise[..., cell[0], cell[1]] *= OPPOSITE
        backbone = self.backbone
        with restoring(backbone.pipeline) as pipeline, native(backbone.denoiser):
            calls: list[Any] = []
            ask = partial(self._inputs, calls, pipeline, noise, caption)
            turned = nullcontext() if token is None else opposite(encoder_of(pipeline, token[0]), *token[1:])
            with turned:
                prompt = record_prompt(pipeline, caption, ask)
            args, kwargs = calls[0]
            with suppress(LastAttentionReached), Watch(backbone.denoiser, None if backbone.in_parts else last) as watch:
                backbone.denoiser(*args, **kwargs)
        return Look(tuple(watch.attentions), watch.silent, prompt, _timestep(args, kwargs))

    def _inputs(self, calls: list[Any], pipeline: Any, noise: Tensor, caption: str) -> None:
        calls.append(self.backbone.inputs(pipeline, noise, [caption], TIMESTEP))


def _timestep(args: tuple[Any, ...], kwargs: dict[str, Any]) -> float | None:
    named = [kwargs[name] for name in ("timestep", "timesteps", "t") if name in kwargs]
    told = named[0] if named else args[1] if len(args) > 1 else None
    return float(told.flatten()[0]) if isinstance(told, Tensor) and told.numel() and told.ndim <= 1 else None


def encoder_of(pipeline: Any, tokenizer: str) -> Any:
    """The text encoder that goes with a tokenizer of a pipeline, None where there is none."""
    named = tokenizer.startswith("tokenizer")
    return getattr(pipeline, tokenizer.replace("tokenizer", "text_encoder"), None) if named else None


def moved(before: Float[Tensor, "position dim"], after: Float[Tensor, "position dim"]) -> tuple[int, ...]:
    """The position that differs most between two passes, then those that do half as much; none, where all do alike.

    What is pooled, of the words or of the pixels, moves every position a little.
    """
    far = (after.float() - before.float()).norm(dim=-1)
    most, least = float(far.max()), TELLING * float(before.float().norm(dim=-1).max())
    if most <= max(least, STANDS_OUT * float(far.median())):
        return ()
    return tuple(int(place) for place in far.argsort(descending=True) if float(far[place]) >= most / 2)


@contextmanager
def opposite(encoder: nn.Module, tokens: Tokens, place: int) -> Iterator[None]:
    """While it is entered, the embedding of one token of a caption leaves its text encoder turned into its opposite.

    The caption up to the token is found among the numbers that the encoder is given, wherever a template or padding put
    it; a call that has no such numbers is left alone. Whichever part of the encoder a pipeline calls, the outermost
    counts.
    """
    first = tokens.special.index(False)
    wanted = list(tokens.ids[first : place + 1])
    running: list[tuple[int, int] | None] = []

    def starts(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rows = [one for one in (*args, *kwargs.values()) if isinstance(one, Tensor) and one.ndim == 2]
        found = [_find(wanted, row.tolist()) for one in rows if not one.is_floating_point() for row in one]
        at = next((at for at in found if at is not None), None)
        running.append(None if at is None else (at + place - first, rows[0].shape[1]))

    def ends(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        where = running.pop()
        return _turned(output, *where) if where is not None and not running else None

    handles = [
        handle
        for module in encoder.modules()
        for handle in (
            module.register_forward_pre_hook(starts, with_kwargs=True),
            module.register_forward_hook(ends, always_call=True),
        )
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _find(wanted: list[int], numbers: list[int]) -> int | None:
    """Where a list stands, as a whole, in another: the last time."""
    starts = range(len(numbers) - len(wanted), -1, -1)
    return next((at for at in starts if numbers[at : at + len(wanted)] == wanted), None)


def _turned(value: Any, place: int, length: int) -> Any:
    """Whatever an encoder returned, its embeddings of one position turned; a pooled one has no position."""
    if isinstance(value, Tensor):
        # ChatGLM has the batch behind the positions.
        axes = [axis for axis in (1, 0) if value.ndim == 3 and value.shape[axis] == length]
        if not axes or not value.is_floating_point():
            return value
        changed = value.clone()
        changed.select(axes[0], place).mul_(OPPOSITE)
        return changed
    change: Callable[[Any], Any] = partial(_turned, place=place, length=length)
    if isinstance(value, dict):  # a ModelOutput
        return type(value)(**{name: change(part) for name, part in value.items()})
    return type(value)(map(change, value)) if type(value) in (tuple, list) else value

"""See every softmax attention of a denoiser while it runs, without touching it.

Every softmax attention in diffusers ends in `torch.nn.functional.scaled_dot_product_attention`. A `TorchFunctionMode`
sees those calls, with q, k and v as they really are, after projections, norms and position encoding; forward hooks on
the attention modules say which module is making the call. No processor is replaced and nothing installed is patched.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import get_ident
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from goca.errors import GocaError
from goca.maths import Grid


@dataclass(frozen=True)
class AttentionCall:
    """One attention of one picture, as it was computed.

    `block` is the path, inside the denoiser, of the transformer block that owns the attention; the self- and the
    cross-attention of a block share it. `q` and `output` (what the attention gave, by heads) are the pixels' alone; of
    the keys, `text` are those of the text and `image` those of the pixels: one of the two in self- and
    cross-attention, both in joint attention, where `text_output` is what the attention gave the text. `query` is what
    the module's `to_q` gave, before any norm and position encoding; None where it has none of its own. `mask` is
    additive. `projection` is the output projection by heads (bias left out), where text is read. `grid` is the
    picture's grid of pixels in that layer.
    """

    block: str
    q: Float[Tensor, "head pixel dim"]
    k: Float[Tensor, "head key dim"]
    v: Float[Tensor, "head key dim"]
    output: Float[Tensor, "head pixel dim"]
    text_output: Float[Tensor, "head token dim"] | None
    query: Float[Tensor, "pixel channel"] | None
    text: slice | None
    image: slice | None
    mask: Float[Tensor, "#head #pixel key"] | None
    scale: float
    projection: Float[Tensor, "head dim model"] | None
    grid: Grid

    @property
    def kind(self) -> Literal["self", "cross", "joint"]:
        """What the queries, which are pixels, look at: pixels, text, or both."""
        if self.text is None:
            return "self"
        return "cross" if self.image is None else "joint"


@dataclass(frozen=True)
class Joint:
    """How a model with joint attention lays out its sequence: text before the pixels, or behind them.

    aside: paths of blocks, by their beginnings, where words or pixels are among themselves. multiple: pixels are padded
    to a multiple of so many. room: an attribute of the denoiser, to whose number the pixels of a picture that is not
    square are padded. ragged: the pixels of a picture follow its own text at once, however long the other texts of the
    batch are; what is left of its row is masked.
    """

    text_first: bool
    aside: tuple[str, ...] = ()
    multiple: int = 1
    room: str | None = None
    ragged: bool = False

    def padded(self, denoiser: nn.Module, grid: Grid) -> int:
        """How many positions the pixels of a grid take."""
        pixels = grid[0] * grid[1]
        if self.room is not None and grid[0] != grid[1]:
            return int(getattr(denoiser, self.room))
        return -(-pixels // self.multiple) * self.multiple


Sink = Callable[[int, AttentionCall], None]
"""Takes (index of the picture in the batch, its call)."""


@dataclass(frozen=True)
class Site:
    """An attention module, the block that owns it, and the path of that block."""

    block: str
    module: nn.Module
    owner: nn.Module


def sites(denoiser: nn.Module) -> tuple[Site, ...]:
    """Every attention module of a denoiser, in the order of registration."""
    return tuple(
        Site(path, child, parent)
        for path, parent in denoiser.named_modules()
        for child in parent.children()
        if hasattr(child, "processor") and hasattr(child, "set_processor")
    )


class AllSeen(Exception):  # noqa: N818 - a signal, not an error
    """Every attention of the denoiser has run: whatever it still computes is its output."""


class Tap(TorchFunctionMode):
    """While it is entered, hands each attention of the denoiser to `sink`, picture by picture.

    joint: the layout of joint attention, None where there is none. stand_in: self-attention is linear and has no map; a
    block's raw queries stand in for the queries and keys of one. to_the_end: without it `AllSeen` is raised behind the
    last attention. Leaving the tap without an exception checks that
    every attention module that ran was seen, once; hooks go in any case.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        grids: Sequence[Grid],
        sink: Sink,
        joint: Joint | None = None,
        stand_in: bool = False,
        to_the_end: bool = True,
    ) -> None:
        super().__init__()
        self.denoiser, self.sites = denoiser, sites(denoiser)
        self.grids = {height * width: (height, width) for height, width in grids}
        self.sink = sink
        self.joint, self.stand_in, self.to_the_end = joint, stand_in, to_the_end
        self._running: list[tuple[Site, bool]] = []
        self._calls: dict[Site, int] = {}
        self._query: Tensor | None = None
        self._handles: list[Any] = []
        self._thread = 0

    def __enter__(self) -> "Tap":
        self._thread = get_ident()
        for site in self.sites:
            self._handles += [
                site.module.register_forward_pre_hook(self._starts(site), with_kwargs=True),
                site.module.register_forward_hook(self._ends, always_call=True),
            ]
            if isinstance(queries := getattr(site.module, "to_q", None), nn.Module):
                self._handles.append(queries.register_forward_hook(self._queried))
        super().__enter__()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        super().__exit__(kind, error, trace)
        for handle in self._handles:
            handle.remove()
        if error is None or isinstance(error, AllSeen):
            self._check()

    def _starts(self, site: Site) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if get_ident() != self._thread:  # the mode is the thread's own, hooks are everybody's
                return
            text = kwargs.get("encoder_hidden_states", args[1] if len(args) > 1 else None)
            self._running.append((site, text is not None))
            self._calls.setdefault(site, 0)

        return hook

    def _queried(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if get_ident() == self._thread:
            self._query = output

    def _ends(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        # A hook that returned a value would replace the module's output.
        if get_ident() == self._thread:
            self._running.pop()
            self._query = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func is F.scaled_dot_product_attention and self._running:
            self._see(output, *args, **(kwargs or {}))
            if not self.to_the_end and all(self._calls.get(site) or self._silent(site) for site in self.sites):
                raise AllSeen
        return output

    def _see(
        self,
        output: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> None:
        site, reads_text = self._running[-1]
        self._calls[site] += 1
        if enable_gqa:
            key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], 1) for part in (key, value))
        layout = self._layout(site, query.shape[-2], key.shape[-2], reads_text)
        if layout is None:
            return
        rows, text, image, grid = layout
        mask = None if attn_mask is None else _additive(attn_mask, query, key)
        projection = None if text is None else _projection(site, query)
        raw = self._query
        for picture in range(query.shape[0]):
            if self.joint is not None and self.joint.ragged and mask is not None:
                end = int(mask[picture].isfinite().sum(-1).max())
                rows = image = slice(end - grid[0] * grid[1], end)
                text = slice(0, rows.start)
            own = mask if mask is None or mask.shape[-2] == 1 else mask[..., rows, :]
            call = AttentionCall(
                block=site.block,
                q=query[picture, :, rows],
                k=key[picture],
                v=value[picture],
                output=output[picture, :, rows],
                text_output=None if text is None or image is None else output[picture, :, text],
                query=raw[picture] if raw is not None and raw.shape[1] == grid[0] * grid[1] else None,
                text=text,
                image=image,
                mask=None if own is None else own[picture],
                scale=query.shape[-1] ** -0.5 if scale is None else scale,
                projection=projection,
                grid=grid,
            )
            self.sink(picture, call)
            if self.stand_in and call.query is not None:
                self.sink(picture, _among_themselves(call, call.query))

    def _layout(
        self, site: Site, queries: int, keys: int, reads_text: bool
    ) -> tuple[slice, slice | None, slice | None, Grid] | None:
        """(the pixels among the queries, the text and the pixels among the keys, the pixels' grid).

        None for what a model with joint attention has beside it: pixels or words among themselves.
        """
        if self.joint is not None:
            return self._joint_layout(site, queries)
        if queries not in self.grids:
            raise GocaError(
                f"attention of {site.block} has {queries} positions, which is no grid of this picture "
                f"({sorted(self.grids.values())}): this model's layout is not supported, please report it"
            )
        whole = slice(0, keys)
        return slice(None), *((whole, None) if reads_text else (None, whole)), self.grids[queries]

    def _joint_layout(self, site: Site, positions: int) -> tuple[slice, slice, slice, Grid] | None:
        assert self.joint is not None
        ((pixels, grid),) = self.grids.items()
        if positions <= pixels or site.block.startswith(self.joint.aside):
            return None
        padded = self.joint.padded(self.denoiser, grid)
        others = positions - padded
        image = slice(others, others + pixels) if self.joint.text_first else slice(0, pixels)
        text = slice(0, others) if self.joint.text_first else slice(padded, positions)
        return image, text, image, grid

    def _silent(self, site: Site) -> bool:
        """Whether an attention is linear, and so none that can be seen."""
        return self.stand_in and "Linear" in type(getattr(site.module, "processor", None)).__name__

    def _check(self) -> None:
        for site, count in self._calls.items():
            processor = type(getattr(site.module, "processor", None)).__name__
            if count == 0 and not self._silent(site):
                raise GocaError(
                    f"attention of {site.block} ran without scaled_dot_product_attention (processor {processor}): "
                    "switch to the native one with pipe.unet.set_attn_processor(AttnProcessor2_0())"
                )
            if count > 1:
                raise GocaError(
                    f"attention of {site.block} attends {count} times in one pass (processor {processor}): "
                    "remove the adapter first, for instance with pipe.unload_ip_adapter()"
                )


def _among_themselves(call: AttentionCall, query: Tensor) -> AttentionCall:
    """The raw queries of a cross-attention, attending to each other in one head."""
    alone = query[None]
    everything = slice(0, query.shape[0])
    return replace(
        call,
        q=alone,
        k=alone,
        v=alone,
        output=alone,
        text=None,
        image=everything,
        mask=None,
        projection=None,
        scale=query.shape[-1] ** -0.5,
    )


def _additive(mask: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """Any mask that scaled_dot_product_attention takes, as an additive (batch, #head, #pixel, key) one."""
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=torch.float32).masked_fill_(~mask, -torch.inf)
    while mask.ndim < 4:
        mask = mask[None]
    return mask.float().expand(query.shape[0], -1, -1, key.shape[-2])


def _projection(site: Site, query: Tensor) -> Float[Tensor, "head dim model"]:
    """The weight of the attention's output projection, by heads.

    A single-stream block without one has it in its own `proj_out`, fused with the one of its MLP: the attention's
    channels come first. Anything but a plain linear layer with its weight at hand (an adapter, a quantised or offloaded
    one) is asked what it does to the unit vectors, so that what really runs is what is weighed. That takes as long as
    projecting as many tokens as there are channels.
    """
    linear: Any = getattr(site.module, "to_out", None)
    if isinstance(linear, nn.ModuleList | nn.Sequential):
        linear = linear[0]
    elif linear is None:
        linear = site.owner.proj_out
    channels = query.shape[1] * query.shape[-1]
    if type(linear) is nn.Linear and _at_hand(linear):
        matrix = linear.weight.T[:channels]
    else:
        rows = torch.eye(channels + 1, linear.in_features, dtype=query.dtype, device=query.device) * LOUD
        rows[channels] = 0  # what comes of nothing is the bias
        made = linear(rows)
        matrix = (made[:channels] - made[channels]) / LOUD
    return rearrange(matrix, "(head dim) model -> head dim model", head=query.shape[1])


# The unit vectors are asked about this loud: in half precision a bias would drown the weights that it is added to. A
# power of two rounds nothing.
LOUD = 64.0


def _at_hand(linear: nn.Linear) -> bool:
    """Whether a layer multiplies by the very weight that it holds: it is not quantised, and no hook brings it."""
    return type(linear.weight.data) is Tensor and "forward" not in vars(linear)


# These compute what AttnProcessor2_0 computes, by another route that the tap cannot see.
EQUIVALENT = {"AttnProcessor", "SlicedAttnProcessor", "XFormersAttnProcessor"}


@contextmanager
def native(denoiser: nn.Module) -> Iterator[None]:
    """For one call: attention slicing, xformers and compiled graphs step aside for PyTorch's own attention."""
    from diffusers.models.attention_processor import AttnProcessor2_0

    hidden = [site.module for site in sites(denoiser) if type(site.module.processor).__name__ in EQUIVALENT]
    before = [module.processor for module in hidden]
    try:
        for module in hidden:
            module.processor = AttnProcessor2_0()
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for module, processor in zip(hidden, before, strict=True):
            module.processor = processor

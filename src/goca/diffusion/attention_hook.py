"""See every softmax attention of a denoiser while it runs, without touching it.

Every softmax attention in diffusers ends in `torch.nn.functional.scaled_dot_product_attention`. A `TorchFunctionMode`
sees those calls, with q, k and v as they really are, after projections, norms and position encoding; forward hooks on
the attention modules say which module is making the call. No processor is replaced and nothing installed is patched.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from threading import get_ident
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from goca.diffusion.attention_call import AttentionCall, JointLayout, Sink
from goca.diffusion.attention_modules import AttentionModule, attention_modules, output_projection
from goca.errors import GocaError
from goca.maths import Grid


class LastAttentionReached(Exception):  # noqa: N818 - a signal, not an error
    """Every attention of the denoiser has run: whatever it still computes is its output."""


class AttentionHook(TorchFunctionMode):
    """While it is entered, hands each attention of the denoiser to `sink`, image by image.

    joint: the layout of joint attention, None where there is none. linear_self_attention: self-attention is linear and has no map; a
    block's raw queries stand in for the queries and keys of one. to_the_end: without it `LastAttentionReached` is raised
    behind the last attention. Leaving the hook without an exception checks that every attention module that ran was seen, once; hooks go in any case.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        grids: Sequence[Grid],
        sink: Sink,
        joint: JointLayout | None = None,
        linear_self_attention: bool = False,
        to_the_end: bool = True,
    ) -> None:
        super().__init__()
        self.denoiser, self.attention_modules = denoiser, attention_modules(denoiser)
        self.grids = {height * width: (height, width) for height, width in grids}
        self.sink = sink
        self.joint, self.linear_self_attention, self.to_the_end = joint, linear_self_attention, to_the_end
        self._running: list[tuple[AttentionModule, bool]] = []
        self._calls: dict[AttentionModule, int] = {}
        self._query: Tensor | None = None
        self._handles: list[Any] = []
        self._thread = 0

    def __enter__(self) -> "AttentionHook":
        self._thread = get_ident()
        for site in self.attention_modules:
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
        if error is None or isinstance(error, LastAttentionReached):
            self._check()

    def _starts(self, site: AttentionModule) -> Callable[..., None]:
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
            if not self.to_the_end and all(
                self._calls.get(site) or self._silent(site) for site in self.attention_modules
            ):
                raise LastAttentionReached
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
        projection = None if text is None else output_projection(site, query)
        raw = self._query
        for index in range(query.shape[0]):
            if self.joint is not None and self.joint.packed_text and mask is not None:
                end = int(mask[index].isfinite().sum(-1).max())
                rows = image = slice(end - grid[0] * grid[1], end)
                text = slice(0, rows.start)
            own = mask if mask is None or mask.shape[-2] == 1 else mask[..., rows, :]
            call = AttentionCall(
                block=site.block,
                q=query[index, :, rows],
                k=key[index],
                v=value[index],
                output=output[index, :, rows],
                text_output=None if text is None or image is None else output[index, :, text],
                query=raw[index] if raw is not None and raw.shape[1] == grid[0] * grid[1] else None,
                text=text,
                image=image,
                mask=None if own is None else own[index],
                scale=query.shape[-1] ** -0.5 if scale is None else scale,
                projection=projection,
                grid=grid,
            )
            self.sink(index, call)
            if self.linear_self_attention and call.query is not None:
                self.sink(index, _among_themselves(call, call.query))

    def _layout(
        self, site: AttentionModule, queries: int, keys: int, reads_text: bool
    ) -> tuple[slice, slice | None, slice | None, Grid] | None:
        """(the pixels among the queries, the text and the pixels among the keys, the pixels' grid).

        None for what a model with joint attention has beside it: pixels or words among themselves.
        """
        if self.joint is not None:
            return self._joint_layout(site, queries)
        if queries not in self.grids:
            raise GocaError(
                f"attention of {site.block} has {queries} positions, which is no grid of this image "
                f"({sorted(self.grids.values())}): this model's layout is not supported, please report it"
            )
        whole = slice(0, keys)
        return slice(None), *((whole, None) if reads_text else (None, whole)), self.grids[queries]

    def _joint_layout(self, site: AttentionModule, positions: int) -> tuple[slice, slice, slice, Grid] | None:
        assert self.joint is not None
        ((pixels, grid),) = self.grids.items()
        if positions <= pixels or site.block.startswith(self.joint.unimodal_blocks):
            return None
        padded = self.joint.padded(self.denoiser, grid)
        others = positions - padded
        image = slice(others, others + pixels) if self.joint.text_first else slice(0, pixels)
        text = slice(0, others) if self.joint.text_first else slice(padded, positions)
        return image, text, image, grid

    def _silent(self, site: AttentionModule) -> bool:
        """Whether an attention is linear, and so none that can be seen."""
        return self.linear_self_attention and "Linear" in type(getattr(site.module, "processor", None)).__name__

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

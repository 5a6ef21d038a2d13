"""Read every softmax attention of a denoiser while it runs, without changing it.

Every softmax attention in diffusers ends in `torch.nn.functional.scaled_dot_product_attention`. A `TorchFunctionMode`
sees those calls, with q, k and v as they really are, after projections, norms and position encoding; forward hooks on
the attention modules say which module is making the call. No processor is replaced and nothing installed is patched.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from threading import get_ident
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from goca.diffusion.attention_call import AttentionCall, Sink
from goca.diffusion.attention_modules import AttentionModule, attention_modules, output_projection, remedy
from goca.diffusion.families.spec import JointLayout
from goca.errors import GocaError
from goca.maths import Grid


class LastAttentionReached(Exception):  # noqa: N818 - a signal, not an error
    """Every attention of the denoiser has run: the rest only computes its output."""


class AttentionHook(TorchFunctionMode):
    """Passes each attention of a denoiser to `sink`, image by image, inside a `with` block.

    Leaving it without an exception checks that every attention module that ran was seen once. Hooks are always removed.

    Args:
        denoiser: The bare denoiser.
        grids: The (height, width) grids of the image in the layers.
        sink: Takes each call of attention.
        joint: The layout of joint attention, None for cross-attention.
        linear_self_attention: Self-attention is linear and has no map; the raw queries of a block's cross-attention,
            attending to each other, are passed on instead.
        to_the_end: If False, `LastAttentionReached` is raised after the last attention.
        component: The pipeline's attribute that holds the denoiser, for messages.
        rows: The images in the batch; None for any number.
        references: In joint attention, the grids of reference images after the pixels; each is passed on
            as a call of its own.

    Raises:
        GocaError: An attention cannot be read; the message says which, why and what to do.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        grids: Sequence[Grid],
        sink: Sink,
        joint: JointLayout | None = None,
        linear_self_attention: bool = False,
        to_the_end: bool = True,
        component: str = "unet",
        rows: int | None = None,
        references: Sequence[Grid] = (),
    ) -> None:
        super().__init__()
        self.denoiser, self.attention_modules = denoiser, attention_modules(denoiser)
        self.grids = {height * width: (height, width) for height, width in grids}
        self.sink = sink
        self.joint, self.linear_self_attention, self.to_the_end = joint, linear_self_attention, to_the_end
        self.component, self.rows, self.references = component, rows, tuple(references)
        self._shapes: dict[nn.Module, tuple[torch.Size, ...]] = {}  # of the inputs of the modules around attention
        self._running: list[tuple[AttentionModule, bool]] = []
        self._calls: dict[AttentionModule, int] = {}
        self._raw_query: Tensor | None = None
        self._handles: list[Any] = []
        self._thread = 0

    def __enter__(self) -> "AttentionHook":
        self._thread = get_ident()
        around = {module: None for attention in self.attention_modules for module in self._around(attention)}
        for module in around:
            self._handles.append(module.register_forward_pre_hook(self._given, with_kwargs=True))
        for attention in self.attention_modules:
            self._handles += [
                attention.module.register_forward_pre_hook(self._starts(attention), with_kwargs=True),
                attention.module.register_forward_hook(self._ends, always_call=True),
            ]
            if isinstance(to_q := getattr(attention.module, "to_q", None), nn.Module):
                self._handles.append(to_q.register_forward_hook(self._projected))
        super().__enter__()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        super().__exit__(kind, error, trace)
        for handle in self._handles:
            handle.remove()
        if error is None or isinstance(error, LastAttentionReached):
            self._check()

    def _starts(self, attention: AttentionModule) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if get_ident() != self._thread:  # the mode is thread-local, hooks are not
                return
            text = kwargs.get("encoder_hidden_states", args[1] if len(args) > 1 else None)
            self._running.append((attention, text is not None))
            self._calls.setdefault(attention, 0)

        return hook

    def _around(self, attention: AttentionModule) -> tuple[nn.Module, nn.Module]:
        """The block that owns an attention, and the layer of a UNet that the block belongs to."""
        return attention.owner, self.denoiser.get_submodule(attention.block.rsplit(".", 2)[0])

    def _given(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if get_ident() == self._thread:
            named = (kwargs[name] for name in ("hidden_states", "encoder_hidden_states") if name in kwargs)
            self._shapes[module] = tuple(part.shape for part in (*args, *named) if isinstance(part, Tensor))[:2]

    def _projected(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if get_ident() == self._thread:
            self._raw_query = output

    def _ends(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        # A hook that returned a value would replace the module's output.
        if get_ident() == self._thread:
            self._running.pop()
            self._raw_query = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func is F.scaled_dot_product_attention and self._running:
            self._see(output, *args, **(kwargs or {}))
            if not self.to_the_end and all(
                self._calls.get(attention) or self._has_no_map(attention) for attention in self.attention_modules
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
        attention, reads_text = self._running[-1]
        self._calls[attention] += 1
        if enable_gqa:
            key, value = (heads.repeat_interleave(query.shape[1] // heads.shape[1], 1) for heads in (key, value))
        positions = self._positions(attention, query.shape[-2], key.shape[-2], reads_text)
        if positions is None:
            return
        if self.rows is not None and query.shape[0] != self.rows:
            raise self._changed(attention, f"runs on {query.shape[0]} rows of a batch of {self.rows}")
        rows, text, image, grid = positions
        mask = None if attn_mask is None else _additive(attn_mask, query, key)
        projection = None if text is None else output_projection(attention, query)
        raw, grids = self._raw_query, (grid, *self.references)
        ends = list(accumulate(height * width for height, width in grids))
        for index in range(query.shape[0]):
            if self.joint is not None and self.joint.packed_text and mask is not None:
                end = int(mask[index].isfinite().sum(-1).max())
                rows = image = slice(end - grid[0] * grid[1], end)
                text = slice(0, rows.start)
            first = image.start if self.joint is not None and image is not None else 0
            for number, (grid, start, end) in enumerate(zip(grids, [0, *ends[:-1]], ends, strict=True)):
                if number:  # reference images follow the generated one
                    rows = image = slice(first + start, first + end)
                pixel_mask = mask if mask is None or mask.shape[-2] == 1 else mask[..., rows, :]
                call = AttentionCall(
                    block=attention.block,
                    q=query[index, :, rows],
                    k=key[index],
                    v=value[index],
                    output=output[index, :, rows],
                    text_output=None if text is None or image is None else output[index, :, text],
                    query=raw[index, start:end] if raw is not None and raw.shape[1] == ends[-1] else None,
                    text=text,
                    image=image,
                    mask=None if pixel_mask is None else pixel_mask[index],
                    scale=query.shape[-1] ** -0.5 if scale is None else scale,
                    projection=projection,
                    grid=grid,
                    reference=number,
                )
                self.sink(index, call)
                if self.linear_self_attention and call.query is not None:
                    self.sink(index, _self_attention(call, call.query))

    def _positions(
        self, attention: AttentionModule, queries: int, keys: int, reads_text: bool
    ) -> tuple[slice, slice | None, slice | None, Grid] | None:
        """(the pixels' queries, the text's keys, the pixels' keys, the pixels' grid).

        None for other attention of a model with joint attention: pixels or text that attend only to themselves.
        """
        block, layer = (self._shapes.get(module, ()) for module in self._around(attention))
        tokens = [shape[1] for shape in block if len(shape) == 3]
        if tokens and queries not in (tokens[0], sum(tokens)):
            raise self._changed(attention, f"sees {queries} positions where its block is given {tokens[0]}")
        if self.joint is None and not reads_text and keys != queries:
            raise self._changed(attention, f"compares {queries} positions with {keys}")
        if self.joint is not None:
            return self._joint_positions(attention, queries)
        # A UNet's layer gets its grid as input; elsewhere all blocks have the image's grid.
        spatial = layer and len(layer[0]) == 4
        grid = (layer[0][2], layer[0][3]) if spatial else self.grids.get(queries)
        if grid is None or grid[0] * grid[1] != queries:
            raise GocaError(
                f"attention of {attention.block} has {queries} positions, which are not a grid of this image "
                f"({sorted(self.grids.values())}): this model's layout is not supported, please report it"
            )
        text, image = (slice(0, keys), None) if reads_text else (None, slice(0, keys))
        return slice(None), text, image, grid

    def _joint_positions(self, attention: AttentionModule, positions: int) -> tuple[slice, slice, slice, Grid] | None:
        assert self.joint is not None
        ((pixels, grid),) = self.grids.items()
        beside = sum(height * width for height, width in self.references)
        if positions <= pixels + beside or attention.block.startswith(self.joint.unimodal_blocks):
            return None
        padded = self.joint.padded(self.denoiser, grid) + beside
        tokens = positions - padded
        image = slice(tokens, tokens + pixels) if self.joint.text_first else slice(0, pixels)
        text = slice(0, tokens) if self.joint.text_first else slice(padded, positions)
        return image, text, image, grid

    def _has_no_map(self, attention: AttentionModule) -> bool:
        return self.linear_self_attention and "Linear" in attention.processor

    def _changed(self, attention: AttentionModule, what: str) -> GocaError:
        """The error for tokens that were merged, dropped or cut into tiles before they attend."""
        kind = type(attention.owner)
        package = kind.__module__.partition(".")[0]
        by = f" ({package}'s {kind.__name__})" if package != "diffusers" else ""
        undo = "with tomesd.remove_patch(pipe)" if package == "tomesd" else "or load the pipeline again"
        return GocaError(
            f"attention of {attention.block} {what}: a patch{by} merges or splits its tokens; remove it {undo}"
        )

    def unseen(self) -> str | None:
        """A block whose attention has not run; None if all have."""
        silent = (attention.block for attention in self.attention_modules if attention not in self._calls)
        return next(silent, None)

    def _check(self) -> None:
        for attention, count in self._calls.items():
            if count > 1 or (count == 0 and not self._has_no_map(attention)):
                how = f"attends {count} times in one pass" if count else "ran without scaled_dot_product_attention"
                raise GocaError(
                    f"attention of {attention.block} {how} (processor {attention.processor}): "
                    f"{remedy(attention, self.component)}"
                )


def _self_attention(call: AttentionCall, query: Tensor) -> AttentionCall:
    """The raw queries of a cross-attention, attending to each other in one head."""
    head = query[None]
    return replace(
        call,
        q=head,
        k=head,
        v=head,
        output=head,
        text=None,
        image=slice(0, query.shape[0]),
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

"""What ComfyUI's sampler computes, reported to an observer.

ComfyUI calls a function of ours in place of each attention (`transformer_options["optimized_attention_override"]`),
around each call of the denoiser and around a sampling (wrappers "diffusion_model" and "outer_sample"). Their arguments
are passed on to the observers of `goca.tracing` and `goca.guidance`, as if a diffusers pipeline ran.

ComfyUI clones a model with a deep copy of its options, which would also copy the object of a bound method: so
everything that is put there is a closure.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from goca.diffusion.attention_call import AttentionCall, Sink
from goca.diffusion.attention_modules import output_projection
from goca.diffusion.denoiser_call import DenoiserCall, DenoiserRow, Observer
from goca.diffusion.families.unet import FAMILY
from goca.errors import GocaError
from goca.integrations.comfyui.host import HostBlock, HostPrompt, HostUNet
from goca.maths import Grid

COND, UNCOND = 0, 1
"""How `cond_or_uncond` tells the positive conditioning from the negative one."""


class SamplerHook:
    """Reports to an observer what ComfyUI's sampler computes, as if a diffusers pipeline ran.

    Attributes:
        observer: The observer of the last sampling; None before the first.
    """

    def __init__(self, unet: HostUNet, prompt: HostPrompt, observer: Callable[[], Observer]) -> None:
        """observer: makes an observer for each sampling."""
        self.observer: Observer | None = None
        self._unet, self._prompt, self._make = unet, prompt, observer
        self._sink: Sink | None = None
        self._seen: list[HostBlock] = []
        self._call: DenoiserCall | None = None
        self._evaluation, self._scale, self._uuid = 0, None, None
        self._latent: Grid = (0, 0)

    def attach(self, patcher: Any, ends: bool) -> None:
        """Hook into a ModelPatcher. ends: whether the observer's call ends when the denoiser returns."""
        options = patcher.model_options.setdefault("transformer_options", {})
        before = options.get("optimized_attention_override")

        def override(attend: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
            output = attend(*args, **kwargs) if before is None else before(attend, *args, **kwargs)
            if self._sink is not None:
                self._see(self._sink, output, *args, **kwargs)
            return output

        def sampling(executor: Any, noise: Tensor, *args: Any, **kwargs: Any) -> Any:
            self.observer, self._evaluation, self._uuid = self._make(), 0, None
            self._scale = getattr(executor.class_obj, "cfg", None)
            self._latent = (noise.shape[-2], noise.shape[-1])
            return executor(noise, *args, **kwargs)

        def denoising(executor: Any, x: Tensor, timesteps: Tensor, *args: Any, **kwargs: Any) -> Any:
            given = kwargs.get("transformer_options") or next(item for item in args if isinstance(item, dict))
            assert self.observer is not None
            self._call, self._seen = self._denoiser_call(x, timesteps, given), []
            self._sink = self.observer.begin(self._call)
            try:
                output = executor(x, timesteps, *args, **kwargs)
                if self._sink is not None:
                    self._check()
            finally:
                self._sink = None
            if ends:
                self.observer.end(self._call, output)
            return output

        options["optimized_attention_override"] = override
        patcher.add_wrapper_with_key("outer_sample", "goca", sampling)
        patcher.add_wrapper_with_key("diffusion_model", "goca", denoising)

    def guide(self, conds: Sequence[Any], predictions: list[Tensor], scale: float) -> list[Tensor]:
        """The predictions, positive and negative first, after the observer has seen both."""
        assert self.observer is not None
        if len(predictions) < 2 or self._call is None or None in conds[:2]:
            raise unguided()
        images = len(predictions[0])
        rows = (*self._rows(COND, images), *self._rows(UNCOND, images))
        call = replace(self._call, rows=rows, scale=scale)
        moved = self.observer.end(call, torch.cat(predictions[:2]))
        self._evaluation += 1
        return predictions if moved is None else [moved[:images], moved[images:], *predictions[2:]]

    def _denoiser_call(self, x: Tensor, timesteps: Tensor, options: Mapping[str, Any]) -> DenoiserCall:
        branches = options["cond_or_uncond"]
        uuids = [uuid for uuid, branch in zip(options.get("uuids", branches), branches, strict=True) if branch == COND]
        self._uuid = self._uuid or next(iter(uuids), None)
        if any(uuid != self._uuid for uuid in uuids) or len(uuids) > 1 or tuple(x.shape[-2:]) != self._latent:
            raise GocaError("combined or regional prompts are not supported: connect one prompt for the whole image")
        images = len(x) // len(branches)
        given, now = options.get("sample_sigmas"), float(options["sigmas"].max())
        step = 0 if given is None else max(0, int((given[:-1] >= now * (1 - 1e-5)).sum()) - 1)
        rows = tuple(row for branch in branches for row in self._rows(branch, images))
        return DenoiserCall(0, step, self._evaluation, float(timesteps[0]), self._latent, rows, self._scale)

    def _rows(self, branch: int, images: int) -> tuple[DenoiserRow, ...]:
        if branch == COND:
            return tuple(DenoiserRow("cond", image, self._prompt.tokens) for image in range(images))
        if branch == UNCOND:  # only its start token counts, which is the same in every prompt
            return tuple(DenoiserRow("uncond", image, self._prompt.tokens) for image in range(images))
        return (DenoiserRow("other"),) * images

    def _see(
        self,
        sink: Sink,
        output: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        heads: int,
        mask: Tensor | None = None,
        attn_precision: Any = None,
        skip_reshape: bool = False,
        skip_output_reshape: bool = False,
        *,
        transformer_options: Mapping[str, Any],
        **_: Any,
    ) -> None:
        """Pass an attention on. In each block, the first is self-attention and the second cross-attention."""
        assert self._call is not None
        block = (*transformer_options.get("block", ("none", 0)), transformer_options.get("block_index", 0))
        module = self._unet.cross.get(block)
        if module is None:
            return
        reads_text = block in self._seen
        self._seen.append(block)
        by_head = "row position (head dim) -> row head position dim"
        if not skip_reshape:
            q, k, v = (rearrange(part, by_head, head=heads) for part in (q, k, v))
        if not skip_output_reshape:
            output = rearrange(output, by_head, head=heads)
        rows, pixels, keys, count = len(q), q.shape[2], k.shape[2], self._prompt.length
        grids = {high * wide: (high, wide) for high, wide in FAMILY.grids(self._unet.denoiser, self._latent)}
        is_whole = rows == len(self._call.rows) and pixels in grids and (reads_text or keys == pixels)
        if not is_whole or mask is not None:
            raise patched(module.block)
        projection = output_projection(module, q) if reads_text else None
        for index, row in enumerate(self._call.rows):
            # Shorter texts are repeated to the longest one's length, which does not change the attention.
            end = count if reads_text and row.branch == "cond" else keys
            if keys % end:
                raise GocaError(
                    f"the sampler's positive prompt has {keys} tokens, but this node's has {count}: connect the "
                    "conditioning that came with this model"
                )
            call = AttentionCall(
                block=module.block,
                q=q[index],
                k=k[index, :, :end],
                v=v[index, :, :end],
                output=output[index],
                text_output=None,
                query=None,
                text=slice(0, end) if reads_text else None,
                image=None if reads_text else slice(0, pixels),
                mask=None,
                scale=q.shape[-1] ** -0.5,
                projection=projection,
                grid=grids[pixels],
            )
            sink(index, call)

    def _check(self) -> None:
        """Raise GocaError for a block whose attention bypassed ComfyUI's function, or called it twice."""
        for block, module in self._unet.cross.items():
            if self._seen.count(block) != 2:
                raise patched(module.block)


def patched(block: str) -> GocaError:
    """The error for an attention that another node has changed."""
    return GocaError(
        f"another node changes the attention of {block}, such as HyperTile, ToMe, PAG, SAG or an IP-Adapter: remove "
        "that node, or use the model without goca's node"
    )


def unguided() -> GocaError:
    """The error for a sampler without guidance."""
    return GocaError("the sampler does not use guidance: set its cfg above 1, or remove the guide node")

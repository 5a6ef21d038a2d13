"""The attention modules of a denoiser, and their output projections."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from goca.errors import GocaError


@dataclass(frozen=True)
class AttentionModule:
    """An attention module of a denoiser.

    Attributes:
        block: The path of the transformer block that owns it.
        module: The module itself.
        owner: That block.
    """

    block: str
    module: nn.Module
    owner: nn.Module

    @property
    def processor(self) -> str:
        """The class name of its attention processor."""
        return type(getattr(self.module, "processor", None)).__name__


def attention_modules(denoiser: nn.Module) -> tuple[AttentionModule, ...]:
    """Every attention module of a denoiser, in the order of registration."""
    return tuple(
        AttentionModule(path, child, parent)
        for path, parent in denoiser.named_modules()
        for child in parent.children()
        if hasattr(child, "processor") and hasattr(child, "set_processor")
    )


def output_projection(attention: AttentionModule, query: Tensor) -> Float[Tensor, "head dim model"]:
    """The weight of an attention's output projection, by heads, without bias.

    A single-stream block without one has it in its own `proj_out`, fused with the one of its MLP: the attention's
    channels come first. Anything but a plain linear layer with its weight at hand (an adapter, a quantised or offloaded
    layer) is applied to the unit vectors, so that weights reflect what really runs. That takes as long as projecting
    as many tokens as there are channels. The module's queries, (batch, head, position, dim), give shape, dtype and
    device.
    """
    linear: Any = getattr(attention.module, "to_out", None)
    if isinstance(linear, nn.ModuleList | nn.Sequential):
        linear = linear[0]
    elif linear is None:
        linear = attention.owner.proj_out
    channels = query.shape[1] * query.shape[-1]
    if type(linear) is nn.Linear and _at_hand(linear):
        weight = linear.weight.T[:channels]
    else:
        inputs = torch.eye(channels + 1, linear.in_features, dtype=query.dtype, device=query.device) * AMPLITUDE
        inputs[channels] = 0  # this row gives the bias
        outputs = linear(inputs)
        weight = (outputs[:channels] - outputs[channels]) / AMPLITUDE
    return rearrange(weight, "(head dim) model -> head dim model", head=query.shape[1])


AMPLITUDE = 64.0
"""The length of the unit vectors that a layer is applied to.

In half precision a bias would swamp the weights that it is added to. A power of two causes no rounding.
"""


def _at_hand(linear: nn.Linear) -> bool:
    """Whether a layer multiplies by its own weight: it is not quantised, and no hook loads it."""
    return type(linear.weight.data) is Tensor and "forward" not in vars(linear)


# {processor that bypasses what the hook sees: the equivalent one that does not}.
EQUIVALENT = {
    "AttnProcessor": "AttnProcessor2_0",
    "SlicedAttnProcessor": "AttnProcessor2_0",
    "XFormersAttnProcessor": "AttnProcessor2_0",
    "XFormersJointAttnProcessor": "JointAttnProcessor2_0",
}
# The kernels of diffusers' attention backends that are PyTorch's `scaled_dot_product_attention`.
NATIVE_BACKENDS = ("native", "_native_cudnn", "_native_efficient", "_native_flash", "_native_math")


@contextmanager
def native(denoiser: nn.Module, component: str) -> Iterator[None]:
    """Use PyTorch's own attention for one call, instead of attention slicing, xformers and compiled graphs.

    `component` is the pipeline's attribute that holds the denoiser. Raises GocaError for any other kernel.
    """
    from diffusers.models import attention_processor

    modules = attention_modules(denoiser)
    hidden = [attention for attention in modules if attention.processor in EQUIVALENT]
    before = {attention: attention.module.processor for attention in modules}
    for attention in modules:
        # Without that attribute, PyTorch may be called directly, which shows in the pass.
        dispatched = hasattr(attention.module.processor, "_attention_backend")
        if dispatched and (backend := backend_of(attention)) not in NATIVE_BACKENDS:
            raise GocaError(
                f'attention of {attention.block} runs on the backend "{backend}", which goca cannot read: '
                f"{remedy(attention, component)}"
            )
    try:
        for attention in hidden:
            attention.module.processor = getattr(attention_processor, EQUIVALENT[attention.processor])()
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for attention, processor in before.items():
            # A pipeline that sets its own in each call leaves them behind if it fails.
            if attention in hidden or _is_pipelines(attention.module.processor):
                attention.module.processor = processor


def backend_of(attention: AttentionModule) -> str:
    """The attention backend of diffusers that a module runs on: its own, or else the one that is set for all."""
    from diffusers.models import attention_dispatch

    active, _ = attention_dispatch._AttentionBackendRegistry.get_active_backend()
    chosen = getattr(attention.module.processor, "_attention_backend", None) or active
    return str(getattr(chosen, "value", chosen))


def remedy(attention: AttentionModule, component: str) -> str:
    """Advice on attention that cannot be read, which depends on its processor and on who set it."""
    package = type(attention.module.processor).__module__
    if package.startswith("diffusers.models.") and backend_of(attention) not in NATIVE_BACKENDS:
        return f'switch to PyTorch\'s own with pipe.{component}.set_attention_backend("native")'
    if "IPAdapter" in attention.processor:
        return "remove the adapter first with pipe.unload_ip_adapter()"
    if _is_pipelines(attention.module.processor):
        return (
            "the pipeline itself sets that processor in every call, so use a plain one, for instance "
            "StableDiffusionPipeline(**pipe.components)"
        )
    if component == "unet" and "forward" not in vars(attention.module):
        return "switch to the native one with pipe.unet.set_attn_processor(AttnProcessor2_0())"
    return "load the pipeline again and leave its attention as it is"


def _is_pipelines(processor: Any) -> bool:
    return type(processor).__module__.startswith("diffusers.pipelines.")

"""The attention modules of a denoiser, and what each projects its output with."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn


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
        """The class name of what computes its attention."""
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
    """The weight of an attention's output projection, by heads, bias left out.

    A single-stream block without one has it in its own `proj_out`, fused with the one of its MLP: the attention's
    channels come first. Anything but a plain linear layer with its weight at hand (an adapter, a quantised or offloaded
    layer) is applied to the unit vectors, so that what really runs is what is weighed. That takes as long as projecting
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
        inputs[channels] = 0  # gives the bias
        outputs = linear(inputs)
        weight = (outputs[:channels] - outputs[channels]) / AMPLITUDE
    return rearrange(weight, "(head dim) model -> head dim model", head=query.shape[1])


AMPLITUDE = 64.0
"""The length of the unit vectors that a layer is applied to.

In half precision a bias would drown the weights that it is added to. A power of two rounds nothing.
"""


def _at_hand(linear: nn.Linear) -> bool:
    """Whether a layer multiplies by the very weight that it holds: it is not quantised, and no hook brings it."""
    return type(linear.weight.data) is Tensor and "forward" not in vars(linear)


# These compute what AttnProcessor2_0 computes, by another route, which the attention hook cannot see.
EQUIVALENT = {"AttnProcessor", "SlicedAttnProcessor", "XFormersAttnProcessor"}


@contextmanager
def native(denoiser: nn.Module) -> Iterator[None]:
    """For one call: attention slicing, xformers and compiled graphs step aside for PyTorch's own attention."""
    from diffusers.models.attention_processor import AttnProcessor2_0

    hidden = [attention.module for attention in attention_modules(denoiser) if attention.processor in EQUIVALENT]
    before = [module.processor for module in hidden]
    try:
        for module in hidden:
            module.processor = AttnProcessor2_0()
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for module, processor in zip(hidden, before, strict=True):
            module.processor = processor

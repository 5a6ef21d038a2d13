"""A digest of a pipeline's weights, by which measurements of it are identified."""

from collections.abc import Iterator
from hashlib import blake2b
from typing import Any

import torch

PROBES = 64
"""Most values of each tensor that a fingerprint covers."""


def fingerprint(pipeline: Any) -> str:
    """A digest of a pipeline's weights: names, shapes, and some values of every tensor of its modules.

    Tensors on the meta device, as in offloaded models, count only by their shape.
    """
    mark = blake2b(digest_size=8)
    for name, part in sorted(pipeline.components.items()):
        if isinstance(part, torch.nn.Module):
            for key, tensor in part.state_dict().items():
                mark.update(f"{name}.{key} {tuple(tensor.shape)} {tensor.dtype}".encode())
                for plain in _plain(tensor):
                    if not plain.is_meta:
                        step = max(1, plain.numel() // PROBES)
                        mark.update(plain.flatten()[::step].float().cpu().numpy().tobytes())
            for module in part.modules():  # the weight of a LoRA is not stored in a tensor
                if hasattr(module, "active_adapters"):
                    facts = [getattr(module, name, None) for name in ("active_adapters", "disable_adapters", "scaling")]
                    mark.update(repr(facts).encode())
    return mark.hexdigest()


def _plain(tensor: Any) -> Iterator[torch.Tensor]:
    """A tensor itself, or the parts of a quantised one, which cannot be sliced."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from _plain(getattr(tensor, name))


def has_meta_weights(pipeline: Any) -> bool:
    """Whether weights are on the meta device, so that their values are not in the fingerprint."""
    parts = (part for part in pipeline.components.values() if isinstance(part, torch.nn.Module))
    return any(tensor.is_meta for part in parts for tensor in part.parameters())

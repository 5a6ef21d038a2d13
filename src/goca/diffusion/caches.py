"""Caches and layer skipping, which leave out parts of a denoiser's pass or keep state between passes.

goca's own passes bypass them and leave their state alone. For observed generations, which are the user's, they are
refused, since a skipped block has no attention to read.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

from goca.errors import GocaError

PLACEMENT = ("group_offloading", "layerwise_casting", "context_parallel", "tensor_parallel", "tensor_parallel_neuron")
"""The hooks of diffusers that only decide the device and dtype of a layer."""


@contextmanager
def without_caches(denoiser: nn.Module, component: str) -> Iterator[None]:
    """Disable every diffusers hook that skips or keeps anything, for one pass of goca's own, preserving its state.

    Raises:
        GocaError: There is a cache of another library.
    """
    from diffusers.hooks import ModelHook

    _check_foreign(denoiser, component)
    plain, references = ModelHook(), [hook.fn_ref for _, hook in _hooks(denoiser)]
    before = [dict(vars(reference)) for reference in references]
    try:
        for reference in references:
            reference.forward = reference.original_forward or reference.forward
            reference.pre_forward, reference.post_forward = plain.pre_forward, plain.post_forward
        yield
    finally:
        for reference, attributes in zip(references, before, strict=True):
            vars(reference).update(attributes)


def check_caches(denoiser: nn.Module, component: str) -> None:
    """Refuse to observe a denoiser that skips blocks, with how to switch that off.

    Args:
        denoiser: The bare denoiser.
        component: The pipeline's attribute that holds it, for the message.
    """
    _check_foreign(denoiser, component)
    hooks = dict(_hooks(denoiser))
    if not hooks:
        return
    config = getattr(denoiser, "_cache_config", None)
    if config is not None:
        name, remedy = type(config).__name__.removesuffix("Config"), f"pipe.{component}.disable_cache()"
    else:
        name = type(next(iter(hooks.values()))).__name__
        removals = "".join(f'; registry.remove_hook("{hook}")' for hook in hooks)
        remedy = f"registry = diffusers.hooks.HookRegistry.check_if_exists_or_initialize(pipe.{component}){removals}"
    raise GocaError(f"{name} skips parts of the {component}, whose attention would be missing: switch it off, {remedy}")


def _hooks(denoiser: nn.Module) -> Iterator[tuple[str, Any]]:
    """(name, hook) of each diffusers hook that does more than placement."""
    for module in denoiser.modules():
        registry = getattr(module, "_diffusers_hook", None)
        for name, hook in registry.hooks.items() if registry is not None else ():
            package, _, file = type(hook).__module__.rpartition(".")
            if package == "diffusers.hooks" and file not in PLACEMENT:
                yield name, hook


def _check_foreign(denoiser: nn.Module, component: str) -> None:
    """Raise GocaError for a replaced `forward` of a module or its class, as by DeepCache and TeaCache."""
    for path, module in denoiser.named_modules():
        forward: Callable[..., Any] = module.forward
        while isinstance(forward, partial):
            forward = forward.func
        name = f"{forward.__module__}.{getattr(forward, '__qualname__', type(forward).__qualname__)}"
        if "cache" in name.lower() and not name.startswith(("diffusers.", "torch.", "transformers.", "accelerate.")):
            raise GocaError(
                f"a cache, {name}, runs pipe.{component}{path and '.'}{path} and may leave blocks out: switch it off "
                "the way its library says (DeepCache: helper.disable()), or load the pipeline again without it"
            )

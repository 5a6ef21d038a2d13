"""goca inside ComfyUI: attention of its sampler's model as masks and as guidance. Nothing of ComfyUI is imported."""

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from goca.errors import GocaError
from goca.guidance import LIMIT, checked, guide_arguments
from goca.guidance.drawing import CLAMP
from goca.guidance.observer import GuidanceObserver
from goca.integrations.comfyui.formats import Drawn, as_images, background_in, names_in
from goca.integrations.comfyui.host import CELL, HostPrompt, HostUNet
from goca.integrations.comfyui.sampler import SamplerHook, unguided
from goca.plan import Options, plan
from goca.recipe import AUTO
from goca.segmenter import Segmenter
from goca.tracing import TracedImage
from goca.tracing.observer import TraceObserver
from goca.tracing.steps import trace_plan


class SamplerTrace:
    """What the prompt attended to in the last sampling with a model; see `trace_sampler`."""

    def __init__(self, hook: SamplerHook) -> None:
        self._hook = hook

    def images(self, shown: Sequence[Image.Image]) -> list[TracedImage]:
        """The images of the last sampling, shown as given. Raises GocaError if there are none or the number differs."""
        observer = self._hook.observer
        if not isinstance(observer, TraceObserver):
            raise GocaError("no sampling was traced: connect this node's model and conditioning to the sampler")
        if observer.failures:
            raise GocaError(next(iter(observer.failures.values())))
        traced = [image for images in observer.generations.values() for image in images if image.steps]
        if not traced:
            raise GocaError("the sampler did not reach any of the chosen steps: choose from its steps, counted from 0")
        if len(traced) != len(shown):
            raise GocaError(
                f"{len(traced)} images were traced but {len(shown)} are connected: connect those of that sampler"
            )
        for image, given in zip(traced, shown, strict=True):
            image.decoded = given
        return traced


def trace_sampler(patcher: Any, clip: Any, text: str, recipe: str, steps: range) -> tuple[Any, Any, SamplerTrace]:
    """A model that is traced, the conditioning to use it with, and the trace of its last sampling.

    Args:
        patcher, clip: A ModelPatcher and a CLIP of ComfyUI.
        text: The prompt.
        recipe: Name of the recipe for the maps.
        steps: The sampler's steps to trace, counted from 0.

    Raises:
        GocaError: The model or the recipe is not supported; raised by the sampler if attention cannot be read.
    """
    unet, encoded = HostUNet.of(patcher.model), clip.tokenize(text)
    facts = (unet.settings, unet.blocks, unet.settings.name, *_where(patcher.model), False)
    made = trace_plan(*facts, recipe)
    hook = SamplerHook(
        unet, HostPrompt.of(clip, text, encoded), lambda: TraceObserver(made, partial(trace_plan, *facts), CELL, steps)
    )
    copied = patcher.clone()
    hook.attach(copied, ends=True)
    return copied, clip.encode_from_tokens_scheduled(encoded), SamplerTrace(hook)


def guide(patcher: Any, clip: Any, text: str, by: str, steps: range, every: int) -> tuple[Any, Any]:
    """A model that is guided region by region, and the conditioning to use it with; see `goca.guide`.

    Args:
        patcher, clip, text, steps: As for `trace_sampler`.
        by: The name of a recipe, "energy", or a number: the rate everywhere.
        every: Attention is read in every `every`-th evaluation.

    Raises:
        GocaError: As for `trace_sampler`; also raised by a sampler that does not use guidance.
    """
    unet, encoded = HostUNet.of(patcher.model), clip.tokenize(text)
    prompt = HostPrompt.of(clip, text, encoded)
    arguments = {"recipe": None, "rate": None, **(guide_arguments(by) or {"rate": 1})}
    settings = checked(**arguments, masks=None, clamp=CLAMP, limit=LIMIT, smooth=True, steps=steps, every=every)
    made = None
    if settings.recipe is not None:
        made = plan(settings.recipe, unet.settings, unet.blocks, unet.settings.name, Options())
    specials = {prompt.tokens.texts[0].tokenizer: prompt.specials}
    hook = SamplerHook(unet, prompt, lambda: GuidanceObserver(settings, made, specials, unguided))
    copied = patcher.clone()
    hook.attach(copied, ends=False)
    copied.set_model_sampler_pre_cfg_function(
        lambda args: hook.guide(args["conds"], args["conds_out"], args["cond_scale"])
    )
    return copied, clip.encode_from_tokens_scheduled(encoded)


def _where(model: Any) -> tuple[str, str]:
    """The device and the dtype of a model's weights."""
    weight = next(model.diffusion_model.parameters())
    return str(weight.device), str(weight.dtype).removeprefix("torch.")


@lru_cache(maxsize=1)
def segmenter(model: str, recipe: str, timestep: int | None, device: str | None) -> Segmenter:
    """A loaded segmenter; the last one stays loaded."""
    return Segmenter.from_pretrained(model, recipe, timestep=timestep, device=device)


def segment(image: Tensor, names: str, model: str, recipe: str, timestep: int, background: str, device: str) -> Drawn:
    """Label ComfyUI's images by words. timestep: -1 for the model's own; device: "auto" for the best available.

    Raises:
        GocaError: There are no images, the model cannot be loaded, or the names are not valid.
    """
    images = as_images(image)
    chosen = None if timestep < 0 else timestep, None if device == AUTO else device
    # ComfyUI runs in inference mode, and weights loaded there would stay inference tensors.
    with torch.inference_mode(False):
        used = segmenter(model.strip(), recipe, *chosen)
    return Drawn.of(used(images, names_in(names), background=background_in(background)))


def read(attention: SamplerTrace, image: Tensor, names: str, background: str) -> Drawn:
    """Label a sampler's images by words of their prompt; without names, by all of its words.

    Raises:
        GocaError: These images were not traced, or the prompt does not contain a name.
    """
    traced = attention.images(as_images(image))
    classes = names_in(names) if names.strip() else list(dict.fromkeys(word.name for word in traced[0].words()))
    return Drawn.of([each.segment(classes, background=background_in(background)) for each in traced])

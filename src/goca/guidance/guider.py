"""`guide` as a guider for diffusers' modular pipelines."""

import json
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import wraps
from typing import Any, SupportsIndex

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.guiders import ClassifierFreeGuidance
from diffusers.guiders.guider_utils import GuiderOutput
from torch import Tensor, nn

from goca.diffusion.attention_modules import native
from goca.diffusion.backbone import Backbone
from goca.diffusion.denoiser_call import Branch, DenoiserCall, DenoiserRow, PromptTokens
from goca.diffusion.encoded_texts import EncodedTexts
from goca.diffusion.exclusive import patched
from goca.diffusion.families import bare
from goca.diffusion.modular import check_attended, check_modular, encoded_again, latent_of, running_call
from goca.diffusion.own_calls import step_number
from goca.diffusion.session import shared
from goca.errors import GocaError
from goca.guidance import LIMIT, Guided, checked, observer_of
from goca.guidance.drawing import CLAMP
from goca.guidance.observer import GuidanceObserver
from goca.recipe import Recipe


@dataclass(frozen=True)
class _Generation:
    """One call of a modular pipeline. texts: None if no attention is read."""

    backbone: Backbone
    observer: GuidanceObserver
    texts: EncodedTexts | None

    def prompt(self, branch: Branch, image: int, images: int) -> PromptTokens:
        """The prompt to which an image of a branch attends."""
        texts = self.texts if branch == "cond" or self.texts is None else self.texts.negative
        if texts is None or texts.texts is None or not any(texts.embeddings):
            return PromptTokens("", ())
        number = image * len(texts.texts) // images
        return PromptTokens(texts.texts[number], texts.attended(number, self.backbone))


class SemanticAwareGuidance(ClassifierFreeGuidance, Guided):
    """`guide` for a modular pipeline of diffusers: its guider, in place of classifier-free guidance.

    pipe.update_components(guider=SemanticAwareGuidance(guidance_scale=5.0))
    image = pipe(prompt="a cat on grass", negative_prompt="", output="images")[0]
    rates = pipe.guider.rates[-1]
    regions, names = pipe.guider.regions[-1], pipe.guider.region_names[0]
    pipe.update_components(guider=ClassifierFreeGuidance(guidance_scale=5.0))

    `steps`, `rates`, `regions`, `effective_scales` and `region_names` are those of a guide, for the last call.
    If attention is read, each call encodes the prompt a second time, to find its tokens.

    `recipe`, `rate`, `masks`, `clamp`, `limit`, `smooth`, `steps` and `every` are arguments of `goca.guide`; the others
    are those of `ClassifierFreeGuidance`.

    Raises:
        GocaError: An argument is not supported; raised by the pipeline's call if the pipeline is not, or does not
            guide.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        *,  # diffusers' configurations ignore positional arguments
        recipe: Recipe | str | None = "goca",
        guidance_scale: float = 7.5,
        rate: float | None = None,
        masks: Any = None,
        clamp: tuple[float, float] | None = CLAMP,
        limit: float | None = LIMIT,
        smooth: bool = True,
        steps: Iterable[SupportsIndex] | None = None,
        every: int = 1,
        guidance_rescale: float = 0.0,
        use_original_formulation: bool = False,
        start: float = 0.0,
        stop: float = 1.0,
        enabled: bool = True,
    ) -> None:
        super().__init__(
            guidance_scale=guidance_scale,
            guidance_rescale=guidance_rescale,
            use_original_formulation=use_original_formulation,
            start=start,
            stop=stop,
            enabled=enabled,
        )
        self._settings = checked(
            recipe, rate=rate, masks=masks, clamp=clamp, limit=limit, smooth=smooth, steps=steps, every=every
        )
        if self._scale <= 1:
            raise self._unguided()
        self._generation: _Generation | None = None
        self._calls: dict[Branch, DenoiserCall] = {}
        self._open = ExitStack()

    def to_json_string(self) -> str:
        """The configuration; a recipe without a name, and masks, are only described."""
        return json.dumps(dict(self.config), indent=2, sort_keys=True, default=repr) + "\n"

    @property
    def _scale(self) -> float:
        """The scale in u + scale (c - u); the original formulation is c + scale (c - u)."""
        return float(self.guidance_scale) + self.use_original_formulation

    def _unguided(self) -> GocaError:
        least = 1 - self.use_original_formulation
        return GocaError(
            f"there is no classifier-free guidance: give a guidance_scale above {least}, and the pipeline a "
            'negative_prompt, "" for none',
            hint="scale",
        )

    def set_state(self, step: int, num_inference_steps: int, timestep: Tensor) -> None:
        """See `BaseGuidance`: an evaluation begins."""
        self._open.close()
        if self._step is None or step <= self._step:
            self._generation = self._observer = None
        self._calls = {}
        super().set_state(step, num_inference_steps, timestep)

    def prepare_models(self, denoiser: nn.Module) -> None:
        """See `BaseGuidance`: the denoiser's next pass is observed, if there is another branch to guide away from."""
        super().prepare_models(denoiser)
        self._open.close()
        if self.num_conditions == 1:
            return
        module = bare(denoiser)
        generation = self._generation = self._generation or self._begin()
        with ExitStack() as stack:
            if generation.texts is not None:
                stack.enter_context(native(module, generation.backbone.family.component))
            stack.enter_context(patched(module, "forward", self._observed(generation, module, module.forward)))
            self._open = stack.pop_all()

    def cleanup_models(self, denoiser: nn.Module) -> None:
        """See `BaseGuidance`."""
        self._open.close()
        super().cleanup_models(denoiser)

    def forward(self, pred_cond: Tensor, pred_uncond: Tensor | None = None) -> GuiderOutput:
        """See `BaseGuidance`: plain guidance continues with a changed prediction without the prompt."""
        if pred_uncond is not None and self._generation is not None and self._calls.keys() == {"cond", "uncond"}:
            observer = self._generation.observer
            if torch.equal(pred_cond, pred_uncond):
                raise self._unguided()
            with torch.no_grad(), torch.autocast(pred_cond.device.type, enabled=False):
                observer.end(self._calls["cond"], pred_cond)
                moved = observer.end(self._calls["uncond"], pred_uncond)
            pred_uncond = pred_uncond if moved is None else moved
        return super().forward(pred_cond, pred_uncond)

    def _begin(self) -> _Generation:
        """The pipeline call in which the guider is used."""
        pipeline, state = running_call()
        backbone = Backbone(pipeline, check=check_modular)
        self._observer = observer_of(backbone, self._settings, self._unguided)
        texts = encoded_again(pipeline, state) if self._settings.recipe is not None else None
        return _Generation(backbone, self._observer, texts)

    def _observed(self, generation: _Generation, module: nn.Module, original: Callable[..., Any]) -> Callable[..., Any]:
        """The denoiser's `forward`, for one pass; everything is restored afterwards, whatever happens."""
        branch: Branch = "cond" if self.is_conditional else "uncond"

        @wraps(original)
        def forward(*args: Any, **kwargs: Any) -> Any:
            with self._open:
                images, size = latent_of(args, kwargs)
                if branch == "cond" and generation.texts is not None:
                    check_attended(generation.texts, args, kwargs, images)
                call = self._calls[branch] = self._call(generation, branch, images, size)
                sink = generation.observer.begin(call)
                if sink is None:
                    return original(*args, **kwargs)
                denoiser = (generation.backbone.family.component, module)
                with generation.backbone.attention_hook(size, shared([sink]), denoiser=denoiser, rows=images):
                    return original(*args, **kwargs)

        return forward

    def _call(self, generation: _Generation, branch: Branch, images: int, size: tuple[int, int]) -> DenoiserCall:
        step, moment = step_number(generation.backbone.pipeline.scheduler, self._step), float(self._timestep)
        rows = (DenoiserRow(branch, image, generation.prompt(branch, image, images)) for image in range(images))
        return DenoiserCall(0, step, self._step, moment, size, tuple(rows), self._scale)

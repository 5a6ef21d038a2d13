"""A loaded pipeline: one denoiser pass for (picture, caption, noise level), with everything given back afterwards.

The pipeline's own `__call__` builds every conditioning input (embeddings, size conditions, masks); it is stopped at the
first denoiser call, whose noisy latent is replaced by the noised encoding of the picture. So nothing about a pipeline's
conditioning is written a second time here.
"""

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from threading import RLock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from goca.errors import GocaError
from goca.maths import Grid
from goca.model.families import check_kind, family_of
from goca.model.noise import add_noise, is_flow, pinned
from goca.model.prompt import MOST_PROMPTS, Prompt, Prompts, listen, replay
from goca.model.tap import Sink, Tap, native, sites
from goca.model.words import Noun, Tokens, caption_of
from goca.model.zoo import Settings, settings_for

# One lock a pipeline, whoever wraps it and how often: two segmenters may share one loaded pipeline.
_LOCKS: "WeakKeyDictionary[Any, RLock]" = WeakKeyDictionary()
_LOCKS_LOCK = RLock()


class _FirstCall(Exception):  # noqa: N818 - a signal, not an error
    """Carries the pipeline's first call of its denoiser out of the pipeline."""

    def __init__(self, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        super().__init__()
        self.inputs, self.named = inputs, named


@dataclass
class Backbone:
    """A stock diffusers pipeline and what is known of it."""

    pipeline: Any
    name: str = ""
    settings: Settings = field(init=False)

    def __post_init__(self) -> None:
        self.family = family_of(self.pipeline)
        self.name = self.name or str(getattr(self.pipeline, "name_or_path", "")) or type(self.pipeline).__name__
        check_kind(self.pipeline, self.family)
        self.family.check(self.denoiser)
        latent, inputs = self.pipeline.vae.config.latent_channels, self.denoiser.config.in_channels
        if inputs not in (latent, 4 * latent):  # 2 x 2 cells may be packed into one
            raise GocaError(
                f"{self.name} takes {inputs} latent channels where its VAE gives {latent}: an inpainting or editing "
                "checkpoint; load the plain text-to-image one"
            )
        scheduler, flow = self.pipeline.scheduler, self.family.flow
        if is_flow(scheduler) != flow or not (flow or hasattr(scheduler, "alphas_cumprod")):
            wanted = "FlowMatchEulerDiscreteScheduler" if flow else "DDIMScheduler"
            raise GocaError(
                f"{type(scheduler).__name__} does not say how noise is added for this kind of model: set "
                f"pipe.scheduler to a {wanted}"
            )
        self.settings = settings_for(self.denoiser, self.family, self.cell, self.blocks)

    @property
    def denoiser(self) -> Any:
        """The denoiser itself; a compiled one is unwrapped."""
        module = getattr(self.pipeline, self.family.component)
        return getattr(module, "_orig_mod", module)

    @property
    def device(self) -> str:
        """Where the pipeline runs."""
        return str(self.pipeline._execution_device)

    @property
    def dtype(self) -> str:
        """The denoiser's, such as "float32"."""
        return str(self.denoiser.dtype).removeprefix("torch.")

    @property
    def cell(self) -> int:
        """Pixels a side of one latent cell."""
        return int(self.pipeline.vae_scale_factor)

    @property
    def multiple(self) -> int:
        """Pictures are shown at multiples of so many pixels: whole patches, and pipelines ask for eights."""
        patches, _ = self.family.grids(self.denoiser, (64, 64))[0]
        return math.lcm(8, self.cell * 64 // patches)

    @property
    def blocks(self) -> tuple[str, ...]:
        """The denoiser's blocks that attend to the text."""
        aside = self.family.joint.aside if self.family.joint else ()
        blocks = dict.fromkeys(site.block for site in sites(self.denoiser))
        return tuple(block for block in blocks if not block.startswith(aside))

    def fits(self, named: Sequence[Noun]) -> bool:
        """Whether the nouns' caption fits a tokenizer whose tokens are attended to."""
        with self._borrowed() as pipeline:
            for text in self.family.texts:
                tokenizer = getattr(pipeline, text.tokenizer, None)
                if tokenizer is None:
                    continue
                most = tokenizer.model_max_length
                if text.limited:
                    most = min(most, inspect.signature(pipeline.__call__).parameters["max_sequence_length"].default)
                if len(tokenizer(caption_of(named), verbose=False).input_ids) <= most:
                    return True
        return False

    def prompt(self, caption: str, prompts: Prompts) -> Prompt:
        """Encode a caption, or find it in `prompts`, from which the oldest goes where there are many."""
        if caption not in prompts:
            side = self.multiple * max(1, self.settings.size // self.multiple)
            with self._borrowed() as pipeline:
                level = self.settings.noise
                prompts[caption] = listen(pipeline, lambda: self._first_call(pipeline, [caption], (side, side), level))
            if len(prompts) > MOST_PROMPTS:
                del prompts[next(iter(prompts))]
        return prompts[caption]

    def texts(self, prompt: Prompt) -> tuple[Tokens, ...]:
        """The tokens of a caption that the denoiser attends to, with their columns."""
        return tuple(
            replace(prompt.texts[text.tokenizer], start=text.start)
            for text in self.family.texts
            if text.tokenizer in prompt.texts
        )

    @torch.no_grad()
    def latents(self, images: Sequence[Image.Image], size: Grid) -> Float[Tensor, "picture channel height width"]:
        """The mode of the VAE's posterior, scaled for the denoiser, of pictures shown at `size` = (height, width)."""
        pipeline, vae = self.pipeline, self.pipeline.vae
        with self._borrowed():
            pixels = pipeline.image_processor.preprocess(list(images), height=size[0], width=size[1])
            before = vae.dtype
            # Stable Diffusion XL's VAE overflows in half precision, as its configuration says.
            upcast = before == torch.float16 and getattr(vae.config, "force_upcast", False)
            try:
                if upcast:
                    nn.Module.to(vae, torch.float32)  # without diffusers' advice about it
                encoded = vae.encode(pixels.to(pipeline._execution_device, torch.float32 if upcast else before))
            finally:
                if upcast:
                    nn.Module.to(vae, before)
        latent = (encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents).float()
        mean, std = (getattr(vae.config, f"latents_{name}", None) for name in ("mean", "std"))
        if mean is not None and std is not None:
            centre, spread = (torch.tensor(values).to(latent).view(1, -1, 1, 1) for values in (mean, std))
            latent = (latent - centre) / spread
        else:
            latent = latent - (getattr(vae.config, "shift_factor", None) or 0.0)
        latent = latent * vae.config.scaling_factor
        if not bool(torch.isfinite(latent).all()):
            raise GocaError(
                'the VAE\'s encoding is not finite: load it with dtype "float32" or "bfloat16" (--dtype), or check its '
                "weights"
            )
        return latent

    @torch.no_grad()
    def forward(
        self,
        latents: Float[Tensor, "picture channel height width"],
        captions: Sequence[str],
        level: int,
        seed: int,
        sink: Sink,
        prompts: Prompts,
    ) -> Tensor:
        """One denoiser pass at training timestep `level`, its attention handed to `sink`; the denoiser's output.

        captions: one a picture; they may differ, if their encodings have one shape.
        """
        height, width = (side * self.cell for side in latents.shape[-2:])
        grids = self.family.grids(self.denoiser, (latents.shape[-2], latents.shape[-1]))
        encoded = [self.prompt(caption, prompts) for caption in captions]
        with self._borrowed() as pipeline, native(self.denoiser):
            noisy = add_noise(pipeline.scheduler, latents, level, seed)
            object.__setattr__(pipeline, "encode_prompt", replay(encoded))
            call = self._first_call(pipeline, captions, (height, width), level)
            args, kwargs = _with_sample(call, _packed(pipeline, noisy, call))
            with Tap(self.denoiser, grids, sink, self.family.joint):
                output = self.denoiser(*args, **kwargs)
        return output[0]

    def _first_call(self, pipeline: Any, captions: Sequence[str], size: Grid, level: int) -> _FirstCall:
        """Run the pipeline until it calls its denoiser; the borrowed pipeline is changed freely here."""

        def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            raise _FirstCall(args, kwargs)

        changes = {
            self.family.component: self.denoiser,  # unwrapped: a call that is stopped is not worth compiling for
            "scheduler": pinned(pipeline.scheduler, level),
        }
        for name, value in changes.items():
            # DiffusionPipeline.__setattr__ would write the configuration as well.
            object.__setattr__(pipeline, name, value)
        pipeline.set_progress_bar_config(disable=True)
        options = {
            "height": size[0],
            "width": size[1],
            "num_inference_steps": 1,
            "guidance_scale": 1.0,
            "output_type": "latent",
            # Without one, the latent that is thrown away would move the global random state.
            "generator": torch.Generator().manual_seed(0),
            **self.family.options,
        }
        known = inspect.signature(pipeline.__call__).parameters
        handle = self.denoiser.register_forward_pre_hook(stop, with_kwargs=True)
        try:
            pipeline(prompt=list(captions), **{key: value for key, value in options.items() if key in known})
        except _FirstCall as call:
            # Its traceback would keep every tensor of the pipeline's frames alive.
            return call.with_traceback(None)
        finally:
            handle.remove()
        raise GocaError(f"{self.name} never called its denoiser: this pipeline is not supported")

    @contextmanager
    def _borrowed(self) -> Iterator[Any]:
        """The pipeline, for one call at a time; every attribute of it is put back in the end."""
        with _LOCKS_LOCK:
            lock = _LOCKS.setdefault(self.pipeline, RLock())
        with lock:
            attributes = vars(self.pipeline)
            before = dict(attributes)
            try:
                yield self.pipeline
            finally:
                for name in attributes.keys() - before.keys():
                    del attributes[name]
                attributes.update(before)


def _sample(call: _FirstCall) -> tuple[str | None, Tensor]:
    """The noisy latent of a denoiser call: (its keyword, or None for the first positional argument; the latent)."""
    for key in ("sample", "hidden_states"):
        if key in call.named:
            return key, call.named[key]
    return None, call.inputs[0]


def _packed(pipeline: Any, noisy: Tensor, call: _FirstCall) -> Tensor:
    """The latent in the layout of the call's own: as it is, or 2 x 2 cells in one, row after row."""
    _, old = _sample(call)
    return pipeline._pack_latents(noisy, *noisy.shape) if old.ndim == 3 else noisy


def _with_sample(call: _FirstCall, noisy: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The denoiser call with its noisy latent replaced by ours."""
    key, old = _sample(call)
    if old.shape != noisy.shape:
        raise GocaError(
            f"the denoiser expects a latent of {tuple(old.shape)}, not {tuple(noisy.shape)}: please report this"
        )
    new = noisy.to(old)
    return (call.inputs, {**call.named, key: new}) if key else ((new, *call.inputs[1:]), call.named)

"""A loaded pipeline: one denoiser pass for (image, caption, timestep), with everything given back afterwards.

The pipeline's own `__call__` builds every conditioning input (embeddings, size conditions, masks); it is stopped at the
first denoiser call, whose noisy latent is replaced by the noised encoding of the image. So nothing about a pipeline's
conditioning is written a second time here.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from goca.diffusion.attention_call import Sink
from goca.diffusion.attention_hook import AttentionHook, LastAttentionReached
from goca.diffusion.attention_modules import attention_modules, native
from goca.diffusion.checkpoints import CheckpointSettings, settings_for
from goca.diffusion.conditioning import MAX_PROMPTS, EncodedPrompt, EncodedPrompts, listen, replay
from goca.diffusion.exclusive import restoring
from goca.diffusion.families import bare, check_kind, family_of
from goca.diffusion.latents import FirstCall, encode, packed, with_sample
from goca.diffusion.timesteps import add_noise, is_flow, pinned
from goca.errors import GocaError
from goca.maths import Grid
from goca.probing import probe
from goca.text.token_spans import Noun, caption_of
from goca.text.tokens import Tokens


@dataclass
class Backbone:
    """A stock diffusers pipeline and what is known of it.

    check: raises GocaError for a pipeline that cannot be used; by default, for one that cannot segment images.
    """

    pipeline: Any
    name: str = ""
    check: "Callable[[Backbone], None] | None" = None
    settings: CheckpointSettings = field(init=False)

    def __post_init__(self) -> None:
        listed = family_of(self.pipeline)
        self.family = listed or probe.guess(self.pipeline)
        self.name = self.name or str(getattr(self.pipeline, "name_or_path", None) or type(self.pipeline).__name__)
        (self.check or Backbone._check)(self)
        if listed is None:
            self.family = probe.recognise(self)
        self.settings = settings_for(self.denoiser, self.family, self.vae_scale_factor, self.blocks)
        if listed is None:
            probe.confirm(self)

    def _check(self) -> None:
        """Raise GocaError for a pipeline that cannot be asked about an image of the user's."""
        check_kind(self.pipeline, self.family)
        self.family.check(self.denoiser)
        vae = self.pipeline.vae.config
        latent, inputs = getattr(vae, "latent_channels", None) or vae.z_dim, self.denoiser.config.in_channels
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

    @property
    def denoiser(self) -> Any:
        """The denoiser itself; a compiled one is unwrapped."""
        return bare(getattr(self.pipeline, self.family.component))

    @property
    def in_parts(self) -> bool:
        """Whether the denoiser is moved about in parts, so that it has to come to its end to be put back."""
        return any(_is_moved(module) for module in self.denoiser.modules())

    @property
    def device(self) -> str:
        """Where the pipeline runs."""
        return str(self.pipeline._execution_device)

    @property
    def dtype(self) -> str:
        """What the denoiser computes in, such as "float32"."""
        denoiser = self.denoiser
        floating = [p for p in denoiser.parameters() if p.is_floating_point()]
        # A quantised weight keeps the dtype that it had before, which says nothing of what is computed with it.
        plain = [p for p in floating if type(p.data) is Tensor]
        kind = plain[0].dtype if plain and plain[0] is not floating[0] else denoiser.dtype
        return str(kind).removeprefix("torch.")

    @property
    def vae_scale_factor(self) -> int:
        """Pixels a side of one latent cell."""
        if self.family.vae_scale_factor:
            return self.family.vae_scale_factor
        names = ("vae_scale_factor", "vae_scale_factor_spatial")
        return int(next(getattr(self.pipeline, name) for name in names if hasattr(self.pipeline, name)))

    @property
    def patch_px(self) -> int:
        """Pixels a side of the finest patch that attends."""
        patches, _ = self.family.grids(self.denoiser, (64, 64))[0]
        return self.vae_scale_factor * 64 // patches

    @property
    def size_multiple(self) -> int:
        """Images are shown at multiples of so many pixels: whole patches, and what the pipeline asks for."""
        return math.lcm(self.family.size_multiple, self.patch_px)

    @property
    def max_pixels(self) -> int | None:
        """The most pixels that an image which is not square may be shown with, where there is a limit."""
        joint = self.family.joint
        return (
            None
            if joint is None or joint.pad_to_attr is None
            else getattr(self.denoiser, joint.pad_to_attr) * self.patch_px**2
        )

    @property
    def max_side(self) -> int | None:
        """The most pixels a side that it has positions for, where there is a limit."""
        patches = self.family.max_grid(self.denoiser)
        return None if patches is None else patches * self.patch_px

    @property
    def blocks(self) -> tuple[str, ...]:
        """The denoiser's blocks that attend to the text."""
        unimodal_blocks = self.family.joint.unimodal_blocks if self.family.joint else ()
        blocks = dict.fromkeys(site.block for site in attention_modules(self.denoiser))
        return tuple(block for block in blocks if not block.startswith(unimodal_blocks))

    def fits(self, named: Sequence[Noun]) -> bool:
        """Whether the nouns' caption fits a tokenizer whose tokens are attended to."""
        with restoring(self.pipeline) as pipeline:
            for text in self.family.texts:
                tokenizer = getattr(pipeline, text.tokenizer, None)
                encoder = getattr(pipeline, text.tokenizer.replace("tokenizer", "text_encoder"), None)
                if tokenizer is None or encoder is None:
                    continue
                most = tokenizer.model_max_length
                if text.respects_max_sequence_length:
                    limit = inspect.signature(pipeline.__call__).parameters["max_sequence_length"].default
                    most = min(most, limit) - self._template.get(text.tokenizer, 0)
                if text.max_tokens is not None:
                    most = min(most, text.max_tokens - self._template.get(text.tokenizer, 0))
                if len(tokenizer(caption_of(named), verbose=False).input_ids) <= most:
                    return True
        return False

    @cached_property
    def _template(self) -> dict[str, int]:
        """How many tokens a pipeline puts around a caption, by the tokenizer's name."""
        bare, with_it = "cat", self.prompt("cat", {}).texts
        counts = {name: sum(b > a for a, b in tokens.offsets) for name, tokens in with_it.items()}
        own = {name: len(getattr(self.pipeline, name)(bare, verbose=False).input_ids) for name in counts}
        return {name: max(0, count - own[name]) for name, count in counts.items()}

    def prompt(self, caption: str, prompts: EncodedPrompts) -> EncodedPrompt:
        """Encode a caption, or find it in `prompts`, from which the oldest goes where there are many."""
        if caption not in prompts:
            side = self.size_multiple * max(1, self.settings.size // self.size_multiple)
            with restoring(self.pipeline) as pipeline:
                timestep = self.settings.timestep
                ask = partial(self._first_call, pipeline, [caption], (side, side), timestep)
                prompts[caption] = listen(pipeline, caption, ask)
            if len(prompts) > MAX_PROMPTS:
                del prompts[next(iter(prompts))]
        return prompts[caption]

    def texts(self, prompt: EncodedPrompt) -> tuple[Tokens, ...]:
        """The tokens of a caption that the denoiser attends to, with their columns."""
        return tuple(
            replace(tokens, start=prompt.length - len(tokens.offsets) if text.right_aligned else text.start)
            for text in self.family.texts
            if (tokens := prompt.texts.get(text.tokenizer)) is not None
        )

    def latents(self, images: Sequence[Image.Image], size: Grid) -> Float[Tensor, "image channel height width"]:
        """The mode of the VAE's posterior, scaled for the denoiser, of images shown at `size` = (height, width)."""
        with restoring(self.pipeline) as pipeline:
            return encode(pipeline, images, size)

    @torch.no_grad()
    def forward(
        self,
        latents: Float[Tensor, "image channel height width"],
        captions: Sequence[str],
        timestep: int,
        seed: int,
        sink: Sink,
        prompts: EncodedPrompts,
        to_the_end: bool = True,
    ) -> Tensor | list[Tensor] | None:
        """One denoiser pass at training `timestep`, its attention handed to `sink`; the denoiser's output.

        captions: one an image; they may differ, if their encodings have one shape. to_the_end: without it the pass
        ends with the last attention, and there is no output.
        """
        grids = self.family.grids(self.denoiser, (latents.shape[-2], latents.shape[-1]))
        encoded = [self.prompt(caption, prompts) for caption in captions]
        with restoring(self.pipeline) as pipeline, native(self.denoiser):
            noisy = add_noise(pipeline.scheduler, latents, timestep, seed)
            object.__setattr__(pipeline, "encode_prompt", replay(encoded))
            args, kwargs = self.inputs(pipeline, noisy, captions, timestep)
            whole = to_the_end or self.in_parts
            try:
                with AttentionHook(
                    self.denoiser, grids, sink, self.family.joint, self.family.linear_self_attention, whole
                ):
                    return self.denoiser(*args, **kwargs)[0]
            except LastAttentionReached:
                return None

    def inputs(
        self, pipeline: Any, noisy: Float[Tensor, "image channel height width"], captions: Sequence[str], timestep: int
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What the restoring pipeline hands its denoiser, the latent replaced: (positional, named) arguments."""
        height, width = (side * self.vae_scale_factor for side in noisy.shape[-2:])
        call = self._first_call(pipeline, captions, (height, width), timestep)
        return with_sample(call, packed(pipeline, noisy, call))

    def _first_call(self, pipeline: Any, captions: Sequence[str], size: Grid, timestep: int) -> FirstCall:
        """Run the pipeline until it calls its denoiser; the restoring pipeline is changed freely here."""

        def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            raise FirstCall(args, kwargs)

        changes = {
            self.family.component: self.denoiser,  # unwrapped: a call that is stopped is not worth compiling for
            "scheduler": pinned(pipeline.scheduler, timestep, self.family.edm_sigmas),
        }
        if self.family.fixed_area:
            # Its own arithmetic then gives back this size, and what is added keeps that from being rounded down.
            changes["default_sample_size"] = math.sqrt(size[0] * size[1]) / self.vae_scale_factor * (1 + 1e-9)
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
        except FirstCall as call:
            # Its traceback would keep every tensor of the pipeline's frames alive.
            return call.with_traceback(None)
        finally:
            handle.remove()
        raise GocaError(f"{self.name} never called its denoiser: this pipeline is not supported")


def _is_moved(module: nn.Module) -> bool:
    return hasattr(module, "_hf_hook") or hasattr(module, "_diffusers_hook")

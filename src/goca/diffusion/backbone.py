"""A loaded pipeline, and denoiser passes at (latent, caption, timestep) that leave the pipeline as it was.

The pipeline's own `__call__` builds every conditioning input (embeddings, size conditions, masks); it is stopped at the
first denoiser call, whose noisy latent is replaced by the noised encoding of the image. So nothing of a pipeline's
conditioning is implemented a second time here.
"""

import inspect
import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, get_args, get_type_hints

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from goca.diffusion.attention_call import AttentionCall, Sink
from goca.diffusion.attention_hook import AttentionHook, LastAttentionReached
from goca.diffusion.attention_modules import attention_modules, native
from goca.diffusion.caches import without_caches
from goca.diffusion.checkpoints import SettingsLike, given_settings, settings_for
from goca.diffusion.conditioning import EncodedPrompt, first_call, record_prompt, replay
from goca.diffusion.exclusive import restoring
from goca.diffusion.families import bare, check_family, check_kind, encoder_of, family_of, unsupported
from goca.diffusion.families.spec import Family, TextInput
from goca.diffusion.fingerprint import fingerprint
from goca.diffusion.latents import check_vae, encode, latent_channels, packed, with_sample
from goca.diffusion.model_facts import SAMPLING, pipeline_folder, read_facts
from goca.diffusion.timesteps import add_noise, is_flow, pinned
from goca.errors import GocaError
from goca.imaging import images
from goca.maths import Grid
from goca.text.nouns import Noun, caption_of
from goca.text.token_spans import TextKeys, find_noun_tokens
from goca.text.tokens import Tokens

MAX_PROMPTS = 64
"""Most encoded captions that a session keeps; then the oldest is dropped."""
MAX_CALLS = 4
"""Most pipeline calls whose arguments a session keeps; then the oldest are dropped."""
MAX_KEYS = 4096
"""Most words whose keys a session keeps; then the oldest are dropped. A token takes 100 KB in SD 1.5, in float32."""
KEYS_BATCH = 16
"""Most words whose keys are computed in one pass."""


class Backbone:
    """A stock diffusers pipeline and its facts, which are established without a pass.

    Args:
        pipeline: A loaded text-to-image pipeline.
        name: Its name in messages and plans; by default the pipeline's `name_or_path`.
        family: Facts of its denoiser, if no listed family has it.
        check: Raises GocaError for a pipeline that cannot be used; by default, for one that cannot segment an image.
        settings: Settings of this checkpoint, instead of those that are known for it or its family.

    Raises:
        GocaError: No family lists the denoiser, the family or the settings belong to another model, or `check` refuses
            the pipeline.
    """

    def __init__(
        self,
        pipeline: Any,
        name: str = "",
        family: Family | None = None,
        check: "Callable[[Backbone], None] | None" = None,
        settings: SettingsLike | None = None,
    ) -> None:
        family = family or family_of(pipeline)
        if family is None:
            raise unsupported(type(pipeline).__name__)
        check_family(pipeline, family)
        self.pipeline, self.family = pipeline, family
        self.name = name or str(getattr(pipeline, "name_or_path", None) or type(pipeline).__name__)
        (check or Backbone._check)(self)
        facts = read_facts(pipeline_folder(pipeline))
        self.settings = settings_for(self.denoiser, family, self.vae_scale_factor, self.blocks, facts)
        facts.check_call(pipeline)
        if settings is not None:
            self.settings = given_settings(settings, self.settings, self.blocks, self.name, pipeline)

    def _check(self) -> None:
        """Raise GocaError for a pipeline that cannot segment a user's image."""
        check_kind(self.pipeline, self.family)
        self.family.check(self.denoiser)
        check_vae(self.pipeline, self.family)
        latent, inputs = latent_channels(self.pipeline), self.denoiser.config.in_channels
        if inputs not in (latent, 4 * latent):  # 2 x 2 cells may be packed into one
            kind = type(self.pipeline.vae).__name__
            raise GocaError(
                f"{self.name} takes {inputs} latent channels where its VAE ({kind}) gives {latent}: an inpainting or "
                "editing checkpoint, or another model's VAE; load the plain text-to-image one"
            )
        scheduler, flow = self.pipeline.scheduler, self.family.flow
        if is_flow(scheduler) != flow or not (flow or hasattr(scheduler, "alphas_cumprod")):
            usual = "FlowMatchEulerDiscreteScheduler" if flow else "DDIMScheduler"
            wanted = _declared_scheduler(self.pipeline) or usual
            raise GocaError(
                f"{type(scheduler).__name__} does not define how noise is added for this kind of model: set "
                f"pipe.scheduler to a {wanted} with the checkpoint's own configuration"
            )

    @property
    def denoiser(self) -> Any:
        """The denoiser, unwrapped if it is compiled."""
        return bare(getattr(self.pipeline, self.family.component))

    @property
    def in_parts(self) -> bool:
        """Whether the denoiser is offloaded in parts: a pass that stops early would leave them on the device."""
        hooks = ("_hf_hook", "_diffusers_hook")
        return any(hasattr(module, hook) for module in self.denoiser.modules() for hook in hooks)

    @property
    def device(self) -> str:
        """The pipeline's device, such as "cuda:0"."""
        return str(self.pipeline._execution_device)

    @property
    def dtype(self) -> str:
        """The denoiser's dtype in computations, such as "float32"."""
        denoiser = self.denoiser
        floating = [p for p in denoiser.parameters() if p.is_floating_point()]
        # A quantised weight reports its former dtype, not the one of computations.
        plain = [p for p in floating if type(p.data) is Tensor]
        kind = plain[0].dtype if plain and plain[0] is not floating[0] else denoiser.dtype
        return str(kind).removeprefix("torch.")

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per side of a latent cell."""
        names = ("vae_scale_factor", "vae_scale_factor_spatial")
        factor = int(next(getattr(self.pipeline, name) for name in names if hasattr(self.pipeline, name)))
        return factor // 2 if self.family.packed_vae_scale_factor else factor

    @property
    def patch_px(self) -> int:
        """Pixels per side of the finest patch in attention."""
        patches, _ = self.family.grids(self.denoiser, (64, 64))[0]
        return self.vae_scale_factor * 64 // patches

    @property
    def size_multiple(self) -> int:
        """Both sides of an image are multiples of this many pixels, for whole patches and the pipeline's needs."""
        return math.lcm(self.family.size_multiple, self.patch_px)

    @property
    def max_pixels(self) -> int | None:
        """The most pixels of an image that is not square; None without a limit."""
        joint = self.family.joint
        if joint is None or joint.pad_to_attr is None:
            return None
        return getattr(self.denoiser, joint.pad_to_attr) * self.patch_px**2

    @property
    def max_side(self) -> int | None:
        """The longest side in pixels for which there are position embeddings; None without a limit."""
        patches = self.family.max_grid(self.denoiser)
        return None if patches is None else patches * self.patch_px

    def fit(self, image: Image.Image, size: int) -> Grid:
        """(height, width) in pixels of the denoiser's input for an image, see `goca.imaging.images.fit`."""
        return images.fit(image, size, self.size_multiple, self.max_pixels, self.max_side)

    @property
    def blocks(self) -> tuple[str, ...]:
        """The denoiser's blocks that attend to the text."""
        unimodal_blocks = self.family.joint.unimodal_blocks if self.family.joint else ()
        blocks = dict.fromkeys(module.block for module in attention_modules(self.denoiser))
        return tuple(block for block in blocks if not block.startswith(unimodal_blocks))

    def attention_hook(
        self,
        latent: Grid,
        sink: Sink,
        to_the_end: bool = True,
        denoiser: tuple[str, Any] | None = None,
        rows: int | None = None,
        references: Sequence[Grid] = (),
        frames: int = 1,
    ) -> AttentionHook:
        """A hook on attention for latents of (height, width) cells, `rows` of them if that is known.

        denoiser: A second one, with its component's name. references: grids of reference images, in cells. frames: of
        each latent; their grids are treated as one, stacked vertically.
        """
        family = self.family
        component, module = denoiser or (family.component, self.denoiser)
        grids = [(frames * height, width) for height, width in family.grids(module, latent)]
        beside = [family.grids(module, cells)[0] for cells in references]
        return AttentionHook(
            module, grids, sink, family.joint, family.linear_self_attention, to_the_end, component, rows, beside
        )

    def fits(self, nouns: Sequence[Noun]) -> bool:
        """Whether the caption that lists the nouns fits one of the tokenizers whose tokens are attended to."""
        caption = caption_of(nouns)
        with restoring(self.pipeline) as pipeline:
            return any(self._fits(pipeline, text, caption) for text in self.family.texts)

    def _fits(self, pipeline: Any, text: TextInput, caption: str) -> bool:
        tokenizer = getattr(pipeline, text.tokenizer, None)
        encoder = encoder_of(pipeline, text.tokenizer)
        if tokenizer is None or encoder is None:
            return False
        limit = tokenizer.model_max_length
        template = self._template.get(text.tokenizer, 0)
        if text.respects_max_sequence_length:
            default = inspect.signature(pipeline.__call__).parameters["max_sequence_length"].default
            limit = min(limit, self.settings.options.get("max_sequence_length", default)) - template
        if text.max_tokens is not None:
            limit = min(limit, text.max_tokens - template)
        return len(tokenizer(caption, verbose=False).input_ids) <= limit

    @cached_property
    def _template(self) -> dict[str, int]:
        """{tokenizer: number of tokens that the pipeline puts around a caption}."""
        texts = self.session().prompt("cat").texts
        with_template = {name: sum(end > start for start, end in tokens.offsets) for name, tokens in texts.items()}
        alone = {name: len(getattr(self.pipeline, name)("cat", verbose=False).input_ids) for name in texts}
        return {name: max(0, with_template[name] - alone[name]) for name in texts}

    def texts(self, prompt: EncodedPrompt) -> tuple[Tokens, ...]:
        """The tokens of a caption that the denoiser attends to, each tokenizer's with its first column."""
        return tuple(
            replace(
                tokens,
                start=prompt.length - len(tokens.offsets) if text.right_aligned else text.start,
                tokenizer=text.tokenizer,
            )
            for text in self.family.texts
            if (tokens := prompt.texts.get(text.tokenizer)) is not None
        )

    def latents(
        self, images: Sequence[Image.Image], size: Grid, batch: int | None = None
    ) -> Float[Tensor, "image channel height width"]:
        """Images as the VAE encodes them, scaled for the denoiser.

        Args:
            images: RGB images of any size; they are resized.
            size: (height, width) in pixels of the VAE's input.
            batch: Images per pass of the VAE; by default all.

        Raises:
            GocaError: The VAE is not one for this pipeline, or its encoding is not finite, or constant.
        """
        step = batch or len(images)
        with restoring(self.pipeline) as pipeline:
            starts = range(0, len(images), step)
            latents = torch.cat([encode(pipeline, images[start : start + step], size) for start in starts])
        expected = tuple(side // self.vae_scale_factor for side in size)
        if latents.shape[-2:] != expected:
            raise GocaError(
                f"the VAE ({type(self.pipeline.vae).__name__}) gives {latents.shape[-2]} x {latents.shape[-1]} cells "
                f"where this pipeline has {expected[0]} x {expected[1]}: set pipe.vae to the checkpoint's "
                "own"
            )
        return latents

    def inputs(
        self, pipeline: Any, noisy: Float[Tensor, "image channel height width"], captions: Sequence[str], timestep: int
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """(positional, named) arguments of the denoiser for a noisy latent; `pipeline` comes from `restoring`."""
        args, kwargs = self.first_call(pipeline, captions, self.pixels(noisy), timestep)
        return with_sample(args, kwargs, packed(pipeline, noisy, args, kwargs))

    def pixels(self, latents: Float[Tensor, "image channel height width"]) -> Grid:
        """The (height, width) in pixels of the images of latents."""
        height, width = latents.shape[-2:]
        return height * self.vae_scale_factor, width * self.vae_scale_factor

    def first_call(
        self, pipeline: Any, captions: Sequence[str], size: Grid, timestep: int
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a pipeline's first denoiser call, for captions and a size in pixels; see `restoring`."""
        changes = {
            self.family.component: self.denoiser,  # unwrapped: compiling is not worth it for a call that is stopped
            "scheduler": pinned(pipeline.scheduler, timestep, self.family.edm_sigmas),
        }
        if self.family.fixed_area:
            # Its own arithmetic then gives this size; the addition prevents rounding down.
            changes["default_sample_size"] = math.sqrt(size[0] * size[1]) / self.vae_scale_factor * (1 + 1e-9)
        for name, value in changes.items():
            # DiffusionPipeline.__setattr__ would write the configuration as well.
            object.__setattr__(pipeline, name, value)
        pipeline.set_progress_bar_config(disable=True)
        stated = {name: value for name, value in self.settings.options.items() if name not in SAMPLING}
        call = first_call(pipeline, self.denoiser, captions, size, {**self.family.options, **stated})
        if call is None:
            raise GocaError(f"{self.name} never called its denoiser: this pipeline is not supported")
        return call

    def session(self) -> "BackboneSession":
        """A new session, for one stream of requests."""
        return BackboneSession(self)


@dataclass(frozen=True)
class BatchItem:
    """One row of a denoiser pass.

    Args:
        latent: The encoded image, (1, channel, height, width).
        size: (height, width) in pixels of the latent's image.
        caption: The prompt.
        timestep: Training timestep, 0 to 999; for a flow model, thousandths of sigma.
        seed: Seed of the noise.
        sink: Takes each attention of this row.
    """

    latent: Float[Tensor, "1 channel height width"]
    size: Grid
    caption: str
    timestep: int
    seed: int
    sink: Callable[[AttentionCall], None]


class BackboneSession:
    """The denoiser passes of one stream of requests; each caption is encoded once.

    The user may load a LoRA or replace a text encoder between two streams, so encoded captions last one session.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self._prompts: dict[str, EncodedPrompt] = {}
        self._keys: dict[str, TextKeys] = {}
        self._calls: dict[Hashable, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    @cached_property
    def fingerprint(self) -> str:
        """The fingerprint of the pipeline's weights, which do not change during a stream."""
        return fingerprint(self.backbone.pipeline)

    def prompt(self, caption: str) -> EncodedPrompt:
        """The encoded caption. Raises GocaError if the tokenizer reports no character offsets."""
        if caption not in self._prompts:
            backbone = self.backbone
            side = backbone.size_multiple * max(1, backbone.settings.size // backbone.size_multiple)
            with restoring(backbone.pipeline) as pipeline:
                encode_it = partial(backbone.first_call, pipeline, [caption], (side, side), backbone.settings.timestep)
                self._prompts[caption] = record_prompt(pipeline, caption, encode_it)
            if len(self._prompts) > MAX_PROMPTS:
                del self._prompts[next(iter(self._prompts))]
        return self._prompts[caption]

    def keys(self, words: Sequence[str]) -> tuple[TextKeys, ...]:
        """Each word's keys and values in every cross-attention, encoded in its own prompt.

        They depend only on that text, so a pass over the smallest image gives them.

        Raises:
            GocaError: A word is longer than a prompt, or consists of stop words.
        """
        missing = [word for word in dict.fromkeys(words) if word not in self._keys]
        for start in range(0, len(missing), KEYS_BATCH):
            self._keys |= self._new_keys(missing[start : start + KEYS_BATCH])
        keys = tuple(self._keys[word] for word in words)
        for oldest in tuple(self._keys)[:-MAX_KEYS]:
            del self._keys[oldest]
        return keys

    def _new_keys(self, words: Sequence[str]) -> dict[str, TextKeys]:
        backbone = self.backbone
        side = backbone.size_multiple
        cells = side // backbone.vae_scale_factor
        latent = torch.zeros(1, latent_channels(backbone.pipeline), cells, cells, device=backbone.device)
        keys: dict[str, dict[str, tuple[Tensor, Tensor]]] = {word: {} for word in words}
        items = []
        for word in words:
            noun = Noun(word, (word,))
            caption = caption_of([noun])
            tokens = find_noun_tokens(caption, backbone.texts(self.prompt(caption)), [noun], (), named=False)
            sink = partial(_keep_keys, keys[word], list(tokens.content))
            items.append(BatchItem(latent, (side, side), caption, backbone.settings.timestep, 0, sink))
        self.run(items, KEYS_BATCH)
        return dict(keys)

    @torch.no_grad()
    def forward(
        self,
        latents: Float[Tensor, "image channel height width"],
        captions: Sequence[str],
        timestep: int,
        seed: int,
        sink: Sink,
        stop_early: bool = False,
    ) -> Tensor | list[Tensor] | None:
        """One denoiser pass over a batch.

        Args:
            latents: Encoded images, without noise.
            captions: One for each image; their encodings have the same shape.
            timestep: Training timestep, 0 to 999; for a flow model, thousandths of sigma.
            seed: Seed of the noise, which is the same for every image.
            sink: Takes (row, attention call) for each attention of each row.
            stop_early: End the pass after the last attention, if the denoiser allows it.

        Returns:
            The denoiser's output; None if the pass ended early.

        Raises:
            GocaError: The timestep is out of range, or the denoiser's attention cannot be read.
        """
        backbone = self.backbone
        prompts = [self.prompt(caption) for caption in captions]
        denoiser, component = backbone.denoiser, backbone.family.component
        with (
            restoring(backbone.pipeline) as pipeline,
            native(denoiser, component),
            without_caches(denoiser, component),
        ):
            noisy = add_noise(pipeline.scheduler, latents, timestep, seed)
            args, kwargs = self._call(pipeline, captions, prompts, backbone.pixels(noisy), timestep)
            args, kwargs = with_sample(args, kwargs, packed(pipeline, noisy, args, kwargs))
            size = latents.shape[-2], latents.shape[-1]
            to_the_end = not stop_early or backbone.in_parts
            try:
                with backbone.attention_hook(size, sink, to_the_end, rows=len(latents)) as hook:
                    output = denoiser(*args, **kwargs)[0]
            except LastAttentionReached:
                return None
            if (block := hook.unseen()) is not None:
                raise GocaError(
                    f"attention of {block} did not run: a patch of pipe.{component} leaves blocks out; remove it or "
                    "load the pipeline again"
                )
            return output

    def _call(
        self, pipeline: Any, captions: Sequence[str], prompts: Sequence[EncodedPrompt], size: Grid, timestep: int
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """`Backbone.first_call` for encoded captions: all but the latent is reused for later images of a size."""
        key = (tuple(captions), size, timestep)
        if key not in self._calls:
            object.__setattr__(pipeline, "encode_prompt", replay(prompts))
            self._calls[key] = self.backbone.first_call(pipeline, captions, size, timestep)
            for oldest in tuple(self._calls)[:-MAX_CALLS]:
                del self._calls[oldest]
        return self._calls[key]

    def run(self, items: Iterable[BatchItem], batch: int) -> None:
        """Run the denoiser on every item, at most `batch` per pass; attention goes to the items' sinks.

        Items share a pass if size, timestep, seed and the shape of their encoded captions agree. A pass ends after
        the last attention.
        """
        groups: dict[Hashable, list[BatchItem]] = {}
        for item in items:
            key = (item.size, item.timestep, item.seed, self.prompt(item.caption).shape)
            groups.setdefault(key, []).append(item)
        for group in groups.values():
            for start in range(0, len(group), batch):
                self._pass(group[start : start + batch])

    def _pass(self, items: Sequence[BatchItem]) -> None:
        self.forward(
            torch.cat([item.latent for item in items]),
            [item.caption for item in items],
            items[0].timestep,
            items[0].seed,
            lambda row, call: items[row].sink(call),
            stop_early=True,
        )


def _keep_keys(keys: dict[str, tuple[Tensor, Tensor]], indices: list[int], call: AttentionCall) -> None:
    if call.kind == "cross":
        keys[call.block] = call.k[:, indices], call.v[:, indices]


def _declared_scheduler(pipeline: Any) -> str | None:
    """The first scheduler that a pipeline's class declares; None if it takes any."""
    declared = get_type_hints(type(pipeline).__init__).get("scheduler")
    kinds = [kind for kind in get_args(declared) or (declared,) if hasattr(kind, "from_config")]
    return next((kind.__name__ for kind in kinds if kind.__name__ != "SchedulerMixin"), None)

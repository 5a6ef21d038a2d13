"""goca inside ComfyUI: attention of its sampler's model as masks and as guidance. Nothing of ComfyUI is imported.

ComfyUI calls a function of ours in place of each attention (`transformer_options["optimized_attention_override"]`),
around each call of the denoiser and around a sampling (wrappers "diffusion_model" and "outer_sample"). Their arguments
are passed on to the observers of `goca.tracing` and `goca.guidance`, as if a diffusers pipeline ran.

ComfyUI clones a model with a deep copy of its options, which would also copy the object of a bound method: so
everything that is put there is a closure.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers.configuration_utils import FrozenDict
from einops import rearrange
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from goca.diffusion.attention_call import AttentionCall, Sink
from goca.diffusion.attention_modules import AttentionModule, output_projection
from goca.diffusion.checkpoints import settings_for
from goca.diffusion.denoiser_call import DenoiserCall, DenoiserRow, Observer, PromptTokens
from goca.diffusion.families.spec import CheckpointSettings
from goca.diffusion.families.unet import FAMILY
from goca.errors import GocaError
from goca.guidance import LIMIT, checked, guide_arguments
from goca.guidance.drawing import CLAMP
from goca.guidance.observer import GuidanceObserver
from goca.guidance.regions import SpecialTokens
from goca.imaging.palette import palette
from goca.maths import Grid
from goca.plan import Options, plan
from goca.recipe import AUTO
from goca.segmentation import Segmentation
from goca.segmenter import Segmenter
from goca.text.class_list import classes_to_find, parse_class_list
from goca.text.tokens import tokens_by_decoding
from goca.tracing import TracedImage
from goca.tracing.observer import TraceObserver
from goca.tracing.steps import trace_plan

COND, UNCOND = 0, 1
"""How `cond_or_uncond` tells the positive conditioning from the negative one."""
CELL = 8
"""Pixels per side of a latent cell, in all supported models."""
ENCODERS = ("l", "h", "g")
"""CLIP text encoders by the keys of their tokens: SD 1.x and XL, SD 2.x, and XL's refiner."""
SUPPORTED = "connect a model of Stable Diffusion 1.x, 2.x or XL"
BLOCK = re.compile(r"(input|middle|output)_block(?:s\.(\d+))?\.\d+\.transformer_blocks\.(\d+)")
"""The path of a transformer block: the UNet's part, the block's number in it, the depth."""
HostBlock = tuple[str, int, int]
"""A transformer block as `BLOCK` reads it from a path, and as `transformer_options` names it."""


@dataclass(frozen=True)
class HostUNet:
    """A UNet of ComfyUI, in goca's terms.

    Attributes:
        denoiser: Stand-in for the diffusers UNet of the same layout, with the attributes that `FAMILY` reads.
        cross: {transformer block: its cross-attention}; `AttentionModule.block` is the block's path in diffusers.
        settings: The checkpoint's settings for segmentation.
    """

    denoiser: Any
    cross: Mapping[HostBlock, AttentionModule]
    settings: CheckpointSettings

    @classmethod
    def of(cls, model: Any) -> "HostUNet":
        """Read the layout of a ModelPatcher's `model`. Raises GocaError for one that is not supported."""
        unet, facts = model.diffusion_model, getattr(model.model_config, "unet_config", {})
        kind = type(unet).__name__
        if kind != "UNetModel" or any("time_stack" in path for path, _ in unet.named_modules()):
            raise GocaError(f"the attention of {kind} is not supported: {SUPPORTED}")
        per_level = facts["num_res_blocks"]
        counts = {per_level} if isinstance(per_level, int) else set(per_level)
        if len(counts) != 1:
            raise GocaError(f"a UNet with {per_level} layers per level is not supported: {SUPPORTED}")
        (layers,) = counts
        cross = {}
        for path, block in unet.named_modules():
            if (match := BLOCK.fullmatch(path)) and getattr(block, "attn2", None) is not None:
                key = match[1], int(match[2] or 0), int(match[3])
                cross[key] = AttentionModule(diffusers_path(key, layers), block.attn2, block)
        denoiser = _denoiser(facts, [module.block for module in cross.values()])
        blocks = tuple(module.block for module in cross.values())
        return cls(denoiser, cross, settings_for(denoiser, FAMILY, CELL, blocks))

    @property
    def blocks(self) -> tuple[str, ...]:
        """The paths of the blocks that attend to the text."""
        return tuple(module.block for module in self.cross.values())


def diffusers_path(block: HostBlock, layers: int) -> str:
    """A transformer block's path in diffusers. layers: number per down level; an up level has one more."""
    part, number, depth = block
    if part == "middle":
        return f"mid_block.attentions.0.transformer_blocks.{depth}"
    # The first input block is a convolution, and the last one of each level downsamples.
    up = part == "output"
    level, layer = divmod(number if up else number - 1, layers + 1)
    return f"{'up' if up else 'down'}_blocks.{level}.attentions.{layer}.transformer_blocks.{depth}"


def _denoiser(facts: Mapping[str, Any], blocks: Sequence[str]) -> Any:
    """The attributes of a diffusers UNet that the family's rules read."""
    widths = tuple(facts["model_channels"] * factor for factor in facts["channel_mult"])
    config = FrozenDict(block_out_channels=widths, cross_attention_dim=facts["context_dim"], sample_size=64)

    def attentions(level: int) -> list[Any]:
        paths = [path.split(".") for path in blocks if path.startswith(f"up_blocks.{level}.")]
        numbers = [path[3] for path in paths]
        return [SimpleNamespace(transformer_blocks=[0] * numbers.count(number)) for number in dict.fromkeys(numbers)]

    levels = [SimpleNamespace(attentions=attentions(level)) for level in range(len(widths))]
    return SimpleNamespace(config=config, up_blocks=levels)


class HostPrompt(NamedTuple):
    """A prompt as ComfyUI encodes it: its tokens, their number, and the tokenizer's special ones."""

    tokens: PromptTokens
    length: int
    specials: SpecialTokens

    @classmethod
    def of(cls, clip: Any, text: str, encoded: Mapping[str, Any]) -> "HostPrompt":
        """Read it from the result of `clip.tokenize`. Raises GocaError for an encoder that is not a CLIP."""
        key = next((key for key in ENCODERS if key in encoded), None)
        if key is None or len(encoded.keys() - set(ENCODERS)) > 0:
            raise GocaError(f"a text encoder with the parts {', '.join(encoded)} is not supported: {SUPPORTED}")
        tokenizer = getattr(clip.tokenizer, f"clip_{key}").tokenizer
        start, end, ids = tokenizer.bos_token_id, tokenizer.eos_token_id, list[int]()
        for chunk in encoded[key]:
            # A textual inversion embedding has no token id, and some encoders pad with a word's id.
            numbers = [token[0] if isinstance(token[0], int) else start for token in chunk]
            words = numbers.index(end) if end in numbers else len(numbers)
            ids += [*numbers[:words], *[end] * (len(numbers) - words)]
        tokens = replace(tokens_by_decoding(tokenizer, ids), tokenizer=key)
        return cls(PromptTokens(text, (tokens,)), len(ids), SpecialTokens.of(tokenizer))


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


class Drawn(NamedTuple):
    """Results in ComfyUI's formats.

    Attributes:
        masks: 0 or 1, one for each name of each image, in order.
        scores: The scores of each name as grey images, 0 to 1.
        labels: Each image's classes in flat colours, 0 to 1.
        overlay: Each image under its coloured masks, 0 to 1.
        names: The names, one per line.
    """

    masks: Float[Tensor, "mask height width"]
    scores: Float[Tensor, "mask height width 3"]
    labels: Float[Tensor, "image height width 3"]
    overlay: Float[Tensor, "image height width 3"]
    names: str

    @classmethod
    def of(cls, results: Sequence[Segmentation]) -> "Drawn":
        """Draw results of one size with the same classes."""
        names = results[0].classes
        colours = palette(len(names))
        return cls(
            torch.from_numpy(np.stack([result[name] for result in results for name in names])).float(),
            as_tensor(result.heatmap(name) for result in results for name in names),
            as_tensor(colours[result.labels] for result in results),
            as_tensor(result.overlay(legend=False) for result in results),
            "\n".join(names),
        )


def as_tensor(images: Iterable[Any]) -> Float[Tensor, "image height width 3"]:
    """Images in ComfyUI's format: channels last, 0 to 1."""
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).float() / 255


def as_images(images: Float[Tensor, "image height width channel"]) -> list[Image.Image]:
    """ComfyUI's images as PIL images, RGB. Raises GocaError for an empty batch."""
    if not len(images):
        raise GocaError("the batch has no images: connect at least one")
    values = (images[..., :3].detach().cpu().float().clamp(0, 1) * 255).round().byte().numpy()
    return [Image.fromarray(value) for value in values]


def names_in(text: str) -> Mapping[str, Sequence[str]]:
    """{class: synonyms} of a list, see `goca.text.class_list`. Raises GocaError for an empty one."""
    return classes_to_find(parse_class_list(text, "the list of names"), "the list of names")


def background_in(text: str) -> str | float:
    """A background from typed text: "auto", "none" or a threshold, 0 to 1."""
    try:
        return float(text)
    except ValueError:
        return text.strip().lower() or AUTO


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

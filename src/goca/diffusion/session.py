"""Listening to a pipeline while it generates: whose attention a denoiser call computes, and at which step.

Nothing is assumed about how a pipeline guides: in one batch, in two calls, or not at all. What its `encode_prompt`
answers is remembered, and a row of a denoiser call belongs to an image where the prompt's own embedding comes in
again. Every pipeline of the families encodes its prompt before the negative one, and answers with it first.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from threading import get_ident
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from goca.diffusion.attention_call import AttentionCall, Sink
from goca.diffusion.attention_hook import AttentionHook
from goca.diffusion.attention_modules import native
from goca.diffusion.backbone import Backbone
from goca.diffusion.conditioning import EncodedPrompt, Recorder, tokenizers
from goca.diffusion.denoiser_call import DenoiserCall, Encoded, Generation, Observer, PromptTokens, Room, rows_of
from goca.diffusion.exclusive import exclusive, patched
from goca.diffusion.families import check_tokenizers
from goca.diffusion.latents import sample_of
from goca.errors import GocaError
from goca.maths import Grid


class Generating(Backbone):
    """A pipeline that is only listened to: it may start from an image, and have any scheduler."""

    def _check(self) -> None:
        kind, pipeline = type(self.pipeline).__name__, self.pipeline
        known = inspect.signature(pipeline.__call__).parameters
        lacking = getattr(pipeline, "vae", None) is None or _processor(pipeline) is None
        lacking |= not all(callable(getattr(pipeline, name, None)) for name in ("encode_prompt", "prepare_latents"))
        if lacking or "prompt" not in known or "pag_scale" in known:
            raise GocaError(
                f"{kind} cannot be traced: goca listens to pipelines that make an image from a prompt, from a "
                "image and a prompt, or inside a mask"
            )
        self.family.check(self.denoiser)
        check_tokenizers(pipeline, self.family)


class Listener:
    """Tells a hearer what a pipeline attends to while it is `attached`."""

    def __init__(self, backbone: Generating, hearer: Observer) -> None:
        self.backbone, self.hearer = backbone, hearer
        self._thread = 0
        self._encoded: list[Encoded] = []
        self._room = Room()
        self._prepared = False
        self._now: Generation | None = None
        self._count = 0
        self._tokenizers: dict[str, Recorder] = {}
        self._open: tuple[AttentionHook, DenoiserCall] | None = None

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Everything that is restoring is given back; calls from other threads go by unheard."""
        pipeline, denoiser = self.backbone.pipeline, self.backbone.denoiser
        self._thread = get_ident()
        self._tokenizers = {name: Recorder(getattr(pipeline, name)) for name in tokenizers(pipeline)}
        processor = _processor(pipeline)
        show = "postprocess" if getattr(pipeline, "image_processor", None) is processor else "postprocess_video"
        with ExitStack() as stack:
            stack.enter_context(exclusive(pipeline, lend=True))
            stack.enter_context(native(denoiser))
            for target, name, heard in (
                (pipeline, "encode_prompt", self._encodes),
                (pipeline, "prepare_latents", self._prepares),
                (processor, show, self._shows),
            ):
                stack.enter_context(patched(target, name, self._around(getattr(target, name), heard)))
            for name, recorder in self._tokenizers.items():
                stack.enter_context(patched(pipeline, name, recorder))
            stack.callback(self._forget)
            stack.callback(self._close, complete=False)
            stack.callback(denoiser.register_forward_pre_hook(self._starts, with_kwargs=True).remove)
            stack.callback(denoiser.register_forward_hook(self._ends, always_call=True).remove)
            yield

    def _around(self, original: Callable[..., Any], heard: Callable[..., Any]) -> Callable[..., Any]:
        """The pipeline's own function, and `heard` told of its call in this thread."""

        @wraps(original)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if get_ident() != self._thread:
                return original(*args, **kwargs)
            return heard(original, args, kwargs)

        return wrapped

    def _encodes(self, encode: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Remember what was encoded; the passes to come tell which of it was a prompt, and which a negative one."""
        if self._prepared:
            # By the call before, which may have failed then.
            self._encoded, self._prepared = [], False
        # Read first: there are pipelines that write their template into the list of prompts.
        given = inspect.signature(encode).bind(*args, **kwargs).arguments
        prompts = _listed(given.get("prompt"))
        captions = {
            name: _listed(given.get(name.replace("tokenizer", "prompt"))) or prompts or () for name in self._tokenizers
        }
        for name, recorder in self._tokenizers.items():
            recorder.expect(captions[name])
        answer = encode(*args, **kwargs)
        # There are pipelines that ask their encoders one after the other.
        alike = (one for one in self._encoded if (one.prompts, one.captions) == (prompts, captions))
        encoded = next(alike, None) or Encoded(prompts, captions)
        self._encoded = [*(one for one in self._encoded if one is not encoded), encoded]
        encoded.answers.append(rows_of(answer[0] if isinstance(answer, tuple) else answer))
        encoded.texts.update({name: one.rows for name, one in self._tokenizers.items() if one.rows})
        return answer

    def _prepares(self, prepare: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Whatever is generated from now on is another call's, even if this fails."""
        self._now, self._room, self._prepared = None, Room(), True
        answer = prepare(*args, **kwargs)
        given = inspect.signature(prepare).bind(*args, **kwargs).arguments
        size = (int(given["height"]), int(given["width"])) if {"height", "width"} <= given.keys() else None
        self._room = Room(len(answer[0] if isinstance(answer, tuple) else answer), size)
        return answer

    def _shows(self, show: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        answer = show(*args, **kwargs)
        if self._now is not None:
            self.hearer.shows(self._now.index, _images(answer))
        return answer

    def _starts(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if get_ident() != self._thread:
            return
        inputs, (_, sample) = [*args[1:], *kwargs.values()], sample_of(args, kwargs)
        timestep = kwargs.get("timestep", args[1] if len(args) > 1 else 0)
        encoded, own = self._whose(inputs)
        if encoded is None:
            if self._now is None:
                self.hearer.misses()
            return
        latent = torch.stack([sample[row] for row in own])
        if self._now is not None and self._now.again(latent, timestep):
            return
        if self._now is None or self._now.encoded is not encoded:
            self._now, self._encoded = Generation(self._count, encoded, self._room), []
            self._count += 1
        now = self._now
        step, timestep = now.passes // getattr(self.backbone.pipeline.scheduler, "order", 1), self._timestep(now)
        now.passed(latent, timestep)
        size = self._size(latent, now)
        said = self._said(now)
        one = DenoiserCall(now.index, step, timestep, size, tuple(said[prompt] for prompt in own.values()))
        sink = self.hearer.starts(one)
        if sink is None:
            return
        family = self.backbone.family
        images = {row: image for image, row in enumerate(own)}
        tap = AttentionHook(
            module, family.grids(module, size), _only(images, sink), family.joint, family.linear_self_attention
        )
        self._open = tap.__enter__(), one

    def _whose(self, inputs: Sequence[Any]) -> tuple[Encoded | None, dict[int, int]]:
        """The prompts that a pass attends to, and its rows of them: the present ones or else what was encoded since.

        Of several, those of the last rows, as pipelines put the negative prompts first; then the latest.
        """
        present = [] if self._now is None else [self._now.encoded]
        # Embeddings that were made in the block have words, even where the pipeline is given nothing else.
        since = [*reversed(self._encoded)]
        since.sort(key=lambda one: one.prompts is None)
        for some in (present, since):
            found = [(one, own) for one in some if (own := one.own(inputs, self._room.images))]
            if found:
                return max(found, key=lambda one: max(one[1]))
        return None, {}

    def _ends(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        # Without an output the denoiser has raised an exception.
        if self._open is not None and get_ident() == self._thread:
            _, one = self._open
            self._close(complete=output is not None)
            if output is not None:
                self.hearer.ends(one)

    def _close(self, complete: bool) -> None:
        if self._open is not None:
            (tap, one), self._open = self._open, None
            if not complete:
                self.hearer.breaks(one)
            tap.__exit__(None, None if complete else RuntimeError(), None)

    def _forget(self) -> None:
        """Nothing of the pipeline's is kept behind the last pass."""
        self._now, self._tokenizers, self._encoded = None, {}, []

    def _said(self, now: Generation) -> list[PromptTokens]:
        """What each prompt is to the tokenizers; GocaError where no prompt was given as text."""
        encoded = now.encoded
        if encoded.prompts is None:
            raise GocaError("the words of prompt_embeds are unknown: pass the prompt itself, as text, to trace it")
        said = []
        for number, prompt in enumerate(encoded.prompts):
            rows = {name: some[number] for name, some in encoded.texts.items() if number < len(some)}
            said.append(PromptTokens(prompt, self.backbone.texts(EncodedPrompt((encoded.answers[-1][0],), rows))))
        return said

    def _timestep(self, now: Generation) -> float:
        """The timestep of the pass to come, as the scheduler counts: a pipeline may begin behind its first ones."""
        timesteps = self.backbone.pipeline.scheduler.timesteps
        skipped = len(timesteps) - (getattr(self.backbone.pipeline, "_num_timesteps", None) or len(timesteps))
        return float(timesteps[min(skipped + now.passes, len(timesteps) - 1)])

    def _size(self, latent: Tensor, now: Generation) -> Grid:
        """(height, width) in cells of what the denoiser is shown; GocaError where that is not one image a row."""
        if latent.ndim == 5 and latent.shape[2] != 1:
            raise GocaError(
                f"a video of {latent.shape[2]} latent frames cannot be traced: make one frame, num_frames=1"
            )
        if latent.ndim > 3:
            return latent.shape[-2], latent.shape[-1]
        if now.room.size is None:
            raise GocaError(
                "the denoiser's latents are packed and for an unknown size: call the pipeline, which prepares them"
            )
        height, width = (2 * (side // (2 * self.backbone.vae_scale_factor)) for side in now.room.size)
        if latent.shape[1] != height * width // 4:
            raise GocaError(
                "the denoiser is shown another image beside the one that it makes: such a call cannot be traced, "
                "leave the other image out"
            )
        return height, width


def _processor(pipeline: Any) -> Any:
    """What makes images of what the VAE decodes, if the pipeline has it."""
    return getattr(pipeline, "image_processor", None) or getattr(pipeline, "video_processor", None)


def _only(images: Mapping[int, int], sink: Sink) -> Sink:
    def heard(row: int, call: AttentionCall) -> None:
        if row in images:
            with torch.no_grad(), torch.autocast(call.q.device.type, enabled=False):
                sink(images[row], call)

    return heard


def _listed(prompt: str | Sequence[str] | None) -> tuple[str, ...] | None:
    return (prompt,) if isinstance(prompt, str) else None if prompt is None else tuple(prompt)


def _images(answer: Any) -> list[Image.Image]:
    """What a pipeline returns as images, or as videos of one frame; nothing for latents."""
    if isinstance(answer, Tensor):
        answer = answer.float().cpu().numpy()
        answer = np.moveaxis(answer, -3, -1)
    if isinstance(answer, np.ndarray):
        frames = answer[:, 0] if answer.ndim == 5 else answer
        if frames.ndim != 4 or frames.shape[-1] != 3:
            return []
        return [Image.fromarray((frame * 255).round().clip(0, 255).astype(np.uint8)) for frame in frames]
    return [one[0] if isinstance(one, list) else one for one in answer]

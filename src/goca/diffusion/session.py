"""GenerationSession: what a pipeline generates, denoiser call by denoiser call.

Nothing is assumed about how a pipeline guides: in one batch, in two calls, or not at all. What its `encode_prompt`
returns is remembered, and a row of a denoiser call belongs to an image and a branch where that embedding comes in
again. All pipelines of the families encode the prompt before the negative one, return it first, and call with it first.
"""

import inspect
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
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
from goca.diffusion.caches import check_caches
from goca.diffusion.conditioning import EncodedPrompt, Recorder, tokenizers
from goca.diffusion.denoiser_call import Branch, DenoiserCall, DenoiserRow, Observer, PromptTokens
from goca.diffusion.encoded_texts import EncodedTexts, texts_to_encode
from goca.diffusion.exclusive import exclusive, patched
from goca.diffusion.families import check_tokenizers
from goca.diffusion.latents import processor_of, sample_of
from goca.errors import GocaError
from goca.maths import Grid


def check_generation(backbone: Backbone) -> None:
    """Check that a pipeline's generations can be observed; it may start from an image, and have any scheduler.

    Raises:
        GocaError: The pipeline lacks a part, or guides by perturbed attention.
    """
    pipeline = backbone.pipeline
    parameters = inspect.signature(pipeline.__call__).parameters
    lacking = getattr(pipeline, "vae", None) is None or processor_of(pipeline) is None
    lacking |= not all(callable(getattr(pipeline, name, None)) for name in ("encode_prompt", "prepare_latents"))
    if lacking or "prompt" not in parameters or "pag_scale" in parameters:
        raise GocaError(
            f"{type(pipeline).__name__} cannot be traced: goca observes pipelines that make an image from a prompt, "
            "from an image and a prompt, or inside a mask"
        )
    backbone.family.check(backbone.denoiser)
    check_caches(backbone.denoiser, backbone.family.component)
    check_tokenizers(pipeline, backbone.family)


def step_number(scheduler: Any, evaluation: int) -> int:
    """The step, from 0, that the denoiser's evaluation, from 0, belongs to, as a diffusers scheduler counts."""
    if hasattr(scheduler, "prk_timesteps"):
        # PNDM evaluates each of its Runge-Kutta steps four times; without them it takes its first step twice.
        runge_kutta = len(scheduler.prk_timesteps)
        if evaluation < runge_kutta:
            return evaluation // 4
        return evaluation - runge_kutta + runge_kutta // 4 if runge_kutta else max(0, evaluation - 1)
    return evaluation // getattr(scheduler, "order", 1)


@dataclass
class _Generation:
    """One call of the pipeline: the texts it attends to, the prompts first, and the last evaluation of its denoiser."""

    index: int
    texts: list[EncodedTexts]
    first: int | None = None
    evaluations: int = 0
    timestep: float = 0.0
    step: int = 0
    _inputs: tuple[Tensor, Tensor] | None = None

    def repeats(self, latent: Tensor, timestep: Any) -> bool:
        """Whether the last call was given this very latent: then the two are one evaluation, guided in two calls."""
        before, self._inputs = self._inputs, (latent, torch.as_tensor(timestep))
        return before is not None and all(map(torch.equal, before, self._inputs))

    def advance(self, pipeline: Any) -> None:
        """To the next evaluation, as the scheduler counts them where it does."""
        scheduler, timesteps = pipeline.scheduler, pipeline.scheduler.timesteps
        index = getattr(scheduler, "step_index", None)
        if index is None:
            # A pipeline that starts from an image begins behind the first timesteps.
            skipped = len(timesteps) - (getattr(pipeline, "_num_timesteps", None) or len(timesteps))
            begin = getattr(scheduler, "begin_index", None)
            index = (skipped if begin is None else begin) + self.evaluations
        self.first = index if self.first is None else self.first
        self.evaluations = index - self.first + 1
        self.step = step_number(scheduler, index - self.first)
        self.timestep = float(timesteps[min(index, len(timesteps) - 1)])


class GenerationSession:
    """While it is entered, tells observers of the denoiser calls of what the pipeline generates.

    The pipeline belongs to the session's thread meanwhile; calls from other threads are not heard, nor are denoiser
    calls that attend to no prompt encoded in the session. Everything that is borrowed is given back.

    Attributes:
        images: {generation: the images that the pipeline returned}; none where it returned latents.
        missed: Whether the denoiser was called without any prompt encoded in the session.
    """

    def __init__(self, backbone: Backbone, observers: Sequence[Observer]) -> None:
        """Prepare a session.

        Args:
            backbone: A pipeline that passes `check_generation`.
            observers: Told of every call in this order; each is given the prediction that those before it left.
        """
        self.images: dict[int, list[Image.Image]] = {}
        self.missed = False
        self._backbone, self._observers = backbone, tuple(observers)
        self._stack = ExitStack()
        self._thread = 0
        self._tokenizers: dict[str, Recorder] = {}
        self._encoded: list[EncodedTexts] = []
        # What the last latents were prepared for: the number of images, 0 if unknown, and their size in pixels.
        self._prepared: tuple[int, Grid | None] = 0, None
        # Whether what was encoded belongs to an earlier call of the pipeline, which may have failed.
        self._are_stale = False
        self._generation: _Generation | None = None
        self._count = 0
        self._call: DenoiserCall | None = None
        self._hook: AttentionHook | None = None

    def __enter__(self) -> "GenerationSession":
        pipeline, denoiser = self._backbone.pipeline, self._backbone.denoiser
        self._thread = get_ident()
        processor = processor_of(pipeline)
        shows = "postprocess" if getattr(pipeline, "image_processor", None) is processor else "postprocess_video"
        with ExitStack() as stack:
            stack.enter_context(exclusive(pipeline, for_user=True))
            stack.enter_context(native(denoiser, self._backbone.family.component))
            self._tokenizers = {name: Recorder(getattr(pipeline, name)) for name in tokenizers(pipeline)}
            for target, name, wrapper in (
                (pipeline, "encode_prompt", self._encode),
                (pipeline, "prepare_latents", self._prepare),
                (processor, shows, self._show),
            ):
                stack.enter_context(patched(target, name, self._wrapped(getattr(target, name), wrapper)))
            for name, recorder in self._tokenizers.items():
                stack.enter_context(patched(pipeline, name, recorder))
            stack.callback(self._forget)
            stack.callback(denoiser.register_forward_pre_hook(self._begin, with_kwargs=True).remove)
            stack.callback(denoiser.register_forward_hook(self._end, always_call=True).remove)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._stack.__exit__(kind, error, trace)

    def _wrapped(self, original: Callable[..., Any], wrapper: Callable[..., Any]) -> Callable[..., Any]:
        """The pipeline's own function, which `wrapper` calls for this thread."""

        @wraps(original)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            return wrapper(original, args, kwargs) if get_ident() == self._thread else original(*args, **kwargs)

        return wrapped

    def _encode(self, encode: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Remember what is encoded; the denoiser calls to come tell which of it is a prompt."""
        if self._are_stale:
            self._encoded, self._are_stale = [], False
        fresh = texts_to_encode(encode, args, kwargs, self._tokenizers)
        # There are pipelines that ask their encoders one after the other.
        same = (before for before in self._encoded if (before.texts, before.captions) == (fresh.texts, fresh.captions))
        encoded = next(same, fresh)
        self._encoded = [*(before for before in self._encoded if before is not encoded), encoded]
        for name, recorder in self._tokenizers.items():
            recorder.expect([*encoded.captions[name], *(encoded.negative.captions[name] if encoded.negative else ())])
        answer = encode(*args, **kwargs)
        encoded.add(answer, self._tokenizers)
        return answer

    def _prepare(self, prepare: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The latents to come are another generation's, even if this fails."""
        self._generation, self._prepared, self._are_stale = None, (0, None), True
        answer = prepare(*args, **kwargs)
        arguments = inspect.signature(prepare).bind(*args, **kwargs).arguments
        has_size = {"height", "width"} <= arguments.keys()
        size = (int(arguments["height"]), int(arguments["width"])) if has_size else None
        self._prepared = len(answer[0] if isinstance(answer, tuple) else answer), size
        return answer

    def _show(self, show: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        answer = show(*args, **kwargs)
        if self._generation is not None:
            self.images[self._generation.index] = _images(answer)
        return answer

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if get_ident() != self._thread:
            return
        self._abort()
        call = self._heard(args, kwargs)
        if call is None:
            return
        self._call = call
        sinks = [sink for observer in self._observers if (sink := observer.begin(call)) is not None]
        if sinks:
            check_caches(module, self._backbone.family.component)
            hook = self._backbone.attention_hook(call.latent_size, _shared(sinks), rows=len(call.rows))
            self._hook = hook.__enter__()

    def _end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if self._call is None or get_ident() != self._thread:
            return None
        if output is None:  # the denoiser has raised an exception
            return self._abort()
        call, hook = self._call, self._hook
        self._call = self._hook = None
        if hook is not None:
            hook.__exit__(None, None, None)
        before = noise_pred = _prediction(output)
        for observer in self._observers:
            answer = observer.end(call, noise_pred)
            noise_pred = noise_pred if answer is None else answer
        return None if noise_pred is before else _with_prediction(output, noise_pred)

    def _abort(self) -> None:
        """Close a call that failed."""
        hook, self._hook, self._call = self._hook, None, None
        if hook is not None:
            hook.__exit__(None, RuntimeError(), None)

    def _forget(self) -> None:
        """Nothing of the pipeline's is kept behind the session."""
        self._abort()
        self._generation, self._tokenizers, self._encoded = None, {}, []

    def _heard(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> DenoiserCall | None:
        """What a denoiser call is to its generation; None for one that attends to nothing encoded in the session."""
        inputs, (_, sample) = [*args[1:], *kwargs.values()], sample_of(args, kwargs)
        blocks = [] if self._generation is None else self._blocks(self._generation.texts, inputs)
        if not blocks:
            generation = self._next_generation(inputs)
            if generation is None:
                self.missed |= self._generation is None
                return None
            self._generation, self._encoded = generation, []
            self._count += 1
            blocks = self._blocks(generation.texts, inputs)
        generation = self._generation
        assert generation is not None
        prompts = generation.texts[0]
        # In one batch, pipelines put the negative prompts first where both are the same.
        block = next((block for texts, block in reversed(blocks) if texts is prompts), blocks[0][1])
        latent = torch.stack([sample[row] for row in block])
        size = self._latent_size(latent)
        repeats = generation.repeats(latent, kwargs.get("timestep", args[1] if len(args) > 1 else 0))
        if not repeats:
            generation.advance(self._backbone.pipeline)
        rows = self._rows(len(sample), prompts, blocks, repeats)
        evaluation = generation.evaluations - 1
        return DenoiserCall(generation.index, generation.step, evaluation, generation.timestep, size, rows)

    def _blocks(self, texts: Sequence[EncodedTexts], inputs: Sequence[Any]) -> list[tuple[EncodedTexts, range]]:
        return [(encoded, block) for encoded in texts for block in encoded.blocks(inputs, self._prepared[0])]

    def _next_generation(self, inputs: Sequence[Any]) -> _Generation | None:
        """One whose prompts are what a denoiser call attends to; of several, the last rows', then the latest."""
        # Embeddings that were made in the session have words, even where the pipeline is given nothing else.
        latest_first = [*reversed(self._encoded)]
        encoded = sorted(latest_first, key=lambda texts: texts.texts is None)
        blocks = self._blocks(encoded, inputs)
        if not blocks:
            return None
        prompts, _ = max(blocks, key=lambda pair: pair[1].stop)
        others = [texts for texts in encoded if texts is not prompts]
        negative = [texts.negative for texts in (prompts, *others) if texts.negative is not None]
        return _Generation(self._count, [prompts, *negative, *others])

    def _rows(
        self, count: int, prompts: EncodedTexts, blocks: list[tuple[EncodedTexts, range]], repeats: bool
    ) -> tuple[DenoiserRow, ...]:
        """The rows of a batch of `count`; one that repeats the call before is guided away from what it attends to."""
        rows = [DenoiserRow("other")] * count
        prompt_blocks = [block for texts, block in blocks if texts is prompts]
        labelled: list[tuple[Branch, EncodedTexts, range]] = [
            ("uncond", texts, block) for texts, block in blocks if texts is not prompts
        ]
        if repeats:
            labelled = labelled or [("uncond", prompts, block) for block in prompt_blocks]
        elif prompt_blocks:
            labelled = [("cond", prompts, prompt_blocks[-1]), *labelled]
        for branch, texts, block in labelled:
            if all(rows[row].branch == "other" for row in block):
                for image, row in enumerate(block):
                    rows[row] = DenoiserRow(branch, image, self._prompt_tokens(branch, texts, image, len(block)))
        return tuple(rows)

    def _prompt_tokens(self, branch: Branch, encoded: EncodedTexts, image: int, images: int) -> PromptTokens:
        """What an image's text is to the tokenizers; GocaError for a prompt that was not given as text."""
        if encoded.texts is None:
            if branch == "cond":
                raise GocaError("the words of prompt_embeds are unknown: pass the prompt itself, as text, to trace it")
            return PromptTokens("", ())
        number = image * len(encoded.texts) // images
        tokens = {name: rows[number] for name, rows in encoded.tokens.items() if number in rows}
        text = encoded.texts[number]
        if not text.strip():
            # All that there is then are the words of a template.
            tokens = {name: replace(made, special=(True,) * len(made.special)) for name, made in tokens.items()}
        embeddings = next(filter(None, reversed(encoded.embeddings)))
        return PromptTokens(text, self._backbone.texts(EncodedPrompt((embeddings[0],), tokens)))

    def _latent_size(self, latent: Tensor) -> Grid:
        """(height, width) in cells of what the denoiser is given; GocaError where that is not one image a row."""
        if latent.ndim == 5 and latent.shape[2] != 1:
            raise GocaError(
                f"a video of {latent.shape[2]} latent frames cannot be traced: make one frame, num_frames=1"
            )
        if latent.ndim > 3:
            return latent.shape[-2], latent.shape[-1]
        _, size = self._prepared
        if size is None:
            raise GocaError(
                "the denoiser's latents are packed and for an unknown size: call the pipeline, which prepares them"
            )
        height, width = (2 * (side // (2 * self._backbone.vae_scale_factor)) for side in size)
        if latent.shape[1] != height * width // 4:
            raise GocaError(
                "the denoiser is given another image beside the one that it makes: such a call cannot be traced, "
                "leave the other image out"
            )
        return height, width


def _shared(sinks: Sequence[Sink]) -> Sink:
    """One sink for all, which computes in full precision."""

    def take(row: int, call: AttentionCall) -> None:
        with torch.no_grad(), torch.autocast(call.q.device.type, enabled=False):
            for sink in sinks:
                sink(row, call)

    return take


def _prediction(output: Any) -> Tensor:
    """What a denoiser predicts, as one tensor (row, ...)."""
    return torch.stack(output[0]) if isinstance(output[0], list) else output[0]


def _with_prediction(output: Any, noise_pred: Tensor) -> Any:
    """A denoiser's output with another prediction, in the form of its own."""
    answer = list(noise_pred) if isinstance(output[0], list) else noise_pred
    if isinstance(output, tuple):
        return (answer, *output[1:])
    return replace(output, **{next(iter(output)): answer})


def _images(answer: Any) -> list[Image.Image]:
    """What a pipeline returns as images, or as videos of one frame; nothing for latents."""
    if isinstance(answer, Tensor):
        answer = np.moveaxis(answer.float().cpu().numpy(), -3, -1)
    if isinstance(answer, np.ndarray):
        frames = answer[:, 0] if answer.ndim == 5 else answer
        if frames.ndim != 4 or frames.shape[-1] != 3:
            return []
        return [Image.fromarray((frame * 255).round().clip(0, 255).astype(np.uint8)) for frame in frames]
    return [image[0] if isinstance(image, list) else image for image in answer]

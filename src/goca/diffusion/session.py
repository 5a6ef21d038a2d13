"""GenerationSession: a pipeline's generations, denoiser call by denoiser call.

Nothing is assumed about how a pipeline guides: in one batch, in two calls, or not at all. What its `encode_prompt`
returns is remembered, and a row of a denoiser call is assigned to an image and a branch by the embedding in its input.
All pipelines of the families encode the prompt before the negative one, return it first, and call with it first. The
first pass with the prompt in each of the scheduler's evaluations is the prompt's own; those of skip-layer or
self-attention guidance come after it.
"""

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import wraps
from threading import get_ident
from types import FrameType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from goca.diffusion.attention_call import AttentionCall, Sink
from goca.diffusion.attention_hook import AttentionHook
from goca.diffusion.attention_modules import attention_modules, native
from goca.diffusion.backbone import Backbone
from goca.diffusion.caches import check_caches
from goca.diffusion.conditioning import tokenizers
from goca.diffusion.denoiser_call import Branch, DenoiserCall, DenoiserRow, Observer, PromptTokens
from goca.diffusion.encoded_texts import EncodedTexts, texts_to_encode
from goca.diffusion.exclusive import exclusive, patched
from goca.diffusion.families import bare, check_tokenizers
from goca.diffusion.guidance_scale import guidance_scale
from goca.diffusion.latent_layout import layout_of, plain_remedy
from goca.diffusion.latents import processor_of, sample_of
from goca.diffusion.own_calls import codes_of, intercepted, is_own, step_number, stepping
from goca.diffusion.timesteps import is_flow
from goca.errors import GocaError
from goca.maths import Grid

_ACTIVE: dict[int, "GenerationSession"] = {}
"""{id of a pipeline: the outermost session that is entered on it}."""
MAX_ENCODED = 16
"""Most batches of texts, encoded outside the pipeline's call, that are remembered; then the oldest is dropped."""


def observers_of(pipeline: Any) -> tuple[Observer, ...]:
    """The observers of the session that this thread has entered on a pipeline, if there is one."""
    session = _ACTIVE.get(id(pipeline))
    return session._observers if session is not None and session._thread == get_ident() else ()


def check_generation(backbone: Backbone) -> None:
    """Check that a pipeline's generations can be observed; it may start from an image, and have any scheduler.

    Raises:
        GocaError: The pipeline lacks a part, or uses perturbed-attention guidance.
    """
    pipeline = backbone.pipeline
    name, parameters = type(pipeline).__name__, inspect.signature(pipeline.__call__).parameters
    if "pag_scale" in parameters:
        plain = name.replace("PAG", "")
        raise GocaError(
            f"{name} cannot be observed: its perturbed attention attends more than once per pass; use the "
            f"pipeline without that instead, {plain}.from_pipe(pipe)"
        )
    if "prompt" not in parameters:
        raise GocaError(
            f"{name} cannot be observed: it takes no prompt, whose words would have maps; use a pipeline that does"
        )
    needed = {
        "VAE": getattr(pipeline, "vae", None),
        "image processor": processor_of(pipeline),
        "method encode_prompt": getattr(pipeline, "encode_prompt", None),
        "method prepare_latents": getattr(pipeline, "prepare_latents", None),
    }
    if lacking := [part for part, value in needed.items() if value is None]:
        raise GocaError(
            f"{name} cannot be observed: it has no {', no '.join(lacking)}, by which goca follows a generation; use a "
            "pipeline that has them, such as the family's own for text-to-image or image-to-image"
        )
    for component, denoiser in _denoisers(backbone).items():
        backbone.family.check(denoiser)
        check_caches(denoiser, component)
    check_tokenizers(pipeline, backbone.family)


@dataclass
class _Run:
    """One call of the pipeline.

    Attributes:
        index: Its number among the pipeline's calls, from 0.
        frame: Frame of the call.
        arguments: Arguments of the call, including defaults.
        processors: Each denoiser's attention processors at the start.
        encoded: The texts that it encoded.
        texts: Those to which its generation attends, the prompts first; empty before the first such denoiser call.
        count: Number of latents that it prepared, 0 if unknown.
        size: Their (height, width) in pixels, if known.
        cells: Their (height, width) in cells, if they are not packed.
        frames: Number of frames of each.
        first: Index of its first timestep among the scheduler's; None before its first denoiser call.
        evaluation: Number of steps that the scheduler has made.
        timestep: The denoiser's timestep after the last of them; None before it ran.
        branches: The branches whose rows this evaluation has had.
        foreign: Number of evaluations that attended to other texts than its prompts.
        inputs: The denoiser's latents for the prompt, and the names of its other inputs.
    """

    index: int
    frame: FrameType
    arguments: Mapping[str, Any]
    processors: list[tuple[nn.Module, Any]]
    encoded: list[EncodedTexts] = field(default_factory=list)
    texts: list[EncodedTexts] = field(default_factory=list)
    count: int = 0
    size: Grid | None = None
    cells: Grid | None = None
    frames: int = 1
    first: int | None = None
    evaluation: int = 0
    timestep: Tensor | None = None
    branches: set[Branch] = field(default_factory=set)
    foreign: int = 0
    inputs: tuple[Tensor, frozenset[str]] | None = None

    def stepped(self) -> None:
        """The scheduler has made a step; a step without a denoiser pass is another pipeline's."""
        if self.timestep is not None:
            self.evaluation += 1
            self.foreign += bool(self.texts) and "cond" not in self.branches
            self.timestep, self.branches, self.inputs = None, set(), None

    def passes(self, scheduler: Any, timestep: Tensor) -> None:
        """The pipeline calls the denoiser."""
        if self.first is None:
            indices = (getattr(scheduler, name, None) for name in ("step_index", "begin_index"))
            index = next((index for index in indices if index is not None), None)
            # Schedulers without a step counter get the timestep. A pipeline may skip the first steps.
            self.first = (_position(scheduler, timestep) or 0) if index is None else int(index)
        if self.timestep is not None and not torch.equal(self.timestep, timestep):
            self.stepped()  # the pipeline made the step itself, without its scheduler
        self.timestep = timestep

    def moment(self, scheduler: Any, timestep: Tensor) -> tuple[int, float]:
        """The step, from 0, and the scheduler's timestep."""
        first = self.first or 0
        index = min(first + self.evaluation, len(scheduler.timesteps) - 1)
        position = _position(scheduler, timestep)
        if position is not None and float(scheduler.timesteps[index]) != float(timestep):
            index = max(first, position)  # the pipeline went back to a higher noise level
        return step_number(scheduler, index - first), float(scheduler.timesteps[index])

    def repeats(self, latent: Tensor, inputs: frozenset[str]) -> bool:
        """Whether a denoiser call differs from the prompt's own in this evaluation only in its text."""
        if self.inputs is None:
            self.inputs = latent, inputs
            return False
        before, its_inputs = self.inputs
        return before.dtype == latent.dtype and torch.equal(before, latent) and its_inputs == inputs


class GenerationSession:
    """Reports the denoiser calls of a pipeline's generations to observers, inside a `with` block.

    The pipeline is locked by the session's thread meanwhile. Only denoiser calls that the pipeline's own call makes in
    that thread are observed, and of them those that attend to a prompt encoded in the session; not those of another
    pipeline with the same denoiser, or by hand. Everything that is replaced is restored. A session that is entered
    inside another one's block, on the same pipeline, passes its observers to that one.

    Attributes:
        images: {generation: the images that the pipeline returned, each as its frames}: for a video the ones nearest to
            the latent's; empty if it returned latents.
        given: {generation: the images that it was given}, if they are PIL images.
    """

    def __init__(self, backbone: Backbone, observers: Sequence[Observer]) -> None:
        """Prepare a session.

        Args:
            backbone: A pipeline that passes `check_generation`.
            observers: Get every call in this order; each gets the prediction of the previous one.
        """
        self.images: dict[int, list[tuple[Image.Image, ...]]] = {}
        self.given: dict[int, tuple[Image.Image, ...]] = {}
        self._backbone, self._observers = backbone, tuple(observers)
        self._stack = ExitStack()
        self._thread = 0
        self._missed: set[str] = set()
        self._codes = codes_of(type(backbone.pipeline))
        self._encoded: list[EncodedTexts] = []
        self._parts: dict[str, nn.Module] = {}
        self._run: _Run | None = None
        self._count = 0
        self._call: DenoiserCall | None = None
        self._hook: AttentionHook | None = None
        self._outer: GenerationSession | None = None

    @property
    def missed(self) -> str | None:
        """Why denoiser calls were not observed, and what to do; None if all were."""
        if self._outer is not None:
            return self._outer.missed
        kind = type(self._backbone.pipeline).__name__
        reasons = {
            "text": "the denoiser ran, but attended to no prompt that was encoded inside the `with` block; pass the "
            "pipeline its prompt as text",
            "exchanged": "the pipeline got another denoiser inside the `with` block; set it before the block",
            "caller": f"the denoiser ran, but not by a call of this {kind}; call it inside the `with` block",
            "inside": f"the denoiser ran within a call of {kind}, but not by a function of that class, nor by one that "
            "its functions call by name; make what calls the denoiser a method of the class",
            "thread": "the denoiser ran in another thread than the `with` block; call the pipeline in the block's",
        }
        return next((text for reason, text in reasons.items() if reason in self._missed), None)

    def __enter__(self) -> "GenerationSession":
        pipeline = self._backbone.pipeline
        self._thread = get_ident()
        outer = _ACTIVE.get(id(pipeline))
        if outer is not None and outer._thread == self._thread:
            self._outer, self.images, self.given = outer, outer.images, outer.given
            outer._observers += self._observers
            self._stack.callback(outer._leave, self._observers)
            return self
        processor = processor_of(pipeline)
        shows = "postprocess" if getattr(pipeline, "image_processor", None) is processor else "postprocess_video"
        with ExitStack() as stack:
            stack.enter_context(exclusive(pipeline, for_user=True))
            for target, name, wrapper in (
                (pipeline, "encode_prompt", self._encode),
                (pipeline, "prepare_latents", self._prepare),
                (processor, shows, self._show),
            ):
                stack.enter_context(patched(target, name, self._wrapped(getattr(target, name), wrapper)))
            stack.enter_context(intercepted(pipeline, self._running))
            stack.callback(self._forget)
            self._parts = _denoisers(self._backbone)
            for component, denoiser in self._parts.items():
                stack.enter_context(native(denoiser, component))
                stack.callback(denoiser.register_forward_pre_hook(self._begin, with_kwargs=True).remove)
                stack.callback(denoiser.register_forward_hook(self._end, always_call=True).remove)
            _ACTIVE[id(pipeline)] = self
            stack.callback(_ACTIVE.pop, id(pipeline))
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

    @contextmanager
    def _running(self, frame: FrameType, arguments: Mapping[str, Any]) -> Iterator[None]:
        """The context of one call of the pipeline, perhaps from a callback of another one."""
        if get_ident() != self._thread:
            yield
            return
        parts = _denoisers(self._backbone)
        if parts != self._parts:
            self._missed.add("exchanged")
        modules = [attention.module for part in parts.values() for attention in attention_modules(part)]
        run = _Run(self._count, frame, arguments, [(module, getattr(module, "processor", None)) for module in modules])
        self._count += 1
        image = arguments.get("image")
        given = image if isinstance(image, list | tuple) else (image,)
        self.given[run.index] = tuple(image for image in given if isinstance(image, Image.Image))
        outer, self._run = self._run, run
        try:
            with stepping(self._backbone.pipeline.scheduler, run.stepped):
                yield
            if run.foreign:
                warnings.warn(
                    f"{run.foreign} of {run.evaluation} denoiser evaluations attended to other embeddings than those "
                    "of the prompt that the generation began with, and are left out: call the pipeline once for each "
                    "prompt",
                    stacklevel=2,
                )
        finally:
            self._abort()
            self._run = outer

    def _encode(self, encode: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Remember what is encoded; later denoiser calls show which of it is a prompt."""
        pipeline = self._backbone.pipeline
        fresh = texts_to_encode(encode, args, kwargs, tokenizers(pipeline))
        remembered = self._encoded if self._run is None else self._run.encoded
        # Some pipelines call their encoders one after the other.
        same = (before for before in remembered if (before.texts, before.captions) == (fresh.texts, fresh.captions))
        encoded = next(same, fresh)
        remembered[:] = [*(before for before in remembered if before is not encoded), encoded]
        del self._encoded[:-MAX_ENCODED]
        with encoded.recorded(pipeline) as recorders:
            answer = encode(*args, **kwargs)
        encoded.add(answer, recorders)
        return answer

    def _prepare(self, prepare: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        answer = prepare(*args, **kwargs)
        if (run := self._run) is not None:
            arguments = inspect.signature(prepare).bind(*args, **kwargs).arguments
            has_size = {"height", "width"} <= arguments.keys()
            run.size = (int(arguments["height"]), int(arguments["width"])) if has_size else None
            latents = answer[0] if isinstance(answer, tuple) else answer
            run.count = len(latents)
            run.cells = (latents.shape[-2], latents.shape[-1]) if latents.ndim > 3 else None
        return answer

    def _show(self, show: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        answer = show(*args, **kwargs)
        if self._run is not None and self._run.texts:
            self.images[self._run.index] = [_spread(video, self._run.frames) for video in _videos(answer)]
        return answer

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if get_ident() != self._thread:
            self._missed.add("thread")
            return
        run = self._run
        if run is None or not is_own(run.frame, self._codes):
            self._missed.add("caller" if run is None else "inside")
            return
        self._abort()
        call = self._heard(run, module, args, kwargs)
        if call is None:
            return
        self._call = call
        sinks = [sink for observer in self._observers if (sink := observer.begin(call)) is not None]
        if sinks:
            component = next(name for name, part in _denoisers(self._backbone).items() if part is module)
            check_caches(module, component)
            hook = self._backbone.attention_hook(
                call.latent_size,
                shared(sinks),
                denoiser=(component, module),
                rows=len(call.rows),
                references=call.references,
                frames=call.frames,
            )
            self._hook = hook.__enter__()

    def _end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        run = self._run
        if self._call is None or run is None or get_ident() != self._thread or not is_own(run.frame, self._codes):
            return None
        if output is None:  # the denoiser has raised an exception
            return self._abort()
        call, hook = self._call, self._hook
        self._call = self._hook = None
        if hook is not None:
            try:
                hook.__exit__(None, None, None)
            except GocaError:
                self._check_processors(run)
                raise
        before = noise_pred = _prediction(output)
        with torch.no_grad(), torch.autocast(noise_pred.device.type, enabled=False):
            for observer in self._observers:
                noise_pred = _answered(observer, observer.end(call, noise_pred), noise_pred)
        return None if noise_pred is before else _with_prediction(output, noise_pred)

    def _check_processors(self, run: _Run) -> None:
        """Raise GocaError if the pipeline itself set unreadable attention processors, and restore the old ones."""
        changed = [(module, old) for module, old in run.processors if getattr(module, "processor", None) is not old]
        names = sorted({type(module.processor).__name__ for module, _ in changed})
        for module, processor in changed:
            module.processor = processor
        if changed:
            raise GocaError(
                f"{type(self._backbone.pipeline).__name__} cannot be traced: it sets its own attention processors "
                f"in each call ({', '.join(names)}), which goca cannot read; {plain_remedy(self._backbone)}"
            ) from None

    def _abort(self) -> None:
        """Close a call that failed."""
        hook, self._hook, self._call = self._hook, None, None
        if hook is not None:
            hook.__exit__(None, RuntimeError(), None)

    def _leave(self, observers: Sequence[Observer]) -> None:
        """End the block of a session inside this one's."""
        self._observers = tuple(observer for observer in self._observers if observer not in observers)

    def _forget(self) -> None:
        """Release everything of the pipeline at the end of the session."""
        self._abort()
        self._run, self._encoded, self._parts = None, [], {}

    def _heard(
        self, run: _Run, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> DenoiserCall | None:
        """The `DenoiserCall` of its generation; None for one that attends to nothing encoded in the session."""
        scheduler = self._backbone.pipeline.scheduler
        timestep = torch.as_tensor(kwargs.get("timestep", args[1] if len(args) > 1 else 0)).cpu().double()
        moment = timestep.flatten()[:1]
        run.passes(scheduler, moment)
        inputs, (_, sample) = [*args[1:], *kwargs.values()], sample_of(args, kwargs)
        if not run.texts:
            run.texts = self._texts(run, inputs)
            if not run.texts:
                self._missed.add("text")
                return None
        blocks = self._blocks(run, run.texts, inputs)
        if not blocks or max(block.stop for _, block in blocks) > len(sample):
            return None  # with more texts than images, the denoiser itself raises
        prompts = run.texts[0]
        # In one batch, pipelines put the negative prompts first, which decides if both are equal.
        block = next((block for texts, block in reversed(blocks) if texts is prompts), blocks[0][1])
        latent = torch.stack([sample[row] for row in block])
        layout = layout_of(self._backbone, run.size, run.cells, latent, timestep, kwargs)
        rows = self._rows(run, len(sample), blocks, run.repeats(latent, frozenset(kwargs)))
        run.branches |= {row.branch for row in rows}
        step, noise = run.moment(scheduler, moment)
        second = module is not self._backbone.denoiser
        scale = guidance_scale(self._backbone.pipeline, self._backbone.family, run.arguments, second)
        run.frames = layout.frames
        grid = self._backbone.family.grids(module, layout.size)[0] if layout.frames > 1 else None
        images = layout.size, rows, scale, layout.references, layout.frames, grid
        return DenoiserCall(run.index, step, run.evaluation, noise, *images)

    def _blocks(
        self, run: _Run, texts: Sequence[EncodedTexts], inputs: Sequence[Any]
    ) -> list[tuple[EncodedTexts, range]]:
        return [(encoded, block) for encoded in texts for block in encoded.blocks(inputs, run.count)]

    def _texts(self, run: _Run, inputs: Sequence[Any]) -> list[EncodedTexts]:
        """The texts to which a generation attends, by its first denoiser call: the prompts first, then all others.

        Of several texts in its input, the prompts are those of the last rows, then those encoded last.
        """
        # Embeddings that were made in the session have words, even if the pipeline gets nothing else.
        latest_first = [*reversed(run.encoded), *reversed(self._encoded)]
        encoded = sorted(latest_first, key=lambda texts: texts.texts is None)
        blocks = self._blocks(run, encoded, inputs)
        if not blocks:
            return []
        prompts, _ = max(blocks, key=lambda pair: pair[1].stop)
        others = [texts for texts in encoded if texts is not prompts]
        return [prompts, *(texts.negative for texts in (prompts, *others) if texts.negative is not None), *others]

    def _rows(
        self, run: _Run, count: int, blocks: list[tuple[EncodedTexts, range]], repeats: bool
    ) -> tuple[DenoiserRow, ...]:
        """The rows of a batch of `count`; a branch that this evaluation already had does not occur again.

        If the prompt's own pass is merely repeated, the pipeline guides away from the prompt itself.
        """
        rows = [DenoiserRow("other")] * count
        prompts = run.texts[0]
        prompt_blocks = [block for texts, block in blocks if texts is prompts]
        labelled: list[tuple[Branch, EncodedTexts, range]] = [
            ("uncond", texts, block) for texts, block in blocks if texts is not prompts
        ]
        if "cond" not in run.branches:
            labelled = [*(("cond", prompts, block) for block in prompt_blocks[-1:]), *labelled]
        elif repeats and not labelled:
            labelled = [("uncond", prompts, block) for block in prompt_blocks]
        for branch, texts, block in labelled:
            if branch not in run.branches and all(rows[row].branch == "other" for row in block):
                for image, row in enumerate(block):
                    rows[row] = DenoiserRow(branch, image, self._prompt_tokens(run, branch, texts, image, len(block)))
        if "cond" not in run.branches and any(rows[row].branch == "other" for block in prompt_blocks for row in block):
            raise GocaError(
                f"{type(self._backbone.pipeline).__name__} cannot be traced: in one pass its denoiser gets several "
                f"rows of the same prompt for each image, as a video's frames; {plain_remedy(self._backbone)}"
            )
        return tuple(rows)

    def _prompt_tokens(self, run: _Run, branch: Branch, encoded: EncodedTexts, image: int, images: int) -> PromptTokens:
        """The tokens of an image's text. Raises GocaError for a prompt that was not given as text."""
        if encoded.texts is None:
            if branch == "cond":
                raise GocaError(
                    "the words of prompt_embeds are unknown: pass the prompt itself, as text, or make them with "
                    "pipe.encode_prompt inside the `with` block"
                )
            return PromptTokens("", ())
        number = image * len(encoded.texts) // images
        unread = encoded.captions_at(number, {text.tokenizer for text in self._backbone.family.texts})
        if branch == "cond":
            negative = (texts for texts in run.texts[1:] if texts is encoded.negative or texts in run.encoded)
            if (texts := next((made.texts for made in negative if made.texts), None)) is not None:
                unread["negative_prompt"] = texts[image * len(texts) // images]
        return PromptTokens(encoded.texts[number], encoded.attended(number, self._backbone), unread)


def _denoisers(backbone: Backbone) -> dict[str, nn.Module]:
    """{component: denoiser} of a pipeline: some have a second one for low noise."""
    names = (backbone.family.component + end for end in ("", "_2"))
    parts = {name: bare(getattr(backbone.pipeline, name, None)) for name in names}
    return {name: part for name, part in parts.items() if type(part).__name__ in backbone.family.denoisers}


def _position(scheduler: Any, timestep: Tensor) -> int | None:
    """The index of a denoiser's timestep among the scheduler's; None if the two may be on different scales."""
    if is_flow(scheduler):
        return None
    matching = (scheduler.timesteps.cpu() == timestep).nonzero()
    return int(matching[0]) if len(matching) else None


def _answered(observer: Observer, answer: Any, noise_pred: Tensor) -> Tensor:
    """The prediction after an observer. Raises GocaError if the pipeline cannot continue with it."""
    if answer is None:
        return noise_pred
    if not isinstance(answer, Tensor) or _looks(answer) != _looks(noise_pred):
        given = _looks(answer) if isinstance(answer, Tensor) else type(answer).__name__
        raise GocaError(
            f"{type(observer).__name__}.end returned {given}, but the prediction is {_looks(noise_pred)}: return a "
            "tensor like the prediction, or None to leave it as it is"
        )
    return answer


def _looks(tensor: Tensor) -> str:
    return f"a tensor of shape {tuple(tensor.shape)}, {tensor.dtype} on {tensor.device}"


def shared(sinks: Sequence[Sink]) -> Sink:
    """A single sink for all, which passes float32 on."""

    def take(row: int, call: AttentionCall) -> None:
        with torch.no_grad(), torch.autocast(call.q.device.type, enabled=False):
            for sink in sinks:
                sink(row, call)

    return take


def _prediction(output: Any) -> Tensor:
    """A denoiser's prediction as one tensor (row, ...)."""
    return torch.stack(output[0]) if isinstance(output[0], list) else output[0]


def _with_prediction(output: Any, noise_pred: Tensor) -> Any:
    """A denoiser's output with its prediction replaced, in the same form."""
    answer = list(noise_pred) if isinstance(output[0], list) else noise_pred
    if isinstance(output, tuple):
        return (answer, *output[1:])
    return replace(output, **{next(iter(output)): answer})


def _videos(answer: Any) -> list[list[Any]]:
    """A pipeline's output, each image or video as its frames; empty for latents."""
    if isinstance(answer, Tensor):
        answer = np.moveaxis(answer.float().cpu().numpy(), -3, -1)
    if isinstance(answer, np.ndarray):
        videos = answer if answer.ndim == 5 else answer[:, None]
        return list(map(list, videos)) if videos.ndim == 5 and videos.shape[-1] == 3 else []
    return [video if isinstance(video, list) else [video] for video in answer]


def _spread(video: list[Any], count: int) -> tuple[Image.Image, ...]:
    """`count` frames of a video, evenly spread from its first to its last, or only its first."""
    chosen = [video[round(number * (len(video) - 1) / max(count - 1, 1))] for number in range(count)]
    return tuple(frame if isinstance(frame, Image.Image) else _image(frame) for frame in chosen)


def _image(frame: np.ndarray) -> Image.Image:
    return Image.fromarray((frame * 255).round().clip(0, 255).astype(np.uint8))

"""GenerationSession: a pipeline's generations, denoiser call by denoiser call.

Nothing is assumed about how a pipeline guides: in one batch, in two calls, or not at all. Each call of the pipeline is
a `PipelineRun`, which tells the images and branches of its denoiser calls.
"""

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from threading import get_ident
from types import FrameType
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from goca.diffusion.attention_call import AttentionCall, Sink
from goca.diffusion.attention_hook import AttentionHook
from goca.diffusion.attention_modules import attention_modules, native
from goca.diffusion.backbone import Backbone
from goca.diffusion.caches import check_caches
from goca.diffusion.conditioning import tokenizers
from goca.diffusion.denoiser_call import DenoiserCall, Observer
from goca.diffusion.encoded_texts import EncodedTexts, texts_to_encode
from goca.diffusion.exclusive import exclusive, patched
from goca.diffusion.families import bare, check_tokenizers
from goca.diffusion.latents import processor_of
from goca.diffusion.outputs import prediction, spread, videos, with_prediction
from goca.diffusion.own_calls import codes_of, intercepted, is_own, stepping
from goca.diffusion.pipeline_run import PipelineRun
from goca.errors import GocaError

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
        self._run: PipelineRun | None = None
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
        processors = [(module, getattr(module, "processor", None)) for module in modules]
        run = PipelineRun(self._backbone, self._count, frame, arguments, processors)
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
            self.images[self._run.index] = [spread(video, self._run.frames) for video in videos(answer)]
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
        call = run.denoiser_call(module, args, kwargs, self._encoded)
        if call is None:
            if not run.texts:
                self._missed.add("text")
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
                run.check_processors()
                raise
        before = noise_pred = prediction(output)
        with torch.no_grad(), torch.autocast(noise_pred.device.type, enabled=False):
            for observer in self._observers:
                noise_pred = _answered(observer, observer.end(call, noise_pred), noise_pred)
        return None if noise_pred is before else with_prediction(output, noise_pred)

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


def _denoisers(backbone: Backbone) -> dict[str, nn.Module]:
    """{component: denoiser} of a pipeline: some have a second one for low noise."""
    names = (backbone.family.component + end for end in ("", "_2"))
    parts = {name: bare(getattr(backbone.pipeline, name, None)) for name in names}
    return {name: part for name, part in parts.items() if type(part).__name__ in backbone.family.denoisers}


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

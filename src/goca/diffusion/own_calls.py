"""Telling a pipeline's own denoiser calls and scheduler steps from others that happen while it runs.

Several pipelines may share a denoiser, and a callback of a pipeline may call the denoiser by hand. A denoiser call is a
pipeline's own if only functions of its class, and those that they name, are between its call and the denoiser.
"""

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import update_wrapper, wraps
from types import CodeType, FrameType, FunctionType
from typing import Any

from torch import nn

from goca.diffusion.exclusive import patched

_MODULE_CALL = nn.Module.__call__.__code__
_WRAPPERS = frozenset({"torch", "peft", "accelerate"})
"""Packages that forward calls from the pipeline to its denoiser, or from the user to the pipeline."""


def codes_of(kind: type) -> frozenset[CodeType]:
    """The code of a class's functions, including inherited and inner ones, decorators and functions that they name."""
    codes: set[CodeType] = set()
    for member in (member for base in kind.__mro__ for member in vars(base).values()):
        _add(getattr(member, "__func__", member), codes)
    return frozenset(codes)


def _add(function: Any, codes: set[CodeType]) -> None:
    """The code of a function, of what it wraps and of the functions that it calls by a global name."""
    while isinstance(function, FunctionType) and function.__code__ not in codes:
        inner = [function.__code__]
        for code in inner:
            codes.add(code)
            inner += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
            for name in code.co_names:
                _add(function.__globals__.get(name), codes)
        function = getattr(function, "__wrapped__", None)


def is_own(call: FrameType, codes: frozenset[CodeType]) -> bool:
    """Whether the module in whose hook this runs is called by a pipeline's own code.

    Args:
        call: The frame of the pipeline's call.
        codes: The code of its class.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code is not _MODULE_CALL:
        frame = frame.f_back
    while frame is not None and frame is not call:
        package = str(frame.f_globals.get("__name__")).partition(".")[0]
        if frame.f_code not in codes and package not in _WRAPPERS:
            return False
        frame = frame.f_back
    return frame is call


@contextmanager
def intercepted(
    pipeline: Any, around: Callable[[FrameType, dict[str, Any]], AbstractContextManager[None]]
) -> Iterator[None]:
    """Enter `around` with the frame and the arguments, defaults included, of each call of the pipeline.

    The pipeline has a temporary class meanwhile.
    """
    kind = type(pipeline)
    original = kind.__call__
    signature = inspect.signature(original)

    @wraps(original)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self is not pipeline:
            return original(self, *args, **kwargs)
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        with around(sys._getframe(), bound.arguments):
            return original(self, *args, **kwargs)

    @wraps(kind.__init__)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        self.__class__ = kind  # `type(pipeline).from_pipe` makes another pipeline, which may outlive this
        self.__init__(*args, **kwargs)

    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
    temporary = type(kind.__name__, (kind,), {"__call__": call, "__init__": init, **names})
    object.__setattr__(pipeline, "__class__", temporary)
    try:
        yield
    finally:
        object.__setattr__(pipeline, "__class__", kind)
        del temporary.__call__  # a class lives until garbage collection, and must not keep the pipeline alive


class _Step:
    """A scheduler's `step` with a callback when it is done."""

    def __init__(self, scheduler: Any, stepped: Callable[[], None]) -> None:
        self._scheduler, self._original, self._stepped = scheduler, scheduler.step, stepped
        update_wrapper(self, scheduler.step)  # pipelines inspect its signature

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        answer = self._original(*args, **kwargs)
        self._stepped()
        return answer

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Some pipelines copy their scheduler: the copy gets its own `step`."""
        copied = memo.get(id(self._scheduler))
        return self if copied is None else type(copied).step.__get__(copied)


def stepping(scheduler: Any, stepped: Callable[[], None]) -> AbstractContextManager[None]:
    """Call `stepped` after each step of a scheduler."""
    return patched(scheduler, "step", _Step(scheduler, stepped))


def step_number(scheduler: Any, evaluation: int) -> int:
    """The step, from 0, that the denoiser's evaluation, from 0, belongs to, as a diffusers scheduler counts."""
    if hasattr(scheduler, "prk_timesteps"):
        # PNDM evaluates each of its Runge-Kutta steps four times; without them it takes its first step twice.
        runge_kutta = len(scheduler.prk_timesteps)
        if evaluation < runge_kutta:
            return evaluation // 4
        return evaluation - runge_kutta + runge_kutta // 4 if runge_kutta else max(0, evaluation - 1)
    return evaluation // getattr(scheduler, "order", 1)

"""What the tabs' controls have in common: numbers that may be left out, and what they start."""

import math
import re
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from threading import Event
from typing import Any

import gradio as gr

from goca.errors import GocaError
from goca.web.messages import alert, note


def numbers(text: Any, label: str, hint: str, least: float, most: float, count: int = 1) -> tuple[float, ...]:
    """The numbers of a text field, up to `count` of them between commas; none for an empty one.

    Raises:
        GocaError: for anything else, or a number out of range.
    """
    parts = [part for part in re.split(r"[,\s]+", str(text or "")[:1000]) if part]
    try:
        values = tuple(map(float, parts))
    except ValueError:
        values = (math.nan,)
    if len(values) > count or not all(least <= value <= most for value in values):
        several = f", or up to {count} between commas" if count > 1 else ""
        raise GocaError(f"the {label} is not valid: give a number from {least:g} to {most:g}{several}", hint)
    return values


def number(text: Any, label: str, hint: str, least: float, most: float) -> float | None:
    """The number of a text field, None for an empty one. Raises GocaError as `numbers`."""
    return next(iter(numbers(text, label, hint, least, most)), None)


def whole(text: Any, label: str, hint: str, least: int, most: int) -> int | None:
    """The whole number of a text field, None for an empty one. Raises GocaError as `numbers`."""
    value = number(text, label, hint, least, most)
    if value is not None and value != int(value):
        raise GocaError(f"the {label} is not a whole number: give one from {least} to {most}", hint)
    return None if value is None else int(value)


@dataclass
class Runs:
    """What runs for the readers of a tab, and can be stopped.

    Attributes:
        message: where a reader is told how far it is, or why it failed.
        labels: {hint of a GocaError: label of the control that mends it}.
    """

    message: gr.HTML
    labels: Mapping[str, str]
    _stops: dict[str | None, Event] = field(default_factory=dict)

    def add(
        self,
        start: gr.Button,
        stop: gr.Button,
        answers: Callable[..., Generator[Sequence[Any], None, None]],
        inputs: Sequence[Any],
        outputs: Sequence[Any],
    ) -> None:
        """Let buttons start and stop what needs the model; one click of all readers runs at a time, others wait.

        Args:
            start, stop: the buttons.
            answers: takes the values of `inputs`, and yields values of `message` and `outputs`; those of outputs may be
                left out.
            inputs, outputs: components.
        """
        nothing = [gr.skip()] * len(outputs)

        def started(request: gr.Request, *values: Any) -> Iterator[Any]:
            stopped = self._stops[request.session_hash] = Event()
            try:
                with closing(answers(*values)) as events:
                    for message, *shown in events:
                        if stopped.is_set():
                            yield (note("Stopped."), *nothing)
                            return
                        yield (message, *(shown or nothing))
            except Exception as error:
                yield (alert(error, self.labels), *nothing)
            finally:
                self._stops.pop(request.session_hash, None)

        def stopping(request: gr.Request) -> Any:
            stopped = self._stops.get(request.session_hash)
            if stopped is None:
                return gr.skip()
            stopped.set()
            return note("Stopping ...")

        group = {"api_visibility": "private", "concurrency_id": "model", "concurrency_limit": 1}
        shown = {"show_progress": "minimal", "show_progress_on": self.message}
        start.click(started, list(inputs), [self.message, *outputs], **group, **shown)
        stop.click(stopping, None, self.message, **PAINTING)


PAINTING: dict[str, Any] = {
    **{"api_visibility": "private", "concurrency_id": "paint", "concurrency_limit": 4},
    **{"show_progress": "hidden"},
}
"""Arguments of an event that needs no model, and does not wait for one."""

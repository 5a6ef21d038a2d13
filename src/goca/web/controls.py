"""What the tabs' controls share: class names, optional numbers, and the runs that buttons start and stop."""

import math
import re
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import gradio as gr

from goca.errors import GocaError
from goca.text.class_list import classes_to_find, parse_class_list
from goca.text.clean import one_line
from goca.web.messages import alert, note

MAX_CLASSES = 200
_SAME: Any = gr.skip()


def class_tags(nouns: Sequence[str], elem_id: str) -> gr.Dropdown:
    """The field for class names. nouns: those that the model knows; empty if it knows any."""
    return gr.Dropdown(
        list(nouns),
        value=[],
        multiselect=True,
        allow_custom_value=True,
        label="Classes",
        info=f"This model knows {len(nouns)} nouns." if nouns else "Type a name, then Enter.",
        elem_id=elem_id,
    )


def classes_of(tags: Any) -> Mapping[str, Sequence[str]]:
    """{class: synonyms} of tags; a tag is a name, comma-separated names, or a name with synonyms: "cat: kitty, puss".

    Raises:
        GocaError: For tags that are not a list of classes.
    """
    texts = map(str, tags if isinstance(tags, list) else ())
    parts = (part for text in texts for part in ([text] if ":" in text else text.split(",")))
    lines = [line for line in map(one_line, parts) if line]
    if len(lines) > MAX_CLASSES:
        raise GocaError(f"{len(lines)} classes are too many for the page: name at most {MAX_CLASSES}", "classes")
    if not lines:
        raise GocaError('no classes: name what to look for, such as "cat"', "classes")
    try:
        return classes_to_find(parse_class_list("\n".join(lines), "the list"), "the list")
    except GocaError as error:
        raise GocaError(str(error), "classes") from None


def content_of(file: Path) -> bytes:
    """The bytes of an uploaded file. Raises GocaError once it has been removed."""
    try:
        return file.read_bytes()
    except OSError:
        raise GocaError("an uploaded image has expired: drop it again", "files") from None


def numbers(text: Any, label: str, hint: str, least: float, most: float, count: int = 1) -> tuple[float, ...]:
    """The numbers in a text field, comma-separated and at most `count`; none if it is empty.

    Raises:
        GocaError: The text is anything else, or a number is out of range.
    """
    parts = [part for part in re.split(r"[,\s]+", str(text or "")[:1000]) if part]
    try:
        values = tuple(map(float, parts))
    except ValueError:
        values = (math.nan,)
    if len(values) > count or not all(least <= value <= most for value in values):
        several = f", or up to {count} with commas between them" if count > 1 else ""
        raise GocaError(f"the {label} is not valid: give a number from {least:g} to {most:g}{several}", hint)
    return values


def number(text: Any, label: str, hint: str, least: float, most: float) -> float | None:
    """The number in a text field, None if it is empty. Raises GocaError like `numbers`."""
    return next(iter(numbers(text, label, hint, least, most)), None)


def whole(text: Any, label: str, hint: str, least: int, most: int) -> int | None:
    """The whole number in a text field, None if it is empty. Raises GocaError like `numbers`."""
    value = number(text, label, hint, least, most)
    if value is not None and value != int(value):
        raise GocaError(f"the {label} is not a whole number: give one from {least} to {most}", hint)
    return None if value is None else int(value)


@dataclass
class Runs:
    """The runs that visitors start in a tab, and can stop.

    Attributes:
        message: Component that shows progress, or why a run failed.
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
        """Let buttons start and stop work that needs the model; one run at a time over all visitors, the others wait.

        Args:
            start, stop: The buttons.
            answers: Takes the values of `inputs`, and yields values of `message` and `outputs`; those of outputs may be
                left out.
            inputs, outputs: Components.
        """
        nothing = [_SAME] * len(outputs)

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
        stop.click(stopping, None, self.message, **_PAINTING)

    def paint(
        self,
        listen: Callable[..., Any],
        answers: Callable[..., Sequence[Any]],
        inputs: Sequence[Any],
        outputs: Sequence[Any],
        failed: Any = _SAME,
    ) -> Any:
        """Let an event show something that does not need, or wait for, the model.

        Args:
            listen: The event, such as `button.click`. If it occurs several times during one answer, only the last is
                answered next.
            answers: Takes the event's data, {} if it has none, and the values of `inputs`, and returns values of
                `message` and `outputs`.
            inputs, outputs: Components.
            failed: Value of each output if there is no answer; by default it stays as it is.
        """
        nothing = [failed] * len(outputs)

        def painted(event: gr.EventData, *values: Any) -> Any:
            try:
                return tuple(answers(event._data if isinstance(event._data, dict) else {}, *values))
            except Exception as error:
                return (alert(error, self.labels), *nothing)

        return listen(painted, list(inputs), [self.message, *outputs], trigger_mode="always_last", **_PAINTING)


_PAINTING: dict[str, Any] = {
    **{"api_visibility": "private", "concurrency_id": "paint", "concurrency_limit": 4},
    **{"show_progress": "hidden"},
}

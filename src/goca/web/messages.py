"""Text as HTML: lines that tell of a mistake, or of something to know, and bars."""

from collections.abc import Mapping
from html import escape

from goca.errors import GocaError
from goca.text.clean import one_line


def alert(error: Exception, controls: Mapping[str, str]) -> str:
    """A mistake as HTML: a line, with the label of the control that mends it. controls: {hint: label}."""
    if not isinstance(error, GocaError):
        return _line(f"unexpected {type(error).__name__}: {error}", "alert", "goca-alert")
    label = controls.get(error.hint or "")
    return _line(str(error) + (f" ({label})" if label else ""), "alert", "goca-alert")


def note(text: str) -> str:
    """Something to know as HTML; nothing for no text."""
    return _line(text, "status", "goca-alert note") if text else ""


def progress(done: int, total: int, unit: str) -> str:
    """How far something is, as HTML."""
    text = f"{escape(unit)} {done} of {total}"
    bar = f'<progress value="{done}" max="{total}" aria-label="{text}"></progress>'
    return f'<p class="goca-alert note" role="status">{text} {bar}</p>'


def text(value: str) -> str:
    """Text from outside as HTML shows it; gradio reads braces and ${ as its own."""
    return escape(value).translate({ord("{"): "&#123;", ord("}"): "&#125;", ord("$"): "&#36;"})


def bar(share: float, label: str) -> str:
    """A bar of a length from 0 to 1, and what stands in it."""
    return f'<span class="bar"><i style="width:{min(share, 1):.1%}"></i><b>{text(label)}</b></span>'


def _line(text: str, role: str, classes: str) -> str:
    return f'<p class="{classes}" role="{role}">{escape(one_line(text))}</p>'

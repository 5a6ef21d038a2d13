"""Text as HTML: alerts, notes and bars."""

from collections.abc import Mapping
from html import escape

from goca.errors import GocaError
from goca.text.clean import one_line


def alert(error: Exception, controls: Mapping[str, str]) -> str:
    """An error as a line of HTML, with the label of the control that mends it. controls: {hint: label}."""
    if not isinstance(error, GocaError):
        return _line(f"unexpected {type(error).__name__}: {error}", "alert", "goca-alert")
    label = controls.get(error.hint or "")
    return _line(str(error) + (f" ({label})" if label else ""), "alert", "goca-alert")


def note(text: str) -> str:
    """A note as HTML; nothing if the text is empty."""
    return _line(text, "status", "goca-alert note") if text else ""


def progress(done: int, total: int, unit: str) -> str:
    """A progress bar as HTML."""
    text = f"{escape(unit)} {done} of {total}"
    bar = f'<progress value="{done}" max="{total}" aria-label="{text}"></progress>'
    return f'<p class="goca-alert note" role="status">{text} {bar}</p>'


def text(value: str) -> str:
    """Text from outside, escaped for HTML and for gradio, which interprets braces and ${."""
    return escape(value).translate({ord("{"): "&#123;", ord("}"): "&#125;", ord("$"): "&#36;"})


def bar(share: float, label: str) -> str:
    """A bar with a label as HTML. share: its length, 0 to 1."""
    return f'<span class="bar"><i style="width:{min(share, 1):.1%}"></i><b>{text(label)}</b></span>'


def _line(text: str, role: str, classes: str) -> str:
    return f'<p class="{classes}" role="{role}">{escape(one_line(text))}</p>'

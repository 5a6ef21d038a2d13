"""The classes of a result as a table: whether each is shown, its colour, opacity and evidence."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from goca.imaging.draw import painted
from goca.imaging.palette import palette
from goca.segmentation import Segmentation
from goca.web.images import factors, scaled
from goca.web.messages import bar, text

OPACITY = 0.5

# Reports the visitor's changes; the switch and the opacity in the table's head apply to all classes.
_SCRIPT = """
element.addEventListener('change', event => {
  const rows = [...element.querySelectorAll('tbody tr')];
  const kind = event.target.dataset.all;
  if (kind) rows.forEach(row => {
    const input = row.querySelector(`input[type=${event.target.type}]`);
    input.checked = event.target.checked; input.value = event.target.value;
  });
  trigger('input', {styles: rows.map(row => {
    const [shown, colour, opacity] = row.querySelectorAll('input');
    return {shown: shown.checked, colour: colour.value, opacity: opacity.value / 100};
  })});
});
"""


@dataclass(frozen=True)
class Style:
    """How a class is drawn. colour: "#rrggbb"; opacity: 0 to 1."""

    shown: bool
    colour: str
    opacity: float = OPACITY

    @classmethod
    def of(cls, value: Any) -> "Style":
        """The style that a browser sends; black and hidden if it is not valid."""
        fields = value if isinstance(value, dict) else {}
        colour, opacity = fields.get("colour"), fields.get("opacity")
        if not (isinstance(colour, str) and re.fullmatch(r"#[0-9a-fA-F]{6}", colour)):
            return cls(False, "#000000")
        number = float(opacity) if isinstance(opacity, int | float) and 0 <= opacity <= 1 else OPACITY
        return cls(fields.get("shown") is True, colour, number)


def default_styles(classes: int) -> tuple[Style, ...]:
    """The styles of `Segmentation.overlay`."""
    return tuple(Style(True, f"#{bytes(colour).hex()}") for colour in palette(classes)[1:])


def styles_of(value: Any, classes: int) -> tuple[Style, ...]:
    """The styles that a browser sends, one for each class."""
    given = value if isinstance(value, list) else []
    return tuple(map(Style.of, given[:classes])) + default_styles(classes)[len(given) :]


def component() -> gr.HTML:
    """The table as a component; its `input` event carries the styles of all rows."""
    return gr.HTML(js_on_load=_SCRIPT, elem_classes="goca-legend", visible=False)


def table(result: Segmentation, styles: Sequence[Style]) -> str:
    """The rows as HTML, in the order of the classes."""
    head = (
        '<tr><th scope="col"><label><input type="checkbox" data-all="1" checked> all classes</label></th>'
        '<th scope="col">colour</th><th scope="col"><label>opacity <input type="range" data-all="1" min="0" '
        f'max="100" value="{OPACITY * 100:.0f}" aria-label="opacity of all classes"></label></th>'
        '<th scope="col">evidence</th><th scope="col">pixels</th></tr>'
    )
    pairs = zip(result.present.items(), styles, strict=True)
    rows = "".join(_row(name, share, evidence, style) for (name, (share, evidence)), style in pairs)
    return f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>"


def _row(name: str, share: float, evidence: float, style: Style) -> str:
    shown = text(name)
    return (
        f'<tr><th scope="row"><label><input type="checkbox" {"checked" if style.shown else ""}> {shown}</label></th>'
        f'<td><input type="color" value="{style.colour}" aria-label="colour of {shown}"></td>'
        f'<td><input type="range" min="0" max="100" value="{style.opacity * 100:.0f}" '
        f'aria-label="opacity of {shown}"></td>'
        f"<td>{bar(evidence, f'{evidence:.2f}')}</td><td>{share:.1%}</td></tr>"
    )


def pair(result: Segmentation, styles: Sequence[Style]) -> tuple[Image.Image, Image.Image]:
    """The image, and the same under its masks, in a size that suits the page."""
    image, factor, step = scaled(result.image), *factors(result.image)
    labels = result.labels[::step, ::step].repeat(factor, axis=0).repeat(factor, axis=1)
    return image, painted(image, labels, len(styles), _colours(styles), _opacity(styles))


def _colours(styles: Sequence[Style]) -> UInt8[np.ndarray, "label 3"]:
    return np.array([[0, 0, 0], *(list(bytes.fromhex(style.colour[1:])) for style in styles)], np.uint8)


def _opacity(styles: Sequence[Style]) -> Float[np.ndarray, " label"]:
    return np.array([0.0, *(style.opacity if style.shown else 0.0 for style in styles)])

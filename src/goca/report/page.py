"""A single HTML file that loads nothing: no scripts, no fonts, and only embedded images.

All text from outside (names of files and classes, messages) passes through `text`.
"""

from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from html import escape
from io import BytesIO
from typing import Any

from PIL import Image

from goca.errors import GocaError
from goca.imaging.sheet import fit
from goca.text.clean import printable, storable

MOST_LETTERS = 400
SIDE = 320
"""Longest side of a thumbnail in pixels."""
MOST_BYTES = 16 * 2**20
"""Most bytes of all thumbnails of a page."""
CSS = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1f2328; --faint: #59636e; --line: #d1d9e0; --soft: #f6f8fa;
  --bar: #b5367a; --bad: #b42318; }
@media (prefers-color-scheme: dark) { :root { --paper: #0d1117; --ink: #e6edf3; --faint: #9da7b3; --line: #3d444d;
  --soft: #161b22; --bar: #e879b0; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1320px; padding: 1rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
h1 { margin: 0; font-size: 1.5rem; } h2 { margin: 2rem 0 .5rem; font-size: 1.2rem; }
p { margin: .4rem 0; } .faint { color: var(--faint); } .bad { color: var(--bad); }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 11rem), 1fr)); gap: .6rem;
  margin: 1rem 0; }
dl div { padding: .5rem .7rem; border: 1px solid var(--line); border-radius: 8px; background: var(--soft); }
dt { color: var(--faint); font-size: .85rem; } dd { margin: 0; font-size: 1.1rem; }
table { width: 100%; border-collapse: collapse; } .narrow { max-width: 34rem; }
th, td { padding: .15rem .4rem; text-align: left; border-bottom: 1px solid var(--line); vertical-align: middle; }
th { color: var(--faint); font-weight: 400; font-size: .85rem; } tr:last-child td { border-bottom: 0; }
td.figure, th.figure { text-align: right; overflow-wrap: normal; width: 1%; } td.figure { white-space: nowrap; }
td.figure svg + span { display: inline-block; min-width: 4em; }
svg .swatch { stroke: var(--line); } svg .track { fill: var(--line); } svg .fill { fill: var(--bar); }
details { margin: .5rem 0; } summary { cursor: pointer; } ul { margin: .3rem 0; padding-left: 1.2rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); gap: 1rem;
  align-items: start; }
article { border: 1px solid var(--line); border-radius: 8px; background: var(--soft); overflow: hidden; }
article > div { padding: .5rem .7rem; } article h3 { margin: 0; font-size: 1rem; display: flex; gap: .6rem;
  justify-content: space-between; } article h3 span { white-space: nowrap; }
.images { display: grid; grid-auto-flow: column; grid-auto-columns: 1fr; gap: 2px; padding: 0; align-items: start; }
figure { margin: 0; } figcaption { padding: .1rem .7rem; color: var(--faint); font-size: .85rem; }
img { display: block; width: 100%; max-height: 20rem; object-fit: contain; background: var(--line); }
.wide img { max-width: 60rem; max-height: none; }
@media (max-width: 30rem) { td.figure svg { display: none; } }
.none { padding: 2rem .7rem; color: var(--faint); font-size: .85rem; background: var(--line); }
"""


def page(title: str, parts: Sequence[str]) -> bytes:
    """The bytes of the file. title: text; parts: HTML."""
    style = b64encode(sha256(CSS.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{style}'; base-uri 'none'; form-action 'none'"
    head = (
        '<!DOCTYPE html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(_safe(title))}</title>\n<style>{CSS}</style>\n<body>\n<h1>{text(title)}</h1>\n"
    )
    return (head + "\n".join(parts) + "\n</body>\n</html>\n").encode()


def text(value: object) -> str:
    """Text from outside as HTML: control characters are escaped, and very long text is cut."""
    return f"<bdi>{escape(_safe(value))}</bdi>"


def _safe(value: object) -> str:
    safe = printable(storable(str(value)))
    return safe if len(safe) <= MOST_LETTERS else safe[:MOST_LETTERS] + "…"


def plain(value: object) -> str:
    """A setting in words: a list without brackets, the entries of a dict with their names."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {plain(each)}" for name, each in value.items())
    return ", ".join(map(plain, value)) if isinstance(value, list) else str(value)


def tiles(facts: Mapping[str, object]) -> str:
    """Figures with their names, side by side."""
    return (
        f"<dl>{''.join(f'<div><dt>{text(name)}</dt><dd>{text(fact)}</dd></div>' for name, fact in facts.items())}</dl>"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """A table of HTML cells; all but the first of a row are figures."""
    cells = [[*zip(["", *[' class="figure"'] * (len(row) - 1)], row, strict=True)] for row in (header, *rows)]
    lines = ["".join(f"<td{style}>{cell}</td>" for style, cell in row) for row in cells[1:]]
    names = "".join(f"<th{style}>{text(name)}</th>" for style, name in cells[0])
    return f'<table class="{kind}"><tr>{names}</tr>{"".join(f"<tr>{line}</tr>" for line in lines)}</table>'


def bar(value: float) -> str:
    """A share, 0 to 1, as a bar and in figures."""
    width = round(64 * min(max(value, 0.0), 1.0))
    return (
        f'<svg width="64" height="8" aria-hidden="true"><rect class="track" width="64" height="8" rx="2"/>'
        f'<rect class="fill" width="{width}" height="8" rx="2"/></svg><span>{value:.1%}</span>'
    )


def swatch(colour: Sequence[int]) -> str:
    """A square of a colour."""
    return (
        '<svg width="12" height="12" aria-hidden="true"><rect class="swatch" width="12" height="12" rx="3" '
        f'fill="#{bytes(colour).hex()}"/></svg> '
    )


def details(summary: str, lines: Sequence[object]) -> str:
    """Lines of text that unfold from a summary."""
    return behind(summary, f"<ul>{''.join(f'<li>{text(line)}' for line in lines)}</ul>")


def plan_rows(plan: Mapping[str, Any]) -> str:
    """A plan's non-empty fields, which unfold from a summary."""
    rows = [(name, plain(value)) for name, value in plan.items() if value is not None]
    return details("Settings", [f"{name}: {value}" for name, value in rows if value])


def behind(summary: str, content: str, shown: bool = False) -> str:
    """HTML that unfolds from a summary. shown: whether it is unfolded at first."""
    return f"<details{' open' * shown}><summary>{text(summary)}</summary>{content}</details>"


def card(title: str, figure: str, images: Sequence[str], body: Sequence[str]) -> str:
    """The outcome of one image. title, figure: text; images, body: HTML."""
    shown = f'<div class="images">{"".join(images)}</div>' if images else ""
    return f"<article>{shown}<div><h3>{text(title)}<span>{text(figure)}</span></h3>{''.join(body)}</div></article>"


class Thumbnails:
    """Embedded images of a page, up to `MOST_BYTES`."""

    def __init__(self) -> None:
        self.left = MOST_BYTES

    def __call__(self, make: Callable[[], Image.Image], caption: str, side: int = SIDE) -> str:
        """A figure with the image, or with the error. make: may raise GocaError."""
        try:
            image = make()
            small = fit(image, side) if max(image.size) > side else image
            file = BytesIO()
            small.convert("RGB").save(file, "JPEG", quality=80)
        except GocaError as error:
            return _figure(f'<div class="none">{text(error)}</div>', caption)
        content = b64encode(file.getvalue()).decode()
        if len(content) > self.left:
            return _figure(
                f'<div class="none">not shown: a page has {MOST_BYTES >> 20} MiB of images at most</div>', caption
            )
        self.left -= len(content)
        alt = escape(caption, quote=True)
        return _figure(f'<img loading="lazy" alt="{alt}" src="data:image/jpeg;base64,{content}">', caption)


def _figure(content: str, caption: str) -> str:
    return f"<figure>{content}<figcaption>{text(caption)}</figcaption></figure>"

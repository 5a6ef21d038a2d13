"""Markdown tables, and the places in documents that hold them."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; cells are as wide as what is in them."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def fill(document: Path, name: str, text: str) -> None:
    """Replace the text between `<!-- NAME -->` and `<!-- end of NAME -->`. Raises ValueError if they are missing."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    filled, count = re.subn(
        f"(?<={re.escape(begin)}).*?(?={re.escape(end)})",
        lambda match: f"\n\n{text}\n\n",
        document.read_text(encoding="utf-8"),
        flags=re.DOTALL,
    )
    if not count:
        raise ValueError(f"{document} has no place for {name}")
    document.write_text(filled, encoding="utf-8")

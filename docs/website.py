"""What the documentation site needs besides its generator: its pages laid out, and formulas without a script.

`python docs/website.py lay-out build/pages` lays them out where mkdocs.yml reads them, and then
`python docs/website.py check build/site` looks at what was built.
"""

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

ROOT = Path(__file__).parent.parent
CODE = re.compile(r"^ *```.*?^ *```$|`[^`\n]+`", re.MULTILINE | re.DOTALL)
FENCE = re.compile(r"^( *```\w+) [\w ]+$", re.MULTILINE)
TAG = re.compile(r"<(?P<tag>a|img|script|link|iframe|source)\b[^>]*?\b(?:src|href)=\"?(?P<target>[^\"\s>]+)")
LINK = re.compile(r"\]\(([^)\s]+)\)|\b(?:src|href)=\"([^\"]+)\"")


def links(page: Path) -> Iterator[str]:
    """The targets of a page's links and images that name files, as they are written and without their anchors."""
    for match in LINK.finditer(CODE.sub("", page.read_text())):
        target = (match[1] or match[2]).partition("#")[0]
        if target and "://" not in target and not target.startswith("mailto:"):
            yield target


def lay_out(folder: Path) -> None:
    """Copies every document, and each file that one links to, to where it lies in the repository.

    So a link means the same in the repository, on a forge and in the site. A target that is missing stays missing,
    which the strict build refuses.
    """
    shutil.rmtree(folder, ignore_errors=True)
    waiting = [ROOT / name for name in ("README.md", "CHANGELOG.md", "docs/site.css", "docs/iframe-worker.js")]
    waiting += (ROOT / "docs").rglob("*.md")
    seen: set[Path] = set()
    while waiting:
        file = waiting.pop()
        if file in seen or not file.is_file():
            continue
        seen.add(file)
        copy = folder / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix != ".md":
            shutil.copyfile(file, copy)
        else:
            # Behind a block's language stands what tests do with it; a generator would take that for its own options.
            copy.write_text(FENCE.sub(r"\1", file.read_text()))
            waiting += [(file.parent / target).resolve() for target in links(file)]


def formula(source: str, *_: Any, **__: Any) -> str:
    """A fenced block `math`, which is LaTeX, as MathML: browsers draw it themselves."""
    from latex2mathml.converter import convert  # in the site's environment alone

    return f'<div class="formula">{convert(source, display="block")}</div>'


def faults(site: Path) -> Iterator[str]:
    """What a built site needs of other hosts, and the files that its pages name and it lacks."""
    for page in site.rglob("*.html"):
        if page.name == "404.html":
            continue  # it is shown at any address, and so names files by those of a server
        text = page.read_text()
        for match in TAG.finditer(text):
            target = match["target"].partition("#")[0].partition("?")[0]
            if "//" in target:
                if match["tag"] != "a":
                    yield f"{page}: loads {target}"
            elif target.startswith(("data:", "mailto:")):
                continue
            elif not (page.parent / unquote(target)).exists():
                yield f"{page}: {target} is not there"


def main(command: str, *folders: str) -> None:
    """`lay-out FOLDER` or `check FOLDER...`"""
    if command == "lay-out":
        lay_out(Path(folders[0]))
    elif found := [fault for folder in folders for fault in faults(Path(folder))]:
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main(*sys.argv[1:])

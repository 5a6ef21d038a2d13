"""`goca generate`: load a model once, paint an image for each seed, write and print each as it is done."""

import json
import re
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import typer

from goca.cli.console import console, paused, progress, say
from goca.cli.files import refuse_unwritable
from goca.diffusion.loading import load, without_bars
from goca.export import labels_png, png
from goca.generation import Asked, Explained, Generated, generate, row
from goca.generation import explain as explained_of
from goca.imaging.sheet import Cell, contact_sheet
from goca.recipe import recipe_named
from goca.storage.atomic import write_atomic

ROWS = 20
"""Images on a contact sheet."""
LONGEST = 80
"""Bytes of a file's name that come from the prompt, and as many from a name in it."""


@dataclass(frozen=True)
class Files:
    """Where results go: NAME-SEED.png and what explains it in `folder`, NAME from the prompt."""

    folder: Path
    prompt: str
    seeds: Sequence[int]

    @property
    def name(self) -> str:
        return slug(self.prompt) or "image"

    def of(self, seed: int, *parts: str) -> Path:
        """NAME-SEED.PART.PART"""
        return self.folder / ".".join((f"{self.name}-{seed}", *parts))

    def sheet(self, seed: int) -> Path:
        """NAME-FIRST-LAST.sheet.png: the contact sheet that a seed's image is on."""
        start = (seed - self.seeds[0]) // ROWS * ROWS
        part = self.seeds[start : start + ROWS]
        span = f"{part[0]}" if len(part) == 1 else f"{part[0]}-{part[-1]}"
        return self.folder / f"{self.name}-{span}.sheet.png"


def slug(text: str) -> str:
    """Letters and digits of any script, with a hyphen for everything between; what is cut off is told by a number."""
    whole = re.sub(r"[\W_]+", "-", text.lower()).strip("-")
    if len(whole.encode()) <= LONGEST:
        return whole
    told = blake2b(text.encode(), digest_size=3).hexdigest()
    return f"{whole.encode()[:LONGEST].decode(errors='ignore').rstrip('-')}-{told}"


def slugs(names: Iterable[str]) -> dict[str, str]:
    """A slug for each name, a number behind those that another has."""
    found: dict[str, str] = {}
    for name in names:
        first = slug(name) or "name"
        numbered = (first, *(f"{first}-{number}" for number in range(2, len(found) + 2)))
        found[name] = next(one for one in numbered if one not in found.values())
    return found


def run(
    files: Files,
    asked: Asked,
    model: str,
    device: str | None,
    dtype: str | None,
    explain: bool,
    recipe: str,
    as_json: bool,
) -> None:
    """Paint every image. What is written stays, whatever happens later."""
    recipe_named(recipe)
    refuse_unwritable(files.folder)
    rows: list[list[Cell]] = []
    count = 0
    try:
        with progress(hidden=as_json) as bar:
            task = bar.add_task(f"loading {model}", total=None)
            with without_bars() if as_json else nullcontext():
                pipeline = load(model, device, dtype, None, None)

            def begins(steps: int) -> None:
                bar.reset(task, description=f"painting seed {files.seeds[count]}", total=steps)

            def advances() -> None:
                bar.advance(task)

            for one in generate(pipeline, asked, files.seeds, explain, recipe, begins, advances):
                written = [files.of(one.seed, "png")]
                write_atomic({written[0]: png(one.image)})
                explained = explained_of(one) if explain else None
                if explained is not None:
                    written += _save(files, asked, explained)
                    rows = [*(rows if len(rows) < ROWS else ()), row(explained)]
                    sheet = files.sheet(one.seed)
                    write_atomic({sheet: png(contact_sheet(rows))})
                    written.append(sheet)
                count += 1
                with paused(bar):
                    _tell(one, explained, written, as_json)
    except KeyboardInterrupt:
        say(f"stopped; {count} of {len(files.seeds)} images are done and whole")
        raise typer.Exit(130) from None


def _save(files: Files, asked: Asked, explained: Explained) -> list[Path]:
    """The files that explain an image, all or none; the JSON last."""
    masks, seed = explained.masks, explained.generated.seed
    named = slugs(explained.heatmaps)
    paths = {files.of(seed, named[name], "heatmap.png"): png(image) for name, image in explained.heatmaps.items()}
    paths[files.of(seed, "labels.png")] = labels_png(masks.labels, masks.classes)
    paths[files.of(seed, "overlay.png")] = png(masks.overlay())
    paths[files.of(seed, "json")] = (json.dumps(_facts(asked, explained), indent=2, ensure_ascii=False) + "\n").encode()
    write_atomic(paths)
    return list(paths)


def _facts(asked: Asked, explained: Explained) -> dict[str, Any]:
    one = explained.generated
    traced = one.traced.to_json() if one.traced is not None else {}
    own = {"masks": explained.masks.to_json()["classes"], "left_out": list(explained.left_out)}
    return {"asked": vars(asked), "seed": one.seed, **traced, **own}


def _tell(one: Generated, explained: Explained | None, written: Sequence[Path], as_json: bool) -> None:
    if as_json:
        facts: dict[str, Any] = {"seed": one.seed, "files": [str(path) for path in written]}
        if explained is not None:
            facts["masks"] = explained.masks.to_json()["classes"]
            facts["left_out"] = list(explained.left_out)
        print(json.dumps(facts), flush=True)
        return
    out = console()
    for path in written:
        out.print(str(path), soft_wrap=True)
    for name in explained.left_out if explained is not None else ():
        out.print(f'note: "{name}" has no map: the model was not told of it', soft_wrap=True)

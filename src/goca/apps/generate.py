"""`goca generate`: load a model once, paint a picture for each seed, write and print each as it is done."""

import io
import json
import re
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from PIL import Image

from goca.apps.files import refuse_unwritable
from goca.apps.terminal import console, paused, progress, say
from goca.export import labels_png, write_atomic
from goca.generation import Asked, Explained, Generated, generate, row
from goca.generation import explain as explained_of
from goca.model.load import load, without_bars
from goca.recipe import recipe_named
from goca.sheet import Cell, contact_sheet

ROWS = 20
"""Pictures on a contact sheet."""
LONGEST = 60
"""Characters of a file's name that come from the prompt."""


@dataclass(frozen=True)
class Files:
    """Where results go: NAME-SEED.png and what explains it in `folder`, NAME from the prompt."""

    folder: Path
    prompt: str
    seeds: Sequence[int]

    @property
    def name(self) -> str:
        return slug(self.prompt)[:LONGEST].rstrip("-") or "picture"

    def of(self, seed: int, *parts: str) -> Path:
        """NAME-SEED.PART.PART"""
        return self.folder / ".".join((f"{self.name}-{seed}", *parts))

    def sheet(self, seed: int) -> Path:
        """NAME-FIRST-LAST.sheet.png: the contact sheet that a seed's picture is on."""
        start = (seed - self.seeds[0]) // ROWS * ROWS
        part = self.seeds[start : start + ROWS]
        span = f"{part[0]}" if len(part) == 1 else f"{part[0]}-{part[-1]}"
        return self.folder / f"{self.name}-{span}.sheet.png"


def slug(text: str) -> str:
    """Letters and digits of any script, with a hyphen for everything between."""
    return re.sub(r"[\W_]+", "-", text.lower()).strip("-")


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
    """Paint every picture. What is written stays, whatever happens later."""
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
                explained = explained_of(one) if explain else None
                written = _save(files, asked, one, explained)
                if explained is not None:
                    rows = [*(rows if len(rows) < ROWS else ()), row(explained)]
                    sheet = files.sheet(one.seed)
                    write_atomic({sheet: _png(contact_sheet(rows))})
                    written.append(sheet)
                count += 1
                with paused(bar):
                    _tell(one, explained, written, as_json)
    except KeyboardInterrupt:
        say(f"stopped; {count} of {len(files.seeds)} pictures are done and whole")
        raise typer.Exit(130) from None


def _save(files: Files, asked: Asked, one: Generated, explained: Explained | None) -> list[Path]:
    """The files of one picture, all or none; the JSON last."""
    paths = {files.of(one.seed, "png"): _png(one.image)}
    if explained is not None:
        masks = explained.masks
        for name, picture in explained.heatmaps.items():
            paths[files.of(one.seed, slug(name), "heatmap.png")] = _png(picture)
        paths[files.of(one.seed, "labels.png")] = labels_png(masks.labels, masks.classes)
        paths[files.of(one.seed, "overlay.png")] = _png(masks.overlay())
        told = json.dumps(_facts(asked, one, explained), indent=2, ensure_ascii=False) + "\n"
        paths[files.of(one.seed, "json")] = told.encode()
    write_atomic(paths)
    return list(paths)


def _facts(asked: Asked, one: Generated, explained: Explained | None) -> dict[str, Any]:
    facts: dict[str, Any] = {"asked": vars(asked), "seed": one.seed}
    if explained is not None and one.traced is not None:
        facts |= one.traced.to_json() | {"masks": explained.masks.to_json()["classes"]}
        facts["left_out"] = list(explained.left_out)
    return facts


def _tell(one: Generated, explained: Explained | None, written: Sequence[Path], as_json: bool) -> None:
    if as_json:
        facts = {"seed": one.seed, "files": [str(path) for path in written]}
        if explained is not None:
            facts["masks"] = explained.masks.to_json()["classes"]
        print(json.dumps(facts), flush=True)
        return
    out = console()
    for path in written:
        out.print(str(path), soft_wrap=True)
    for name in explained.left_out if explained is not None else ():
        out.print(f'note: "{name}" has no map: the model was not told of it', soft_wrap=True)


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()

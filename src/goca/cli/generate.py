"""`goca generate`: an image for each seed and its explanation, written and printed as soon as it is done."""

import re
from collections.abc import Iterable, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from goca import bundled
from goca.cli import arguments, collector
from goca.cli.console import paused, progress, say, session, show, show_json

if TYPE_CHECKING:
    from goca.generation import Explained, Generated, GenerationOptions
    from goca.imaging.sheet import Cell

ROWS = 20
"""Images on a contact sheet."""
MAX_SLUG = 80
"""Most bytes of a file name that come from the prompt, and as many from a name in it."""


def generate(
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help='What to generate: "cat, grass, sky", or a sentence.')
    ],
    model: arguments.ModelOption = bundled.DEFAULT,
    steps: arguments.StepsOption = None,
    scale: arguments.ScaleOption = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, max=2**32 - 1, help="Seed of the first image.")] = 0,
    count: Annotated[int, typer.Option(metavar="N", min=1, help="Number of images, which get consecutive seeds.")] = 1,
    size: arguments.GeneratedSizeOption = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the results.")] = Path("goca-out"),
    explain: Annotated[
        bool,
        arguments.option(
            "--explain",
            help="Also write heat maps of the nouns in the prompt, labelled masks, and a sheet of them all.",
        ),
    ] = False,
    recipe: Annotated[str, typer.Option(metavar="NAME", help="Method for --explain; see goca segment.")] = "goca",
    guide: arguments.GuideOption = "none",
    every: arguments.EveryOption = 1,
    compare: Annotated[
        bool,
        arguments.option(
            "--compare",
            help="With --guide, also generate without it, and write a sheet of both images, regions and rates.",
        ),
    ] = False,
    as_json: arguments.JsonLinesOption = False,
    device: arguments.DeviceOption = None,
    dtype: arguments.DtypeOption = None,
    verbose: arguments.VerboseOption = False,
) -> None:
    """Generate images from a prompt, and explain them.

    --explain shows what each noun of the prompt attends to; --guide uses attention to guide the image. An image
    depends only on its seed, not on --explain or --count. Files are named after prompt and seed; existing ones are
    overwritten.
    """
    with session(verbose), collector.waiting():
        from goca.image_jobs import check_writable
        from goca.text.nouns import check_prompt

        check_prompt(prompt, scale)
        arguments.check_model(model, recipe, device, dtype)
        check_writable(out)
        arguments.check_guide(guide, every, compare)
        _say_unknown(prompt, model)
        from goca import generation
        from goca.diffusion.loading import load, without_bars

        files = GenerationFiles(out, slug(prompt) or "image", range(seed, seed + count))
        options = generation.GenerationOptions(prompt=prompt, steps=steps, scale=scale, size=size)
        rows: list[list[Cell]] = []
        done = 0
        try:
            with progress(hidden=as_json) as bar:
                task = bar.add_task(f"loading {model}", total=None)
                with without_bars() if as_json else nullcontext():
                    pipeline = load(model, device, dtype, None, None)
                collector.go_on()
                bar.reset(task, description=f"generating seed {seed}", total=None)
                # Closing the generator stops the pipeline at its next step.
                generated = generation.generate(pipeline, options, files.seeds, explain, recipe, guide, every, compare)
                with closing(generated) as events:
                    for event in events:
                        if isinstance(event, generation.Progress):
                            description = f"generating seed {event.seed}"
                            bar.update(task, description=description, completed=event.step, total=event.steps)
                            continue
                        written, explained = _write(files, event), None
                        if explain:
                            explained, explanation = _explain(files, options, event)
                            written += explanation
                        if explain or compare:
                            written.append(_add_to_sheet(files, event, explained, rows))
                        done += 1
                        with paused(bar):
                            _print(event, explained, written, as_json)
        except KeyboardInterrupt:
            say(f"stopped; {done} of {count} images are done and complete")
            raise typer.Exit(130) from None


def _say_unknown(prompt: str, model: str) -> None:
    """Say which words of a prompt a model with a closed vocabulary does not know."""
    from goca.diffusion.model_facts import facts_of
    from goca.text.nouns import unknown_words

    facts = facts_of(model)
    if facts.nouns and (unknown := unknown_words(prompt, facts.nouns + facts.words)):
        names, known = ", ".join(f'"{word}"' for word in unknown), ", ".join(facts.nouns)
        say(f"{model} does not know {names} and generates something else instead; it knows {known}")


@dataclass(frozen=True)
class GenerationFiles:
    """Where results go: NAME-SEED.png and the files of its explanation in `folder`."""

    folder: Path
    name: str
    seeds: Sequence[int]

    def of(self, seed: int, ending: str) -> Path:
        """NAME-SEED.ENDING"""
        return self.folder / f"{self.name}-{seed}.{ending}"

    def sheet(self, seed: int) -> Path:
        """NAME-FIRST-LAST.sheet.png: the contact sheet that shows a seed's image."""
        start = (seed - self.seeds[0]) // ROWS * ROWS
        part = self.seeds[start : start + ROWS]
        span = f"{part[0]}" if len(part) == 1 else f"{part[0]}-{part[-1]}"
        return self.folder / f"{self.name}-{span}.sheet.png"


def slug(text: str) -> str:
    """The text's letters and digits, of any script, joined by hyphens; a long text is cut and ends in a digest."""
    full = re.sub(r"[\W_]+", "-", text.lower()).strip("-")
    if len(full.encode()) <= MAX_SLUG:
        return full
    digest = blake2b(text.encode(), digest_size=3).hexdigest()
    return f"{full.encode()[:MAX_SLUG].decode(errors='ignore').rstrip('-')}-{digest}"


def slugs(names: Iterable[str]) -> dict[str, str]:
    """A slug for each name, numbered if another name has the same."""
    unique: dict[str, str] = {}
    for name in names:
        first = slug(name) or "name"
        numbered = (first, *(f"{first}-{number}" for number in range(2, len(unique) + 2)))
        unique[name] = next(candidate for candidate in numbered if candidate not in unique.values())
    return unique


def _write(files: GenerationFiles, generated: "Generated") -> list[Path]:
    """Write an image and, with a comparison, the plain image and the regions that guided this one."""
    from goca.generation import region_overlay
    from goca.imaging.draw import png
    from goca.storage.atomic import write_atomic

    images = {"png": generated.image}
    if generated.guided is not None and generated.guided.plain is not None:
        images["plain.png"] = generated.guided.plain
        if (regions := region_overlay(generated)) is not None:
            images["regions.png"] = regions
    paths = {files.of(generated.seed, ending): png(image) for ending, image in images.items()}
    write_atomic(paths)
    return list(paths)


def _explain(
    files: GenerationFiles, options: "GenerationOptions", generated: "Generated"
) -> "tuple[Explained, list[Path]]":
    """Write an image's explanation: all its files or none, the JSON last."""
    from goca.exports.json_document import document
    from goca.exports.labels_png import labels_png
    from goca.generation import explain
    from goca.imaging.draw import png
    from goca.storage.atomic import write_atomic

    explained = explain(generated)
    masks = explained.masks
    facts = {
        "request": vars(options),
        "seed": generated.seed,
        **(generated.traced.to_json() if generated.traced is not None else {}),
        "masks": masks.to_json()["classes"],
        "left_out": list(explained.left_out),
    }
    stems = slugs(explained.heatmaps)
    contents = {f"{stems[name]}.heatmap.png": png(image) for name, image in explained.heatmaps.items()} | {
        "labels.png": labels_png(masks.labels, masks.classes),
        "overlay.png": png(masks.overlay()),
        "json": document(facts),
    }
    paths = {files.of(generated.seed, part): content for part, content in contents.items()}
    write_atomic(paths)
    return explained, list(paths)


def _add_to_sheet(
    files: GenerationFiles, generated: "Generated", explained: "Explained | None", rows: "list[list[Cell]]"
) -> Path:
    """Write the contact sheet, which has `rows` so far, again with a row for this image."""
    from goca.generation import row
    from goca.imaging.draw import png
    from goca.imaging.sheet import contact_sheet
    from goca.storage.atomic import write_atomic

    if len(rows) == ROWS:
        rows.clear()
    rows.append(row(generated, explained))
    sheet = files.sheet(generated.seed)
    write_atomic({sheet: png(contact_sheet(rows))})
    return sheet


def _print(generated: "Generated", explained: "Explained | None", written: Sequence[Path], as_json: bool) -> None:
    if as_json:
        facts: dict[str, Any] = {"seed": generated.seed, "files": [str(path) for path in written]}
        if generated.guided is not None:
            facts["effective_scale"] = round(generated.guided.effective_scale, 3)
        if explained is not None:
            facts["masks"] = explained.masks.to_json()["classes"]
            facts["left_out"] = list(explained.left_out)
        show_json(facts)
        return
    show(*map(str, written))
    if generated.guided is not None:
        show(f"note: guidance is as strong as plain guidance at scale {generated.guided.effective_scale:.2f}")
    for name in explained.left_out if explained is not None else ():
        show(f'note: "{name}" has no map: the tokenizer truncates it, or it consists of stop words')

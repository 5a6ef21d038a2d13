"""`goca inspect`: what a model attends to in an image, on a sheet and as numbers."""

import re
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from goca import bundled
from goca.cli import arguments, collector
from goca.cli.console import progress, say_unlabelled, session, show, show_json, table
from goca.cli.settings import load_segmenter
from goca.errors import GocaError

if TYPE_CHECKING:
    from goca.inspection import Inspection

MOST_LAYERS = 10
"""Most layers that are printed."""


def inspect(
    image: Annotated[
        Path, typer.Argument(metavar="IMAGE", help="Image to inspect.", show_default=False, parser=arguments.path)
    ],
    classes: arguments.ClassesOption = None,
    classes_file: arguments.ClassesFileOption = None,
    background_classes: arguments.BackgroundClassesOption = None,
    background_classes_file: arguments.BackgroundClassesFileOption = None,
    caption: arguments.CaptionOption = None,
    at: Annotated[
        list[str] | None,
        arguments.option(
            metavar="X,Y", help="Pixel, counted from 0, whose words and attended places are shown; repeatable."
        ),
    ] = None,
    keep: Annotated[
        str | None, arguments.option(metavar="heads", help="With the value heads, also draw the maps of single heads.")
    ] = None,
    model: arguments.ModelOption = bundled.DEFAULT,
    settings: arguments.SettingsOption = None,
    recipe: arguments.RecipeOption = "goca-open",
    timestep: arguments.TimestepOption = None,
    size: arguments.SizeOption = None,
    seed: arguments.SeedOption = 0,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for IMAGE.inspect.png and IMAGE.inspect.json.")
    ] = Path("goca-out"),
    as_json: arguments.JsonOption = False,
    device: arguments.DeviceOption = None,
    dtype: arguments.DtypeOption = None,
    verbose: arguments.VerboseOption = False,
) -> None:
    """Show what a model attends to in an image, and how that becomes masks.

    Writes a sheet (the maps of each class, the weights of layers and heads, the attention that words and sinks get,
    pixels) and all its numbers as JSON. The image is seen whole, in one pass with all classes.
    """
    with session(verbose), collector.waiting():
        listed, unlabelled = arguments.classes(classes, classes_file)
        background_names = arguments.background_classes(background_classes, background_classes_file)
        given, timesteps = arguments.settings(settings), arguments.timesteps(timestep)
        if timesteps is not None and len(timesteps) > 1:
            raise GocaError("an inspection is a single pass: give one timestep", "timestep")
        pixels = [_pixel(text) for text in at or ()]
        arguments.check_model(model, recipe, device, dtype)
        from goca.diffusion.model_facts import facts_of
        from goca.image_jobs import INSPECTED, plan_outputs
        from goca.inspection.keep import names_kept
        from goca.text.nouns import check_words

        kept = names_kept(() if keep is None else arguments.names(keep), ["heads"])
        check_words(listed, background_names, "auto", caption, facts_of(model).nouns, model)
        if image.is_dir():
            raise GocaError(f"{image} is a folder: name an image")
        (job,) = plan_outputs([image], out)
        from goca.imaging.images import load
        from goca.inspection.pixel import check_pixel

        loaded = load(image)
        for x, y in pixels:
            check_pixel(x, y, loaded)
        from goca.diffusion.loading import without_bars

        # A download shows the Hub's own progress, except beside JSON.
        with progress(hidden=as_json) as bar, without_bars() if as_json else nullcontext():
            bar.add_task(f"inspecting with {model}", total=None)
            options = {"timestep": timesteps, "size": size, "seed": seed, "device": device, "dtype": dtype, **given}
            segmenter = load_segmenter(model, recipe, options)
            collector.go_on()
            inspection = segmenter.inspect(loaded, listed, background_names, caption=caption, keep=kept)
        _write(inspection, image, pixels, job.folder / f"{job.stem}{INSPECTED}", as_json)
        say_unlabelled(unlabelled)


def _pixel(text: str) -> tuple[int, int]:
    """The pixel of --at. Raises GocaError unless it is two whole numbers."""
    if not re.fullmatch(r"\s*[0-9]{1,9}\s*,\s*[0-9]{1,9}\s*", text):
        raise GocaError(f'"{text}" is not a pixel: give its column and row, counted from 0, such as 120,80', "at")
    x, y = map(int, text.split(","))
    return x, y


def _write(inspection: "Inspection", image: Path, pixels: list[tuple[int, int]], sheet: Path, as_json: bool) -> None:
    """Write both files together, and print the main facts."""
    from goca.exports.json_document import document
    from goca.folders import stored_path
    from goca.imaging.draw import png
    from goca.storage.atomic import write_atomic

    numbers = sheet.with_suffix(".json")
    facts = {"image": stored_path(image), **inspection.to_json(pixels)}
    write_atomic({sheet: png(inspection.sheet(pixels)), numbers: document(facts)})
    if as_json:
        show_json({**facts, "files": [stored_path(sheet), stored_path(numbers)]})
        return
    classes = table("class", "share of pixels", "of all attention", figures=2)
    for entry in facts["classes"]:
        classes.add_row(entry["name"], f"{entry['share']:.1%}", f"{entry['attention']:.1%}")
    for entry in facts["background_classes"]:
        classes.add_row(f"({entry['name']})", "", f"{entry['attention']:.1%}")
    layers = table("layer", "grid", "weight", "heaviest head", figures=3)
    heaviest = sorted(inspection.layers, key=lambda layer: -layer.weight)
    for layer in heaviest[:MOST_LAYERS]:
        layers.add_row(layer.name, "{} x {}".format(*layer.grid), f"{layer.weight:.1%}", f"{max(layer.heads):.0%}")
    sinks = ", ".join(f"{entry['name']} {entry['attention']:.1%}" for entry in facts["sinks"])
    show(str(image), classes, layers, f"sinks: {sinks}" if sinks else "no sinks")
    for pixel in facts["pixels"]:
        words = ", ".join(f"{entry['word']} {entry['share']:.0%}" for entry in pixel["words"])
        show(f"pixel {pixel['x']},{pixel['y']}: {words}")
    show(*(f"note: {note}" for note in facts["plan"]["notes"]), str(sheet), str(numbers))

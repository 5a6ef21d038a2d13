"""Options that several commands share, and functions that turn their text into what the library takes."""

import math
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

import goca
from goca import bundled
from goca.diffusion.model_facts import local_folder
from goca.errors import GocaError
from goca.storage.reading import read_json, read_text
from goca.text.class_list import classes_to_find, parse_class_list

_CONSTANTS = {name.lower().replace("_", "-") for name in goca.__all__ if name.isupper()}
RECIPES = ("goca", "vanilla", *sorted(_CONSTANTS - {"goca", "vanilla", "recipes"}))
"""The keys of `goca.RECIPES`, derived from the names of goca's constants because loading the values needs torch."""
MAX_TIMESTEP = 999
DTYPES = ("float32", "float16", "bfloat16", "fp32", "fp16", "bf16")

option = partial(typer.Option, show_default=False)
"""An option whose help text itself states what happens without it."""

ModelOption = Annotated[
    str,
    typer.Option(
        metavar="MODEL", help=f"Model: {', '.join(bundled.names())}, a diffusers folder, or a Hub id to download."
    ),
]
RecipeOption = Annotated[str, typer.Option(metavar="NAME", help=f"Method: {', '.join(RECIPES[:-1])} or {RECIPES[-1]}.")]
SettingsOption = Annotated[
    Path | None,
    option(
        metavar="FILE|auto",
        help="Settings for this checkpoint, a file from goca settings; auto: chosen without labels before the first "
        "run, and kept.  [default: the checkpoint's known settings, or its family's]",
    ),
]
StepsOption = Annotated[
    int | None, option(metavar="N", min=1, help="Number of sampling steps.  [default: the model's]")
]
ScaleOption = Annotated[float | None, option(metavar="S", help="Guidance scale.  [default: the model's]")]
GeneratedSizeOption = Annotated[
    int | None, option(metavar="N", min=1, max=8192, help="Width and height in pixels.  [default: the model's]")
]
GuideOption = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Balance guidance over the image: a recipe, such as goca, guides each region that it finds as strongly as "
        "the foreground; energy balances it pixel by pixel; a number multiplies the scale everywhere.",
    ),
]
EveryOption = Annotated[
    int, typer.Option(metavar="N", min=1, help="With --guide, read attention only in every N-th step.")
]
TimestepOption = Annotated[
    str | None,
    option(
        metavar="T[,T...]",
        help="Noise level of the forward pass, 0 to 999; several (100,50) are averaged.  [default: the model's]",
    ),
]
SizeOption = Annotated[
    int | None,
    option(metavar="N", min=1, help="Side in pixels of the model's input.  [default: the model's]"),
]
SeedOption = Annotated[int, typer.Option(metavar="N", min=0, max=2**32 - 1, help="Seed of the noise.")]
SeedsOption = Annotated[int, typer.Option(metavar="N", min=1, help="Average over N noise seeds.")]
FlipOption = Annotated[bool, option("--flip", help="Average with a pass over the mirrored image.")]
WindowOption = Annotated[
    bool, option("--window", help="Process large images in overlapping windows, at full resolution.")
]
RefineEdgesOption = Annotated[
    bool, option("--refine-edges", help="Align the masks with the image's edges (guided filter).")
]
ClassesOption = Annotated[str | None, option(metavar="NAMES", help='Classes to look for: "cat, grass".')]
ClassesFileOption = Annotated[
    Path | None,
    option(
        metavar="FILE",
        help='File of classes, one per line: "class" or "class: synonym, synonym"; # starts a comment, and a leading '
        "number sets the label.",
    ),
]
BackgroundClassesOption = Annotated[
    str | None,
    option(
        metavar="NAMES",
        help='Nouns whose pixels become background; "" for none.  [default: the model\'s list, minus the classes]',
    ),
]
CaptionOption = Annotated[
    str | None,
    option(metavar="TEXT", help="Prompt to use instead of the list of classes; must contain every class."),
]
BackgroundClassesFileOption = Annotated[
    Path | None, option(metavar="FILE", help="File of background classes, one per line.")
]
FloorOption = Annotated[
    float | None,
    option(
        metavar="F",
        min=0,
        max=1,
        help="Evidence, 0 to 1, that a class needs to get pixels; 0 keeps every class.  [default: the recipe's]",
    ),
]
DeviceOption = Annotated[
    str | None,
    option(
        metavar="DEVICE", help="Device: cpu, cuda, cuda:1 or mps.  [default: cuda or mps where available, else cpu]"
    ),
]
DtypeOption = Annotated[
    str | None,
    option(metavar="DTYPE", help="Precision: float32, float16 or bfloat16.  [default: float32 on a CPU, else float16]"),
]
BatchOption = Annotated[int, typer.Option(metavar="N", min=1, help="Images per forward pass.")]
WorkersOption = Annotated[
    int | None,
    option(
        metavar="N",
        min=1,
        help="Number of processes, each with its own model.  [default: 1; with --ray, one per GPU or else per CPU]",
    ),
]
RayOption = Annotated[
    str | None,
    option(
        metavar="ADDRESS", help='Run on a Ray cluster: its address, "auto" to find it, or "local" to start one here.'
    ),
]
PricesOption = Annotated[
    str | None,
    option(metavar="INPUT,OUTPUT", help="Prices of vlm:MODEL per million input and output tokens."),
]
LimitOption = Annotated[int | None, option(metavar="N", min=1, help="Evaluate only the first N images.")]
CaptionsOption = Annotated[
    str, typer.Option(metavar="STYLE", help='Style of the prompts: "nouns", a list of the classes, or "sentences".')
]
JsonOption = Annotated[bool, option("--json", help="Print JSON and nothing else.")]
JsonLinesOption = Annotated[bool, option("--json", help="Print one line of JSON per image and nothing else.")]
MarkdownOption = Annotated[bool, option("--markdown", help="Print a Markdown table.")]
VerboseOption = Annotated[bool, option("-v", "--verbose", help="Show tracebacks and the warnings of libraries.")]


def path(text: str) -> Path:
    """A path. An empty text, such as an unset shell variable, is refused: it would mean the current folder."""
    if not text:
        raise typer.BadParameter('"" is not a path: write . for the current folder')
    return Path(text)


def check_guide(guide: str, every: int, compare: bool = False) -> None:
    """Raise GocaError for an unknown guidance, and for options that need guidance where none is chosen."""
    if guide.lower() != "none":
        from goca.guidance import guide_arguments

        guide_arguments(guide)
    elif compare or every > 1:
        option = "--compare" if compare else f"--every {every}"
        raise GocaError(f"{option} needs --guide: add --guide goca, or leave it out")


def check_model(name: str, recipe: str | None = None, device: str | None = None, dtype: str | None = None) -> None:
    """Raise GocaError for names that are wrong on any machine, before torch is loaded to see what this one has."""
    if recipe is not None and recipe.lower().replace("_", "-") not in RECIPES:
        raise GocaError(f'no recipe "{recipe}": there are {", ".join(RECIPES)}', "recipe")
    if device is not None and not re.fullmatch(r"(cpu|mps)(:0)?|cuda(:[0-9]+)?", device):
        raise GocaError(f'no device "{device}": give cpu, cuda, cuda:1 or mps', "device")
    if dtype is not None and dtype not in DTYPES:
        raise GocaError(f'no dtype "{dtype}": give {", ".join(DTYPES)}', "dtype")
    local_folder(name)


def settings(file: Path | None) -> dict[str, Any]:
    """--settings as arguments of `from_pretrained`: the file's content, so that a run records it; {} without a file.

    "auto" is passed on: `load_segmenter` and `with_automatic` of `goca.cli.settings` resolve it.

    Raises GocaError for a file that cannot be read or does not hold settings.
    """
    if file is None:
        return {}
    if str(file) == "auto":
        return {"settings": "auto"}
    try:
        content = read_json(file)
    except GocaError as error:
        raise GocaError(str(error), "settings") from None
    if not isinstance(content, dict):
        raise GocaError(f"{file} does not hold settings: name a file that goca settings wrote", "settings")
    return {"settings": content}


def names(text: str) -> tuple[str, ...]:
    """Comma-separated names; blank ones, such as after a trailing comma, are dropped."""
    return tuple(name for name in (part.strip() for part in text.split(",")) if name)


def classes(text: str | None, file: Path | None) -> tuple[Mapping[str, Sequence[str]], tuple[str, ...]]:
    """{class: synonyms} of --classes or --classes-file, and the words listed there that get no label ("background").

    Raises GocaError if both or neither are given, or if no class is listed.
    """
    if text is not None and file is not None:
        raise GocaError("--classes and --classes-file cannot be combined: give one of them")
    if text is None and file is None:
        raise GocaError('no classes: name what to look for with --classes "cat, grass" or --classes-file FILE')
    name, hint = ("the list", "classes") if file is None else (str(file), "classes_file")
    try:
        entries = parse_class_list(text or "" if file is None else read_text(file), name)
        unlabelled = [entry for entry in entries if entry.special and entry.label is None]
        words = tuple(word for entry in unlabelled for word in (entry.name, *entry.synonyms))
        return classes_to_find(entries, name), words
    except GocaError as error:
        raise GocaError(str(error), hint) from None


def background_classes(text: str | None, file: Path | None) -> tuple[str, ...] | None:
    """The nouns of --background-classes or --background-classes-file; None for the model's own.

    In a file, the synonyms on a line are nouns too, numbers are ignored, and so is "void".

    Raises GocaError if both are given, or for a file that is not a list of nouns.
    """
    if text is not None and file is not None:
        raise GocaError("--background-classes and --background-classes-file cannot be combined: give one of them")
    if file is None:
        return None if text is None else names(text)
    try:
        entries = parse_class_list(read_text(file), str(file))
    except GocaError as error:
        raise GocaError(str(error), "background_classes_file") from None
    return tuple(word for entry in entries if entry.special != "void" for word in (entry.name, *entry.synonyms))


def background(text: str) -> str | float | None:
    """--background as the library takes it. Raises GocaError unless it is auto, none or a number from 0 to 1."""
    plain = text.strip().lower()
    if plain in ("auto", "none"):
        return None if plain == "none" else plain
    try:
        threshold = float(plain)
    except ValueError:
        threshold = -1.0
    if not 0 <= threshold <= 1:
        raise GocaError(f'--background "{text}" is not valid: give auto, none, or a threshold from 0 to 1')
    return threshold


def timesteps(text: str | None) -> tuple[int, ...] | None:
    """The timesteps of --timestep. Raises GocaError for anything but comma-separated whole numbers."""
    if text is None:
        return None
    numbers = names(text)
    if not numbers or not all(re.fullmatch(r"[0-9]{1,9}", number) for number in numbers):
        raise GocaError(f'--timestep "{text}" is not valid: give a training timestep such as 100, or several: 100,50')
    chosen = tuple(int(number) for number in numbers)
    if max(chosen) > MAX_TIMESTEP:
        raise GocaError(f'--timestep "{text}" is not valid: give timesteps from 0 to {MAX_TIMESTEP}')
    return chosen


def prices(text: str | None, tagger: str) -> tuple[float, float] | None:
    """The prices of --prices. Raises GocaError unless they are two numbers, 0 or more, and the tagger costs money."""
    if text is None:
        return None
    if not tagger.startswith("vlm:"):
        raise GocaError("--prices only applies to --tagger vlm:MODEL: leave it out")
    try:
        per_input, per_output = (float(part) for part in text.split(","))
    except ValueError:
        per_input = per_output = -1.0
    if not (0 <= per_input < math.inf and 0 <= per_output < math.inf):
        raise GocaError(f'--prices "{text}" is not valid: give the price of a million input and output tokens: 2.5,10')
    return per_input, per_output


def tagger(text: str | None, dataset: str) -> str:
    """The tagger of --tagger. Only scenes has a default: elsewhere the choice decides what a score means."""
    from goca.tagging import check_tagger

    if text is not None:
        if text != "oracle":
            check_tagger(text)
        return text
    if dataset == "scenes":
        return "oracle"
    raise GocaError(
        "no tagger: choose with --tagger what says which classes an image shows: captions:FILE, clip:MODEL, vlm:MODEL, "
        "local:MODEL, self, given:NOUNS, or oracle, which uses the ground truth and inflates scores"
    )

"""`goca settings`: chooses settings for an unlisted checkpoint without labels, and writes them to a file."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from goca.cli import arguments
from goca.cli.console import progress, session, show, show_json
from goca.errors import GocaError

if TYPE_CHECKING:
    from goca.segmenter import Segmenter


def load_segmenter(model: str, recipe: str, options: Mapping[str, Any]) -> "Segmenter":
    """The model under a recipe and further arguments of `from_pretrained`; the settings "auto" are chosen if need be.

    Raises GocaError if the model cannot be loaded or its attention cannot be read.
    """
    from goca import settings_choice

    is_auto = options.get("settings") == "auto"
    with progress(hidden=not is_auto) as bar:
        if is_auto:
            bar.add_task(f"choosing settings for {model}", total=None)
        return settings_choice.load_segmenter(model, recipe, **options)


def with_automatic(
    options: Mapping[str, Any], model: str, device: str | None, dtype: str | None, batch: int
) -> dict[str, Any]:
    """Arguments with which workers load the model: the settings "auto" are replaced by the content of chosen ones.

    Raises GocaError as `load_segmenter` does.
    """
    if options.get("settings") != "auto":
        return dict(options)
    from goca.diffusion.checkpoints import content_of

    loading = {"device": device, "dtype": dtype, "batch": batch, "settings": "auto"}
    segmenter = load_segmenter(model, "goca-open", loading)
    return {**options, "settings": content_of(segmenter.backbone.settings)}


def settings(
    images: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[IMAGE...]",
            show_default=False,
            parser=arguments.path,
            help="Two or more images like those to segment.  [default: images that the model generates]",
        ),
    ] = None,
    nouns: Annotated[
        str | None,
        arguments.option(
            metavar="NAMES",
            help='Nouns to generate, or that images may show: "cat, sky".  [default: the model\'s background nouns]',
        ),
    ] = None,
    model: arguments.ModelOption = "bundled",
    out: Annotated[Path, typer.Option(metavar="FILE", help="File to write, for --settings.")] = Path("settings.json"),
    as_json: arguments.JsonOption = False,
    device: arguments.DeviceOption = None,
    dtype: arguments.DtypeOption = None,
    batch: arguments.BatchOption = 4,
    verbose: arguments.VerboseOption = False,
) -> None:
    """Choose a model's reference, refinement and timestep without labels.

    They are chosen by the model's attention to images. Known checkpoints have settings of their own (see goca models)
    and others use their family's: compare before you prefer the chosen ones.
    """
    with session(verbose):
        arguments.check_model(model, None, device, dtype)
        from goca.image_jobs import check_writable

        if out.is_dir():
            raise GocaError(f"{out} is a folder: name a file", "out")
        check_writable(out.parent)
        from goca.diffusion.checkpoints import content_of, write_settings
        from goca.segmenter import Segmenter
        from goca.settings_choice import choose_settings

        with progress(hidden=as_json) as bar:
            bar.add_task(f"reading the attention of {model}", total=None)
            segmenter = Segmenter.from_pretrained(model, device=device, dtype=dtype, batch=batch)
            chosen = choose_settings(segmenter, images or None, None if nouns is None else arguments.names(nouns))
        write_settings(chosen, out)
        facts = content_of(chosen)
        if as_json:
            show_json({"file": str(out), **facts})
        else:
            show(*(f"{name}: {', '.join(v) if isinstance(v, list) else v}" for name, v in facts.items()), str(out))

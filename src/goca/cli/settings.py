"""`goca settings`: settings for a checkpoint that no table knows, chosen without labels, once, into one file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from goca.cli import arguments
from goca.cli.console import progress, session, show, show_json
from goca.errors import GocaError


def with_automatic(
    options: Mapping[str, Any], model: str, device: str | None, dtype: str | None, batch: int = 4
) -> dict[str, Any]:
    """Arguments of `from_pretrained` in which the settings "auto" are replaced by those that they stand for.

    The model is loaded for it, and looks at images that it paints, unless it has done so before.

    Raises GocaError where the model cannot be loaded, or its attention cannot be read.
    """
    if options.get("settings") != "auto":
        return dict(options)
    from goca.diffusion.checkpoints import content_of
    from goca.segmenter import Segmenter
    from goca.settings_choice import automatic_settings

    with progress(hidden=False) as bar:
        bar.add_task(f"choosing settings for {model}, unless that is done", total=None)
        segmenter = Segmenter.from_pretrained(model, device=device, dtype=dtype, batch=batch)
        return {**options, "settings": content_of(automatic_settings(segmenter))}


def settings(
    images: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[IMAGE...]",
            show_default=False,
            parser=arguments.path,
            help="Two or more images to look at, of the kind to be segmented.  [default: the model paints some]",
        ),
    ] = None,
    nouns: Annotated[
        str | None,
        arguments.option(
            metavar="NAMES",
            help='What is painted, or may be in the images: "cat, grass".  [default: the model\'s background nouns]',
        ),
    ] = None,
    model: arguments.ModelOption = "bundled",
    out: Annotated[Path, typer.Option(metavar="FILE", help="The file to write, for --settings.")] = Path(
        "settings.json"
    ),
    as_json: arguments.JsonOption = False,
    device: arguments.DeviceOption = None,
    dtype: arguments.DtypeOption = None,
    batch: arguments.BatchOption = 4,
    verbose: arguments.VerboseOption = False,
) -> None:
    """Choose reference, refinement and timestep for a model by its attention to images, without labels.

    Known checkpoints have settings of their own (goca models), and others their family's: compare before you prefer
    these.
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
            bar.add_task(f"looking at images with {model}", total=None)
            segmenter = Segmenter.from_pretrained(model, device=device, dtype=dtype, batch=batch)
            chosen = choose_settings(segmenter, images or None, None if nouns is None else arguments.names(nouns))
        write_settings(chosen, out)
        facts = content_of(chosen)
        if as_json:
            show_json({"file": str(out), **facts})
        else:
            show(*(f"{name}: {', '.join(v) if isinstance(v, list) else v}" for name, v in facts.items()), str(out))

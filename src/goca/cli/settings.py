"""`goca settings`: chooses settings for an unlisted checkpoint without labels, and writes them to a file."""

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
    """Arguments of `from_pretrained` in which the settings "auto" are replaced by chosen ones.

    This loads the model and reads its attention to images that it generates, unless that was done before.

    Raises GocaError if the model cannot be loaded or its attention cannot be read.
    """
    if options.get("settings") != "auto":
        return dict(options)
    from goca.diffusion.checkpoints import content_of
    from goca.segmenter import Segmenter
    from goca.settings_choice import automatic_settings

    with progress(hidden=False) as bar:
        bar.add_task(f"choosing settings for {model}", total=None)
        segmenter = Segmenter.from_pretrained(model, device=device, dtype=dtype, batch=batch)
        return {**options, "settings": content_of(automatic_settings(segmenter))}


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

"""`goca models`: the known checkpoints, a check that every family works on this machine, and a probe of a new one."""

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from importlib.metadata import requires
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from goca import bundled
from goca.cli import arguments
from goca.cli.check import check_checkpoint
from goca.cli.console import progress, session, show, show_json, table
from goca.errors import GocaError

if TYPE_CHECKING:
    from rich.table import Table

    from goca.diffusion.families.spec import CheckpointSettings, Family, TextInput

UNVERIFIED = "not verified here"
BEGIN_WITH = "stable-diffusion-v1-5/stable-diffusion-v1-5"


def models(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]", help='Model for --check: "bundled", a diffusers folder, or a Hub id to download.'
        ),
    ] = None,
    check: Annotated[
        bool,
        arguments.option(
            "--check",
            help="Check without ground truth whether MODEL is read correctly; without MODEL, segment an image with a "
            "tiny random pipeline of every family.",
        ),
    ] = False,
    sheet: Annotated[
        Path | None,
        arguments.option(
            metavar="FILE.png", help="With --check MODEL, draw images that it generates and how it segments them."
        ),
    ] = None,
    size: arguments.SizeOption = None,
    device: arguments.DeviceOption = None,
    dtype: arguments.DtypeOption = None,
    probe: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Run the pipeline in this diffusers folder and print the facts of its unlisted denoiser.",
            show_default=False,
        ),
    ] = None,
    everything: Annotated[
        bool, arguments.option("--all", help="Print every setting of every known checkpoint with its source.")
    ] = False,
    as_markdown: Annotated[
        bool, arguments.option("--markdown", help="Print a Markdown table of the families.")
    ] = False,
    as_json: arguments.JsonOption = False,
    verbose: arguments.VerboseOption = False,
) -> None:
    """List known checkpoints; check or probe a family.

    Without options, prints a line for each known checkpoint. Other checkpoints of a supported family work too, with
    settings by the family's rule.
    """
    with session(verbose):
        listings = {"--all": everything, "--markdown": as_markdown, "--json": as_json and not check, "--check": check}
        chosen = [flag for flag, is_given in listings.items() if is_given]
        if len(chosen) > 1:
            raise GocaError(f"{chosen[0]} and {chosen[1]} cannot be combined: give one of them")
        if model is not None and not check:
            raise GocaError(f'"{model}" needs --check: goca models --check {model}')
        if not model and (sheet, size, device, dtype) != (None,) * 4:
            raise GocaError("--sheet, --size, --device and --dtype need a model: goca models --check MODEL")
        if probe and (chosen or as_json):
            raise GocaError("--probe prints Python source and takes no other option: give it alone")
        if probe:
            arguments.check_model(str(probe))
            from goca.diffusion.loading import load
            from goca.probing import probe as find_facts
            from goca.probing import source

            show(*source(find_facts(load(probe, unlisted=True))).splitlines())
        elif model:
            if not check_checkpoint(model, sheet, size, device, dtype, as_json):
                raise typer.Exit(1)
        elif check:
            from goca.testing.tiny import BUILDERS

            if not report(BUILDERS, as_json):
                raise typer.Exit(1)
        elif as_markdown:
            show(*families().splitlines())
        elif everything or as_json or verbose:
            listing(as_json)
        else:
            overview()


def overview() -> None:
    """Print a line for each known checkpoint or family, and which one to start with."""
    from goca.diffusion.families import FAMILIES

    rows = table("checkpoint", "for --model", "VOC mIoU", figures=1)
    for name in bundled.names():
        rows.add_row("ships with goca", name, "")
    for family in FAMILIES:
        for settings in family.checkpoints:
            voc = next((f"{score.miou:.1f}" for score in settings.scores if score.dataset == "VOC"), "")
            rows.add_row(settings.name, settings.repos[0], voc)
        if family.repos and not family.checkpoints:
            rows.add_row(family.name, family.repos[0], "")
    show(
        rows,
        f"VOC mIoU: as reported by others, {UNVERIFIED}. goca models --all prints more ids and every setting.",
        f"To start with photographs: --model {BEGIN_WITH}, the smallest of these. The default, {bundled.DEFAULT}, "
        f"only knows {len(bundled.vocabulary())} nouns, as drawings.",
    )


def listing(as_json: bool) -> None:
    """Print the known checkpoints with all their settings."""
    from goca.diffusion.checkpoints import CHECKPOINTS
    from goca.diffusion.families import FAMILIES

    known = (*map(_bundled, bundled.names()), *CHECKPOINTS)
    by_rule = [_by_rule(family) for family in FAMILIES if not family.checkpoints]
    if as_json:
        show_json({"models": [_json(settings) for settings in known], "by_rule": by_rule})
        return
    show(*map(_table, known))
    for facts in by_rule:
        rows = table("", facts.pop("family"))
        for name, value in facts.items():
            rows.add_row(name, "\n".join(value) if isinstance(value, list) else str(value))
        show(rows)


def _bundled(name: str) -> "CheckpointSettings":
    """The settings of a model that ships with goca, from its folder or else from its denoiser."""
    from goca.diffusion.backbone import Backbone
    from goca.diffusion.loading import load

    return replace(Backbone(load(name, "cpu"), name).settings, name=name, repos=(name,))


def _by_rule(family: "Family") -> dict[str, Any]:
    """The settings of a family's checkpoints without published settings of their own."""
    return {
        "family": family.name,
        "repositories": list(family.repos),
        "timestep": family.timestep,
        "order": family.order,
        "settings": f"{family.block_rule.description}; nobody has reported a score",
    }


def families() -> str:
    """The families as a Markdown table."""
    from goca.diffusion.families import FAMILIES

    lines = [
        "| family | denoisers | attention | text | timestep | reference | heads "
        "| blocks of a checkpoint without settings |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for family in FAMILIES:
        attention = "cross-attention"
        if family.joint is not None:
            attention = f"joint, text {'before' if family.joint.text_first else 'behind'} the pixels"
        elif family.linear_self_attention:
            attention = "cross-attention; affinities of dense features replace linear self-attention"
        cells = (
            family.name,
            ", ".join(family.denoisers) + (f" in {', '.join(family.pipelines)}" if family.pipelines else ""),
            attention,
            ", ".join(_text(text) for text in family.texts),
            f"sigma {family.timestep / 1000:g}" if family.flow else f"timestep {family.timestep}",
            family.feature,
            family.block_rule.heads,
            family.block_rule.description,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _text(text: "TextInput") -> str:
    if text.right_aligned:
        return f"`{text.tokenizer}`, ending at the last column"
    if text.start < 0:
        return f"`{text.tokenizer}` behind {-text.start} tokens that are cut off"
    return f"`{text.tokenizer}`" + (f" from column {text.start}" if text.start else "")


def report(builders: Mapping[str, Callable[[], Any]], as_json: bool) -> bool:
    """Check each family by its tiny pipeline and print the outcomes; returns whether none failed."""
    with progress(hidden=as_json) as bar:
        task = bar.add_task("checking", total=len(builders))
        checks = []
        for name, build in builders.items():
            status, detail = _check(build)
            checks.append({"name": name, "status": status, "detail": detail})
            bar.advance(task)
    if as_json:
        show_json({"families": checks})
    else:
        rows = table("family", "status", "detail")
        for result in checks:
            rows.add_row(*result.values())
        show(rows)
    return all(result["status"] != "failed" for result in checks)


def _check(build: Callable[[], Any]) -> tuple[str, str]:
    """Segment a small image: ("ok", "failed" or "needs EXTRA"; the time taken, or the error)."""
    start = time.perf_counter()
    try:
        _segment(build())
    except Exception as error:  # any failure is this family's result
        detail = " ".join(f"{type(error).__name__}: {error}".split())
        if extra := _extra(error):
            return f"needs {extra}", f'install goca with its extra "{extra}" ({detail})'
        return "failed", detail
    return "ok", f"segmented in {time.perf_counter() - start:.1f} s"


def _segment(pipeline: Any) -> None:
    """Raise unless the pipeline yields finite scores and labels of the image's size."""
    import numpy as np

    from goca.segmenter import Segmenter

    height, width = 96, 160
    ramp = np.mgrid[0:height, 0:width]
    image = np.stack([ramp[0] * 2, ramp[1], ramp.sum(0)], axis=-1).clip(0, 255).astype(np.uint8)
    result = Segmenter.from_pipeline(pipeline, size=64)(image, ["cat", "grass"])
    if result.labels.shape != (height, width):
        raise ValueError(f"labels of {result.labels.shape} for an image of {(height, width)}")
    if not np.isfinite(result.scores.grid).all():
        raise ValueError("scores are not finite")


def _extra(error: Exception) -> str | None:
    """The extra of goca that installs what an ImportError is missing."""
    if not isinstance(error, ImportError):
        return None
    text = f"{error.name} {error}".lower()
    if named := re.search(r"goca\[([\w-]+)\]", text):
        return named[1]
    for requirement in requires("goca") or ():
        optional = re.match(r"""([\w-]+).*extra == ['"]([\w-]+)['"]""", requirement)
        if optional and optional[2] != "dev" and re.search(rf"\b{optional[1].lower()}\b", text):
            return optional[2]
    return None


def _json(settings: "CheckpointSettings") -> dict[str, Any]:
    facts = asdict(settings)
    del facts["layout"]  # only used to recognise a checkpoint
    facts["scores"] = [{**score, "note": UNVERIFIED} for score in facts["scores"]]
    return facts


def _table(settings: "CheckpointSettings") -> "Table":
    rows = table("", settings.name)
    rows.add_row("repositories", "\n".join(settings.repos))
    rows.add_row("size", f"{settings.size} px per side")
    rows.add_row("timestep", str(settings.timestep))
    rows.add_row("heads", settings.heads)
    rows.add_row("reference", settings.reference)
    rows.add_row("refine", "\n".join(settings.refine))
    rows.add_row("order", str(settings.order))
    rows.add_row("settings", settings.origin)
    rows.add_row("nouns", ", ".join(settings.nouns) or "any")
    for source, scores in groupby(settings.scores, key=lambda score: score.source):
        figures = ", ".join(f"{score.dataset} {score.miou}" for score in scores)
        rows.add_row("mIoU", f"{figures}: {source}; {UNVERIFIED}")
    return rows

"""`goca models`: the known checkpoints, and a check that every family of models works on this machine."""

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import requires
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

import typer

from goca.cli import arguments
from goca.cli.console import console, progress, session, table
from goca.errors import GocaError

if TYPE_CHECKING:
    from rich.table import Table

    from goca.diffusion.checkpoints import CheckpointSettings
    from goca.diffusion.families.spec import Family, TextInput

OK, FAILED = "ok", "failed"
UNVERIFIED = "not verified here"


def models(
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Segment an image with a tiny random pipeline of every family.",
            show_default=False,
        ),
    ] = False,
    as_markdown: arguments.MarkdownOption = False,
    as_json: arguments.JsonOption = False,
    verbose: arguments.VerboseOption = False,
) -> None:
    """List the known checkpoints, or check that every family works on this machine.

    Any other checkpoint of a supported family works too, with settings by that family's rule.
    """
    with session(verbose):
        if as_markdown and (check or as_json):
            raise GocaError(f"--markdown and --{'check' if check else 'json'} exclude each other: give one of them")
        if check:
            from goca.testing.tiny import BUILDERS

            passed = report(BUILDERS, as_json)
        elif as_markdown:
            print(families())
            passed = True
        else:
            passed = listing(as_json)
    if not passed:
        raise typer.Exit(1)


@dataclass(frozen=True)
class Checked:
    """How a family fared. status: "ok", "failed" or "needs EXTRA"."""

    name: str
    status: str
    detail: str


def listing(as_json: bool) -> bool:
    """Print the known checkpoints."""
    from goca.diffusion.checkpoints import BY_RULE, ZOO
    from goca.diffusion.families import FAMILIES

    ruled = [_ruled(one, BY_RULE[one.name]) for one in FAMILIES if one.name in BY_RULE]
    if as_json:
        print(json.dumps({"models": [_facts(known) for known in ZOO], "by_rule": ruled}))
    else:
        out = console()
        for known in ZOO:
            out.print(_table(known))
        for facts in ruled:
            rows = table("", facts["family"])
            for name in ("repositories", "timestep", "order", "settings"):
                value = facts[name]
                rows.add_row(name, "\n".join(value) if isinstance(value, list) else str(value))
            out.print(rows)
    return True


def _ruled(family: "Family", repositories: Sequence[str]) -> dict[str, Any]:
    """What is known of a family's checkpoints that nobody has published settings for."""
    return {
        "family": family.name,
        "repositories": list(repositories),
        "timestep": family.timestep,
        "order": family.order,
        "settings": f"{family.rule}; nobody has reported a score",
    }


def families() -> str:
    """The families as a table in Markdown."""
    from goca.diffusion.families import FAMILIES

    lines = [
        "| family | denoisers | attention | text | timestep | reference | layers of a checkpoint that nobody has set |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in FAMILIES:
        attention = "cross-attention"
        if one.joint is not None:
            attention = f"joint, text {'before' if one.joint.text_first else 'behind'} the pixels"
        elif one.linear_self_attention:
            attention = "cross-attention; its dense features stand in for linear self-attention"
        facts = (
            one.name,
            ", ".join(one.denoisers) + (f" in {', '.join(one.pipelines)}" if one.pipelines else ""),
            attention,
            ", ".join(_text(text) for text in one.texts),
            f"share {one.timestep / 1000:g}" if one.flow else f"timestep {one.timestep}",
            one.feature,
            one.rule,
        )
        lines.append(f"| {' | '.join(facts)} |")
    return "\n".join(lines)


def _text(text: "TextInput") -> str:
    if text.right_aligned:
        return f"`{text.tokenizer}`, ending at the last column"
    return f"`{text.tokenizer}`" + (f" from column {text.start}" if text.start else "")


def report(builders: Mapping[str, Callable[[], Any]], as_json: bool) -> bool:
    """Check the family behind each builder of a tiny pipeline and print how it fared; whether none failed."""
    with progress(hidden=as_json) as bar:
        task = bar.add_task("checking", total=len(builders))
        checked = []
        for one in check(builders):
            checked.append(one)
            bar.advance(task)
    if as_json:
        print(json.dumps({"families": [asdict(one) for one in checked]}))
    else:
        rows = table("family", "status", "detail")
        for one in checked:
            rows.add_row(one.name, one.status, one.detail)
        console().print(rows)
    return all(one.status != FAILED for one in checked)


def check(builders: Mapping[str, Callable[[], Any]]) -> Iterator[Checked]:
    """Segment a small image with each pipeline; whatever goes wrong is the family's result."""
    for name, build in builders.items():
        start = time.perf_counter()
        try:
            _segment(build())
            status, detail = OK, f"segmented in {time.perf_counter() - start:.1f} s"
        except Exception as error:
            detail = " ".join(f"{type(error).__name__}: {error}".split())
            extra = _extra(error)
            status = f"needs {extra}" if extra else FAILED
            if extra:
                detail = f'pip install "goca[{extra}]" ({detail})'
        yield Checked(name, status, detail)


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
    """The extra of goca that brings what an ImportError misses."""
    if not isinstance(error, ImportError):
        return None
    text = f"{error.name} {error}".lower()
    if said := re.search(r"goca\[([\w-]+)\]", text):
        return said[1]
    for requirement in requires("goca") or ():
        found = re.match(r"""([\w-]+).*extra == ['"]([\w-]+)['"]""", requirement)
        if found and found[2] != "dev" and re.search(rf"\b{found[1].lower()}\b", text):
            return found[2]
    return None


def _facts(known: "CheckpointSettings") -> dict[str, Any]:
    facts = asdict(known)
    # How a checkpoint is recognised is the loader's business.
    del facts["layout"]
    facts["scores"] = [{**score, "note": UNVERIFIED} for score in facts["scores"]]
    return facts


def _table(known: "CheckpointSettings") -> "Table":
    rows = table("", known.name)
    rows.add_row("repositories", "\n".join(known.repos))
    rows.add_row("size", f"{known.size} px a side")
    rows.add_row("timestep", f"timestep {known.timestep}")
    rows.add_row("heads", known.heads)
    rows.add_row("reference", known.reference)
    rows.add_row("refine", "\n".join(known.refine))
    rows.add_row("order", str(known.order))
    rows.add_row("settings", known.origin)
    rows.add_row("nouns", ", ".join(known.nouns) or "any")
    for source, scores in groupby(known.scores, key=lambda score: score.source):
        figures = ", ".join(f"{score.dataset} {score.miou}" for score in scores)
        rows.add_row("mIoU", f"{figures}: {source}; {UNVERIFIED}")
    return rows

"""`goca segment --resume`: which results of an earlier run stay, as answers to the same question in the same way."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from goca.cli.files import Job
from goca.errors import GocaError
from goca.storage.atomic import sweep

Facts = Mapping[str, Any]
"""What a result's JSON holds."""

BY_THE_RUN = {"origin", "device", "background", "captions", "notes", "versions"}
"""Fields of a plan that say where a choice came from, where it ran, or what followed for the question asked."""


def finished(jobs: Sequence[Job], asked: Facts, plan: Facts) -> dict[Job, Facts]:
    """The jobs whose three files are there, with their JSON; beside the others' files, scratch files are removed.

    asked, plan: as this run writes them. Raises GocaError, naming the first result and what differs, where a result
    answers another question or was made otherwise.
    """
    kept = {}
    wanted = _settled(asked, plan)
    for job in jobs:
        facts = _result(job)
        if facts is None:
            continue
        found = _settled(facts["asked"], facts["plan"])
        other = [name for name in wanted if found.get(name) != wanted[name]]
        if other:
            raise GocaError(
                f"{job.targets[-1]} is of a run that differs in {', '.join(other[:3])}: choose another --out, or leave "
                "out --resume to do every image again"
            )
        kept[job] = facts
    sweep(target for job in jobs if job not in kept for target in job.targets)
    return kept


def _settled(asked: Facts, plan: Facts) -> dict[str, Any]:
    """What the user chose, as JSON gives it back."""
    chosen = {name: value for name, value in plan.items() if name not in BY_THE_RUN}
    return json.loads(json.dumps({**asked, **chosen}))


def _result(job: Job) -> Facts | None:
    """The JSON of a whole result of this job's image; None where there is none."""
    try:
        if not all(target.stat().st_size for target in job.targets):
            return None
        facts = json.loads(job.targets[-1].read_bytes())
        told = isinstance(facts["asked"], dict) and isinstance(facts["plan"], dict)
        return facts if told and _shows(facts, job.image) else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _shows(facts: Facts, image: Path) -> bool:
    """Whether the result is as large as the image, which may have been exchanged since."""
    from PIL import Image

    try:
        with Image.open(image) as opened:
            # The file's sides are the image's, or exchanged where the camera was held upright.
            return sorted(opened.size) == sorted((facts["height"], facts["width"]))
    except Exception:
        # Pillow raises errors of every kind; done again, the image gets its line.
        return False

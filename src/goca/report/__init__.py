"""A run as one page of HTML to look at: its totals, its settings, and its worst images."""

from dataclasses import dataclass
from pathlib import Path

from goca.errors import GocaError
from goca.evaluation.run_folder import FACTS, read_facts
from goca.folders import INDEX
from goca.report.evaluation import evaluation_page
from goca.report.folder import folder_page
from goca.storage.atomic import write_atomic

LIMIT = 200


@dataclass(frozen=True)
class Written:
    """A written report: its kind, "segment" or "evaluate", the number of images, and the number shown."""

    file: Path
    kind: str
    images: int
    shown: int


def write_report(folder: Path, file: Path, limit: int = LIMIT) -> Written:
    """Write the report of a folder that `goca segment` or `goca evaluate` has written, whole or not at all.

    Memory grows with the images that are shown only.

    Args:
        folder: The run.
        file: The page.
        limit: Most images to show, the worst first; 1 or more.

    Raises:
        GocaError: The folder is neither kind, has no images yet or is damaged; an evaluation is unfinished; the limit
            is below 1; the file cannot be written.
    """
    require_folder(folder)
    if limit < 1:
        raise GocaError(f"limit {limit} is too small: give 1 image or more", "limit")
    facts = read_facts(folder)
    if facts is not None:
        kind, (content, images, shown) = "evaluate", evaluation_page(folder, facts, limit)
    elif (folder / INDEX).is_file():
        kind, (content, images, shown) = "segment", folder_page(folder, limit)
    else:
        raise GocaError(
            f"{folder} has neither {INDEX} nor {FACTS}: name a folder that goca segment or goca evaluate has written"
        )
    write_atomic({file: content})
    return Written(file, kind, images, shown)


def require_folder(folder: Path) -> None:
    """Raise GocaError for a path that is not a folder."""
    if folder.is_dir():
        return
    if folder.exists():
        raise GocaError(f"{folder} is a file: name the folder that goca segment or goca evaluate has written")
    raise GocaError(f"no folder {folder}: check the path")

"""Scores and the other arrays of a result as a NumPy archive."""

import io
from typing import Any

import numpy as np

from goca.exports.base import Exportable, ExportContext
from goca.exports.json_document import document


def write(result: Exportable, context: ExportContext) -> bytes:
    """The result's arrays; `json` is the content of its JSON file."""
    file = io.BytesIO()
    facts = document({**result.to_json(), **context.facts}).decode()
    arrays: dict[str, Any] = {**result.arrays(), "json": np.array(facts)}
    np.savez_compressed(file, **arrays)
    return file.getvalue()

"""Scores, with what belongs to them, as NumPy's archive."""

import io

import numpy as np

from goca.exports.base import Exportable, ExportContext
from goca.exports.json_document import document


def write(result: Exportable, context: ExportContext) -> bytes:
    """The result's arrays; `json` is the content of its JSON file."""
    file = io.BytesIO()
    facts = document({**result.to_json(), **context.facts}).decode()
    np.savez_compressed(file, **result.arrays(), json=np.array(facts))
    return file.getvalue()

"""Classes, shares and the plan as JSON."""

import json
from collections.abc import Mapping
from typing import Any

from goca.exports.base import Exportable, ExportContext
from goca.storage.reading import escaped


def document(facts: Mapping[str, Any]) -> bytes:
    """An indented JSON file."""
    return (escaped(json.dumps(facts, indent=2, ensure_ascii=False)) + "\n").encode()


def write(result: Exportable, context: ExportContext) -> bytes:
    """The result's JSON with the context's facts."""
    return document({**result.to_json(), **context.facts})

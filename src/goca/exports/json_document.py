"""Classes, shares and the plan as JSON."""

import json

from goca.exports.base import Exportable, ExportContext


def write(result: Exportable, context: ExportContext) -> bytes:
    """The result's own JSON and the context's facts, indented."""
    document = {**result.to_json(), **context.facts}
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()

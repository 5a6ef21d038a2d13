"""Files that people write and edit: read whole and decoded, or refused in one line."""

import codecs
import json
import math
import os
import stat
from pathlib import Path
from typing import Any, NoReturn

from goca.errors import GocaError

# UTF-32 first: its little-endian mark starts with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def require_regular(path: str | os.PathLike[str]) -> None:
    """GocaError unless the path is a regular file, or a link to one: opening a pipe would wait for ever."""
    try:
        mode = Path(path).stat().st_mode
    except FileNotFoundError:
        raise GocaError(f"no such file: {path}") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise GocaError(f"cannot read {path}: {reason}; check the path") from None
    if stat.S_ISDIR(mode):
        raise GocaError(f"{path} is a folder: name a file")
    if not stat.S_ISREG(mode):
        raise GocaError(f"{path} is not a regular file (it is a pipe, socket or device): copy it to one first")


def read_bytes(path: Path) -> bytes:
    """The content of a regular file; GocaError if it is not one or cannot be read."""
    require_regular(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise GocaError(f"cannot read {path}: {error.strerror}; check the path") from None


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark, which editors write; no mark is left.

    Raises:
        GocaError: it is not a regular file, cannot be read, or is not text in one of these encodings.
    """
    return decode_text(read_bytes(path), str(path))


def read_json(path: Path) -> Any:
    """The value in a JSON file, whose encoding may be any that `read_text` knows.

    Raises:
        GocaError: as for `read_text` and `parse_json`.
    """
    return parse_json(read_text(path), str(path))


def decode_text(content: bytes, name: str) -> str:
    """Text from bytes, as `read_text` says; name: what they are, for the message of the GocaError."""
    encoding = next((encoding for mark, encoding in _MARKS if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError:
        raise GocaError(f"{name} is not text in UTF-8: save it as UTF-8") from None


def parse_json(text: str, name: str) -> Any:
    """The value of a JSON text; name: what it is, for the message.

    Raises:
        GocaError: it is not JSON, is nested too deeply, or has a number that is not finite (NaN, Infinity, 1e400).
    """
    try:
        return json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except RecursionError:
        raise GocaError(f"{name} is nested too deeply to be read: is it the right file?") from None
    except ValueError as error:
        raise GocaError(f"{name} is not JSON ({error}): is the file complete?") from None


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        _refuse(digits)
    return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant[:20]} is not a number that JSON can hold")

"""Files that users write and edit: read whole and decoded, or refused with one line."""

import json
import math
import os
import re
import stat
from pathlib import Path, PureWindowsPath
from typing import Any, NoReturn

from goca.errors import GocaError

MOST_DIGITS = 300
"""Most digits of a whole number: longer ones do not fit a float, and very long ones take Python too long."""


def require_regular(path: str | os.PathLike[str]) -> None:
    """Raise GocaError unless the path is a regular file, or a link to one: opening a pipe would wait for ever."""
    try:
        mode = Path(path).stat().st_mode
    except FileNotFoundError:
        raise GocaError(f"no such file: {path}") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte, or another invalid file name
        reason = error.strerror if isinstance(error, OSError) else error
        raise GocaError(f"cannot read {path}: {reason}; check the path") from None
    if stat.S_ISDIR(mode):
        raise GocaError(f"{path} is a folder: name a file")
    if not stat.S_ISREG(mode):
        raise GocaError(f"{path} is not a regular file (it is a pipe, socket or device): copy it to one first")


def read_bytes(path: Path) -> bytes:
    """The content of a regular file. Raises GocaError if it is not one or cannot be read."""
    require_regular(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise GocaError(f"cannot read {path}: {error.strerror}; check the path") from None


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 or UTF-32, which editors write, without a byte order mark.

    Raises:
        GocaError: It is not a regular file, cannot be read, or is not text in one of these encodings.
    """
    return decode_text(read_bytes(path), str(path))


def read_json(path: Path, finite: bool = True) -> Any:
    """The value in a JSON file, whose encoding may be any that `read_text` knows.

    Raises:
        GocaError: As for `read_text` and `parse_json`.
    """
    return parse_json(read_text(path), str(path), finite)


def decode_text(content: bytes, name: str) -> str:
    """Text from bytes, like `read_text`. name: what they are, for the message of the GocaError."""
    encoding = json.detect_encoding(content)  # by its mark, or by where the first null bytes are
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        text = "\0"
    # Without a mark, a null byte may be damage.
    unsure = encoding.endswith(("le", "be")) and 4 * content.count(0) < len(content)
    if unsure or "\0" in text:
        raise GocaError(f"{name} is not text in UTF-8: save it as UTF-8")
    return text


def parse_json(text: str, name: str, finite: bool = True) -> Any:
    """The value of a JSON text.

    Args:
        text: The text.
        name: What it is, for the message.
        finite: Whether NaN, Infinity and numbers that do not fit a float are refused; otherwise they are read as
            floats, so that one of them does not cost the rest.

    Raises:
        GocaError: It is not JSON, is nested too deeply, or has a refused number.
    """
    try:
        return json_value(text, finite)
    except ValueError as error:
        raise GocaError(f"{name} is not JSON ({error}): check that it is complete") from None


def sent_json(content: bytes) -> Any:
    """The value of a request's body, which is not a file. Raises GocaError like `parse_json` does."""
    try:
        return json_value(decode_text(content, "it"))
    except ValueError as error:
        reason = str(error)
    except GocaError:
        reason = "it is not text in UTF-8"
    raise GocaError(f"the request is not JSON ({reason}): send a JSON object in UTF-8")


def json_value(text: str, finite: bool = True) -> Any:
    """Like `parse_json`, but raises ValueError with only the reason."""
    try:
        if finite:
            return json.loads(text, parse_constant=_refuse, parse_float=_finite, parse_int=_whole)
        return json.loads(text, parse_int=lambda digits: int(digits) if len(digits) <= MOST_DIGITS else math.inf)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def whole(value: Any, least: int = 0, most: int = 2**53) -> int:
    """A whole number that JSON may hold as 3 or 3.0. Raises ValueError for other values, and outside the bounds."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{repr(value)[:40]} is not a whole number from {least} to {most}")
    return value


def inside(name: Any) -> str:
    """A file's name or relative path that stays in its folder, on any system. Raises ValueError for any other value.

    Otherwise a file of annotations could make a server show any file of this machine.
    """
    if not isinstance(name, str) or not PureWindowsPath(name).name.strip():
        raise ValueError(f"{repr(name)[:40]} is not a file's name")
    path = PureWindowsPath(name)  # treats both kinds of slashes as separators
    if path.anchor or ".." in path.parts or re.search(r"[\0-\x1f]", name):
        raise ValueError(f"{repr(name)[:80]} is not the name of a file in the folder")
    return name


def escaped(text: str) -> str:
    """The text in valid UTF-8: a lone surrogate, as from an undecodable file name, becomes an escape: \\udce9.

    Different names stay different, and JSON that is escaped so is read back unchanged.
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _whole(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        _refuse(digits)
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        _refuse(digits)
    return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant[:20]} is not a number that JSON can hold")

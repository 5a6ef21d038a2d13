"""Files and JSON values, damaged in every way, from a seed."""

import math
import random
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

ODD: list[Any] = [None, True, False, 0, -1, 1, 2.5, 139, 1e9, -1e9, 1e308, math.nan, math.inf, 10**400, -(10**18)]
ODD += [
    "",
    "x",
    "139",
    "../x.jpg",
    "\ud800",
    "nan",
    [],
    [[]],
    [None],
    [1],
    {},
    {"a": 1},
    [[1, 2]],
    [[[1, 2]]],
    "0" * 99,
]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something lies in a JSON value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def damaged(value: Any, path: tuple[Any, ...], chance: random.Random) -> Any:
    """A copy in which what lies there is replaced, taken away or doubled."""
    if not path:
        return chance.choice(ODD)
    out = deepcopy(value)
    parent = out
    for key in path[:-1]:
        parent = parent[key]
    match chance.randrange(6):
        case 0:
            del parent[path[-1]]
        case 1 if isinstance(parent, list):
            parent.insert(path[-1], deepcopy(parent[path[-1]]))
        case _:
            parent[path[-1]] = chance.choice(ODD)
    return out


def scrambled(content: bytes, chance: random.Random) -> bytes:
    """Bytes cut, changed, inserted or repeated."""
    out = bytearray(content)
    for _ in range(chance.choice([1, 1, 2, 8])):
        at = chance.randrange(len(out) + 1)
        match chance.randrange(5):
            case 0:
                del out[at:]
            case 1:
                del out[at : at + chance.randrange(1, 9)]
            case 2:
                out[at : at + 1] = bytes([chance.randrange(256)])
            case 3:
                out[at:at] = chance.choice(
                    [b"\0", b"\n", b"\r", b"\xff", b'"', b"[", b"\xef\xbb\xbf", b"9" * 400, b"#"]
                )
            case _:
                out[at:at] = out[: chance.randrange(1, 40)]
    return bytes(out)


def rewrite(path: Path, content: bytes | str) -> None:
    """Write a file anew: where one is truncated, some file systems wait for the disk, two milliseconds each time."""
    path.unlink(missing_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)

"""Records in a file of JSON lines, which survive even if the process that writes them is killed."""

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import RLock
from typing import Any, BinaryIO, Generic, TypeVar

from filelock import FileLock, Timeout

from goca.errors import GocaError
from goca.storage.atomic import write_atomic
from goca.storage.reading import decode_text, json_value, read_bytes, require_regular

T = TypeVar("T")


class JsonLines(Generic[T]):
    """A file with one JSON object per line: any process reads it, one at a time appends to it.

    It may be edited by hand: lines may have any system's endings, and a file that is only read may be in UTF-16.
    A process may be killed at any moment. What was appended is kept; readers skip an unfinished last line, and the next
    process that opens the file cuts it off. A line that only lacks its line break counts.
    It can be used from several threads.

    Args:
        path: The file; it and its folders are created when it is opened.
        decode: Makes a record from a line's object; raises ValueError for anything that is not a record.
        encode: Makes the object of a record, the inverse of `decode`.
        kind: What a line holds, for messages: "line 3 is not `kind`".
    """

    def __init__(
        self,
        path: Path,
        decode: Callable[[Any], T],
        encode: Callable[[T], Any],
        kind: str,
    ) -> None:
        self.path, self.kind = path, kind
        self._decode, self._encode = decode, encode
        self._file: BinaryIO | None = None
        self._mutex = RLock()
        self._lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=0, thread_local=False)

    def read(self) -> list[T]:
        """The records in order. Raises GocaError if the file cannot be read or a line of it is damaged."""
        return [self._record(line, number) for number, line in enumerate(self._lines()[0], start=1) if line.strip()]

    def stream(self) -> Iterator[T]:
        """Like `read`, with one line at a time in memory; a file that is not in UTF-8 is read whole."""
        require_regular(self.path)
        try:
            with self.path.open("rb") as file:
                if json.detect_encoding(file.read(4)).startswith("utf-8"):
                    file.seek(0)
                    lines = (line for rows in file for line in rows.splitlines(keepends=True))
                    for number, line in enumerate(lines, start=1):
                        if not line.endswith((b"\n", b"\r")) and not _is_whole(line):
                            return
                        if line.strip():
                            yield self._record(line, number)
                    return
        except OSError as error:
            raise GocaError(f"cannot read {self.path}: {error.strerror}; check the path") from None
        yield from self.read()

    def open(self) -> None:
        """Lock the file for this process. Raises GocaError if another has it open, or it cannot be written."""
        with self._mutex:
            if self._file is not None:
                return
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._lock.acquire()
                if self.path.exists():
                    require_regular(self.path)
                self._file = self.path.open("ab", buffering=0)
                self._mend()
            except Timeout:
                raise GocaError(
                    f"another process writes {self.path}: wait for it, or choose another folder", "out"
                ) from None
            except BaseException as error:  # Ctrl-C too: nobody else could take the file
                self.close()
                if isinstance(error, OSError):
                    raise self._refusal(error) from None
                raise

    def append(self, *records: T) -> None:
        """Write records, so that not even a system crash loses them; opens the file if needed.

        Raises:
            GocaError: The file cannot be written, or was moved, see `require_present`.
        """
        with self._mutex:
            self.open()
            assert self._file is not None
            self.require_present()
            end = self._file.seek(0, os.SEEK_END)
            try:
                self._write(b"".join(map(self._line, records)))
            except OSError as error:
                # A partial line would corrupt the next one.
                with suppress(OSError):
                    self._file.truncate(end)
                raise self._refusal(error) from None

    def require_present(self) -> None:
        """Raise GocaError if the file was deleted, moved or replaced since it was opened: its lines are lost."""
        with self._mutex:
            try:
                present = self._file is not None and os.path.samestat(self.path.stat(), os.fstat(self._file.fileno()))
            except OSError:
                present = False
        if not present:
            raise GocaError(
                f"{self.path} was deleted, moved or replaced while it was being written: put it back, or start again",
                "out",
            )

    def replace(self, *records: T) -> None:
        """Replace all records by these, atomically; opens the file if needed."""
        with self._mutex:
            self.open()
            assert self._file is not None
            write_atomic({self.path: b"".join(map(self._line, records))})
            self._file.close()
            self._file = self.path.open("ab", buffering=0)

    def close(self) -> None:
        """Let other processes append."""
        with self._mutex:
            if self._file is not None:
                self._file.close()
                self._file = None
            self._lock.release()

    def __enter__(self) -> "JsonLines[T]":
        self.open()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _mend(self) -> None:
        """Cut off a torn last line; end one that lacks only its line break. GocaError if it is not in UTF-8."""
        if not json.detect_encoding(read_bytes(self.path)).startswith("utf-8"):
            raise GocaError(f"{self.path} is not in UTF-8, so lines cannot be added: save it as UTF-8")
        lines, torn = self._lines()
        assert self._file is not None
        if torn:
            self._file.truncate(self._file.seek(0, os.SEEK_END) - torn)
        elif lines[-1]:
            self._write(b"\n")

    def _lines(self) -> tuple[list[bytes], int]:
        """(the whole lines, including text after the last line break if it is JSON; the length of a torn one)."""
        content = read_bytes(self.path)
        if not json.detect_encoding(content).startswith("utf-8"):
            content = decode_text(content, str(self.path)).encode(errors="replace")
        # JSON has no bare line break within a text, not that of an old Mac either.
        *lines, last = re.split(rb"\r\n|[\r\n]", content)
        return ([*lines, last], 0) if _is_whole(last) else (lines, len(last))

    def _record(self, line: bytes, number: int) -> T:
        try:
            return self._decode(json_value(line.decode("utf-8-sig")))
        except ValueError as error:
            raise GocaError(
                f"{self.path}, line {number} is not {self.kind} ({error}): restore the file, or start a new one"
            ) from None

    def _line(self, record: T) -> bytes:
        return json.dumps(self._encode(record), allow_nan=False).encode() + b"\n"

    def _write(self, content: bytes) -> None:
        assert self._file is not None
        number = self._file.fileno()
        while content:
            content = content[os.write(number, content) :]
        os.fsync(number)

    def _refusal(self, error: OSError) -> GocaError:
        return GocaError(f"cannot write {self.path}: {error.strerror}; free some space or choose another folder", "out")


def _is_whole(line: bytes) -> bool:
    """Whether a last line is not torn: no part of an object is JSON."""
    try:
        json.loads(line.strip() or b"null")
    except ValueError:
        return False
    except RecursionError:
        pass  # not torn; reading it raises
    return True

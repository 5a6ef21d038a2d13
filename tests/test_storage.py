"""Files whole or not at all, and lines that survive a kill."""

import errno
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from faults import deaths, full_disk

from goca import GocaError
from goca.storage.atomic import sweep, write_atomic
from goca.storage.json_lines import JsonLines


class TestWriteAtomic:
    def test_makes_folders_and_leaves_nothing_else(self, tmp_path):
        write_atomic({tmp_path / "a/b/photo.json": b"first"})
        write_atomic({tmp_path / "a/b/photo.json": b"second"})
        assert [path.name for path in (tmp_path / "a/b").iterdir()] == ["photo.json"]
        assert (tmp_path / "a/b/photo.json").read_bytes() == b"second"

    def test_a_full_disk_leaves_the_earlier_file(self, tmp_path):
        path = tmp_path / "photo.json"
        write_atomic({path: b"earlier"})
        with full_disk(), pytest.raises(GocaError) as caught:
            write_atomic({path: b"later"})
        assert str(caught.value) == (
            f"cannot write {path}: No space left on device; free some space or choose another folder"
        )
        assert path.read_bytes() == b"earlier"
        assert [left.name for left in tmp_path.iterdir()] == ["photo.json"]

    def test_a_file_where_a_folder_should_be(self, tmp_path):
        (tmp_path / "out").write_bytes(b"a file")
        with pytest.raises(GocaError, match=r"^cannot write .*photo\.json: .*; choose another folder") as caught:
            write_atomic({tmp_path / "out" / "photo.json": b"content"})
        assert "\n" not in str(caught.value)
        assert (tmp_path / "out").read_bytes() == b"a file"

    def test_a_full_disk_on_the_way_leaves_all_earlier_files(self, tmp_path):
        paths = [tmp_path / name for name in ("labels", "overlay", "json")]
        write_atomic(dict.fromkeys(paths, b"earlier"))
        with full_disk(room=2), pytest.raises(GocaError, match=r"json: No space left"):
            write_atomic(dict.fromkeys(paths, b"later"))
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
            path.name: b"earlier" for path in paths
        }

    def test_killed_after_any_step_the_last_file_vouches_for_the_others(self, tmp_path):
        def paths(steps):
            return [tmp_path / str(steps) / name for name in ("labels", "overlay", "json")]

        def write(content):
            return lambda steps: write_atomic(dict.fromkeys(paths(steps), content))

        last_seen = []
        for steps in deaths(write(b"later"), write(b"earlier")):
            files, folder = paths(steps), tmp_path / str(steps)
            if files[-1].exists():
                last_seen.append(files[-1].read_bytes())
                assert {path.read_bytes() for path in files} == {last_seen[-1]}
            scratch = set(folder.iterdir()) - set(files)
            sweep([path.with_name("other") for path in files])
            assert set(folder.iterdir()) - set(files) == scratch
            sweep(files)
            assert set(folder.iterdir()) <= set(files)
        assert steps >= 2  # three files are written
        assert last_seen[0] == b"earlier"
        assert {path.read_bytes() for path in paths(steps + 1)} == {b"later"}


# ---- JSON lines


def numbered(path: Path) -> JsonLines[int]:
    def decode(value: object) -> int:
        if not isinstance(value, dict) or not isinstance(value.get("n"), int):
            raise ValueError("it has no number")
        return value["n"]

    return JsonLines(path, decode, lambda number: {"n": number, "text": "ü\nx"}, "a number")


def test_lines_are_read_as_they_were_appended(tmp_path: Path) -> None:
    path = tmp_path / "new" / "numbers.jsonl"
    with numbered(path) as lines:
        lines.append(2, 3)
        lines.append()
        lines.append(5)
        # Whoever reads needs no lock.
        assert numbered(path).read() == lines.read() == [2, 3, 5]
    assert path.read_bytes().count(b"\n") == 3
    with numbered(path) as lines:
        lines.append(7)
    assert numbered(path).read() == [2, 3, 5, 7]
    assert numbered(path).path.read_bytes().endswith(b"\n")


@pytest.mark.parametrize("length", range(1, len('{"n": 3}') + 1))
def test_a_torn_last_line_is_passed_over_and_cut_off(tmp_path: Path, length: int) -> None:
    path, last = tmp_path / "numbers.jsonl", '{"n": 3}'[:length]
    path.write_text('{"n": 2}\n\n' + last)
    whole = [2, 3] if last.endswith("}") else [2]
    assert numbered(path).read() == whole
    assert path.read_text().endswith(last)
    with numbered(path) as lines:
        lines.append(5)
        assert lines.read() == [*whole, 5]


@pytest.mark.parametrize("line", ['{"n"', '{"m": 2}', "[]", "\x00", "caf\xe9"])
def test_a_damaged_line_is_named_and_stays(tmp_path: Path, line: str) -> None:
    path = tmp_path / "numbers.jsonl"
    path.write_bytes(f'{{"n": 2}}\n{line}\n{{"n": 3}}\n'.encode("latin-1"))
    with pytest.raises(GocaError, match=r"numbers\.jsonl, line 2 is not a number \(.+\): restore the file"):
        numbered(path).read()
    with numbered(path) as lines:
        lines.append(5)
    assert line.encode("latin-1") in path.read_bytes()


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(GocaError, match=r"no such file: .*numbers\.jsonl"):
        numbered(tmp_path / "numbers.jsonl").read()


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "numbers.jsonl"
    code = (
        "import sys; from pathlib import Path; from goca.storage.json_lines import JsonLines\n"
        "JsonLines(Path(sys.argv[1]), dict, dict, 'a number').append({'n': 9})\n"
    )

    def another() -> str:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        process = subprocess.run(
            [sys.executable, "-c", code, path], env=environment, check=False, capture_output=True, text=True
        )
        return process.stderr

    with numbered(path) as lines:
        lines.append(2)
        lines.append(3, 5)
        with pytest.raises(GocaError, match="another process writes") as caught:
            numbered(path).open()
        assert caught.value.hint == "out"
        assert "another process writes" in another()
        lines.append(7)
    assert another() == ""
    assert numbered(path).read() == [2, 3, 5, 7, 9]


def test_ctrl_c_while_a_file_is_opened_leaves_it_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "numbers.jsonl"
    path.write_text('{"n": 2}')  # it lacks its line break, which is written first of all
    lines = numbered(path)

    def interrupted(number: int, content: bytes) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            lines.open()
    with numbered(path) as other:
        other.append(3)
        assert other.read() == [2, 3]


def test_a_full_disk_leaves_no_part_of_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, budget = os.write, [20]

    def little(number: int, content: bytes) -> int:
        if not budget[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = write(number, content[: budget[0]])
        budget[0] -= written
        return written

    path = tmp_path / "numbers.jsonl"
    with numbered(path) as lines:
        with monkeypatch.context() as patched:
            patched.setattr(os, "write", little)
            with pytest.raises(GocaError, match=r"cannot write .*numbers\.jsonl: No space left"):
                lines.append(2, 3)
        assert path.read_bytes() == b""
        lines.append(5)
        assert lines.read() == [5]


def test_threads_write_whole_lines(tmp_path: Path) -> None:
    with numbered(tmp_path / "numbers.jsonl") as lines:
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lines.append, range(60)))
        assert sorted(lines.read()) == list(range(60))


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(GocaError, match=r"cannot write .*choose another folder"):
        numbered(tmp_path / "file" / "numbers.jsonl").open()


def test_records_are_replaced_at_once(tmp_path: Path) -> None:
    path = tmp_path / "numbers.jsonl"
    with numbered(path) as lines:
        lines.append(1, 2)
        lines.replace(3)
        lines.append(4)
        assert lines.read() == [3, 4]

    def replace(steps: int) -> None:
        with numbered(path) as lines:
            lines.replace(5, 6)

    for _ in deaths(replace):
        assert numbered(path).read() in ([3, 4], [5, 6])
    assert numbered(path).read() == [5, 6]

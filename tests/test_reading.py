"""Files that people edit: encodings, pipes, JSON that is none; and text as UTF-8 can hold it."""

import json
import math
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goca import GocaError
from goca.storage.atomic import LONGEST_NAME, short_stem
from goca.storage.reading import (
    decode_text,
    escaped,
    inside,
    parse_json,
    read_bytes,
    read_json,
    read_text,
    require_regular,
    whole,
)

ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-32")
BARE = ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")


@given(st.text(st.characters(exclude_characters="\0\ufeff", exclude_categories=["Cs"])), st.sampled_from(ENCODINGS))
def test_text_is_read_in_every_encoding_of_editors(text: str, encoding: str) -> None:
    assert decode_text(text.encode(encoding), "it") == text


@pytest.mark.parametrize("encoding", BARE)
@pytest.mark.parametrize("text", ["cat", "caf\u00e9\r\n", '{"a": 1}'])
def test_text_in_utf_16_without_a_mark_is_told_by_its_null_bytes(text: str, encoding: str) -> None:
    assert decode_text(text.encode(encoding), "it") == text


@pytest.mark.parametrize(
    "content",
    [
        b"caf\xe9",
        b"\xff\xfea",
        b"\xff\xd8\xff\xe0",
        b"cat\0",
        b"c\0at and dog",
        b"\0cat and dog",
        "\u0436 cat".encode("utf-16-le"),
    ],
)
def test_what_is_not_text_is_refused(content: bytes) -> None:
    with pytest.raises(GocaError, match=r"^it is not text in UTF-8: save it as UTF-8$"):
        decode_text(content, "it")


def test_what_is_not_a_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "socket"))
    for path in (tmp_path / "pipe", tmp_path / "link", tmp_path / "socket", Path("/dev/zero")):
        for read in (require_regular, read_bytes, read_text, read_json):
            with pytest.raises(GocaError, match="is not a regular file"):
                read(path)
    listener.close()
    for path, reason in [
        (tmp_path / "missing", "no such file"),
        (tmp_path, "is a folder"),
        (tmp_path / "missing\0", "cannot read .*check the path"),
        (tmp_path / "\ud800", "cannot read .*check the path"),
        (tmp_path / ("x" * 300), "cannot read .*too long; check the path"),
    ]:
        with pytest.raises(GocaError, match=reason):
            require_regular(path)
    (tmp_path / "file").write_text("cat")
    (tmp_path / "to a file").symlink_to("file")
    assert read_text(tmp_path / "to a file") == "cat"


DAMAGED = {
    "": "is not JSON",
    "{": "is not JSON",
    "[" * 100_000: "nested too deeply",
    '{"a":' * 100_000: "nested too deeply",
    "NaN": "NaN is not a number",
    "[-Infinity]": "-Infinity is not a number",
    '{"a": 1e400}': "1e400 is not a number",
    "4" * 400: "is not a number",
    "-" + "4" * 5000: "is not a number",
}


@pytest.mark.parametrize("text", DAMAGED, ids=lambda text: text[:12])
def test_json_that_is_none(text: str) -> None:
    with pytest.raises(GocaError, match=DAMAGED[text]) as caught:
        parse_json(text, "it")
    assert len(str(caught.value)) < 200


def test_numbers_that_no_float_holds_need_not_cost_the_rest() -> None:
    text = f"[NaN, Infinity, -1e400, {'4' * 5000}, 3, 2.5, {'4' * 300}]"
    not_a_number, *rest = parse_json(text, "it", finite=False)
    assert math.isnan(not_a_number)
    assert rest == [math.inf, -math.inf, math.inf, 3, 2.5, int("4" * 300)]
    with pytest.raises(GocaError, match="nested too deeply"):
        parse_json("[" * 100_000, "it", finite=False)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(JSON_VALUES)
def test_json_is_read_as_it_was_written(value: Any) -> None:
    assert parse_json(json.dumps(value), "it") == parse_json(json.dumps(value), "it", finite=False) == value


@pytest.mark.parametrize("value", [3, 3.0, 2**53, 0])
def test_whole_numbers(value: Any) -> None:
    assert whole(value) == value
    assert type(whole(value)) is int


@pytest.mark.parametrize("value", [True, None, "3", 2.5, -1, 2**53 + 1, math.nan, math.inf, [3], {}, 10**400])
def test_what_is_not_a_whole_number(value: Any) -> None:
    with pytest.raises(ValueError, match="is not a whole number from 0 to"):
        whole(value)


@pytest.mark.parametrize("name", ["a.jpg", "train/a b.jpg", "..a.jpg", "caf\u00e9", "\udce9.jpg", "a..", "a/./b"])
def test_names_in_a_folder(name: str) -> None:
    assert inside(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "/etc/a",
        "../a",
        "a/../../b",
        "..",
        "C:\\a",
        "C:a",
        "\\a",
        "..\\a",
        "a\\..\\..\\b",
        "\\\\host\\share\\a",
        "//host/a/b",
        *("", " ", ".", "./", "a\0", "a\n", "a\x1b[2J", None, 7, ["a"], True),
    ],
)
def test_names_that_lead_elsewhere(name: Any) -> None:
    with pytest.raises(ValueError, match="is not"):
        inside(name)


@given(st.text(st.characters()), st.text(st.characters()))
def test_escaped_text_can_be_stored_and_is_read_back_from_json(text: str, other: str) -> None:
    assert escaped(text).encode("utf-8").decode("utf-8") == escaped(text)
    assert escaped(text) == text or any("\ud800" <= character <= "\udfff" for character in text)
    document = escaped(json.dumps([text, other], ensure_ascii=False))
    assert json.loads(document.encode()) == json.loads(json.dumps([text, other]))


def test_names_that_differ_in_a_byte_stay_different() -> None:
    names = [os.fsdecode(b"caf\xe9.jpg"), os.fsdecode(b"caf\xe8.jpg"), "caf\u00e9.jpg", "caf\ufffd.jpg"]
    assert len({escaped(name) for name in names}) == 4


SUFFIXES = (".labels.png", ".json", ".overlay.png")


@given(st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), max_size=400))
def test_a_long_stem_is_cut_to_what_file_systems_hold(stem: str) -> None:
    short = short_stem(stem, SUFFIXES)
    assert all(len(os.fsencode(short + suffix)) <= LONGEST_NAME for suffix in SUFFIXES)
    if len(os.fsencode(stem)) <= LONGEST_NAME - len(".overlay.png"):
        assert short == stem
    else:
        assert stem.startswith(short[:-9])
        assert len(os.fsencode(short)) > LONGEST_NAME - len(".overlay.png") - 4


def test_long_stems_that_differ_at_the_end_stay_different(tmp_path: Path) -> None:
    stems = ["x" * 255, "x" * 254 + "y", "\u732b" * 85, os.fsdecode(b"\xe9" * 255)]
    shortened = [short_stem(stem, SUFFIXES) for stem in stems]
    assert len(set(shortened)) == 4
    for stem in shortened:
        (tmp_path / f"{stem}.overlay.png").write_bytes(b"")

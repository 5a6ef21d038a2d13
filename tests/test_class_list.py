"""Lists of classes: one grammar, whichever way they come in."""

import json
from pathlib import Path

import numpy as np
import pytest
from dataset_folders import grey, image
from hypothesis import given, settings
from hypothesis import strategies as st

from goca import GocaError
from goca.cli import arguments
from goca.evaluation.datasets import open_dataset
from goca.evaluation.datasets.folder import read_classes
from goca.text.class_list import HIGHEST, parse_class_list

CAT, GRASS = ("cat", ()), ("grass", ())
PAIR = [CAT, GRASS]
SAME = {
    "cat\ngrass\n": PAIR,
    "# my classes\ncat\ngrass\n": PAIR,
    "cat # the animal\n\n  \ngrass": PAIR,
    "\ufeffcat\r\ngrass\r\n": PAIR,
    "cat\rgrass\r": PAIR,
    "cat\x85grass": PAIR,
    "cat  \n\tgrass\t\n": PAIR,
    "cat\n\ufeffgrass": PAIR,
    "cat, grass": PAIR,
    "cat, grass,\n": PAIR,
    "cat,\ngrass,\n": PAIR,
    "cat\u200b\ngrass": PAIR,
    "# all\ncat,grass # on a line\n": PAIR,
    "1\tcat\n2\tgrass\n": PAIR,
    "1 cat\n2 grass\n": PAIR,
    "1: cat\n2: grass\n": PAIR,
    "1. cat\n2. grass\n": PAIR,
    "1) cat\n2) grass\n": PAIR,
    "1,cat\n2,grass\n": PAIR,
    "1;cat\n2;grass\n": PAIR,
    "1=cat\n2 = grass\n": PAIR,
    "01 cat\n02 grass\n": PAIR,
    "1 : cat\n2 : grass\n": PAIR,
    "1: cat\ngrass\n": PAIR,
    "1 cat, 2 grass": PAIR,
    "0 background\n1 cat\n2 grass\n": PAIR,
    "0: background\n1: cat\n2: grass\n": PAIR,
    "__ignore__\n_background_\ncat\ngrass\n": PAIR,
    "cat\ngrass\n255: void\n": PAIR,
    "cat: kitty, puss\ngrass\n": [("cat", ("kitty", "puss")), GRASS],
    "cat, kitty, puss\ngrass\n": [("cat", ("kitty", "puss")), GRASS],
    "cat: kitty, puss": [("cat", ("kitty", "puss"))],
    "1 cat: kitty\n2 grass:\n": [("cat", ("kitty",)), GRASS],
    "1: cat: kitty\n2: grass\n": [("cat", ("kitty",)), GRASS],
    "1: cat, kitty\n2: grass\n": [("cat", ("kitty",)), GRASS],
    "1: 2 wheeler\n2: c#\n": [("2 wheeler", ()), ("c#", ())],
    "2-wheeler\nc#": [("2-wheeler", ()), ("c#", ())],
    "7\n8\n": [("7", ()), ("8", ())],
    "Cat\ncaf\u00e9 au lait\n": [("Cat", ()), ("caf\u00e9 au lait", ())],
}


@pytest.mark.parametrize("text", SAME)
def test_the_same_text_has_the_same_classes_each_way_in(text: str, tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_bytes(text.encode())
    inline, from_file = arguments.classes(text, None)[0], arguments.classes(None, path)[0]
    assert list(inline.items()) == list(from_file.items()) == SAME[text]
    folder = read_classes(path)
    assert [(category.name, category.synonyms) for category in folder.categories] == SAME[text]
    # The value of each in a label file is its label in results.
    assert folder.labels[[1, len(SAME[text])]].tolist() == [1, len(SAME[text])]
    for label, (name, synonyms) in enumerate(SAME[text], start=1):
        assert {folder.words[word.lower()] for word in (name, *synonyms)} == {label}


AMBIGUOUS = {
    "1 cat\ngrass\n": '"1 cat" it is unclear whether 1 is a label',
    "cat\n2 grass\n": '"2 grass" it is unclear whether 2 is a label',
    "cat\n2\tgrass\n": "it is unclear",
    "1 cat\n3 grass\n": "it is unclear",
    "2 cat\n1 grass\n": "it is unclear",
    "1 cat\n1 grass\n": "it is unclear",
    "1: cat\n2 grass\n": "it is unclear",
    "id\tname\n1\tcat\n2\tgrass\n": "it is unclear",
    "2 wheeler, car": '"2 wheeler" it is unclear',
    "cat\t1\ngrass\t2\n": "is not a name",
    "1: cat\n1: grass\n": "line 2 gives 1 to two classes",
    "cat\n1: grass\n": "line 2 gives 1 to two classes",
    "cat\nCAT\n": 'line 2 names "CAT" twice',
    "cat: puss\ndog: puss\n": 'line 2 names "puss" twice',
    "sky, background\ncat": 'line 1 names "background" twice',
    "-1: plate\n0: cat\n": 'line 1 gives "plate" a label below 0',
    "70000: cat\n": "above 65535",
    f"{'4' * 5000}: cat\n": "above 65535",
    ": kitty\ncat": "line 1 has no class before its synonyms",
    ", kitty\ncat": "line 1 has no class before its synonyms",
    "1: cat, 2: grass": "has a comma before its colon: write one class per line",
    "cat: a: b\n": "is not a name",
    "cat, dog: puss\n": "has a comma before its colon",
    "cat, dog,\ngrass, sky\n": "line 1 ends in a comma, as if it continued",
    "cat:1\ndog:3\n": "line 1: '1' is not a name",
    "cat,1\ndog,3\n": "line 1: '1' is not a name",
    "cat = 1\ndog = 3\n": "'cat = 1' is not a name",
    "1 - cat\n2 - dog\n": "'- cat' is not a name",
    "names:\n- cat\n- dog\n": "line 2: '- cat' is not a name",
    '["cat", "dog"]': "is not a name: separate classes by commas",
    "[1] cat\n[2] dog": "is not a name",
    "cat;dog": "'cat;dog' is not a name: separate classes by commas, or write one per line",
    "cat\uff0cdog": "is not a name: separate classes by commas",
}


@pytest.mark.parametrize("text", AMBIGUOUS, ids=lambda text: text[:20])
def test_a_list_that_can_be_read_in_two_ways_is_refused_each_way_in(text: str, tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_text(text)
    for read in (
        lambda: arguments.classes(text, None),
        lambda: arguments.classes(None, path),
        lambda: read_classes(path),
    ):
        with pytest.raises(GocaError, match=AMBIGUOUS[text]) as caught:
            read()
        assert len(str(caught.value)) < 400


@pytest.mark.parametrize("text", ["", "# none\n", " , ", "\n\n", "background", "void\n0: background"])
def test_a_list_without_a_class(text: str, tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_text(text)
    for read in (
        lambda: arguments.classes(text, None),
        lambda: arguments.classes(None, path),
        lambda: read_classes(path),
    ):
        with pytest.raises(GocaError, match="no classes"):
            read()


@pytest.mark.parametrize("text", ["7: road\n8: sidewalk\n", "7 road\n8 sidewalk\n"])
def test_labels_that_results_would_not_have(text: str, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text(text)
    image(tmp_path / "photo.jpg", (1, 3))
    grey(tmp_path / "photo.png", np.array([[0, 7, 8]], np.uint8))
    assert open_dataset("folder", tmp_path).samples[0].truth().tolist() == [[0, 1, 2]]
    with pytest.raises(GocaError, match=r'gives "road" the label 7, which in results would be 1') as caught:
        arguments.classes(None, tmp_path / "classes.txt")
    assert caught.value.hint == "classes_file"


def test_labels_from_0_are_of_classes_where_the_list_says_so(tmp_path: Path) -> None:
    for text in ("0: cat\n1: grass\n", "0 cat\n1 grass\n"):
        (tmp_path / "classes.txt").write_text(text)
        classes = read_classes(tmp_path / "classes.txt")
        assert classes.labels[:2].tolist() == [1, 2]
        assert not classes.background
        with pytest.raises(GocaError, match='gives "cat" the label 0'):
            arguments.classes(text, None)


def test_bytes_that_are_no_text_can_be_stored() -> None:
    (name,) = arguments.classes("caf\udce9", None)[0]
    assert json.loads(json.dumps(name).encode()) == "caf\ufffd"


NAMES = st.text("abc\u00e9 #:,\t.)0123-\r\n", min_size=1, max_size=12)


@settings(max_examples=2000)
@given(st.lists(NAMES, max_size=6).map("\n".join))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        entries = parse_class_list(text, "the list")
    except GocaError:
        return
    words = [word for entry in entries for word in (entry.name, *entry.synonyms)]
    assert all(word == word.strip() != "" and not set(word) & set(":,\n\r\t") for word in words)
    labels = [entry.label for entry in entries]
    assert len(set(labels)) == len(labels)
    assert all(label is not None and 0 <= label <= HIGHEST for label in labels)
    # Numbered, a list says what it says.
    numbered = "".join(f"{entry.label}: {entry.name}: {', '.join(entry.synonyms)}\n" for entry in entries)
    assert parse_class_list(numbered, "the list") == entries


def test_no_list_at_all(tmp_path: Path) -> None:
    with pytest.raises(GocaError, match="no classes"):
        arguments.classes(None, None)
    with pytest.raises(GocaError, match="no such file") as caught:
        arguments.classes(None, tmp_path / "missing.txt")
    assert caught.value.hint == "classes_file"

"""`goca evaluate` and `goca ablate`: one object, one table, one line for a mistake."""

import json

import pytest

from goca.apps.cli import main


def test_evaluate_prints_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    code, (out, err) = main(["evaluate", "scenes", "--limit", "3", "--json"]), capsys.readouterr()
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert 0 < told["miou"] <= 1
    assert 0 < told["pixel_accuracy"] <= 1
    assert told["ci95"][0] <= told["miou"] <= told["ci95"][1]
    assert told["protocol"]["pictures"] == 3
    assert told["plan"]["recipe"] == "goca"


def test_ablate_prints_every_part(capsys: pytest.CaptureFixture[str]) -> None:
    code, (out, err) = main(["ablate", "scenes", "--limit", "2", "--json"]), capsys.readouterr()
    assert (code, err) == (0, "")
    rows = json.loads(out)["rows"]
    assert rows[0]["gain"] == 0
    assert {"heads", "layers", "rescaling"} <= {row["name"] for row in rows}


def test_ablate_as_a_table_for_a_document(capsys: pytest.CaptureFixture[str]) -> None:
    code, (out, _) = main(["ablate", "scenes", "--limit", "2", "--markdown"]), capsys.readouterr()
    assert code == 0
    lines = out.splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert "44.3 / 51.1" in lines[2]


@pytest.mark.parametrize("wrong", [("coco",), ("scenes", "--recipe", "best"), ("scenes", "--captions", "poems")])
def test_what_cannot_be_evaluated_is_one_line(wrong: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    code, (out, err) = main(["evaluate", *wrong]), capsys.readouterr()
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1

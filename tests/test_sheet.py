"""Contact sheets: where the images and their captions stand."""

import numpy as np
import pytest
from PIL import Image

from goca.imaging import sheet as sheet_module
from goca.imaging.sheet import GAP, TYPE, Cell, contact_sheet

LINE = round(1.7 * TYPE)


@pytest.fixture(autouse=True)
def side(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sheet_module, "SIDE", 100)


def plain(colour: str, width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), colour)


def test_images_stand_in_rows_and_columns_over_their_captions() -> None:
    rows = [
        [Cell(plain("red", 100, 50), "a"), Cell(plain("lime", 50, 100), "b")],
        [Cell(plain("blue", 400, 200), "c", (255, 0, 255))],
    ]
    sheet = contact_sheet(rows)
    assert sheet.size == (100 + 50 + 3 * GAP, 100 + 50 + 2 * LINE + 3 * GAP)
    pixels = np.asarray(sheet)
    assert tuple(pixels[GAP, GAP]) == (255, 0, 0)
    assert tuple(pixels[GAP, GAP + 100 + GAP]) == (0, 255, 0)
    second = GAP + 100 + LINE + GAP
    assert (pixels[second : second + 50, GAP : GAP + 100] == (0, 0, 255)).all()
    # The rest of the second row is paper, and something is written under each image.
    assert (pixels[second:, GAP + 100 + GAP :] == 255).all()
    assert all((pixels[top : top + LINE, GAP : GAP + 60] < 200).any() for top in (GAP + 100, second + 50))
    assert tuple(pixels[second + 50 + LINE // 2, GAP + TYPE // 2]) == (255, 0, 255)


@pytest.mark.parametrize(("width", "height"), [(5, 7), (300, 420)])
def test_images_are_made_to_fit(width: int, height: int) -> None:
    sheet = contact_sheet([[Cell(plain("blue", width, height), "")]])
    assert sheet.size == (71 + 2 * GAP, 100 + LINE + 2 * GAP)
    assert (np.asarray(sheet)[GAP : GAP + 100, GAP : GAP + 71] == (0, 0, 255)).all()


def test_a_long_caption_is_cut_and_a_foreign_one_stands_as_a_mark() -> None:
    words = "a word that is much too long for it"
    sheet = contact_sheet([[Cell(plain("red", 60, 60), words), Cell(plain("red", 60, 60), "日")]])
    assert sheet.width == 2 * 100 + 3 * GAP
    written = np.asarray(sheet)[GAP + 100 :]
    assert (written[:, GAP : GAP + 100] < 200).any()
    assert (written[:, GAP + 100 : GAP + 100 + GAP] == 255).all()
    assert (written[:, GAP + 100 + GAP :] < 200).any()

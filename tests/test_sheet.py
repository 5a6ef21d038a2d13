"""Contact sheets: where the pictures and their captions stand."""

import numpy as np
import pytest
from PIL import Image

from goca.sheet import GAP, TYPE, Cell, contact_sheet

LINE = round(1.7 * TYPE)


def plain(colour: str, width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), colour)


def test_pictures_stand_in_rows_and_columns_over_their_captions() -> None:
    rows = [
        [Cell(plain("red", 100, 50), "a"), Cell(plain("lime", 50, 100), "b")],
        [Cell(plain("blue", 400, 200), "c", (255, 0, 255))],
    ]
    sheet = contact_sheet(rows, side=100)
    assert sheet.size == (100 + 50 + 3 * GAP, 100 + 50 + 2 * LINE + 3 * GAP)
    pixels = np.asarray(sheet)
    assert tuple(pixels[GAP, GAP]) == (255, 0, 0)
    assert tuple(pixels[GAP, GAP + 100 + GAP]) == (0, 255, 0)
    second = GAP + 100 + LINE + GAP
    assert (pixels[second : second + 50, GAP : GAP + 100] == (0, 0, 255)).all()
    # The rest of the second row is paper, and something is written under each picture.
    assert (pixels[second:, GAP + 100 + GAP :] == 255).all()
    assert all((pixels[top : top + LINE, GAP : GAP + 60] < 200).any() for top in (GAP + 100, second + 50))
    assert tuple(pixels[second + 50 + LINE // 2, GAP + TYPE // 2]) == (255, 0, 255)


def test_small_pictures_keep_their_pixels() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8))
    sheet = np.asarray(contact_sheet([[Cell(picture, "")]], side=30))
    shown = sheet[GAP : GAP + 28, GAP : GAP + 20]
    assert (shown[::4, ::4] == np.asarray(picture)).all()


def test_a_long_caption_is_cut_and_a_foreign_one_stands_as_a_mark() -> None:
    sheet = contact_sheet(
        [[Cell(plain("red", 60, 60), "a word that is much too long"), Cell(plain("red", 60, 60), "日")]], 60
    )
    assert sheet.width == 2 * 60 + 3 * GAP
    written = np.asarray(sheet)[GAP + 60 :]
    assert (written[:, : 60 + GAP] < 200).any()
    assert (written[:, GAP + 60 : GAP + 60 + GAP] == 255).all()


def test_no_picture_makes_no_sheet() -> None:
    with pytest.raises(ValueError, match="needs a picture"):
        contact_sheet([[]])

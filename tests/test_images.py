"""Images in: every kind of file and array that users have, and the sizes at which a model sees them."""

import io
import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin, features

from goca.errors import GocaError
from goca.imaging.images import common_grid, fit, load, needs_windows, tiles, windows
from goca.maths.windows import Windows

properties = settings(max_examples=100, deadline=None)
ORIENTATION = 0x0112


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def saved(folder: Path, image: Image.Image, name: str = "image.png", **options: Any) -> Path:
    image.save(folder / name, **options)
    return folder / name


def blank(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height))


def refused(image: Any, *parts: str) -> None:
    with pytest.raises(GocaError) as error:
        load(image)
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


# ---- what is not an image


def test_files_that_are_no_images(tmp_path: Path) -> None:
    refused(tmp_path / "missing.png", "no such file", "missing.png")
    refused(str(tmp_path / "missing.png"), "no such file", "missing.png")
    refused(tmp_path, "folder", tmp_path.name)
    (tmp_path / "empty.png").touch()
    refused(tmp_path / "empty.png", "empty.png", "not an image")
    (tmp_path / "notes.jpg").write_text("a cat on grass")
    refused(tmp_path / "notes.jpg", "notes.jpg", "not an image")
    refused(tmp_path / "notes.jpg" / "inside.png", "inside.png")
    refused(tmp_path / ("long" * 500), "cannot be read")


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_a_truncated_file(tmp_path: Path, kind: str) -> None:
    path = saved(tmp_path, Image.fromarray(noise(40, 50)), f"half.{kind}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refused(path, f"half.{kind}")


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("kind", ["png", "gif"])
def test_no_file_stays_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, broken: bool) -> None:
    path = saved(tmp_path, Image.fromarray(noise(40, 50)), f"film.{kind}", save_all=True, append_images=[blank(50, 40)])
    if broken:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 4])
    opened = []
    open_ = Image.open
    monkeypatch.setattr(Image, "open", lambda *given: opened.append(open_(*given)) or opened[-1])
    with suppress(GocaError):
        load(path)
    # A header too short to know the image by is closed by Pillow itself.
    assert all(image.fp is None or image.fp.closed for image in opened)
    assert opened or broken


def test_a_truncated_image_that_the_user_opened(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(noise(40, 50)))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    # Pillow reads only the header until somebody looks.
    with Image.open(path) as opened:
        refused(opened, "the image", "complete")


def test_a_decoder_that_breaks_in_its_own_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Image.Image) -> None:
        raise RuntimeError("first line\nsecond line")

    path = saved(tmp_path, blank(20, 20))
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", broken)
    refused(path, "image.png", "first line second line")


def encoded(kind: str) -> bytes:
    file = io.BytesIO()
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(noise(24, 20)).save(file, kind, exif=exif)
    return file.getvalue()


KINDS = ["PNG", "JPEG", "TIFF", "WEBP", *(["AVIF"] if features.check("avif") else [])]
FILES = {kind: encoded(kind) for kind in KINDS}
damages = st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=8)


# What Pillow warns of while it reads nonsense is not the matter here.
@pytest.mark.filterwarnings("ignore")
@properties
@given(st.sampled_from(KINDS), damages, st.integers(0, 10_000) | st.just(10_000))
def test_a_damaged_file_is_an_image_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, kind: str, damage: list[tuple[int, int]], keep: int
) -> None:
    content = bytearray(FILES[kind])
    for place, value in damage:
        content[place % len(content)] = value
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(content[:keep])
    try:
        assert load(path).mode == "RGB"
    except GocaError as error:
        assert "\n" not in str(error)  # noqa: PT017  either way of ending is right


@pytest.mark.parametrize("image", [None, 5, b"bytes", [[0, 0], [0, 0]]], ids=str)
def test_other_types(image: Any) -> None:
    # The function as users have it, without the tests' type checks, which would speak first.
    unchecked = load
    while hasattr(unchecked, "__wrapped__"):
        unchecked = unchecked.__wrapped__
    with pytest.raises(GocaError, match=type(image).__name__):
        unchecked(image)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((20, 20), np.uint8),
        np.zeros((3, 20, 20), np.uint8),
        np.zeros((20, 20, 4), np.uint8),
        np.zeros((20, 20, 1), np.uint8),
        np.zeros((1, 20, 20, 3), np.uint8),
        np.zeros((20, 20, 3), np.float32),
        np.zeros((20, 20, 3), np.int64),
        np.zeros((20, 20, 3), bool),
    ],
    ids=lambda array: f"{array.shape} {array.dtype}",
)
def test_arrays_that_are_no_images(array: np.ndarray) -> None:
    refused(array, str(array.shape), str(array.dtype), "(height, width, 3) uint8")


@pytest.mark.parametrize(("width", "height"), [(1, 1), (15, 15), (15, 100), (100, 15), (16, 1)])
def test_too_small(tmp_path: Path, width: int, height: int) -> None:
    refused(blank(width, height), f"{width} x {height}", "16 px")
    refused(np.zeros((height, width, 3), np.uint8), f"{width} x {height}", "16 px")
    refused(saved(tmp_path, blank(width, height)), "image.png", f"{width} x {height}", "16 px")


def test_empty_arrays_are_too_small() -> None:
    refused(np.zeros((0, 20, 3), np.uint8), "16 px")


def test_16_px_will_do(tmp_path: Path) -> None:
    assert load(saved(tmp_path, blank(16, 16))).size == (16, 16)
    assert load(np.zeros((16, 99, 3), np.uint8)).size == (99, 16)


def test_a_decompression_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, blank(64, 64))
    # Pillow refuses twice as many pixels as this.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64 // 2 - 1)
    refused(path, "image.png", "too large", "scale it down")


# ---- what is


def same(image: Any, expected: np.ndarray) -> None:
    loaded = load(image)
    assert loaded.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(loaded), expected)


def test_paths_images_and_arrays_are_one(tmp_path: Path) -> None:
    array = noise(17, 29)
    path = saved(tmp_path, Image.fromarray(array))
    for image in (path, str(path), Image.fromarray(array), array):
        same(image, array)
    # A view that is not contiguous, and one that cannot be written.
    same(noise(40, 40)[::2, ::-1], noise(40, 40)[::2, ::-1])
    array.flags.writeable = False
    same(array, array)


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, 2).astype(np.uint8)


def test_grey_of_8_16_and_1_bit(tmp_path: Path) -> None:
    byte = noise(17, 29, 1)[..., 0]
    same(saved(tmp_path, Image.fromarray(byte)), grey(byte))
    # The lower byte is what 8 bits cannot hold.
    deep = byte.astype(np.uint16) * 256 + noise(29, 17, 1)[..., 0].T
    same(saved(tmp_path, Image.fromarray(deep)), grey(byte))
    same(saved(tmp_path, Image.fromarray(deep), "deep.tif"), grey(byte))
    same(Image.fromarray(deep.astype(np.int32)), grey(byte))
    same(saved(tmp_path, Image.fromarray(byte > 127)), grey((byte > 127) * 255))


def on_white(colour: int, alpha: int) -> float:
    return (colour * alpha + 255 * (255 - alpha)) / 255


def test_alpha_is_laid_on_white(tmp_path: Path) -> None:
    rgba = noise(17, 29, 4)
    loaded = np.asarray(load(saved(tmp_path, Image.fromarray(rgba))))
    for y, x in [(0, 0), (16, 28), (5, 11), (7, 3)]:
        *colour, alpha = map(int, rgba[y, x])
        # Pillow rounds on the way.
        assert loaded[y, x].tolist() == pytest.approx([on_white(one, alpha) for one in colour], abs=1)
    la = Image.merge("LA", [Image.new("L", (20, 16), 100), Image.new("L", (20, 16), 51)])
    assert load(saved(tmp_path, la)).getpixel((3, 3)) == (224, 224, 224)
    assert load(Image.new("RGBA", (20, 16), (9, 9, 9, 0))).getpixel((3, 3)) == (255, 255, 255)
    assert load(Image.new("RGBA", (20, 16), (9, 8, 7, 255))).getpixel((3, 3)) == (9, 8, 7)


def test_palettes_with_and_without_transparency(tmp_path: Path) -> None:
    image = Image.new("P", (20, 16), 1)
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putpixel((0, 0), 0)
    image.putpixel((1, 0), 2)
    for kind in ("png", "gif"):
        plain = load(saved(tmp_path, image, f"plain.{kind}"))
        assert [plain.getpixel((x, 0)) for x in range(3)] == [(10, 20, 30), (70, 80, 90), (40, 50, 60)]
        holed = load(saved(tmp_path, image, f"holed.{kind}", transparency=2))
        assert [holed.getpixel((x, 0)) for x in range(3)] == [(10, 20, 30), (255, 255, 255), (40, 50, 60)]
    # One alpha for each colour of the palette.
    half = load(saved(tmp_path, image, "half.png", transparency=bytes([255, 51, 0])))
    assert [half.getpixel((x, 0)) for x in range(3)] == [(10, 20, 30), (255, 255, 255), (212, 214, 216)]


def test_a_colour_that_stands_for_transparency(tmp_path: Path) -> None:
    image = blank(20, 16)
    image.putpixel((0, 0), (1, 2, 3))
    loaded = load(saved(tmp_path, image, transparency=(1, 2, 3)))
    assert [loaded.getpixel((x, 0)) for x in range(2)] == [(255, 255, 255), (0, 0, 0)]


def test_cmyk(tmp_path: Path) -> None:
    ink = Image.new("CMYK", (20, 16), (255, 0, 0, 0))
    assert load(ink).getpixel((3, 3)) == (0, 255, 255)
    red, green, blue = load(saved(tmp_path, ink, "ink.jpg")).getpixel((3, 3))  # type: ignore[misc]
    assert red < 10
    assert min(green, blue) > 245


@pytest.mark.parametrize("mode", ["1", "PA", "RGBa", "F", "I;16"])
def test_every_mode_comes_out_as_rgb(mode: str) -> None:
    image = Image.new(mode, (20, 16))
    before = image.copy()
    loaded = load(image)
    assert (loaded.mode, loaded.size) == ("RGB", (20, 16))
    # The user's own image stays as it was.
    assert image == before


def test_a_mode_that_nothing_converts() -> None:
    refused(Image.new("La", (20, 16)), "La")


# How a file's pixels lie when the camera was held so, from what is to be seen (EXIF 2.32, tag Orientation).
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda seen: seen,
    6: lambda seen: np.rot90(seen, 1),
    7: lambda seen: seen[::-1, ::-1].transpose(1, 0, 2),
}


@pytest.mark.parametrize("orientation", TURNS)
def test_exif_rotation(tmp_path: Path, orientation: int) -> None:
    seen = noise(17, 29)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = saved(tmp_path, Image.fromarray(np.ascontiguousarray(TURNS[orientation](seen))), exif=exif)
    same(path, seen)
    with Image.open(path) as opened:
        same(opened, seen)


def test_the_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (20, 16), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    path = saved(tmp_path, frames[0], "film.gif", save_all=True, append_images=frames[1:])
    same(path, np.asarray(frames[0]))


# ---- the size at which a model sees it


def test_fit_by_hand() -> None:
    assert fit(blank(512, 512), 512, 8) == (512, 512)
    assert fit(blank(99, 99), 512, 8) == (512, 512)
    # sqrt(4 / 3) = 1.1547: 443.4 x 591.2, in eights 440 and 592.
    assert fit(blank(640, 480), 512, 8) == (440, 592)
    assert fit(blank(480, 640), 512, 8) == (592, 440)
    assert fit(blank(1024, 256), 512, 8) == (256, 1024)
    assert fit(blank(400, 100), 64, 8) == (32, 128)


def test_a_long_image_is_fitted_until_it_would_be_too_much() -> None:
    # At 64 px a side 12000 x 40 shrinks to 1108.5 x 3.7: the short side cannot be less than 8, the long one keeps.
    assert fit(blank(12000, 40), 64, 8) == (8, 1112)
    # 4 * 64 * 64 = 8 * 2048 px, which 1024 : 1 just reaches.
    assert fit(blank(16384, 16), 64, 8) == (8, 2048)
    with pytest.raises(GocaError, match=r"17000 x 16 px is too long to be seen: cut it"):
        fit(blank(17000, 16), 64, 8)


sides = st.integers(16, 4000)


@properties
@given(sides, st.floats(0.25, 4), st.sampled_from([64, 96, 512, 768, 1024]), st.sampled_from([8, 16]))
def test_fit_keeps_area_and_aspect_to_half_a_multiple(side: int, aspect: float, size: int, multiple: int) -> None:
    image = blank(side, max(16, round(side * aspect)))
    grid = fit(image, size, multiple)
    root = math.sqrt(image.height / image.width)
    for got, ideal in zip(grid, (size * root, size / root), strict=True):
        assert got % multiple == 0
        assert got > 0
        assert abs(got - ideal) <= multiple / 2 + 1e-6


def test_common_grid_by_hand() -> None:
    assert common_grid((64, 64), 64) == (64, 64)
    assert common_grid((128, 128), 64) == (64, 64)
    assert common_grid((32, 128), 64) == (32, 128)
    # 4096 cells at 55 : 74: 64 * sqrt(55 / 74) = 55.2 by 74.2.
    assert common_grid((55, 74), 64) == (55, 74)
    assert common_grid((110, 148), 64) == (55, 74)
    assert common_grid((8, 8), 32) == (32, 32)


@properties
@given(st.integers(4, 200), st.floats(0.25, 4), st.sampled_from([32, 64]))
def test_common_grid_keeps_cells_and_aspect_to_half_a_cell(side: int, aspect: float, cells: int) -> None:
    latent = (max(1, round(side * aspect)), side)
    root = math.sqrt(latent[0] / latent[1])
    for got, ideal in zip(common_grid(latent, cells), (cells * root, cells / root), strict=True):
        assert got >= 1
        assert abs(got - ideal) <= 0.5 + 1e-6


# ---- windows


def test_only_longer_than_4_to_1_needs_windows() -> None:
    assert not needs_windows(blank(100, 100))
    assert not needs_windows(blank(400, 100))
    assert not needs_windows(blank(100, 400))
    assert needs_windows(blank(401, 100))
    assert needs_windows(blank(100, 401))


def test_windows_of_a_long_image_by_hand() -> None:
    # 300 x 60 px at 64 px a window of 32 cells: enlarged to a height of 64 px, so 160 cells wide.
    tiled = windows(blank(300, 60), 64, 32)
    assert tiled.canvas == (32, 160)
    assert {box.top for box in tiled.boxes} == {0}
    assert {(box.height, box.width) for box in tiled.boxes} == {(32, 32)}
    # At most 24 cells on from one to the next: the last starts at 128, so 7 of them.
    assert len(tiled.boxes) == 7
    assert (tiled.boxes[0].left, tiled.boxes[-1].left) == (0, 128)
    assert windows(blank(60, 300), 64, 32).canvas == (160, 32)


def test_a_large_image_keeps_its_own_scale() -> None:
    tiled = windows(blank(200, 180), 64, 32)
    assert tiled.canvas == (90, 100)
    assert len(tiled.boxes) == 16


def test_an_image_of_one_window() -> None:
    assert windows(blank(64, 64), 64, 32) == Windows.whole((32, 32))
    assert windows(blank(32, 32), 64, 32) == Windows.whole((32, 32))


def test_64_windows_are_the_most() -> None:
    # Eight a side reach over 32 + 7 * 24 = 200 cells of 2 px.
    assert len(windows(blank(400, 400), 64, 32).boxes) == 64
    assert windows(blank(402, 400), 64, 32) is None
    assert windows(blank(100_000, 16), 64, 32) is None


def test_tiles_are_the_image_under_their_boxes() -> None:
    array = noise(180, 200)
    image = Image.fromarray(array)
    tiled = windows(image, 64, 32)
    # Two pixels a cell and an image of whole cells: nothing is resampled.
    shown = tiles(image, tiled, 2.0)
    assert len(shown) == len(tiled.boxes)
    for tile, box in zip(shown, tiled.boxes, strict=True):
        under = array[2 * box.top : 2 * (box.top + 32), 2 * box.left : 2 * (box.left + 32)]
        np.testing.assert_array_equal(np.asarray(tile), under)


@properties
@given(st.integers(16, 90), st.floats(1, 6), st.booleans(), st.sampled_from([(64, 32), (96, 64)]))
def test_tiles_of_a_scaled_image_have_the_windows_size(
    short: int, aspect: float, upright: bool, sizes: tuple[int, int]
) -> None:
    size, cells = sizes
    long = round(short * aspect)
    image = blank(short, long) if upright else blank(long, short)
    tiled = windows(image, size, cells)
    assert min(tiled.canvas) == max(cells, round(short * cells / size))
    for tile in tiles(image, tiled, size / cells):
        # A window starts at whole pixels, so it may be one off where a cell has one and a half.
        assert max(abs(side - size) for side in tile.size) <= (0 if size % cells == 0 else 1)


def test_tiles_of_an_enlarged_image_show_its_parts() -> None:
    # A ramp from left to right: the middle of a tile shows the middle of what it stands for.
    ramp = np.broadcast_to(np.linspace(0, 255, 300, dtype=np.uint8)[None, :, None], (60, 300, 3))
    image = Image.fromarray(np.ascontiguousarray(ramp))
    tiled = windows(image, 64, 32)
    for tile, box in zip(tiles(image, tiled, 2.0), tiled.boxes, strict=True):
        middle = np.asarray(tile)[:, 31:33].mean()
        assert middle == pytest.approx(255 * (box.left + 16) / 160, abs=2)


@pytest.mark.parametrize(("width", "height"), [(160, 96), (1200, 1000), (97, 300), (64, 57)])
def test_an_image_that_is_not_square_fits_what_room_there_is(width: int, height: int) -> None:
    sides = fit(Image.new("RGB", (width, height)), 64, 4, most=60 * 60)
    assert sides[0] * sides[1] <= 3600
    assert sides[0] * sides[1] > 0.85 * 3600
    assert sides[1] / sides[0] == pytest.approx(width / height, rel=0.1)


def test_a_square_image_needs_no_room_beside_it() -> None:
    assert fit(Image.new("RGB", (97, 97)), 64, 4, most=60 * 60) == (64, 64)


def test_an_image_with_a_side_of_one_multiple_may_not_fit_its_room() -> None:
    with pytest.raises(GocaError, match="too long to be seen"):
        fit(Image.new("RGB", (3000, 10)), 64, 32, most=64 * 64)

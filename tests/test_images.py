"""Images in: every kind of file and array that users have, and the sizes at which a model sees them."""

import io
import math
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from goca.errors import GocaError
from goca.imaging.files import size_of
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
    refused(tmp_path / ("long" * 500), "cannot read", "too long")


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
    monkeypatch.setattr(Image, "open", lambda *given, **how: opened.append(open_(*given, **how)) or opened[-1])
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


def unchecked(image: Any) -> Image.Image:
    """`load` as users have it, without the tests' type checks, which would speak first."""
    function = load
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function(image)


@pytest.mark.parametrize(
    "image", [None, 5, [[0, 0], [0, 0]], (1, 2), {"path": "a.png"}, iter(())], ids=lambda image: type(image).__name__
)
def test_other_types(image: Any) -> None:
    with pytest.raises(GocaError, match=f"{type(image).__name__} is not an image: pass a path"):
        unchecked(image)


ARRAYS_REFUSED = [
    (np.zeros((3, 20, 20), np.uint8), r"\(height, width, 1, 3 or 4\)"),
    (np.zeros((20, 20, 2), np.uint8), r"\(height, width, 1, 3 or 4\)"),
    (torch.zeros(20, 20, 3), r"\(1, 3 or 4, height, width\)"),
    (np.zeros(20, np.uint8), "is not an image"),
    (np.zeros((2, 20, 20, 3), np.uint8), "batch: pass a list"),
    (torch.zeros(2, 3, 20, 20), "batch: pass a list"),
    (np.zeros((20, 20, 3), np.int64), "int64"),
    (np.zeros((20, 20), np.uint32), "uint32"),
    (torch.zeros(3, 20, 20, dtype=torch.int32), "int32"),
    (np.full((20, 20, 3), 255.0), "from 255 to 255"),
    (np.linspace(-1, 1, 400).reshape(20, 20), "from -1 to 1"),
    (torch.full((3, 20, 20), 1.5), "from 1.5 to 1.5"),
    (np.full((20, 20, 3), np.nan), "from nan to nan"),
    (np.full((20, 20, 3), np.inf), "from inf to inf"),
    (np.zeros((20, 20, 3), complex), "complex128"),
    (np.full((20, 20, 3), None), "object"),
    (np.zeros((0, 20, 3), np.uint8), "empty"),
    (torch.zeros(3, 20, 20, device="meta"), r"cannot be read \(.*\): make it dense"),
    (torch.zeros(20, 20).to_sparse(), r"cannot be read \(.*\): make it dense"),
]


@pytest.mark.parametrize(("array", "reason"), ARRAYS_REFUSED, ids=lambda each: str(getattr(each, "shape", each)))
def test_arrays_that_are_not_images(array: Any, reason: str) -> None:
    with pytest.raises(GocaError, match=reason):
        load(array)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (15, 15), (15, 100), (100, 15), (16, 1)])
def test_too_small(tmp_path: Path, width: int, height: int) -> None:
    refused(blank(width, height), f"{width} x {height}", "16 px")
    refused(np.zeros((height, width, 3), np.uint8), f"{width} x {height}", "16 px")
    refused(saved(tmp_path, blank(width, height)), "image.png", f"{width} x {height}", "16 px")


def test_16_px_will_do(tmp_path: Path) -> None:
    assert load(saved(tmp_path, blank(16, 16))).size == (16, 16)
    assert load(np.zeros((16, 99, 3), np.uint8)).size == (99, 16)


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


def test_content_as_bytes_and_open_files(tmp_path: Path) -> None:
    array = noise(17, 29)
    path = saved(tmp_path, Image.fromarray(array))
    content = path.read_bytes()
    for image in (content, bytearray(content), memoryview(content), memoryview(content * 2)[: len(content)]):
        same(image, array)
    # Read from where it stands, and left open.
    file = io.BytesIO(b"a header" + content)
    file.seek(8)
    same(file, array)
    assert not file.closed
    with path.open("rb") as opened:
        same(opened, array)
        assert not opened.closed
    with pytest.raises(GocaError, match="closed file"):
        load(opened)
    with pytest.raises(GocaError, match="open it in binary"):
        unchecked(io.StringIO("text"))
    for empty in (b"", io.BytesIO()):
        with pytest.raises(GocaError, match="the image is not an image that can be read as PNG"):
            load(empty)


DEPTHS = [
    (np.uint8, lambda level: level),
    (np.uint16, lambda level: 257 * level),
    (np.float64, lambda level: level / 255),
    (np.float32, lambda level: level / 255),
    (np.float16, lambda level: level / 255),
    (torch.uint8, lambda level: level),
    (torch.float32, lambda level: level / 255),
    (torch.float16, lambda level: level / 255),
    (torch.float64, lambda level: level / 255),
]


@pytest.mark.parametrize(("dtype", "of_level"), DEPTHS, ids=[str(dtype) for dtype, _ in DEPTHS])
def test_arrays_and_tensors_of_every_depth_and_layout(dtype: Any, of_level: Callable[[Any], Any]) -> None:
    levels = noise(17, 29, 4)
    values = np.asarray(of_level(levels.astype(np.float64)))
    tensor = isinstance(dtype, torch.dtype)

    def array(pixels: np.ndarray) -> Any:
        if not tensor:
            return pixels.astype(dtype)
        axes = (2, 0, 1) if pixels.ndim == 3 else (0, 1)
        return torch.from_numpy(pixels.transpose(axes).copy()).to(dtype)

    colour, light = array(values[..., :3]), array(values[..., 0])
    same(colour, levels[..., :3])
    same(colour[None], levels[..., :3])
    same(light, grey(levels[..., 0]))
    same(array(values[..., :1]), grey(levels[..., 0]))
    same(array(values), np.asarray(load(Image.fromarray(levels))))


def test_other_arrays() -> None:
    levels = noise(17, 29)
    same(levels.astype(">u2") * 257, levels)
    black = levels[..., 0] > 127
    for mask in (black, torch.from_numpy(black)):
        same(mask, grey(255 * black))
    # 8 bits of precision: what bfloat16 tells apart of a level.
    halved = torch.from_numpy(levels).permute(2, 0, 1).to(torch.bfloat16).div(255).requires_grad_()
    assert np.abs(np.asarray(load(halved)).astype(int) - levels).max() <= 1
    # What diffusers returns with output_type "np" and "pt" for one image.
    same((levels / np.float32(255))[None], levels)
    # Steps of arithmetic round; a dark image is dark.
    same(np.full((16, 16), np.nextafter(1.0, 2)), np.full((16, 16, 3), 255, np.uint8))
    same(np.full((16, 16), 2, np.uint16), np.zeros((16, 16, 3), np.uint8))
    same(np.full((16, 16), 0.004), np.ones((16, 16, 3), np.uint8))


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, 2).astype(np.uint8)


def test_grey_of_8_16_and_1_bit(tmp_path: Path) -> None:
    byte = noise(17, 29, 1)[..., 0]
    same(saved(tmp_path, Image.fromarray(byte)), grey(byte))
    same(saved(tmp_path, Image.fromarray(byte > 127)), grey((byte > 127) * 255))
    # 65535 is white whatever the image holds: 257 levels of 16 bits are one of 8.
    for deep in (byte.astype(np.uint16) * 257, np.full((16, 16), 200, np.uint16), np.full((16, 16), 40_000, np.uint16)):
        expected = grey(np.rint(deep / 257))
        for name in ("deep.png", "deep.tif", "deep.pgm", "deep.jp2"):
            same(saved(tmp_path, Image.fromarray(deep), name), expected)
        same(Image.fromarray(deep), expected)
        same(Image.fromarray(deep.astype(">u2")), expected)
        same(saved(tmp_path, Image.fromarray(deep.astype(">u2")), "big.tif"), expected)


def tiff(values: bytes, bits: int, kind: int = 1, photometric: int = 1, side: int = 16) -> bytes:
    """A TIFF of one strip of grey. kind: 1 unsigned, 2 signed, 3 floats; photometric: 0 if white is zero."""
    tags = [(256, 3, side), (257, 3, side), (258, 3, bits), (259, 3, 1), (262, 3, photometric), (273, 4, 134)]
    tags += [(277, 3, 1), (278, 3, side), (279, 4, len(values)), (339, 3, kind)]
    entries = b"".join(struct.pack("<HHII", tag, size, 1, value) for tag, size, value in tags)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4) + values


@pytest.mark.parametrize(
    ("content", "level"),
    [
        (tiff(np.full(256, 25_700, "<u2").tobytes(), 16), 100),
        (tiff(np.full(256, 25_700, "<u2").tobytes(), 16, photometric=0), 155),
        # 12 bits, two values in three bytes: 0x643 of 0xfff.
        (tiff(b"\x64\x36\x43" * 128, 12), 100),
        (tiff(np.full(256, 0.4, "<f4").tobytes(), 32, kind=3), 102),
        (tiff(np.full(256, 0.4, "<f4").tobytes(), 32, kind=3, photometric=0), 153),
        (b"Pf 16 16 -1\n" + np.full(256, 0.4, "<f4").tobytes(), 102),
        (b"P5 16 16 1000\n" + np.full(256, 400, ">u2").tobytes(), 102),
        (b"P5 16 16 65535\n" + np.full(256, 257, ">u2").tobytes(), 1),
        (b"P6 16 16 65535\n" + np.full(768, 25_700, ">u2").tobytes(), 100),
        (tiff(np.full(256, 0.4, "<f8").tobytes(), 64, kind=3), "is not an image that can be read as"),
        (tiff(np.full(256, 255, "<f4").tobytes(), 32, kind=3), "from 255 to 255"),
        (tiff(np.full(256, np.nan, "<f4").tobytes(), 32, kind=3), "from nan to nan"),
        (tiff(np.full(256, 255, "<u4").tobytes(), 32), "int32"),
        (tiff(np.full(256, 255, "<i4").tobytes(), 32, kind=2), "int32"),
        (tiff(np.full(256, 255, "<i2").tobytes(), 16, kind=2), "int32"),
    ],
)
def test_deep_files_are_scaled_by_their_type_or_refused(content: bytes, level: int | str) -> None:
    if isinstance(level, str):
        refused(content, level)
    else:
        same(content, np.full((16, 16, 3), level, np.uint8))


def png_chunks(depth: int, colour: int, row: bytes, transparent: bytes = b"") -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 16, depth, colour, 0, 0, 0))
    key = chunk(b"tRNS", transparent) if transparent else b""
    return b"\x89PNG\r\n\x1a\n" + header + key + chunk(b"IDAT", zlib.compress((b"\0" + row) * 16)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "colour"),
    [
        (png_chunks(16, 2, b"\x12\x12\x56\x56\x9a\x9a" * 16), (0x12, 0x56, 0x9A)),
        (png_chunks(16, 2, b"\x12\x12\x56\x56\x9a\x9a" * 16, b"\x12\x12\x56\x56\x9a\x9a"), (255, 255, 255)),
        (png_chunks(16, 2, b"\x12\x12\x56\x56\x9a\x9a" * 16, b"\x13\x12\x56\x56\x9a\x9a"), (0x12, 0x56, 0x9A)),
        (png_chunks(16, 0, b"\x12\x12" * 16, b"\x12\x12"), (255, 255, 255)),
        (png_chunks(16, 0, b"\x12\x12" * 16, b"\x12\x13"), (0x12, 0x12, 0x12)),
        (png_chunks(16, 6, b"\x12\x12\x56\x56\x9a\x9a\0\0" * 16), (255, 255, 255)),
        (png_chunks(16, 4, b"\x12\x12\xff\xff" * 16), (0x12, 0x12, 0x12)),
        (png_chunks(8, 0, b"\x33" * 16, b"\0\x33"), (255, 255, 255)),
        (png_chunks(4, 0, b"\x33" * 8), (51, 51, 51)),
        (png_chunks(1, 0, b"\xff\xff"), (255, 255, 255)),
    ],
)
def test_png_of_every_depth(content: bytes, colour: tuple[int, int, int]) -> None:
    same(content, np.full((16, 16, 3), colour, np.uint8))


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


def test_cmyk_in_tiff_is_not_inverted(tmp_path: Path) -> None:
    ink = Image.new("CMYK", (20, 16), (255, 0, 0, 0))
    assert load(saved(tmp_path, ink, "ink.tif")).getpixel((3, 3)) == (0, 255, 255)


# Worked out by hand; half transparent on white is (colour * 51 + 255 * 204) / 255.
MODES: list[tuple[str, Any, tuple[int, int, int]]] = [
    ("1", 1, (255, 255, 255)),
    ("L", 7, (7, 7, 7)),
    ("LA", (100, 51), (224, 224, 224)),
    ("La", (20, 51), (224, 224, 224)),  # premultiplied: 20 of 51 is 100 of 255
    ("P", 1, (40, 50, 60)),
    ("PA", (1, 51), (212, 214, 216)),
    ("RGB", (1, 2, 3), (1, 2, 3)),
    ("RGBA", (100, 200, 0, 51), (224, 244, 204)),
    ("RGBX", (1, 2, 3, 4), (1, 2, 3)),
    ("RGBa", (20, 40, 0, 51), (224, 244, 204)),
    ("CMYK", (255, 0, 0, 0), (0, 255, 255)),
    ("CMYK", (0, 0, 0, 155), (100, 100, 100)),
    ("YCbCr", (76, 85, 255), (254, 0, 0)),
    ("YCbCr", (77, 128, 128), (77, 77, 77)),
    ("LAB", (255, 128, 128), (255, 255, 255)),
    ("LAB", (0, 128, 128), (0, 0, 0)),
    ("LAB", (137, 128, 128), (128, 128, 128)),
    ("HSV", (0, 255, 200), (200, 0, 0)),
    ("HSV", (170, 255, 255), (0, 0, 255)),
    ("I;16", 25_700, (100, 100, 100)),
    ("I;16L", 25_700, (100, 100, 100)),
    ("I;16B", 25_700, (100, 100, 100)),
    ("I;16", 255, (1, 1, 1)),
    ("F", 0.4, (102, 102, 102)),
    ("F", 1.0, (255, 255, 255)),
]


@pytest.mark.parametrize(("mode", "value", "colour"), MODES, ids=str)
def test_every_mode_comes_out_as_rgb(mode: str, value: Any, colour: tuple[int, int, int]) -> None:
    if mode in ("P", "PA"):
        image = Image.new("P", (20, 16), 1)
        image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
        if mode == "PA":
            image = image.convert("PA")
            image.putalpha(51)
    elif mode == "La":
        image = Image.new("LA", (20, 16), (100, 51)).convert("La")
        assert image.getpixel((0, 0)) == value
    else:
        image = Image.new(mode, (20, 16), value)
    before = image.copy()
    loaded = load(image)
    assert (loaded.mode, loaded.size) == ("RGB", (20, 16))
    tolerance = 1 if mode in ("LAB", "YCbCr", "La", "RGBa") else 0
    assert np.abs(np.asarray(loaded).astype(int) - colour).max() <= tolerance
    # The user's own image stays as it was.
    assert image == before


@pytest.mark.parametrize(("mode", "value"), [("I", 200), ("I", 70_000), ("F", 200.0), ("F", -0.5), ("F", math.nan)])
def test_modes_without_a_known_white_are_refused(mode: str, value: float) -> None:
    refused(Image.new(mode, (20, 16), value), "the image has values")


# How a file's pixels lie when the camera was held so, from what is to be seen (EXIF 2.32, tag Orientation).
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda seen: seen,
    2: lambda seen: seen[:, ::-1],
    3: lambda seen: seen[::-1, ::-1],
    4: lambda seen: seen[::-1],
    5: lambda seen: seen.transpose(1, 0, 2),
    6: lambda seen: np.rot90(seen, 1),
    7: lambda seen: seen[::-1, ::-1].transpose(1, 0, 2),
    8: lambda seen: np.rot90(seen, -1),
}


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "tiff", "tiff deflated"])
@pytest.mark.parametrize("orientation", TURNS)
def test_exif_rotation(tmp_path: Path, orientation: int, kind: str) -> None:
    # Corners of flat colour survive JPEG.
    seen = np.repeat(np.repeat(noise(2, 3), 16, axis=0), 16, axis=1)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = Image.fromarray(np.ascontiguousarray(TURNS[orientation](seen)))
    options = {"webp": {"lossless": True}, "jpg": {"quality": 100, "subsampling": 0}}.get(kind, {})
    options |= {"compression": "tiff_deflate"} if kind == "tiff deflated" else {}
    path = saved(tmp_path, stored, f"image.{kind.split()[0]}", exif=exif, **options)
    assert size_of(path) == seen.shape[:2]
    with Image.open(path) as opened:
        for image in (path, opened):
            loaded = np.asarray(load(image)).astype(int)
            assert loaded.shape == seen.shape
            assert np.abs(loaded - seen).max() <= (4 if kind == "jpg" else 0)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("kind", ["png", "jpg", "webp"])
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0nonsense", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"]
)
def test_damaged_exif_is_no_rotation(tmp_path: Path, kind: str, exif: bytes) -> None:
    seen = np.full((17, 29, 3), 77, np.uint8)
    path = saved(tmp_path, Image.fromarray(seen), f"image.{kind}", exif=exif)
    same(path, seen)
    assert size_of(path) == (17, 29)


@pytest.mark.parametrize("value", [0, 9, 255])
def test_an_orientation_that_is_none_is_no_rotation(tmp_path: Path, value: Any) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = value
    seen = noise(17, 29)
    same(saved(tmp_path, Image.fromarray(seen), exif=exif), seen)


def test_the_first_page_of_a_tiff(tmp_path: Path) -> None:
    pages = [Image.new("RGB", (20, 16), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    same(saved(tmp_path, pages[0], "pages.tif", save_all=True, append_images=pages[1:]), np.asarray(pages[0]))


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
    with pytest.raises(GocaError, match=r"17000 x 16 px is too long: crop it"):
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
    with pytest.raises(GocaError, match="is too long: crop it"):
        fit(Image.new("RGB", (3000, 10)), 64, 32, most=64 * 64)

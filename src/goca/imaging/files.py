"""Image files: opened in safe formats only, up to a limit of pixels, or refused with one line."""

import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from io import BufferedReader, BytesIO
from pathlib import Path

from PIL import ExifTags, Image, UnidentifiedImageError

from goca.errors import GocaError
from goca.maths import Grid
from goca.storage.reading import require_regular
from goca.text.clean import printable

# Pillow decodes each of these by itself. It hands EPS to Ghostscript, and the others are rare or not decoded at all.
_PLUGINS = {
    "PNG": "Png",
    "JPEG": "Jpeg",
    "WEBP": "WebP",
    "AVIF": "Avif",
    "TIFF": "Tiff",
    "BMP": "Bmp",
    "GIF": "Gif",
    "JPEG2000": "Jpeg2K",
    "PPM": "Ppm",
}
"""{accepted format: Pillow's plugin for it}."""
FORMATS = tuple(_PLUGINS)
LABEL_FORMATS = ("PNG", "TIFF", "BMP", "GIF")
"""Formats of label images, whose values must be exact."""
MAX_PIXELS = 178_956_970
"""Pillow's default limit of pixels, 13,377 x 13,377; labels and an overlay of that size take about 4 GB."""
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap height and width
_OPENING = threading.Lock()


def suffixes() -> frozenset[str]:
    """The endings of images' file names, such as ".png", in lower case."""
    # MPO is JPEG with further images after the first; Pillow opens it as JPEG, but lists its suffix separately.
    for plugin in (*_PLUGINS.values(), "Mpo"):  # Pillow itself would load all of its plugins
        import_module(f"PIL.{plugin}ImagePlugin")
    return frozenset(suffix for suffix, kind in Image.EXTENSION.items() if kind in (*FORMATS, "MPO"))


@contextmanager
def opened(file: Path | BytesIO, name: str | None = None, formats: Sequence[str] = FORMATS) -> Iterator[Image.Image]:
    """An image whose header has been read; it is closed after the block.

    Args:
        file: A path, or the content.
        name: The image's name in messages; by default the path.
        formats: Pillow's names of the accepted formats, whatever the suffix.

    Raises:
        GocaError: It is not a regular file, not an image of these formats, or too large; also for any error in the
            block, because Pillow decodes an image on first use.
    """
    name = name or str(file)
    with refusing(name, formats):
        if isinstance(file, Path):
            require_regular(file)
            with file.open("rb") as content, _open(content, formats) as image:
                yield image
        else:
            with _open(file, formats) as image:
                yield image


@contextmanager
def refusing(name: str, formats: Sequence[str] = FORMATS, remedy: str = "is the file complete?") -> Iterator[None]:
    """Turn any error about an image into a GocaError of one line. remedy: advice for unexpected errors."""
    try:
        yield
    except GocaError:
        raise
    except UnidentifiedImageError:
        advice = "is the file complete? If so, convert it to PNG"
        raise GocaError(f"{name} is not an image that can be read as {_listed(formats)}: {advice}") from None
    except Image.DecompressionBombError:
        raise GocaError(f"{name} has more than {MAX_PIXELS / 1e6:.0f} megapixels: scale it down or crop it") from None
    except Exception as error:  # Pillow's decoders may raise anything for broken files
        if isinstance(error, OSError) and error.errno is not None:
            raise GocaError(f"cannot read {name}: {error.strerror}; check the path") from None
        reason = " ".join(str(error).split()) or type(error).__name__
        raise GocaError(f"{name} cannot be read ({printable(reason)}): {remedy}") from None


def size_of(path: Path) -> Grid:
    """(height, width) of an image file after EXIF rotation; only its header is read. GocaError as for `opened`."""
    with opened(path) as image:
        width, height = image.size
        if image.format == "TIFF":  # for which only some versions of Pillow swap them here
            tags = image.tag_v2  # type: ignore[attr-defined]
            width, height = tags[ExifTags.Base.ImageWidth], tags[ExifTags.Base.ImageLength]
        return (width, height) if orientation(image) in SIDEWAYS else (height, width)


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 if there is none or the EXIF data are damaged."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # of every kind, as from decoders
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _open(file: BytesIO | BufferedReader, formats: Sequence[str]) -> Image.Image:
    Image.init()  # otherwise formats that this Pillow was built without are not detected
    # Pillow warns above half its limit. Warning filters are process-wide, so threads take turns.
    with _OPENING, warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):
        image = Image.open(file, formats=[kind for kind in formats if kind in Image.OPEN])
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise Image.DecompressionBombError
    return image


def _listed(formats: Sequence[str]) -> str:
    return f"{', '.join(formats[:-1])} or {formats[-1]}"

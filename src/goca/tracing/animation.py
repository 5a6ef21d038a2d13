"""Heat maps one after the other, as a GIF or a WebP."""

import io
import math
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from goca.errors import GocaError
from goca.imaging import html
from goca.storage.atomic import write_atomic

FORMATS = {".gif": "GIF", ".webp": "WEBP"}

SHOWN_FRAMES, SHOWN_SIDE = 24, 224


@dataclass(frozen=True, eq=False)
class Animation:
    """Images of one size that are shown one after the other, in a loop.

    Attributes:
        frames: The images.
        milliseconds: How long each is shown.
    """

    frames: tuple[Image.Image, ...]
    milliseconds: int = 200

    def __repr__(self) -> str:
        return f"Animation({len(self.frames)} frames of {self.milliseconds} ms)"

    def _repr_html_(self) -> str:
        """HTML for notebooks: at most 24 frames, 224 px on their long side."""
        step = math.ceil(len(self.frames) / SHOWN_FRAMES)
        frames = tuple(ImageOps.contain(frame, (SHOWN_SIDE, SHOWN_SIDE)) for frame in self.frames[::step])
        return html.figure(repr(self), Animation(frames, self.milliseconds * step).encoded("WEBP"))

    def encoded(self, form: str) -> bytes:
        """The content of a file, "GIF" or "WEBP"; GIF has 256 colours per frame."""
        file, (first, *others) = io.BytesIO(), self.frames
        first.save(file, form, save_all=True, append_images=others, duration=self.milliseconds, loop=0)
        return file.getvalue()

    def save(self, path: str | Path) -> Path:
        """Write a file, whose suffix decides the format: .gif or .webp.

        Raises:
            GocaError: It has another suffix, or cannot be written.
        """
        path = Path(path)
        form = FORMATS.get(path.suffix.lower())
        if form is None:
            raise GocaError(f"{path} is not an animation's name: let it end in {' or '.join(FORMATS)}", hint="out")
        write_atomic({path: self.encoded(form)})
        return path

"""Emoji artwork: fetching the packs and cutting out the glyphs of our nouns.

Noto and Fluent are the training art; Twemoji is held out for the benchmark and is fetched only when asked
for. A pack is a mapping from a noun to its glyphs (RGBA arrays, cropped to what is visible), so that any
scene can be drawn in any art by the same code.

    python -m training.art [--work FOLDER] [--packs noto fluent]
"""

import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .commands import command
from .nouns import THINGS

Pack = Mapping[str, tuple[np.ndarray, ...]]

TRAINING_PACKS = ("noto", "fluent")
HELD_OUT_PACK = "twemoji"
GLYPH_SIZE = 160  # longest side kept; the largest thing of a scene is 110 pixels before downsampling
NOTO_BITMAP_SIZE = 109  # the one size at which the font's bitmaps can be drawn
VISIBLE_ALPHA = 40  # fainter pixels are shadow or antialiasing and do not count for the crop


def fetch(name: str, folder: Path) -> None:
    """Download pack `name` into `folder/name`, with its licence file, unless it is already there."""
    target = folder / name
    if target.exists():
        return
    with tempfile.TemporaryDirectory() as scratch:
        unpacked = Path(scratch) / "unpacked"
        _FETCHERS[name](Path(scratch), unpacked)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.move(unpacked, target)


def load(name: str, folder: Path) -> Pack:
    """The glyphs of pack `name`, for every thing; a glyph the pack lacks is an error, not a silent gap."""
    draw = _READERS[name](folder / name)
    return {thing.name: tuple(_crop(draw(glyph)) for glyph in thing.glyphs) for thing in THINGS}


def _fetch_noto(scratch: Path, unpacked: Path) -> None:
    subprocess.run(["apt-get", "download", "fonts-noto-color-emoji"], cwd=scratch, check=True)
    (package,) = scratch.glob("*.deb")
    subprocess.run(["dpkg-deb", "-x", package, unpacked], check=True)


def _fetch_npm(package: str) -> Callable[[Path, Path], None]:
    def fetch_package(scratch: Path, unpacked: Path) -> None:
        subprocess.run(["npm", "pack", "--silent", package], cwd=scratch, check=True)
        (archive,) = scratch.glob("*.tgz")
        with tarfile.open(archive) as tar:
            tar.extractall(unpacked, members=_members_we_use(tar), filter="data")

    return fetch_package


def _members_we_use(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Texts, Fluent's images, Twemoji's 64 px images: not its sprite sheets, most of the weight."""
    images = ("package/assets/", "package/img/twitter/64/")
    for member in tar:
        if member.name.count("/") == 1 or member.name.startswith(images):
            yield member


def _noto_reader(folder: Path) -> Callable[[str], Image.Image]:
    path = folder / "usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
    font = ImageFont.truetype(path, NOTO_BITMAP_SIZE)

    def draw(glyph: str) -> Image.Image:
        text = "".join(chr(int(point, 16)) for point in glyph.split("-"))
        image = Image.new("RGBA", (GLYPH_SIZE, GLYPH_SIZE))
        ImageDraw.Draw(image).text((8, 8), text, font=font, embedded_color=True)
        return image

    return draw


def _file_reader(subfolder: str, suffix: str) -> Callable[[Path], Callable[[str], Image.Image]]:
    def reader(folder: Path) -> Callable[[str], Image.Image]:
        def draw(glyph: str) -> Image.Image:
            # Packs disagree on whether a file's name carries the variation selector.
            stem = glyph.lower().removesuffix("-fe0f")
            candidates = [folder / subfolder / f"{name}{suffix}" for name in (stem, f"{stem}-fe0f")]
            found = next((path for path in candidates if path.exists()), None)
            if found is None:
                raise FileNotFoundError(f"{folder.name} has no image of {glyph}: looked for {candidates}")
            image = Image.open(found).convert("RGBA")
            image.thumbnail((GLYPH_SIZE, GLYPH_SIZE), Image.Resampling.LANCZOS)
            return image

        return draw

    return reader


def _crop(image: Image.Image) -> np.ndarray:
    visible = image.getchannel("A").point(lambda alpha: 255 if alpha > VISIBLE_ALPHA else 0)
    box = visible.getbbox()
    if box is None:
        raise ValueError("an empty glyph: the pack's font or file does not show this emoji")
    return np.asarray(image.crop(box))


_FETCHERS = {
    "noto": _fetch_noto,
    "fluent": _fetch_npm("@lobehub/fluent-emoji-3d"),
    "twemoji": _fetch_npm("emoji-datasource-twitter"),
}
_READERS = {
    "noto": _noto_reader,
    "fluent": _file_reader("package/assets", ".webp"),
    "twemoji": _file_reader("package/img/twitter/64", ".png"),
}


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("--packs", nargs="+", default=TRAINING_PACKS, choices=sorted(_FETCHERS))
    arguments = parser.parse_args()
    for name in arguments.packs:
        fetch(name, arguments.work / "art")
        pack = load(name, arguments.work / "art")
        print(f"{name}: {sum(map(len, pack.values()))} glyphs of {len(pack)} nouns")


if __name__ == "__main__":
    main()

"""A question about one image, and all that is settled before the model is asked: prompts, windows, background."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Real
from unicodedata import normalize

from PIL import Image

from goca.diffusion.backbone import Backbone
from goca.diffusion.conditioning import EncodedPrompts
from goca.errors import GocaError
from goca.imaging import images
from goca.imaging.images import ImageLike
from goca.maths import Grid
from goca.maths.background import Background, constant, none, offset
from goca.maths.windows import Windows
from goca.recipe import AUTO, Plan
from goca.text.spelling import forms
from goca.text.token_spans import Classes, Noun, NounTokens, caption_of, nouns, split, vocabulary, words

MUCH_FEWER = 0.8
"""The part of the pixels asked for below which a result says so."""


@dataclass(frozen=True)
class SegmentationRequest:
    """What is asked of one image; `Segmenter.__call__` tells what each field may be."""

    image: ImageLike
    classes: Classes
    background_classes: Sequence[str] = ()
    background: str | float | None = AUTO
    caption: str | None = None

    def __post_init__(self) -> None:
        # An iterator could be asked once only, and one question may be asked of many images.
        for name in ("classes", "background_classes"):
            given = getattr(self, name)
            if isinstance(given, Iterator):
                object.__setattr__(self, name, tuple(given))


@dataclass(frozen=True)
class PreparedImage:
    """A question made concrete.

    image: upright, RGB. prompts: the words of each prompt that the classes were spread over. size: (height, width) px
    at which the model sees a window; grid: a window's share of the common grid. tiles: the image under each window.
    """

    image: Image.Image
    classes: tuple[str, ...]
    prompts: tuple[NounTokens, ...]
    background: Background
    windows: Windows
    tiles: tuple[Image.Image, ...]
    size: Grid
    notes: tuple[str, ...]

    @property
    def grid(self) -> Grid:
        box = self.windows.boxes[0]
        return box.height, box.width


def prepare(question: SegmentationRequest, plan: Plan, backbone: Backbone, prompts: EncodedPrompts) -> PreparedImage:
    """Read the image, find the words, choose windows and background. Raises GocaError for what cannot be asked."""
    image = images.load(question.image)
    asked, notes = find_words(question, plan, backbone, prompts)
    background = background_of(question.background, plan, has_background_classes=bool(asked[0].background_classes))
    windows, tiles, size = _windows(image, plan, backbone)
    if len(tiles) > 1:
        notes.append(f"seen through {len(tiles)} overlapping windows")
    elif images.needs_windows(image):
        notes.append(f"too long for {images.MOST_WINDOWS} windows: seen whole, at {size[1]} x {size[0]} px")
    elif size[0] * size[1] < MUCH_FEWER * plan.size**2:
        notes.append(f"seen at {size[1]} x {size[0]} px: this model has no positions for more")
    classes = tuple(question.classes)
    return PreparedImage(image, classes, asked, background, windows, tiles, size, tuple(notes))


def find_words(
    question: SegmentationRequest, plan: Plan, backbone: Backbone, prompts: EncodedPrompts
) -> tuple[tuple[NounTokens, ...], list[str]]:
    """The prompts that ask for the question's nouns, and notes on what had to be done for them.

    Raises GocaError for nouns that cannot be asked for; the image is not looked at.
    """
    wanted, background_classes = nouns(question.classes, question.background_classes)
    check_rivals(question.background, wanted)
    settings = backbone.settings
    notes: list[str] = []
    if backbone.family.linear_self_attention:
        notes.append("this model's self-attention has no map: the affinity of its dense features stands in")
    if settings.nouns:
        known = vocabulary(wanted + background_classes, settings.nouns)
        wanted, background_classes = known[: len(wanted)], known[len(wanted) :]
    if question.caption is not None:
        groups = [wanted]
    else:
        groups = split(wanted, lambda group: backbone.fits((*group, *background_classes)))
        if len(groups) > 1:
            notes.append(f"{len(wanted)} classes do not fit one prompt: spread over {len(groups)}")
        if not background_classes and any(len(group) == 1 for group in groups):
            defaults = _default_background_classes(plan, wanted)
            if defaults and all(backbone.fits((*group, *defaults)) for group in groups):
                background_classes = defaults
                names = ", ".join(noun.name for noun in defaults)
                notes.append(f"one noun alone: {names} added as background classes")
    asked = []
    for group in groups:
        given = question.caption
        caption = caption_of((*group, *background_classes)) if given is None else normalize("NFC", given)
        texts = backbone.texts(backbone.prompt(caption, prompts))
        asked.append(words(caption, texts, group, background_classes, named=given is not None))
    if any(len(one.nouns) == 1 for one in asked):
        notes.append("one noun alone in a prompt: no share is taken")
    return tuple(asked), notes


def _default_background_classes(plan: Plan, wanted: Sequence[Noun]) -> tuple[Noun, ...]:
    """The model's default background classes, without those that are wanted."""
    own = {form for noun in wanted for word in noun.words for form in forms(word)}
    return tuple(Noun(name, (name,)) for name in plan.background_classes if name not in own)


def check_rivals(background: str | float | None, wanted: Sequence[Noun]) -> None:
    """Raise GocaError where one class alone would be everywhere."""
    if background is None and len(wanted) == 1:
        raise GocaError(
            f'with "{wanted[0].name}" alone and no background, every pixel would be it: name another class, or leave '
            'the background at "auto"'
        )


def background_of(asked: str | float | None, plan: Plan, has_background_classes: bool) -> Background:
    """The rule for what the user asked for; `has_background_classes`: whether there are background classes."""
    if asked is None:
        return Background(none)
    if isinstance(asked, Real) and not isinstance(asked, bool) and 0 <= asked <= 1:
        return Background(constant, float(asked))
    if asked != AUTO:
        raise GocaError(f'background {asked!r} is neither "auto", a threshold between 0 and 1, nor None')
    if isinstance(plan.background, Background):
        return plan.background
    return Background(offset, 0.0) if has_background_classes else Background(constant, 0.5)


def _windows(image: Image.Image, plan: Plan, backbone: Backbone) -> tuple[Windows, tuple[Image.Image, ...], Grid]:
    """Windows where they are wanted or the image is long, unless a long one would take too many: it is seen whole."""
    multiple = backbone.size_multiple
    if plan.window or images.needs_windows(image):
        side = max(multiple, multiple * round(min(plan.size, backbone.max_side or plan.size) / multiple))
        windows = images.windows(image, side, plan.grid)
        if windows is not None:
            return windows, images.tiles(image, windows, side / plan.grid), (side, side)
        if plan.window:
            raise GocaError(
                f"an image of {image.width} x {image.height} px would take more than {images.MOST_WINDOWS} windows: "
                "scale it down, cut it, or do without window (--window)"
            )
    size = images.fit(image, plan.size, multiple, backbone.max_pixels, backbone.max_side)
    grid = images.common_grid((size[0] // backbone.vae_scale_factor, size[1] // backbone.vae_scale_factor), plan.grid)
    return Windows.whole(grid), (image,), size

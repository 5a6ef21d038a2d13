"""A request about one image, and all that is settled before the denoiser runs: prompts, windows, background."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, islice, pairwise
from numbers import Real
from unicodedata import normalize

from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from goca.diffusion.backbone import Backbone, BackboneSession
from goca.errors import GocaError
from goca.imaging import images
from goca.imaging.images import ImageLike
from goca.maths import Grid
from goca.maths.background import Background, constant, none, offset
from goca.maths.windows import Windows
from goca.plan import Plan
from goca.recipe import AUTO, NO_BACKGROUND
from goca.tagging.base import Tagger
from goca.tagging.candidates import Candidates, Kept
from goca.text.background_nouns import background_nouns
from goca.text.clean import one_line
from goca.text.nouns import (
    Classes,
    Noun,
    caption_of,
    check_rivals,
    cleaned,
    in_vocabulary,
    parse_nouns,
    split_over_prompts,
)
from goca.text.token_spans import NounTokens, find_noun_tokens

MUCH_FEWER = 0.8
"""A result notes when the model sees less than this share of the pixels that the plan asks for."""


@dataclass(frozen=True, eq=False)
class SegmentationRequest:
    """What is asked of one image.

    Args:
        image: see `goca.imaging.images.ImageLike`.
        classes: names, or {class: [synonyms]}.
        background_classes: nouns that take part in the prompt; their pixels become background. None for the model's
            own list without what is wanted, or for none where every pixel gets a class or there is a caption.
        background: "auto" (the recipe's rule), a constant threshold on scores in [0, 1], or "none" or None: every pixel
            gets a class.
        caption: the prompt, instead of the list of nouns; every noun must be in it, unless the recipe has keys on the
            side.
        kept: the classes that a tagger names; the others get no pixels, and are not asked for. None: all are asked for.

    Raises:
        GocaError: the caption is not text.
    """

    image: ImageLike
    classes: Classes
    background_classes: Sequence[str] | None = None
    background: str | float | None = AUTO
    caption: str | None = None
    kept: Kept | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.caption, str | None):
            raise GocaError(f"caption {self.caption!r} is not text: write the prompt, or leave it out", hint="caption")
        # In tuples, because an iterator could be read only once, and a request may be repeated for many images.
        for name in ("classes", "background_classes"):
            object.__setattr__(self, name, cleaned(getattr(self, name)))
        if isinstance(self.caption, str):
            object.__setattr__(self, "caption", one_line(self.caption))

    @property
    def has_background(self) -> bool:
        """Whether a pixel may be of no class."""
        return not (self.background is None or self.background == NO_BACKGROUND)

    @property
    def candidates(self) -> Candidates:
        """The classes as a tagger chooses among them. Raises GocaError for names that it could not say."""
        return Candidates.of(self.classes, self.has_background)


def kept_by(tagger: Tagger, requests: Sequence[SegmentationRequest]) -> list[SegmentationRequest | GocaError]:
    """The requests with the classes that a tagger names of their images, or why an image is not tagged.

    Raises:
        GocaError: the tagger cannot go on with any image.
    """
    outcomes: list[SegmentationRequest | GocaError] = list(requests)
    sources: dict[int, str | os.PathLike[str] | Image.Image] = {}
    groups: dict[Candidates, list[int]] = {}
    for index, request in enumerate(requests):
        try:
            candidates = request.candidates
            # A file that is open can be read once.
            image = request.image
            sources[index] = image if isinstance(image, str | os.PathLike) else images.load(image)
        except GocaError as error:
            outcomes[index] = error
        else:
            groups.setdefault(candidates, []).append(index)
    for candidates, indices in groups.items():
        for index, kept in zip(indices, candidates.kept(tagger, [sources[i] for i in indices]), strict=True):
            tagged = kept if isinstance(kept, GocaError) else replace(requests[index], image=sources[index], kept=kept)
            outcomes[index] = tagged
    return outcomes


@dataclass(frozen=True)
class PreparedImage:
    """A request made concrete.

    Attributes:
        image: upright, RGB.
        prompts: the nouns' tokens in each prompt that the classes were spread over.
        background_classes: names of the nouns whose pixels become background.
        background: the rule for pixels of no class; background_by_user: whether the user chose it.
        windows: where they lie on the common grid; tiles: the image under each.
        size: (height, width) in pixels at which the model sees a window.
        notes: what had to differ from the recipe.
        kept: the classes that a tagger names, where it was asked; the prompts are of them.
    """

    image: Image.Image
    classes: tuple[str, ...]
    prompts: tuple[NounTokens, ...]
    background_classes: tuple[str, ...]
    background: Background
    background_by_user: bool
    windows: Windows
    tiles: tuple[Image.Image, ...]
    size: Grid
    notes: tuple[str, ...]
    kept: Kept | None = None

    @property
    def captions(self) -> tuple[str, ...]:
        """The prompts as text."""
        return tuple(tokens.caption for tokens in self.prompts)

    @property
    def kept_indices(self) -> tuple[int, ...] | None:
        """The indices of the classes that are asked for; None for all."""
        return None if self.kept is None else self.kept.indices(self.classes)

    def mirrored(self) -> "PreparedImage":
        """The windows over the image with left and right exchanged."""
        return replace(self, windows=self.windows.mirrored(), tiles=tuple(map(ImageOps.mirror, self.tiles)))


def prepare(request: SegmentationRequest, plan: Plan, session: BackboneSession) -> PreparedImage:
    """Read the image, find the nouns' tokens, choose windows and background; GocaError where that fails."""
    image = images.load(request.image)
    prompts, background_classes, notes = find_tokens(request, plan, session)
    background = background_of(request.background, plan, has_background_classes=bool(background_classes))
    windows, tiles, size = _windows(image, plan, session.backbone)
    if len(tiles) > 1:
        notes.append(f"seen through {len(tiles)} overlapping windows")
    elif images.needs_windows(image):
        notes.append(f"too long for {images.MOST_WINDOWS} windows: seen whole, at {size[1]} x {size[0]} px")
    elif size[0] * size[1] < MUCH_FEWER * plan.size**2:
        notes.append(f"processed at {size[1]} x {size[0]} px, the most that this model's position embedding allows")
    return PreparedImage(
        image=image,
        classes=tuple(request.classes),
        prompts=prompts,
        background_classes=background_classes,
        background=background,
        background_by_user=request.background != AUTO,
        windows=windows,
        tiles=tiles,
        size=size,
        notes=tuple(notes),
        kept=request.kept,
    )


def find_tokens(
    request: SegmentationRequest, plan: Plan, session: BackboneSession
) -> tuple[tuple[NounTokens, ...], tuple[str, ...], list[str]]:
    """Find the nouns in the prompts; no image is read.

    Returns:
        The tokens of the request's nouns in each prompt, the names of the background classes, and notes on what had to
        be done.

    There is no prompt where the classes that a tagger keeps leave nothing to ask: none, or one without a background.

    Raises GocaError for nouns that cannot be asked for.
    """
    classes, background_classes = parse_nouns(request.classes, request.background_classes)
    check_rivals(request.background, classes)
    backbone, notes = session.backbone, list[str]()
    if backbone.family.linear_self_attention:
        notes.append("this model's self-attention has no map: the affinity of its dense features stands in")
    if plan.origin["keys"] == "settings":
        notes.append("keys on the side need cross-attention, which this model lacks: the caption lists the classes")
    by_default = request.background_classes is None and request.caption is None
    if by_default and background_of(request.background, plan, has_background_classes=True).rule is not none:
        background_classes = background_nouns(plan.background_classes, classes)
    if backbone.settings.nouns:
        spelled = in_vocabulary(classes + background_classes, backbone.settings.nouns)
        classes, background_classes = spelled[: len(classes)], spelled[len(classes) :]
    if request.kept is not None:
        notes.append(f"only classes that the tagger keeps are asked for: {request.kept.tagger}")
        classes = tuple(classes[index] for index in request.kept.indices([noun.name for noun in classes]))
        if not classes or (len(classes) == 1 and not request.has_background):
            return (), (), notes
    groups = [classes]

    def fits(nouns: Sequence[Noun]) -> bool:
        return plan.keys == "side" or backbone.fits(nouns)

    if request.caption is None:
        listed = background_classes
        while background_classes and not all(fits((noun, *background_classes)) for noun in classes):
            background_classes = background_classes[:-1]
        groups = split_over_prompts(classes, lambda group: fits((*group, *background_classes)))
        if by_default and background_classes:
            notes.append(f"background classes added: {_names(background_classes)}")
        if dropped := listed[len(background_classes) :]:
            notes.append(f"background classes that found no room in the prompt: {_names(dropped)}")
        if len(groups) > 1:
            notes.append(f"{len(classes)} classes do not fit one prompt: spread over {len(groups)}")
    written = None if request.caption is None else normalize("NFC", request.caption)
    prompts = []
    for group in groups:
        if plan.keys == "side":
            prompts.append(_side_tokens(written or "", group, background_classes, session))
            continue
        caption = caption_of((*group, *background_classes)) if written is None else written
        texts = backbone.texts(session.prompt(caption))
        prompts.append(find_noun_tokens(caption, texts, group, background_classes, named=written is not None))
    if any(len(tokens.nouns) == 1 for tokens in prompts):
        notes.append("one noun alone in a prompt: no share is taken")
    return tuple(prompts), tuple(noun.name for noun in background_classes), notes


def _side_tokens(
    caption: str, classes: Sequence[Noun], background_classes: Sequence[Noun], session: BackboneSession
) -> NounTokens:
    """The nouns as keys beside a caption that need not name them."""
    nouns = (*classes, *background_classes)
    keys = session.keys([word for noun in nouns for word in noun.words])
    counts = iter([next(iter(text_keys.values()))[0].shape[1] for text_keys in keys])
    ends = [0, *accumulate(sum(islice(counts, len(noun.words))) for noun in nouns)]
    indices = tuple(tuple(range(start, end)) for start, end in pairwise(ends))
    return NounTokens(caption, indices[: len(classes)], indices[len(classes) :], tuple(range(ends[-1])), keys)


def _names(nouns: Sequence[Noun]) -> str:
    return ", ".join(noun.name for noun in nouns)


def background_of(background: str | float | None, plan: Plan, has_background_classes: bool) -> Background:
    """The rule for the background that a request asks for. Raises GocaError for one that there is not."""
    if background is None or (isinstance(background, str) and background == NO_BACKGROUND):
        return Background(none)
    if isinstance(background, Real) and not isinstance(background, bool) and 0 <= background <= 1:
        return Background(constant, float(background))
    if not (isinstance(background, str) and background == AUTO):
        raise GocaError(
            f'background {background!r} is none of "auto", "none" and a threshold between 0 and 1', hint="background"
        )
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
                "scale it down, cut it, or do without window",
                hint="window",
            )
    size = images.fit(image, plan.size, multiple, backbone.max_pixels, backbone.max_side)
    grid = images.common_grid((size[0] // backbone.vae_scale_factor, size[1] // backbone.vae_scale_factor), plan.grid)
    return Windows.whole(grid), (image,), size


PromptedImage = tuple[PreparedImage, NounTokens, Float[Tensor, "_window _channel _height _width"]]
"""An image, the nouns' tokens of one of its prompts, and its encoded windows."""


def batched_by_windows(
    prepared: Sequence[PreparedImage], latents: Sequence[Float[Tensor, "_window _channel _height _width"]], batch: int
) -> Iterator[list[PromptedImage]]:
    """Every image under every prompt, in lists of at most `batch` windows; an image's windows stay together."""
    prompted: list[PromptedImage] = []
    for image, encoded in zip(prepared, latents, strict=True):
        for tokens in image.prompts:
            if prompted and sum(len(windows) for *_, windows in prompted) + len(encoded) > batch:
                yield prompted
                prompted = []
            prompted.append((image, tokens, encoded))
    if prompted:
        yield prompted

"""A request about one image, and what is decided before the denoiser runs: prompts, windows, background."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, islice, pairwise
from numbers import Real
from unicodedata import normalize

from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from goca.class_maps import ClassMaps
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
"""A result has a note if the model gets less than this share of the pixels that the plan asks for."""


@dataclass(frozen=True, eq=False)
class SegmentationRequest:
    """What is asked of one image.

    Args:
        image: See `goca.imaging.images.ImageLike`.
        classes: Names, or {class: [synonyms]}.
        background_classes: Nouns in the prompt whose pixels become background. None for the model's own list minus the
            classes, or for none if every pixel gets a class or there is a caption.
        background: "auto" (the recipe's rule), a constant threshold on scores in [0, 1], or "none" or None: every pixel
            gets a class.
        caption: The prompt, instead of the list of nouns; it must contain every noun, unless the recipe has keys on the
            side.
        kept: The classes that a tagger names; the others are not put in the prompt and get no pixels. None for all.

    Raises:
        GocaError: The caption is not text.
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
        # Tuples, because an iterator can be read only once, and a request may be repeated for many images.
        for name in ("classes", "background_classes"):
            object.__setattr__(self, name, cleaned(getattr(self, name)))
        if isinstance(self.caption, str):
            object.__setattr__(self, "caption", one_line(self.caption))

    @property
    def has_background(self) -> bool:
        """Whether pixels may be background."""
        return not (self.background is None or self.background == NO_BACKGROUND)

    @property
    def candidates(self) -> Candidates:
        """The classes from which a tagger chooses. Raises GocaError for names that it could not return."""
        return Candidates.of(self.classes, self.has_background)


def kept_by(tagger: Tagger, requests: Sequence[SegmentationRequest]) -> list[SegmentationRequest | GocaError]:
    """The requests with the classes that a tagger names for their images, or why an image is not tagged.

    Raises:
        GocaError: The tagger fails for all images.
    """
    outcomes: list[SegmentationRequest | GocaError] = list(requests)
    sources: dict[int, str | os.PathLike[str] | Image.Image] = {}
    groups: dict[Candidates, list[int]] = {}
    for index, request in enumerate(requests):
        try:
            candidates = request.candidates
            # An open file can only be read once.
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
        image: Upright, RGB.
        prompts: The nouns' tokens in each prompt over which the classes were spread.
        nouns: The nouns that are named; of background classes those that fit.
        background: The rule for background pixels; background_by_user: whether the user chose it.
        windows: Their positions on the common grid; tiles: the image under each.
        size: (height, width) in pixels of the model's input for a window.
        notes: Deviations from the recipe.
        kept: The classes that a tagger names, if there is one.
        evidence: How surely the image shows each class, 0 to 1, if the recipe measures it.
        asked: Indices of the classes that the prompts, or the maps, are of; None for all.
        maps: If the look that measured the evidence labels pixels too, its passes; there is then no prompt.
    """

    image: Image.Image
    classes: tuple[str, ...]
    prompts: tuple[NounTokens, ...]
    nouns: "RequestNouns"
    background: Background
    background_by_user: bool
    windows: Windows
    tiles: tuple[Image.Image, ...]
    size: Grid
    notes: tuple[str, ...]
    kept: Kept | None = None
    evidence: tuple[float, ...] | None = None
    asked: tuple[int, ...] | None = None
    maps: tuple[ClassMaps, ...] = ()

    @property
    def captions(self) -> tuple[str, ...]:
        """The prompts as text."""
        return tuple(tokens.caption for tokens in self.prompts)

    def mirrored(self) -> "PreparedImage":
        """The windows over the image flipped left to right."""
        return replace(self, windows=self.windows.mirrored(), tiles=tuple(map(ImageOps.mirror, self.tiles)))


def prepare(request: SegmentationRequest, plan: Plan, session: BackboneSession) -> PreparedImage:
    """Read the image, find the nouns' tokens, choose windows and background. Raises GocaError if that fails.

    If the plan measures evidence, that comes first, and there are no prompts yet: see `asking`.
    """
    image = images.load(request.image)
    nouns = request_nouns(request, plan, session.backbone)
    notes = list(nouns.notes)
    background = background_of(request.background, plan, has_background_classes=bool(nouns.background_classes))
    windows, tiles, size = _windows(image, plan, session.backbone)
    if len(tiles) > 1:
        notes.append(f"processed in {len(tiles)} overlapping windows")
    elif images.needs_windows(image) and not plan.square:
        notes.append(f"too long for {images.MOST_WINDOWS} windows: processed whole, at {size[1]} x {size[0]} px")
    elif size[0] * size[1] < MUCH_FEWER * plan.size**2:
        notes.append(
            f"processed at {size[1]} x {size[0]} px, the largest size that this model's position embedding allows"
        )
    prepared = PreparedImage(
        image=image,
        classes=tuple(request.classes),
        prompts=(),
        nouns=nouns,
        background=background,
        background_by_user=request.background != AUTO,
        windows=windows,
        tiles=tiles,
        size=size,
        notes=tuple(notes),
        kept=request.kept,
    )
    if plan.evidence is not None:
        return prepared
    return asking(prepared, request, plan, session, nouns.kept)


def asking(
    image: PreparedImage,
    request: SegmentationRequest,
    plan: Plan,
    session: BackboneSession,
    indices: Sequence[int] | None,
) -> PreparedImage:
    """The image with prompts for the classes at `indices`, None for all.

    There is no prompt if none is needed: for no class, or for a single class without background.
    """
    prompts, background_classes, notes = prompts_of(request, image.nouns, plan, session, indices)
    return replace(
        image,
        prompts=prompts,
        nouns=replace(image.nouns, background_classes=background_classes),
        notes=(*image.notes, *notes),
        asked=None if indices is None else tuple(indices),
    )


@dataclass(frozen=True)
class RequestNouns:
    """The nouns of a request in the model's words.

    Attributes:
        classes, background_classes: The nouns, with the model's own list if the request leaves that to the model.
        by_default: Whether the background classes are the model's own list.
        kept: Indices of the classes that a tagger names; None for all.
        notes: Deviations from the recipe.
    """

    classes: tuple[Noun, ...]
    background_classes: tuple[Noun, ...]
    by_default: bool
    kept: tuple[int, ...] | None
    notes: tuple[str, ...]


def request_nouns(request: SegmentationRequest, plan: Plan, backbone: Backbone) -> RequestNouns:
    """The nouns of a request; no image is read. Raises GocaError for nouns that cannot be used."""
    classes, background_classes = parse_nouns(request.classes, request.background_classes)
    check_rivals(request.background, classes)
    notes = []
    if backbone.family.linear_self_attention:
        notes.append("this model's self-attention has no map: the affinity of its dense features is used instead")
    if plan.origin["keys"] == "settings":
        notes.append(
            "keys on the side need cross-attention, which this model lacks: the caption lists the classes instead"
        )
    by_default = request.background_classes is None and request.caption is None
    if by_default and background_of(request.background, plan, has_background_classes=True).rule is not none:
        background_classes = background_nouns(plan.background_classes, classes)
    if backbone.settings.nouns:
        spelled = in_vocabulary(classes + background_classes, backbone.settings.nouns, backbone.name)
        classes, background_classes = spelled[: len(classes)], spelled[len(classes) :]
    kept = None
    if request.kept is not None:
        notes.append(f"only classes kept by the tagger are labelled: {request.kept.tagger}")
        kept = request.kept.indices([noun.name for noun in classes])
    return RequestNouns(classes, background_classes, by_default and bool(background_classes), kept, tuple(notes))


def prompts_of(
    request: SegmentationRequest,
    nouns: RequestNouns,
    plan: Plan,
    session: BackboneSession,
    indices: Sequence[int] | None = None,
) -> tuple[tuple[NounTokens, ...], tuple[Noun, ...], tuple[str, ...]]:
    """Find the nouns in the prompts; no image is read.

    Args:
        request, nouns: The request, and its nouns.
        plan, session: How to segment, and with which model.
        indices: Indices of the requested classes; None for all.

    Returns:
        The tokens of the nouns in each prompt, the background classes that fit, and notes on deviations from the
        recipe.

    Raises:
        GocaError: A noun cannot be put in the prompt.
    """
    backbone, notes = session.backbone, list[str]()
    classes, background_classes = nouns.classes, nouns.background_classes
    if indices is not None:
        classes = tuple(classes[index] for index in indices)
        if not classes or (len(classes) == 1 and not request.has_background):
            return (), (), ()
    groups = [classes]

    def fits(group: Sequence[Noun]) -> bool:
        return plan.keys == "side" or backbone.fits(group)

    if request.caption is None:
        while background_classes and not all(fits((noun, *background_classes)) for noun in classes):
            background_classes = background_classes[:-1]
        groups = split_over_prompts(classes, lambda group: fits((*group, *background_classes)))
        notes += added(nouns, background_classes)
        if dropped := nouns.background_classes[len(background_classes) :]:
            notes.append(f"background classes that do not fit in the prompt: {_names(dropped)}")
        if len(groups) > 1:
            notes.append(f"{len(classes)} classes do not fit in one prompt: spread over {len(groups)}")
    written = None if request.caption is None else normalize("NFC", request.caption)
    prompts = []
    for group in groups:
        if plan.keys == "side":
            prompts.append(side_tokens(written or "", group, background_classes, session))
            continue
        caption = caption_of((*group, *background_classes)) if written is None else written
        texts = backbone.texts(session.prompt(caption))
        prompts.append(find_noun_tokens(caption, texts, group, background_classes, named=written is not None))
    if any(len(tokens.nouns) == 1 for tokens in prompts):
        notes.append("a single noun in the prompt: its share of attention is not taken")
    return tuple(prompts), background_classes, tuple(notes)


def added(nouns: RequestNouns, background_classes: Sequence[Noun]) -> list[str]:
    """The note on background classes that the user did not name, if there are any."""
    listed = nouns.by_default and background_classes
    return [f"background classes added: {_names(background_classes)}"] if listed else []


def side_tokens(
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
    """The rule for a request's background. Raises GocaError for a background that is not valid."""
    if background is None or (isinstance(background, str) and background == NO_BACKGROUND):
        return Background(none)
    if isinstance(background, Real) and not isinstance(background, bool) and 0 <= background <= 1:
        return Background(constant, float(background))
    if not (isinstance(background, str) and background == AUTO):
        raise GocaError(
            f'background {background!r} is not valid: give "auto", "none" or a threshold from 0 to 1', hint="background"
        )
    if isinstance(plan.background, Background):
        return plan.background
    return Background(offset, 0.0) if has_background_classes else Background(constant, 0.5)


def _windows(image: Image.Image, plan: Plan, backbone: Backbone) -> tuple[Windows, tuple[Image.Image, ...], Grid]:
    """Windows if requested or if the image is long; a long image that would take too many is processed whole."""
    multiple = backbone.size_multiple
    side = max(multiple, multiple * round(min(plan.size, backbone.max_side or plan.size) / multiple))
    square = _common_grid((side, side), plan, backbone)
    if plan.square and not plan.window:
        return Windows.whole(square), (images.squashed(image, side),), (side, side)
    if plan.window or images.needs_windows(image):
        cells, _ = square
        windows = images.windows(image, side, cells)
        if windows is not None:
            return windows, images.tiles(image, windows, side / cells), (side, side)
        if plan.window:
            raise GocaError(
                f"an image of {image.width} x {image.height} px would take more than {images.MOST_WINDOWS} windows: "
                "scale it down, crop it, or switch off window",
                hint="window",
            )
    size = backbone.fit(image, plan.size)
    return Windows.whole(_common_grid(size, plan, backbone)), (image,), size


def _common_grid(size: Grid, plan: Plan, backbone: Backbone) -> Grid:
    """The common grid of an image that the model sees at (height, width) px."""
    return plan.common_grid((size[0] // backbone.vae_scale_factor, size[1] // backbone.vae_scale_factor))


View = tuple[bool, list[PreparedImage], list[Float[Tensor, "_window _channel _height _width"]]]
"""(whether images are flipped, the images, the encoded windows of each)."""
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

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
        nouns: what is named; of background classes those that found room.
        background: the rule for pixels of no class; background_by_user: whether the user chose it.
        windows: where they lie on the common grid; tiles: the image under each.
        size: (height, width) in pixels at which the model sees a window.
        notes: what had to differ from the recipe.
        kept: the classes that a tagger names, where it was asked.
        evidence: how surely the image shows each class, 0 to 1, where the recipe measures it before anything is asked.
        asked: the indices of the classes that the prompts, or the maps, are of; None for all.
        maps: where the look that measured the evidence labels pixels too, its passes; there is then no prompt.
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
        """The windows over the image with left and right exchanged."""
        return replace(self, windows=self.windows.mirrored(), tiles=tuple(map(ImageOps.mirror, self.tiles)))


def prepare(request: SegmentationRequest, plan: Plan, session: BackboneSession) -> PreparedImage:
    """Read the image, find the nouns' tokens, choose windows and background; GocaError where that fails.

    Where the plan measures evidence, that is done first and nothing is asked yet: see `asking`.
    """
    image = images.load(request.image)
    nouns = request_nouns(request, plan, session.backbone)
    notes = list(nouns.notes)
    background = background_of(request.background, plan, has_background_classes=bool(nouns.background_classes))
    windows, tiles, size = _windows(image, plan, session.backbone)
    if len(tiles) > 1:
        notes.append(f"seen through {len(tiles)} overlapping windows")
    elif images.needs_windows(image) and not plan.square:
        notes.append(f"too long for {images.MOST_WINDOWS} windows: seen whole, at {size[1]} x {size[0]} px")
    elif size[0] * size[1] < MUCH_FEWER * plan.size**2:
        notes.append(f"processed at {size[1]} x {size[0]} px, the most that this model's position embedding allows")
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
    """The image with prompts that ask for the classes at `indices`, None for all.

    There is no prompt where they leave nothing to ask: none, or one without a background.
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
    """The nouns of a request in the words of the model.

    Attributes:
        classes, background_classes: what is named, with the model's own list where the request leaves it to that.
        by_default: whether the background classes are the model's own list.
        kept: the indices of the classes that a tagger names; None for all.
        notes: what had to be done.
    """

    classes: tuple[Noun, ...]
    background_classes: tuple[Noun, ...]
    by_default: bool
    kept: tuple[int, ...] | None
    notes: tuple[str, ...]


def request_nouns(request: SegmentationRequest, plan: Plan, backbone: Backbone) -> RequestNouns:
    """The nouns of a request; no image is read. Raises GocaError for nouns that cannot be asked for."""
    classes, background_classes = parse_nouns(request.classes, request.background_classes)
    check_rivals(request.background, classes)
    notes = []
    if backbone.family.linear_self_attention:
        notes.append("this model's self-attention has no map: the affinity of its dense features stands in")
    if plan.origin["keys"] == "settings":
        notes.append("keys on the side need cross-attention, which this model lacks: the caption lists the classes")
    by_default = request.background_classes is None and request.caption is None
    if by_default and background_of(request.background, plan, has_background_classes=True).rule is not none:
        background_classes = background_nouns(plan.background_classes, classes)
    if backbone.settings.nouns:
        spelled = in_vocabulary(classes + background_classes, backbone.settings.nouns, backbone.name)
        classes, background_classes = spelled[: len(classes)], spelled[len(classes) :]
    kept = None
    if request.kept is not None:
        notes.append(f"only classes that the tagger keeps are asked for: {request.kept.tagger}")
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
        request, nouns: what is asked, and its nouns.
        plan, session: how, and by what.
        indices: of the classes that are asked for; None for all.

    Returns:
        The tokens of the nouns in each prompt, the background classes that found room, and notes on what had to be
        done.

    Raises:
        GocaError: for nouns that cannot be asked for.
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
            notes.append(f"background classes that found no room in the prompt: {_names(dropped)}")
        if len(groups) > 1:
            notes.append(f"{len(classes)} classes do not fit one prompt: spread over {len(groups)}")
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
        notes.append("one noun alone in a prompt: no share is taken")
    return tuple(prompts), background_classes, tuple(notes)


def added(nouns: RequestNouns, background_classes: Sequence[Noun]) -> list[str]:
    """The note on background classes that nobody named, if there are any."""
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
                "scale it down, cut it, or do without window",
                hint="window",
            )
    size = backbone.fit(image, plan.size)
    return Windows.whole(_common_grid(size, plan, backbone)), (image,), size


def _common_grid(size: Grid, plan: Plan, backbone: Backbone) -> Grid:
    """The common grid of an image that the model sees at (height, width) px."""
    return plan.common_grid((size[0] // backbone.vae_scale_factor, size[1] // backbone.vae_scale_factor))


View = tuple[bool, list[PreparedImage], list[Float[Tensor, "_window _channel _height _width"]]]
"""(whether left and right are exchanged, images so, the encoded windows of each)."""
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

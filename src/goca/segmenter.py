"""The method: images and class names in, labelled masks out, with a frozen text-to-image model.

GoCA, generative scaling of cross-attention: Meng et al., "Making Training-Free Diffusion Segmentors Scale with the
Generative Power", CVPR 2026 (arXiv 2603.06178). Its steps are `prepare`, `attend` (auto aggregation, gaps 1a and 1b),
`class_scores` (per-pixel rescaling, gap 2, and refinement) and `label`.
"""

from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property
from itertools import chain, groupby, islice, product
from typing import Any, overload

import torch
from jaxtyping import Float
from torch import Tensor

from goca.aggregation import ImageAttention
from goca.class_maps import ClassMaps, ensemble_std, joined, mean, on_host, peaks_of, refined, rescaled
from goca.diffusion.attention_call import AttentionCall
from goca.diffusion.backbone import BackboneSession, BatchItem
from goca.errors import GocaError
from goca.evidence import Evidence, Look
from goca.imaging.images import ImageLike
from goca.inspection import BY_PROTOTYPES, EVERY_CLASS, ONE_PASS, Inspection, inspectable
from goca.inspection.keep import blocks_kept, names_kept
from goca.inspection.layer_maps import Budget, LayerMaps
from goca.plan import Plan
from goca.planned_model import PlannedModel
from goca.recipe import AUTO
from goca.request import (
    PreparedImage,
    SegmentationRequest,
    View,
    batched_by_windows,
    kept_by,
    prepare,
    prompts_of,
    request_nouns,
)
from goca.segmentation import ScoreMaps, Segmentation, Segmentations, label_pixels
from goca.self_tagging import tagger_for
from goca.tagging import GIVEN, Tagger
from goca.text.nouns import Classes
from goca.text.tokens import attended_tokens


class Segmenter(PlannedModel):
    """A frozen text-to-image pipeline that labels images; create it with `from_pretrained` or `from_pipeline`.

    An image takes one denoiser pass, and more only for windows, several prompts, timesteps or seeds, and flips.
    Plans that measure evidence, like the default recipe's, look at the image in as many passes first, and once per list
    of nouns at images without content; with prototypes the look is enough, unless another timestep is given.
    """

    def check(self, request: SegmentationRequest) -> BackboneSession:
        """Find out, before any image is read, whether this model supports a request.

        Returns:
            A session that has encoded the captions, for `stream`.

        Raises:
            GocaError: It does not.
        """
        session, model = self.backbone.session(), self.for_request(request)
        with self.inference():
            nouns = request_nouns(request, model.plan, self.backbone)
            if model.plan.evidence is None:
                prompts_of(request, nouns, model.plan, session, nouns.kept)
            else:
                model.evidence.check(request, nouns, session)
        return session

    @overload
    def __call__(
        self,
        image: ImageLike,
        classes: Classes,
        background_classes: Sequence[str] | None = ...,
        background: str | float | None = ...,
        caption: str | None = ...,
        tagger: str | Tagger | None = ...,
    ) -> Segmentation: ...
    @overload
    def __call__(
        self,
        image: list[Any] | tuple[Any, ...],
        classes: Classes,
        background_classes: Sequence[str] | None = ...,
        background: str | float | None = ...,
        caption: str | None = ...,
        tagger: str | Tagger | None = ...,
    ) -> list[Segmentation]: ...
    def __call__(
        self,
        image: ImageLike | list[Any] | tuple[Any, ...],
        classes: Classes,
        background_classes: Sequence[str] | None = None,
        background: str | float | None = AUTO,
        caption: str | None = None,
        tagger: str | Tagger | None = None,
    ) -> Segmentation | list[Segmentation]:
        """Label an image, or each image of a list or tuple; see `SegmentationRequest` and `stream` for the arguments.

        Raises:
            GocaError: An image cannot be read, or the model does not support the classes.
        """
        images: Sequence[Any] = image if isinstance(image, list | tuple) else [image]
        template = SegmentationRequest("", classes, background_classes, background, caption)
        results = Segmentations()
        for _, outcome in self.stream((replace(template, image=item) for item in images), tagger=tagger):
            if isinstance(outcome, GocaError):
                raise outcome
            results.append(outcome)
        return results if isinstance(image, list | tuple) else results[0]

    def stream(
        self,
        requests: Iterable[SegmentationRequest],
        session: BackboneSession | None = None,
        tagger: str | Tagger | None = None,
    ) -> Iterator[tuple[SegmentationRequest, Segmentation | GocaError]]:
        """Segment requests in order, `batch` images at a time; each caption is encoded once.

        Args:
            requests: What to segment; read `batch` at a time.
            session: Keeps the encoded captions; by default a new one.
            tagger: Says which of the classes each image shows; the others get no pixels. A `goca.tagging.Tagger`, or
                a name for `goca.self_tagging.tagger_for`, such as "clip:FOLDER", which is loaded for this stream only.
                None or "given" means that each image shows all classes.

        Yields:
            Each request with its segmentation, or with the error that prevented it.

        Raises:
            GocaError: The tagger is unknown, or fails for all images.
        """
        if isinstance(tagger, str):
            tagger = None if tagger == GIVEN else tagger_for(tagger, self)
        session = session or self.backbone.session()
        pending = iter(requests)
        while chunk := list(islice(pending, self.batch)):
            tagged = chunk if tagger is None else kept_by(tagger, chunk)
            outcomes = (model._outcomes(tuple(group), session) for model, group in groupby(tagged, self._model_for))
            yield from zip(chunk, chain.from_iterable(outcomes), strict=True)

    def _outcomes(
        self, requests: Sequence[SegmentationRequest | GocaError], session: BackboneSession
    ) -> Iterator[Segmentation | GocaError]:
        """The outcomes of a batch; an error stays as it is."""
        prepared = [each if isinstance(each, GocaError) else self.prepare(each, session) for each in requests]
        if self.plan.evidence is not None:
            prepared = self.evidence.shown(requests, prepared, session)
        with_prompts = [image for image in prepared if isinstance(image, PreparedImage) and image.prompts]
        passes = self.passes(with_prompts, session)
        for image in prepared:
            if isinstance(image, GocaError):
                yield image
            else:
                yield self.label(image, next(passes) if image.prompts else image.maps)

    def inspect(
        self,
        image: ImageLike,
        classes: Classes,
        background_classes: Sequence[str] | None = None,
        background: str | float | None = AUTO,
        caption: str | None = None,
        keep: str | Iterable[str] = (),
        layers: Iterable[str] | None = None,
    ) -> Inspection:
        """Label an image in one denoiser pass, and keep its attention; see `Inspection`.

        The image is processed whole, at the plan's first timestep and seed, with every class in the prompt, whatever
        its evidence; if the recipe measures evidence, the plan notes that. A recipe that labels by prototypes is
        inspected by attention, at the timestep for nouns without a prototype, so its labels differ. Memory, at 4 bytes
        per value: a few maps of each noun and token of a noun on the common grid; the map of each such token in each
        layer on its grid; with heads, as much again for each head of the layer (up to 1 GiB in all, further layers are
        left out); and the self-attention that refines, up to 67 MB per grid.

        Arguments that are not listed here are as in `SegmentationRequest`.

        Args:
            keep: "heads" to keep the maps of single heads too.
            layers: The blocks whose maps are kept; by default all that attend to the text. Their weights always are.

        Raises:
            GocaError: The image cannot be read or needs windows, the classes do not fit in
                one prompt, or the recipe makes no maps of the prompt's tokens.
        """
        each_head, blocks = bool(names_kept(keep, ["heads"])), blocks_kept(layers, self.backbone.blocks)
        model, session = self.with_plan(inspectable(self.attention_plan or self.plan)), self.backbone.session()
        plan = model.plan
        with self.inference():
            request = SegmentationRequest(image, classes, background_classes, background, caption)
            prepared = prepare(request, plan, session)
            notes = list(prepared.notes)
            if self.plan.evidence == "prototypes":
                notes.append(BY_PROTOTYPES.format(timestep=plan.timestep[0]))
            if self.plan.evidence is not None:
                notes.append(EVERY_CLASS)
            if self.plan.num_passes > 1:
                notes.append(ONE_PASS.format(passes=self.plan.num_passes))
            prepared = replace(prepared, notes=tuple(notes))
            for parts, what, remedy in (
                (prepared.prompts, "these classes take several prompts", "inspect fewer at once"),
                (prepared.tiles, "this image takes several windows", "inspect a part of it"),
            ):
                if len(parts) > 1:
                    raise GocaError(f"{what} and cannot be inspected in one pass: {remedy}")
            (tokens,) = prepared.prompts
            attention = ImageAttention.of(plan, prepared.windows, tokens)
            (aggregator,) = attention.aggregators
            layer_maps = LayerMaps(tokens.content, plan.heads, blocks, each_head, Budget())

            def take(call: AttentionCall) -> None:
                aggregator.add(call)
                layer_maps.add(call)

            latents = self.backbone.latents(prepared.tiles, prepared.size)
            item = BatchItem(latents, prepared.size, tokens.caption, plan.timestep[0], plan.seeds[0], take)
            session.run([item], 1)
            texts = self.backbone.texts(session.prompt(tokens.caption))
            segmentation = model.label(prepared, [joined(plan, [model.class_scores(attention)])])
            return Inspection(prepared, aggregator, layer_maps, attended_tokens(texts), segmentation)

    def for_request(self, request: SegmentationRequest) -> "Segmenter":
        """This model or, for a request with a noun that has no prototype, the same model with evidence by attention.

        Raises:
            GocaError: The model does not support a noun.
        """
        if self.plan.evidence != "prototypes" or self.attention_plan is None:
            return self
        nouns = request_nouns(request, self.plan, self.backbone)
        return self._by_attention if self.evidence.without_prototype(nouns) else self

    def _model_for(self, request: SegmentationRequest | GocaError) -> "Segmenter":
        try:
            return self if isinstance(request, GocaError) else self.for_request(request)
        except GocaError:
            return self  # which will raise the same error

    @cached_property
    def _by_attention(self) -> "Segmenter":
        assert self.attention_plan is not None
        return self.with_plan(self.attention_plan)

    @cached_property
    def evidence(self) -> Evidence:
        """Measures which classes an image shows, for plans with evidence."""
        return Evidence(self)

    def looks(self, images: Sequence[PreparedImage], session: BackboneSession) -> list[Look]:
        """Look at images before classes are put in the prompt, see `Evidence.looks`."""
        return self.evidence.looks(images, session)

    def with_plan(self, plan: Plan) -> "Segmenter":
        """The same model under another plan."""
        other = copy(self)
        other.plan = plan
        for of_the_plan in ("evidence", "_by_attention"):
            vars(other).pop(of_the_plan, None)
        return other

    def prepare(self, request: SegmentationRequest, session: BackboneSession) -> PreparedImage | GocaError:
        """The upright image, its windows, prompts that list the nouns, and the background; or an error."""
        try:
            with self.inference():
                return prepare(request, self.plan, session)
        except GocaError as error:
            return error

    def attend(
        self,
        images: Sequence[PreparedImage],
        latents: Sequence[Float[Tensor, "_window _channel _height _width"]],
        timestep: int,
        seed: int,
        session: BackboneSession,
    ) -> Iterator[ImageAttention]:
        """Auto aggregation: one denoiser pass, whose attention is summed while it runs, for each image and prompt.

        - Gap 1a, heads: the map of a layer is sum_h w_h(i) A_h(i, :), with w_h(i) = <z_h W_h, o>(i) / |o(i)|^2, the
          share of head h in the layer's output at pixel i (`plan.heads`).
        - Gap 1b, layers: the global map is the sum of the layers' maps, each weighed by sum_ij R_ij S'_ij, the
          agreement of its self-attention S' with the affinity R of the reference layer (`plan.layers`).
        """
        # The maps of all prompts are refitted together, to the features of the image under its first prompt.
        further = replace(self.plan, refit=None)
        for prompted in batched_by_windows(images, latents, self.batch):
            attention = [
                ImageAttention.of(self.plan if tokens is image.prompts[0] else further, image.windows, tokens)
                for image, tokens, _ in prompted
            ]
            items = (
                BatchItem(latent, image.size, tokens.caption, timestep, seed, aggregator.add)
                for (image, tokens, windows), sums in zip(prompted, attention, strict=True)
                for latent, aggregator in zip(windows.split(1), sums.aggregators, strict=True)
            )
            session.run(items, self.batch)
            while attention:  # affinities are large: drop each one as soon as it is yielded
                yield attention.pop(0)

    def class_scores(self, attention: ImageAttention) -> ClassMaps:
        """Per-pixel rescaling and refinement: maps in [0, 1] on the common grid, for one image under one prompt.

        - Gap 2: a class's mean over its tokens, divided at every pixel by the sum over all content tokens; blurred;
          min-maxed (`plan.rescale`). Background classes are merged by maximum before refinement.
        - Refinement: scores <- S^k scores, S the mean self-attention of a few layers (`plan.refine`, `plan.order`),
          under a rule (`plan.affinity`). Refitting (`plan.refit`) waits for the image's other prompts.
        """
        mass = attention.token_mass()
        maps = rescaled(self.plan, mass, attention.tokens)
        scores = refined(self.plan, attention.affinity, maps, attention.tokens, peaks_of(mass))
        return replace(scores, features=attention.features())

    def label(self, image: PreparedImage, passes: Sequence[ClassMaps]) -> Segmentation:
        """Average the passes, upsample to the image's size, and take the argmax of the background and the classes."""
        indices = image.asked
        with self.inference():
            if passes:
                maps, std = mean(passes), ensemble_std(passes)
            else:  # there was no prompt: a class that is kept covers the image
                count = len(indices or ())
                maps, std = ClassMaps(torch.ones(count, *image.windows.canvas), None, torch.ones(count)), None
            (labels,) = label_pixels(maps, [image.background], image.image, self.plan.refine_edges, indices)
        background_classes = [noun.name for noun in image.nouns.background_classes]
        ran = self.plan.as_run(
            image.background, image.background_by_user, background_classes, image.captions, image.notes
        )
        classes, background, peaks, std = on_host(maps.classes, maps.background, maps.peaks, std)
        assert classes is not None
        assert peaks is not None
        scores = ScoreMaps.of(ClassMaps(classes, background, peaks), std)
        evidence = image.evidence or tuple(peaks.tolist())
        if indices is not None:
            scores = scores.among(len(image.classes), indices)
            if image.evidence is None:
                by_index = dict(zip(indices, evidence, strict=True))
                evidence = tuple(by_index.get(index, 0.0) for index in range(len(image.classes)))
        return Segmentation(image.image, image.classes, labels, scores, ran, evidence, image.kept, indices)

    def passes(self, images: Sequence[PreparedImage], session: BackboneSession) -> Iterator[tuple[ClassMaps, ...]]:
        """For each image, its class maps in every pass: unflipped, then flipped; at each timestep, with each seed."""
        passes: list[list[ClassMaps]] = []
        with self.inference():
            for flip, views, latents in self.views(images):
                for timestep, seed in product(self.plan.timestep, self.plan.seeds):
                    # Unlike a loop variable, `map` frees an image's attention before computing the next.
                    maps = map(self.class_scores, self.attend(views, latents, timestep, seed, session))
                    merged = [joined(self.plan, list(islice(maps, len(view.prompts)))) for view in views]
                    passes.append([each.mirrored() for each in merged] if flip else merged)
        return zip(*passes, strict=True)

    def views(self, images: Sequence[PreparedImage]) -> Iterator[View]:
        """The images unflipped and, if the plan flips, flipped, with the encoded windows of each."""
        for flip in (False, True) if self.plan.flip else (False,):
            views = [image.mirrored() if flip else image for image in images]
            yield flip, views, [self.backbone.latents(view.tiles, view.size, self.batch) for view in views]

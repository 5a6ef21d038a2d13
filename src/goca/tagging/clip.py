"""CLIP, SigLIP and similar models: score how well an image fits a sentence about every class."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from goca.diffusion.loading import quiet
from goca.errors import GocaError
from goca.imaging import images
from goca.tagging.answers import write
from goca.tagging.base import ImageCollection, TaggableImage
from goca.tagging.loading import check_model, load_model, model_name, pooled
from goca.text.nouns import Category

TEXTS = 64
"""Sentences per encoded batch."""


@dataclass
class CLIPTagger:
    """Keeps the classes whose sentence fits the image; a class with synonyms is as likely as its likeliest word.

    A sigmoid model (SigLIP, whose logits have a bias) is trained to judge each pair on its own, so the probability of a
    class is sigmoid(logit). A softmax model (CLIP) only ranks sentences for an image, so a class is compared with the
    best of several neutral sentences that fit any image: sigmoid(logit - best neutral logit), the softmax over these
    two.

    Args:
        model: A folder or a Hub id of a model for zero-shot image classification. It is loaded on first use, by
            `load_model`.
        batch: Images per batch, 1 or more.
        template: Sentence of a class; "{}" stands for its name.
        neutral: Sentences that fit any image, for softmax models.
        threshold: Least probability, 0 to 1, of a class that a softmax model keeps.
        sigmoid_threshold: The same for a sigmoid model. Far below a half, because such models are trained with one
            matching sentence among thousands, which describes everything that its image shows.
    """

    model: str
    batch: int = 8
    template: str = "a photo of a {}"
    neutral: tuple[str, ...] = ("a photo", "an image", "a photo of something else")
    threshold: float = 0.5
    sigmoid_threshold: float = 0.05
    _captions: dict[tuple[str, str], str | GocaError] = field(init=False, repr=False, default_factory=dict)
    _encoded: dict[tuple[str, ...], Tensor] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise GocaError(f"batch {self.batch} is too small: give 1 or more", "batch")
        check_model(self.model)

    @cached_property
    def name(self) -> str:
        return f"clip {model_name(self.model)}"

    def prepare(self, samples: Sequence[TaggableImage], dataset: ImageCollection) -> None:
        """Tag the images, a batch at a time. See `BatchTagger`."""
        readable: list[tuple[TaggableImage, Image.Image]] = []
        for sample in samples:
            try:
                readable.append((sample, images.load(sample.image)))
            except GocaError as error:
                self._captions[dataset.name, sample.id] = error
            if len(readable) == self.batch:
                self._tag(readable, dataset)
                readable.clear()
        if readable:
            self._tag(readable, dataset)

    def tag(self, sample: TaggableImage, dataset: ImageCollection) -> str:
        """See `Tagger`; if an image must show a class, the likeliest one is kept if no other is."""
        if (dataset.name, sample.id) not in self._captions:
            self.prepare([sample], dataset)
        caption = self._captions.pop((dataset.name, sample.id))
        if isinstance(caption, GocaError):
            raise caption
        return caption

    def _tag(self, samples: Sequence[tuple[TaggableImage, Image.Image]], dataset: ImageCollection) -> None:
        if not dataset.categories:
            raise GocaError("there are no classes to choose from: name some, or use another tagger")
        rows = self.probabilities([image for _, image in samples], dataset.categories)
        for (sample, _), row in zip(samples, rows, strict=True):
            least = self.least if dataset.background else min(self.least, float(row.max()))
            kept = [name for name, value in zip(dataset.class_names, row.tolist(), strict=True) if value >= least]
            self._captions[dataset.name, sample.id] = write((name,) for name in kept)

    @property
    def least(self) -> float:
        """The threshold for this kind of model."""
        return self.sigmoid_threshold if self._is_sigmoid else self.threshold

    @torch.no_grad()
    def probabilities(
        self, loaded: Sequence[Image.Image], categories: Sequence[Category]
    ) -> Float[Tensor, "image category"]:
        """How surely each image shows each class, 0 to 1.

        Raises:
            GocaError: The model cannot be loaded, or does not fit in memory.
        """
        _, model = self._loaded
        words = [(category.name, *category.synonyms) for category in categories]
        sentences = [self.template.format(word.replace("_", " ").lower()) for group in words for word in group]
        neutral = () if self._is_sigmoid else self.neutral
        try:
            logits = self._images(loaded) @ self._texts((*sentences, *neutral)).T * model.logit_scale.float().exp()
        except torch.OutOfMemoryError:
            raise GocaError(f"{self.model} does not fit in memory with batch {self.batch}: lower it", "batch") from None
        if self._is_sigmoid:
            logits += model.logit_bias.float()
        else:
            logits = logits[:, : len(sentences)] - logits[:, len(sentences) :].amax(1, keepdim=True)
        by_category = logits.split([len(group) for group in words], dim=1)
        return torch.stack([group.amax(1) for group in by_category], 1).sigmoid().cpu()

    def _images(self, loaded: Sequence[Image.Image]) -> Float[Tensor, "image feature"]:
        processor, model = self._loaded
        inputs = processor(images=list(loaded), return_tensors="pt").to(model.device, model.dtype)
        return _directions(model.get_image_features(**inputs))

    def _texts(self, sentences: tuple[str, ...]) -> Float[Tensor, "text feature"]:
        """Text features; they are cached, as the sentences are the same for every image."""
        if sentences not in self._encoded:
            processor, model = self._loaded
            with quiet():
                inputs = processor(
                    text=list(sentences),
                    # As in training: SigLIP has no mask, and pads all texts to one length.
                    padding="max_length" if self._is_sigmoid else True,
                    truncation=True,
                    max_length=model.config.text_config.max_position_embeddings,
                    return_tensors="pt",
                ).to(model.device)
            starts = range(0, len(sentences), TEXTS)
            parts = ({name: rows[start : start + TEXTS] for name, rows in inputs.items()} for start in starts)
            self._encoded = {sentences: torch.cat([_directions(model.get_text_features(**part)) for part in parts])}
        return self._encoded[sentences]

    @property
    def _is_sigmoid(self) -> bool:
        return hasattr(self._loaded[1], "logit_bias")

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        processor, model = load_model(self.model, "AutoModelForZeroShotImageClassification")
        if not all(hasattr(model, name) for name in ("logit_scale", "get_image_features", "get_text_features")):
            raise GocaError(f"{self.model} does not embed images and texts like CLIP or SigLIP: name a model that does")
        return processor, model


def _directions(features: Any) -> Float[Tensor, "row feature"]:
    """Features normalised to length 1."""
    return torch.nn.functional.normalize(pooled(features).float(), dim=-1)

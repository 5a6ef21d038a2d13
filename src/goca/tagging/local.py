"""A local vision-language model, run by transformers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from goca.diffusion.loading import quiet
from goca.errors import GocaError
from goca.imaging import images
from goca.tagging.answers import caption_of
from goca.tagging.base import DeclinedError, ImageCollection, TaggableImage
from goca.tagging.captions import CaptionStore
from goca.tagging.instruction import instruction
from goca.tagging.loading import check_model, load_model, model_name

MOST_TOKENS = 160
"""Most tokens of an answer: 35 words with commas and parentheses, and some to spare."""


@dataclass
class LocalTagger:
    """Shows a model every image that has no caption yet, and saves each answer at once.

    Args:
        model: A folder or a Hub id of an image-text model that follows instructions. It is loaded on first use, from
            safetensors, without running code from its repository.
        path: The .jsonl file of the captions.
        batch: Images per batch, 1 or more.
    """

    model: str
    path: Path
    batch: int = 8
    store: CaptionStore = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise GocaError(f"batch {self.batch} is too small: give 1 or more", "batch")
        check_model(self.model)
        self.store = CaptionStore(self.path, self.name)
        self._failures: dict[tuple[str, str], DeclinedError] = {}

    @cached_property
    def name(self) -> str:
        return f"local {model_name(self.model)}"

    def prepare(self, samples: Sequence[TaggableImage], dataset: ImageCollection) -> None:
        """Tag the images without a caption, a batch at a time. See `BatchTagger`."""
        missing = [sample for sample in samples if self.store.get(sample, dataset) is None and _readable(sample)]
        if not missing:
            return
        with self.store:
            for start in range(0, len(missing), self.batch):
                part = missing[start : start + self.batch]
                for sample, answer in zip(part, self._answers(part, dataset), strict=True):
                    try:
                        self.store.add(sample, dataset, caption_of(answer, self.model, dataset.class_names))
                    except DeclinedError as error:
                        self._failures[dataset.name, sample.id] = error

    def tag(self, sample: TaggableImage, dataset: ImageCollection) -> str:
        """See `Tagger`."""
        if self.store.get(sample, dataset) is None and (dataset.name, sample.id) not in self._failures:
            images.load(sample.image)  # raises for an image that `prepare` has skipped
            self.prepare([sample], dataset)
        caption = self.store.get(sample, dataset)
        if caption is None:
            raise self._failures[dataset.name, sample.id]
        return caption

    @torch.no_grad()
    def _answers(self, samples: Sequence[TaggableImage], dataset: ImageCollection) -> list[str]:
        processor, model = self._loaded
        content = [{"type": "image"}, {"type": "text", "text": instruction(dataset)}]
        try:
            prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        except Exception as error:  # a template is a program that may raise anything
            raise GocaError(
                f"{self.model} has a chat template that fails ({type(error).__name__}: {error}): use another model"
            ) from None
        loaded_images = [[images.load(sample.image)] for sample in samples]
        try:
            with quiet():
                inputs = processor(
                    images=loaded_images, text=[prompt] * len(loaded_images), padding=True, return_tensors="pt"
                ).to(model.device, model.dtype)
                outputs = model.generate(**inputs, do_sample=False, max_new_tokens=MOST_TOKENS)
        except torch.OutOfMemoryError:
            raise GocaError(f"{self.model} does not fit in memory with batch {self.batch}: lower it", "batch") from None
        answers = [_new_tokens(row, start) for row, start in zip(outputs, inputs["input_ids"], strict=True)]
        return list(processor.batch_decode(answers, skip_special_tokens=True))

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        """(processor, model), the model on an accelerator if there is one."""
        processor, model = load_model(self.model, "AutoModelForImageTextToText")
        if not getattr(processor, "chat_template", None):
            raise GocaError(
                f"{self.model} has no chat template and cannot take instructions: name an instruction-tuned model"
            )
        # All answers then start at the same index, after the prompts.
        processor.tokenizer.padding_side = "left"
        return processor, model


def _readable(sample: TaggableImage) -> bool:
    """Whether the image can be read; `tag` raises for one that cannot."""
    try:
        images.load(sample.image)
    except GocaError:
        return False
    return True


def _new_tokens(row: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
    """The generated tokens: most models repeat the prompt before them, some do not."""
    length = len(prompt)
    return row[length:] if len(row) >= length and bool((row[:length] == prompt).all()) else row

"""A vision-language model on this machine, through transformers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch

from goca.diffusion.loading import hub_options, quiet, unloadable
from goca.diffusion.model_files import (
    check_complete,
    check_numbers,
    check_settings,
    check_size,
    check_weights,
    read_settings,
)
from goca.errors import GocaError
from goca.imaging import images
from goca.tagging.answers import caption_of
from goca.tagging.base import DeclinedError, ImageCollection, TaggableImage
from goca.tagging.captions import CaptionStore
from goca.tagging.instruction import instruction

MOST_TOKENS = 160
"""Of an answer: 35 words, commas and parentheses included, with room to spare."""
PIECES, PIECE = 64, 4096
"""How many pieces of a file a fingerprint covers, and the bytes of each."""
_DECISIVE = (".safetensors", ".json", ".jinja")
"""Suffixes of what decides a model's answers: weights, settings, templates."""
_SETTINGS = ["*.json", "*.jinja", "*.txt", "*.model"]
"""What of a Hub id is looked at before its weights are fetched."""


@dataclass
class LocalTagger:
    """Shows a model every image that has no caption yet, and saves each answer at once.

    Args:
        model: a folder or a Hub id of an image-text model that follows instructions. It is loaded when the first image
            needs it, from safetensors, and no code of its repository runs.
        path: the .jsonl file of the captions.
        batch: images at a time, 1 or more.
    """

    model: str
    path: Path
    batch: int = 8
    store: CaptionStore = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.model:
            raise GocaError("no model is named: write a folder or a Hub id behind the colon")
        if self.batch < 1:
            raise GocaError(f"batch {self.batch} is too small: give 1 or more", "batch")
        self.store = CaptionStore(self.path, self.name)
        self._failures: dict[tuple[str, str], DeclinedError] = {}

    @cached_property
    def name(self) -> str:
        """A Hub id as it is; a folder with a fingerprint, because another model may be put into it."""
        folder = Path(self.model)
        return f"local {folder.absolute().name} ({_fingerprint(folder)})" if folder.is_dir() else f"local {self.model}"

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
            images.load(sample.image)  # says what is wrong with one that `prepare` passes over
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
        except Exception as error:  # a template is a program: what it raises is of any kind
            raise GocaError(
                f"{self.model} has a chat template that fails ({type(error).__name__}: {error}): take another model"
            ) from None
        loaded_images = [[images.load(sample.image)] for sample in samples]
        try:
            with quiet():
                inputs = processor(
                    images=loaded_images, text=[prompt] * len(loaded_images), padding=True, return_tensors="pt"
                ).to(model.device, model.dtype)
                outputs = model.generate(**inputs, do_sample=False, max_new_tokens=MOST_TOKENS)
        except torch.OutOfMemoryError:
            raise GocaError(
                f"{self.model} does not fit the memory with batch {self.batch}: lower it", "batch"
            ) from None
        answers = [_new_tokens(row, start) for row, start in zip(outputs, inputs["input_ids"], strict=True)]
        return list(processor.batch_decode(answers, skip_special_tokens=True))

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        """(processor, model), the model on an accelerator where there is one."""
        local = Path(self.model).is_dir()
        try:
            folder, options = (Path(self.model), {"local_files_only": True}) if local else _settings(self.model)
            check_settings(folder)
            weights = check_weights(folder, fetched=local)
            # Slow to import: not before the folder, or the Hub, has answered.
            from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

            with quiet():
                if local:
                    path = folder / "config.json"
                    check_numbers(path, read_settings(path), weights.tensors)
                    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
                    with torch.device("meta"):
                        check_size(path, AutoModelForImageTextToText.from_config(config), weights)
                processor = AutoProcessor.from_pretrained(self.model, trust_remote_code=False, **options)
                model, info = AutoModelForImageTextToText.from_pretrained(
                    self.model,
                    dtype="auto",
                    use_safetensors=True,
                    trust_remote_code=False,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,  # and told by name
                    **options,
                )
            check_complete(folder, model, info)
        except GocaError:
            raise
        except Exception as error:  # transformers and the hub client raise any kind for what they cannot load
            raise unloadable(self.model, error, local) from None
        if not getattr(processor, "chat_template", None):
            raise GocaError(
                f"{self.model} has no chat template, so it takes no instruction: name one that is tuned for it"
            )
        # All answers then begin at one index, where the prompts end.
        processor.tokenizer.padding_side = "left"
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
        return processor, model.to(device).eval()


def _settings(name: str) -> tuple[Path, dict[str, Any]]:
    """The settings of a Hub id, in the local cache, and how to ask for the rest of the same commit."""
    from huggingface_hub import snapshot_download

    options = hub_options(name, None, "config.json")
    folder = Path(snapshot_download(name, allow_patterns=_SETTINGS, ignore_patterns="*/*", **options))
    return folder, {**options, "revision": folder.name}


def _fingerprint(folder: Path) -> str:
    """Of a model's files: names, sizes, and some of their content; all of it if they are small."""
    digest = blake2b(digest_size=4)
    try:
        for path in sorted(path for path in folder.iterdir() if path.suffix in _DECISIVE):
            size = path.stat().st_size
            digest.update(f"{path.name} {size}".encode())
            with path.open("rb") as file:
                for start in range(0, size, max(PIECE, size // PIECES)):
                    file.seek(start)
                    digest.update(file.read(PIECE))
    except OSError as error:
        raise GocaError(f"cannot read {error.filename}: {error.strerror}; check the folder") from None
    return digest.hexdigest()


def _readable(sample: TaggableImage) -> bool:
    """Whether a batch can take the image; `tag` says what is wrong with one that it cannot."""
    try:
        images.load(sample.image)
    except GocaError:
        return False
    return True


def _new_tokens(row: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
    """What a model wrote: most repeat the prompt in front of it, some do not."""
    length = len(prompt)
    return row[length:] if len(row) >= length and bool((row[:length] == prompt).all()) else row

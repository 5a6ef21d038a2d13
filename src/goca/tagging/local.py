"""A vision-language model on this machine, through transformers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from goca.diffusion.loading import quiet
from goca.errors import GocaError
from goca.evaluation.datasets.base import Dataset, Sample
from goca.imaging import images
from goca.tagging.base import Done
from goca.tagging.captions import Record
from goca.tagging.instruction import caption_in, instruction

MOST_TOKENS = 160
"""Of an answer: 35 words, commas and parentheses included, with room to spare."""
PROBES, PROBE = 64, 4096
"""Places in a file that a fingerprint looks at, and bytes at each."""
_DECISIVE = (".safetensors", ".json", ".jinja")
"""Suffixes of what decides a model's answers: weights, settings, templates."""
_UNLOADABLE = (OSError, ValueError, TypeError, AttributeError, RuntimeError, LookupError, ImportError, SafetensorError)


@dataclass
class Local:
    """Shows `model` every image that `path` (.jsonl) lacks, `batch` at a time, and records each answer at once.

    model: a folder or a Hub id of an image-text model that follows instructions; it is loaded when the first image
    needs it, from safetensors, and runs no code of its repository.
    """

    model: str
    path: Path
    batch: int = 8
    record: Record = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.model:
            raise GocaError("no model is named: write a folder or a Hub id behind the colon")
        if self.batch < 1:
            raise GocaError(f"batch {self.batch} is too small: give 1 or more")
        self.record = Record(self.path, self.name)

    @cached_property
    def name(self) -> str:
        """A Hub id as it is; a folder's name alone would be that of any model that is put there."""
        folder = Path(self.model)
        return f"local {folder.absolute().name} ({_fingerprint(folder)})" if folder.is_dir() else f"local {self.model}"

    def prepare(self, samples: Sequence[Sample], dataset: Dataset, done: Done) -> None:
        """Tag the images that are not recorded yet. See `Preparing`."""
        missing = []
        for sample in samples:
            if self.record.get(sample, dataset) is None and _readable(sample):
                missing.append(sample)
            else:
                done()
        if missing:
            self.record.open()
        for start in range(0, len(missing), self.batch):
            part = missing[start : start + self.batch]
            for sample, caption in zip(part, self._captions(part, instruction(dataset)), strict=True):
                self.record.add(sample, dataset, caption)
                done()

    def tag(self, sample: Sample, dataset: Dataset) -> str:
        known = self.record.get(sample, dataset)
        if known is None:
            (known,) = self._captions([sample], instruction(dataset))
            self.record.add(sample, dataset, known)
        return known

    @torch.no_grad()
    def _captions(self, samples: Sequence[Sample], request: str) -> list[str]:
        processor, model = self._loaded
        content = [{"type": "image"}, {"type": "text", "text": request}]
        prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        loaded_images = [[images.load(sample.image)] for sample in samples]
        try:
            with quiet():
                given = processor(
                    images=loaded_images, text=[prompt] * len(loaded_images), padding=True, return_tensors="pt"
                ).to(model.device, model.dtype)
                out = model.generate(**given, do_sample=False, max_new_tokens=MOST_TOKENS)
        except torch.OutOfMemoryError:
            raise GocaError(f"{self.model} does not fit the memory with batch {self.batch}: lower it") from None
        answers = [_behind(row, before) for row, before in zip(out, given["input_ids"], strict=True)]
        return [caption_in(text) for text in processor.batch_decode(answers, skip_special_tokens=True)]

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        """(processor, model), the model on an accelerator where there is one."""
        from transformers import AutoModelForImageTextToText, AutoProcessor

        local = Path(self.model).is_dir()
        options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": local}
        try:
            with quiet():
                processor = AutoProcessor.from_pretrained(self.model, **options)
                model = AutoModelForImageTextToText.from_pretrained(
                    self.model, dtype="auto", use_safetensors=True, **options
                )
        except _UNLOADABLE as error:
            reason = " ".join(str(error).split())[:200]
            hint = (
                "is the folder complete, with its weights as safetensors?" if local else "check the id and the network"
            )
            raise GocaError(f"cannot load {self.model}: {hint} ({type(error).__name__}: {reason})") from None
        if not getattr(processor, "chat_template", None):
            raise GocaError(
                f"{self.model} has no chat template, so it takes no instruction: name one that is tuned for it"
            )
        # Answers begin where the prompts end, all at one place.
        processor.tokenizer.padding_side = "left"
        place = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
        return processor, model.to(place).eval()


def _fingerprint(folder: Path) -> str:
    """A mark of a model's files: names, sizes, and some of their content, which for small ones is all."""
    mark = blake2b(digest_size=4)
    try:
        for path in sorted(path for path in folder.iterdir() if path.suffix in _DECISIVE):
            size = path.stat().st_size
            mark.update(f"{path.name} {size}".encode())
            with path.open("rb") as file:
                for place in range(0, size, max(PROBE, size // PROBES)):
                    file.seek(place)
                    mark.update(file.read(PROBE))
    except OSError as error:
        raise GocaError(f"cannot read {error.filename}: {error.strerror}; check the folder") from None
    return mark.hexdigest()


def _readable(sample: Sample) -> bool:
    """Whether a batch can take the image; `tag` tells what is wrong with one that it cannot."""
    try:
        images.load(sample.image)
    except GocaError:
        return False
    return True


def _behind(row: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """What a model wrote: most repeat the prompt in front of it, some do not."""
    length = len(before)
    return row[length:] if len(row) >= length and bool((row[:length] == before).all()) else row

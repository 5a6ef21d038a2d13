"""A vision-language model behind an OpenAI-compatible server: OpenAI's own, or vLLM, Ollama, llama.cpp, a gateway."""

import base64
import io
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from goca.errors import GocaError
from goca.evaluation.datasets.base import Dataset, Sample
from goca.imaging import images
from goca.tagging.base import Done, Estimate, Prices
from goca.tagging.captions import Record
from goca.tagging.endpoint import Declined, Endpoint, Refusal
from goca.tagging.instruction import MOST_WORDS, USUAL_WORDS, caption_in, instruction

LONGEST_SIDE = 1024
"""Larger images are shown smaller: nouns can still be told, and it costs less."""
TOKENS_A_LETTER, TOKENS_A_WORD = 1 / 4, 2
TOKENS_A_IMAGE, TOKENS_A_TILE, TILE = 85, 170, 512
"""OpenAI's rule for its GPT-4 models; others count otherwise, most of them fewer."""


class Unreadable(GocaError):  # noqa: N818 - of an image, as `Declined` is of a question
    """This one image cannot be shown, and others may well be."""


@dataclass
class VLM:
    """Asks a server for every image that `record` lacks, and records each answer at once.

    model: its name to the server. together: questions that are under way at a time. prices: see `Prices`.
    """

    model: str
    endpoint: Endpoint
    path: Path
    together: int = 4
    prices: Prices | None = None
    record: Record = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.model:
            raise GocaError('no model is named: write it behind the colon, such as "vlm:gpt-4o"')
        if self.together < 1:
            raise GocaError(f"{self.together} questions at a time are too few: give 1 or more")
        self.record = Record(self.path, self.name)
        self._faults: dict[tuple[str, str], Unreadable | Declined] = {}
        # Some models take no temperature; the first to say so is asked without from then on.
        self._settings: dict[str, Any] = {"temperature": 0}

    @property
    def name(self) -> str:
        return f"vlm {self.model}"

    def ready(self) -> None:
        """See `Costing`: whether there is a key."""
        self.endpoint.check()

    def estimate(self, samples: Sequence[Sample], dataset: Dataset) -> Estimate:
        """See `Costing`: what the images that are not recorded yet will take."""
        open_ = [sample.image for sample in samples if self.record.get(sample, dataset) is None]
        # What cannot be read will not be sent.
        token_counts = [count for count in map(_tokens, open_) if count is not None]
        words = math.ceil(len(instruction(dataset)) * TOKENS_A_LETTER)
        read = words * len(token_counts) + sum(token_counts)
        written = len(token_counts) * TOKENS_A_WORD * MOST_WORDS.get(dataset.name, USUAL_WORDS)
        cost = None
        if self.prices is not None:
            cost = sum(count * price for count, price in zip((read, written), self.prices, strict=True)) / 1e6
        return Estimate(len(token_counts), read, written, cost)

    def prepare(self, samples: Sequence[Sample], dataset: Dataset, done: Done) -> None:
        """Ask for the images that are not recorded yet, several at a time. See `Preparing`."""
        stop = self.endpoint.stop
        causes: list[Exception] = []
        if any(self.record.get(sample, dataset) is None for sample in samples):
            self._begin()

        def try_(sample: Sample) -> None:
            if stop.is_set():
                return
            try:
                self.tag(sample, dataset)
            except (Unreadable, Declined) as error:
                self._faults[dataset.name, sample.id] = error
            except Exception as error:
                causes.append(error)  # before those who wait hear of it, so that the cause comes first
                stop.set()

        with ThreadPoolExecutor(self.together) as pool:
            try:
                for _ in as_completed([pool.submit(try_, sample) for sample in samples]):
                    if causes:
                        break
                    done()
            finally:
                stop.set()  # so that Ctrl-C does not wait for a server's patience
                pool.shutdown(cancel_futures=True)
                stop.clear()
        if causes:
            raise causes[0]

    def tag(self, sample: Sample, dataset: Dataset) -> str:
        """See `Tagger`; an image that was declined or unreadable in `prepare` is not asked for again."""
        known = self.record.get(sample, dataset)
        if known is not None:
            return known
        if (dataset.name, sample.id) in self._faults:
            raise self._faults[dataset.name, sample.id]
        image = {"type": "image_url", "image_url": {"url": _data_url(sample.image)}}
        text = {"type": "text", "text": instruction(dataset)}
        self._begin()
        caption = caption_in(self._ask([{"role": "user", "content": [text, image]}]))
        self.record.add(sample, dataset, caption)
        return caption

    def _begin(self) -> None:
        """Raise GocaError before anything is paid for, where nothing could be asked, or no answer kept."""
        self.endpoint.check()
        self.record.open()

    def _ask(self, messages: list[dict[str, Any]]) -> str:
        settings = self._settings
        try:
            return self.endpoint.complete({"model": self.model, "messages": messages, **settings})
        except Declined as error:
            if isinstance(error, Refusal) or not settings or "temperature" not in str(error):
                raise
            self._settings = {}
            return self.endpoint.complete({"model": self.model, "messages": messages})


def _data_url(path: Path) -> str:
    try:
        image = images.load(path)
    except GocaError as error:
        raise Unreadable(str(error)) from None
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _tokens(path: Path) -> int | None:
    """Of one image, None where it cannot be read; only its header is."""
    try:
        with Image.open(path) as image:
            width, height = image.size
    except OSError:
        return None
    scale = min(1.0, LONGEST_SIDE / max(width, height))
    return TOKENS_A_IMAGE + TOKENS_A_TILE * math.prod(math.ceil(side * scale / TILE) for side in (width, height))

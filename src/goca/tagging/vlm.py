"""A vision-language model behind an OpenAI-compatible server: OpenAI's own, or vLLM, Ollama, llama.cpp, a gateway."""

import base64
import io
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from goca.errors import GocaError
from goca.imaging import images
from goca.imaging.images import ImageLike
from goca.tagging.answers import caption_of
from goca.tagging.base import DeclinedError, Estimate, ImageCollection, Prices, TaggableImage
from goca.tagging.captions import CaptionStore
from goca.tagging.endpoint import ChatEndpoint, ModelRefusedError, UnansweredError
from goca.tagging.instruction import instruction, most_words

LONGEST_SIDE = 1024
"""Longest side in pixels; larger images are sent scaled down: nouns are still visible, and it costs less."""
TOKENS_PER_IMAGE, LETTERS_PER_TOKEN, TOKENS_PER_WORD = 765, 4, 2
"""Tokens that OpenAI counts for an image of 1024 x 1024 px; smaller images, and most other models, take fewer."""
NOUNS = {
    "type": "object",
    "properties": {"nouns": {"type": "array", "items": {"type": "string"}}},
    "required": ["nouns"],
    "additionalProperties": False,
}
OPTIONS: Mapping[str, Any] = {
    "temperature": 0,
    "response_format": {"type": "json_schema", "json_schema": {"name": "nouns", "strict": True, "schema": NOUNS}},
}
"""Options of a request, if the server accepts them."""
MOST_UNANSWERED = 3
"""Images in a row without a usable answer after which a run ends, as more would hardly succeed."""


@dataclass
class VLMTagger:
    """Asks a server about every image that has no caption yet, and saves each answer at once.

    Args:
        model: Its name on the server.
        endpoint: The server.
        path: The .jsonl file of the captions.
        concurrency: Concurrent requests, 1 or more.
        prices: Prices for `estimate`.
    """

    model: str
    endpoint: ChatEndpoint
    path: Path
    concurrency: int = 4
    prices: Prices | None = None
    store: CaptionStore = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.model:
            raise GocaError('no model is named: write it after the colon, such as "vlm:gpt-4o"')
        if self.concurrency < 1:
            raise GocaError(f"concurrency {self.concurrency} is too small: give 1 or more")
        self.store = CaptionStore(self.path, self.name)
        self._failures: dict[tuple[str, str], GocaError] = {}
        self._options = OPTIONS

    @property
    def name(self) -> str:
        return f"vlm {self.model}"

    def ready(self) -> None:
        """Raise GocaError if a key is missing."""
        self.endpoint.check()

    def estimate(self, samples: Sequence[TaggableImage], dataset: ImageCollection) -> Estimate:
        """The largest expected use for the images without a caption."""
        count = sum(self.store.get(sample, dataset) is None for sample in samples)
        letters = len(instruction(dataset, as_json=True))
        read = count * (TOKENS_PER_IMAGE + letters // LETTERS_PER_TOKEN)
        written = count * TOKENS_PER_WORD * most_words(dataset)
        cost = None if self.prices is None else (read * self.prices[0] + written * self.prices[1]) / 1e6
        return Estimate(images=count, read=read, written=written, cost=cost)

    def prepare(self, samples: Sequence[TaggableImage], dataset: ImageCollection) -> None:
        """Tag the images without a caption, several at a time. See `BatchTagger`.

        An image that is declined, unreadable or not answered is skipped, and `tag` raises for it; `MOST_UNANSWERED` in
        a row without an answer end the run.
        """
        stop = self.endpoint.stop
        causes: list[Exception] = []
        unanswered: list[UnansweredError] = []
        missing = [sample for sample in samples if self.store.get(sample, dataset) is None]
        if not missing:
            return
        self.endpoint.check()

        def attempt(sample: TaggableImage) -> None:
            if stop.is_set():
                return
            try:
                self._tag(sample, dataset)
            except DeclinedError as error:
                self._failures[dataset.name, sample.id] = error
                if isinstance(error, UnansweredError):
                    unanswered.append(error)
                    if len(unanswered) == MOST_UNANSWERED:
                        causes.append(error)
                        stop.set()
            except Exception as error:
                causes.append(error)  # before waiting threads notice, so that the cause comes first
                stop.set()
            else:
                unanswered.clear()

        with self.store, ThreadPoolExecutor(self.concurrency) as pool:
            try:
                for _ in as_completed([pool.submit(attempt, sample) for sample in missing]):
                    if causes:
                        break
            finally:
                stop.set()  # so that Ctrl-C does not wait for retries
                pool.shutdown(cancel_futures=True)
                stop.clear()
        if causes:
            raise causes[0]

    def tag(self, sample: TaggableImage, dataset: ImageCollection) -> str:
        """See `Tagger`; an image for which `prepare` has no caption is not sent again."""
        if (dataset.name, sample.id) not in self._failures:
            self.prepare([sample], dataset)
        caption = self.store.get(sample, dataset)
        if caption is None:
            raise self._failures[dataset.name, sample.id]
        return caption

    def _tag(self, sample: TaggableImage, dataset: ImageCollection) -> None:
        answer = self._ask(_data_url(sample.image), dataset)
        self.store.add(sample, dataset, caption_of(answer, self.model, dataset.class_names))

    def _ask(self, url: str, dataset: ImageCollection) -> str:
        """The model's answer. An option that the server rejects is left out from then on."""
        options = self._options
        while True:
            text = instruction(dataset, as_json="response_format" in options)
            content = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": url}}]
            request = {"model": self.model, "messages": [{"role": "user", "content": content}], **options}
            try:
                answer = self.endpoint.complete(request)
            except DeclinedError as error:
                # Not every server without JSON answers says so.
                refused = next((name for name in options if name in str(error)), "response_format")
                if isinstance(error, ModelRefusedError | UnansweredError) or refused not in options:
                    raise
                options = {name: value for name, value in options.items() if name != refused}
            else:
                self._options = options
                return answer


def _data_url(source: ImageLike) -> str:
    try:
        image = images.load(source)
    except GocaError as error:
        raise DeclinedError(str(error)) from None
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"

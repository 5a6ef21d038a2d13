"""The attention to nouns on images without content, by which their shares on others are corrected."""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from platformdirs import user_cache_path
from torch import Tensor

from goca.diffusion.fingerprint import has_meta_weights
from goca.errors import GocaError
from goca.plan import Plan
from goca.storage.atomic import write_atomic
from goca.storage.reading import read_json
from goca.text.nouns import Noun

CONTENT_FREE = 6
"""Number of images without content."""
TINY = 1e-6
"""Added to shares before their logarithm."""
Measure = Callable[[Sequence[Image.Image], Sequence[Noun]], list[Float[Tensor, "noun h w"]]]
"""For each image, every noun's share of the attention to nouns at every cell."""


def content_free(side: int) -> list[Image.Image]:
    """Images without content: grey, black, white, and seeded noise per pixel; side x side pixels."""
    plain = [Image.new("RGB", (side, side), (level,) * 3) for level in (128, 0, 255)]
    rng = np.random.default_rng(0)
    noise = [Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)) for _ in range(CONTENT_FREE - len(plain))]
    return plain + noise


class ContentFree:
    """A model's attention to nouns on images without content: measured once per list of nouns, then cached on disk.

    Args:
        pipeline: The pipeline whose weights are measured.
        plan: How it looks at images.
        folder: Folder of the cache; by default the user's.
    """

    def __init__(self, pipeline: Any, plan: Plan, folder: Path | None = None) -> None:
        self.pipeline, self.plan = pipeline, plan
        self.folder = folder or user_cache_path("goca") / "content-free"
        self._known: dict[str, Float[Tensor, " noun"]] = {}

    def known(self, nouns: Sequence[Noun], weights: str) -> Float[Tensor, " noun"] | None:
        """The value that `prior` returns; None if it has not been measured yet."""
        digest = self._digest(weights, [noun.words for noun in nouns])
        # An offloaded model's weights are on no device, so its fingerprint covers only their shapes.
        if digest not in self._known and not has_meta_weights(self.pipeline):
            values = _read(self.folder / f"{digest}.json", len(nouns))
            if values is not None:
                self._known[digest] = torch.tensor(values)
        return self._known.get(digest)

    def prior(self, nouns: Sequence[Noun], weights: str, measure: Measure) -> Float[Tensor, " noun"]:
        """The mean logarithm of each noun's share of attention on images without content.

        Args:
            nouns: The nouns that compete.
            weights: The pipeline's current `fingerprint`: a LoRA may have been loaded since.
            measure: Function that measures the shares.
        """
        if (known := self.known(nouns, weights)) is not None:
            return known
        digest = self._digest(weights, [noun.words for noun in nouns])
        maps = measure(content_free(self.plan.size), nouns)
        values = torch.stack([(share + TINY).log().mean((-2, -1)) for share in maps]).mean(0).tolist()
        if not has_meta_weights(self.pipeline):
            # If they cannot be written to disk, they are measured again next time.
            with suppress(GocaError):
                write_atomic({self.folder / f"{digest}.json": json.dumps(values).encode()})
        self._known[digest] = torch.tensor(values)
        return self._known[digest]

    def _digest(self, weights: str, words: Sequence[Sequence[str]]) -> str:
        facts = {name: value for name, value in self.plan.to_json().items() if name not in _NO_MATTER}
        text = json.dumps([weights, facts, words], sort_keys=True)
        return blake2b(text.encode(), digest_size=16).hexdigest()


_NO_MATTER = frozenset({"recipe", "model", "settings", "origin", "notes", "device", "background", "background_classes"})
"""Fields of a plan that do not affect shares."""


def _read(path: Path, count: int) -> list[float] | None:
    """The values of a file; None if it is missing or damaged, and they have to be measured again."""
    try:
        values = read_json(path)
    except GocaError:
        return None
    whole = isinstance(values, list) and len(values) == count and all(isinstance(value, float) for value in values)
    return values if whole else None

"""A backbone whose passes several segmenters share, and that remembers what each of their aggregators was given.

In joint attention it also hears the queries of the text, which a segmentation does not need.
"""

import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from types import MethodType
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.overrides import TorchFunctionMode

from goca.aggregation import AttentionAggregator
from goca.diffusion.attention_call import AttentionCall, Sink
from goca.diffusion.backbone import Backbone, BackboneSession, BatchItem
from goca.diffusion.conditioning import EncodedPrompt
from goca.diffusion.loading import load
from goca.maths import Grid

Result = TypeVar("Result")


@dataclass(frozen=True)
class JointCall(AttentionCall):
    """A joint attention with the queries of the text as well; `text_q`: of the positions `text`."""

    text_q: Float[Tensor, "head token dim"] = field(kw_only=True)


class SharedBackbone(Backbone):
    """A backbone that encodes an image or a caption, and runs a pass, once for all who ask, until it forgets.

    Attributes:
        spared: CPU seconds that what was asked for again would have taken.
        heard: The attention that each aggregator was given.
    """

    def __init__(self, model: str) -> None:
        super().__init__(load(model, "cpu"), model)
        self.spared = 0.0
        self.known: dict[Hashable, tuple[Any, float]] = {}
        self.heard: WeakKeyDictionary[AttentionAggregator, Sequence[AttentionCall]] = WeakKeyDictionary()

    def forget(self) -> None:
        """Let go of everything: attention is large."""
        self.known.clear()
        self.heard.clear()

    def once(self, key: Hashable, compute: Callable[[], Result]) -> Result:
        """What `compute` gives for a key, computed the first time."""
        if key in self.known:
            result, seconds = self.known[key]
            self.spared += seconds
            return result
        started = time.process_time()
        result = compute()
        self.known[key] = (result, time.process_time() - started)
        return result

    def latents(self, images: Sequence[Image.Image], size: Grid, batch: int | None = None) -> Tensor:
        key = (tuple(image.tobytes() for image in images), size)
        return self.once(key, lambda: super(SharedBackbone, self).latents(images, size, batch))

    def session(self) -> "SharedSession":
        return SharedSession(self)


class SharedSession(BackboneSession):
    """Passes of a `SharedBackbone`."""

    backbone: SharedBackbone

    def __init__(self, backbone: SharedBackbone) -> None:
        super().__init__(backbone)
        self.encoded: dict[str, EncodedPrompt] = {}

    def prompt(self, caption: str) -> EncodedPrompt:
        if caption not in self.encoded:
            encode = super().prompt
            self.encoded[caption] = self.backbone.once(("prompt", caption), lambda: encode(caption))
        return self.encoded[caption]

    def run(self, items: Iterable[BatchItem], batch: int) -> None:
        together = list(items)
        key = tuple((i.latent.numpy().tobytes(), i.caption, i.timestep, i.seed) for i in together)
        for item, calls in zip(together, self.backbone.once(key, lambda: self._calls_of(together, batch)), strict=True):
            # A segmenter's items go to the method `add` of their aggregators.
            if isinstance(item.sink, MethodType) and isinstance(item.sink.__self__, AttentionAggregator):
                self.backbone.heard[item.sink.__self__] = calls
            for call in calls:
                item.sink(call)

    def _calls_of(self, items: Sequence[BatchItem], batch: int) -> list[list[AttentionCall]]:
        calls: list[list[AttentionCall]] = [[] for _ in items]
        super().run([replace(item, sink=own.append) for item, own in zip(items, calls, strict=True)], batch)
        return calls

    def forward(
        self,
        latents: Float[Tensor, "image channel height width"],
        captions: Sequence[str],
        timestep: int,
        seed: int,
        sink: Sink,
        stop_early: bool = False,
    ) -> Tensor | list[Tensor] | None:
        with LatestQueries() as latest:

            def with_text(row: int, call: AttentionCall) -> None:
                sink(row, latest.joined(row, call) if call.kind == "joint" else call)

            return super().forward(latents, captions, timestep, seed, with_text, stop_early)


class LatestQueries(TorchFunctionMode):
    """Keeps the queries of the attention that was computed last, which is the one that a hook passes on next."""

    def __init__(self) -> None:
        super().__init__()
        self.queries: Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            self.queries = args[0] if args else kwargs["query"]
        return func(*args, **(kwargs or {}))

    def joined(self, row: int, call: AttentionCall) -> JointCall:
        """A call of joint attention, with the queries of its text."""
        assert self.queries is not None
        return JointCall(**vars(call), text_q=self.queries[row, :, call.text])

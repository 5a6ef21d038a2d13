"""One denoiser pass of a pipeline, recorded: every attention that the hook handed on, and what really ran."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from goca.diffusion.attention_call import AttentionCall
from goca.diffusion.attention_modules import AttentionModule, attention_modules
from goca.diffusion.backbone import Backbone, BackboneSession
from goca.diffusion.conditioning import EncodedPrompt
from goca.maths.attention import probabilities
from goca.maths.heads import head_weights, output_share
from goca.recipe import GOCA
from goca.segmenter import Segmenter

CAPTION = "cat, traffic light, grass"
SIZE = (64, 96)
TIMESTEP = 100
NAMES = ("sd15", "pixart_sigma", "flux", "flux2_klein")
"""A UNet, a transformer with cross-attention, and two with joint attention whose single blocks fuse it with an MLP."""


class FixedPrompt(BackboneSession):
    """A session in which every caption is encoded as one prompt."""

    def __init__(self, backbone: Backbone, prompt: EncodedPrompt) -> None:
        super().__init__(backbone)
        self.fixed = prompt

    def prompt(self, caption: str) -> EncodedPrompt:
        return self.fixed


class RecordedPass:
    """A pass over an image of random colours.

    output: the denoiser's; plain: the same pass' without the hook; arguments: (positional, named) of the denoiser's
    call. calls: what the hook handed on. Of each block that reads the text: layers, the linear layer behind its
    attention; projected, what that gives for the attended channels alone, asked for while its weights are there; bias,
    what it gives for nothing; layer_outputs, what it gave in the pass, for all rows. mixed: the blocks whose layer is
    not given the attention's output alone: it is fused with an MLP's, or gated.
    """

    @torch.no_grad()
    def __init__(self, pipeline: Any) -> None:
        self.backbone = Backbone(pipeline)
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8))
        self.latents = self.backbone.latents([image], SIZE)
        self.session = self.backbone.session()
        self.layers: dict[str, Any] = {}
        self.projected: dict[str, Tensor] = {}
        self.bias: dict[str, Tensor] = {}
        self.layer_outputs: dict[str, Tensor] = {}
        self.mixed: set[str] = set()
        self.calls: list[AttentionCall] = []
        running: list[AttentionModule] = []

        def sink(_: int, call: AttentionCall) -> None:
            self.calls.append(call)
            if call.text is not None:
                layer, rows = output_layer(running[-1]), call.output.transpose(0, 1).flatten(1)
                self.layers[call.block] = layer
                if layer.in_features != rows.shape[1] or hasattr(running[-1].module, "to_gate"):
                    self.mixed.add(call.block)
                self.bias[call.block] = layer(rows.new_zeros(1, layer.in_features))
                others = rows.new_zeros(len(rows), layer.in_features - rows.shape[1])
                self.projected[call.block] = layer(torch.cat([rows, others], 1)) - self.bias[call.block]

        def keep(attention: AttentionModule) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, output: Tensor) -> None:
                if self.layers.get(attention.block) is module:
                    self.layer_outputs[attention.block] = output

            return hook

        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.arguments = args, kwargs

        handles = [self.backbone.denoiser.register_forward_pre_hook(enter, with_kwargs=True)]
        for attention in attention_modules(self.backbone.denoiser):
            start: Any = lambda module, args, attention=attention: running.append(attention)  # noqa: E731
            handles += [
                attention.module.register_forward_pre_hook(start),
                attention.module.register_forward_hook(lambda *_: (running.pop(), None)[1]),
            ]
            if attention.block in self.backbone.blocks:
                handles.append(output_layer(attention).register_forward_hook(keep(attention)))
        self.output = self._run(self.session, sink)
        for handle in handles:
            handle.remove()
        args, kwargs = self.arguments
        self.plain = self.backbone.denoiser(*args, **kwargs)[0]

    def _run(self, session: BackboneSession, sink: Callable[[int, AttentionCall], None]) -> Any:
        return session.forward(self.latents, [CAPTION], TIMESTEP, 0, sink)

    @property
    def reads(self) -> list[AttentionCall]:
        """The calls of attention that reads the text."""
        return [call for call in self.calls if call.text is not None]

    def moved(self, prompt: EncodedPrompt) -> list[int]:
        """The text columns of the first attention that another prompt moves, those that differ most first."""
        calls: list[AttentionCall] = []
        self._run(FixedPrompt(self.backbone, prompt), lambda _, call: calls.append(call))
        other = next(call for call in calls if call.text is not None)
        keys = [call.k[:, call.text] for call in (self.reads[0], other)]
        distances = (keys[0] - keys[1]).abs().amax((0, 2))
        return [int(column) for column in distances.argsort(descending=True) if distances[column] > 1e-6]


def output_layer(attention: AttentionModule) -> Any:
    """The linear layer behind an attention: the module's, or the one of a block that has it fused with its MLP."""
    linear = getattr(attention.module, "to_out", None)
    if linear is None:
        return attention.owner.proj_out
    return linear[0] if isinstance(linear, nn.ModuleList) else linear


def same(first: Any, second: Any) -> bool:
    """Whether two outputs are equal bit for bit; Z-Image gives a list."""
    return torch.equal(first, second) if isinstance(first, Tensor) else all(map(same, first, second))


def check(recorded: RecordedPass, rtol: float = 1e-3, atol: float = 1e-5) -> None:
    """What the hook hands on is what ran, and it changes nothing."""
    assert same(recorded.output, recorded.plain)
    assert sorted(call.block for call in recorded.reads) == sorted(recorded.backbone.blocks)
    for call in recorded.reads:
        assert call.projection is not None
        weights = head_weights(output_share, call.output.transpose(0, 1), call.projection)
        torch.testing.assert_close(weights.sum(-1), torch.ones(len(weights)), rtol=1e-3, atol=1e-3)
        rebuilt = torch.einsum("hpd,hdm->pm", call.output.float(), call.projection.float())
        torch.testing.assert_close(rebuilt, recorded.projected[call.block].float(), rtol=rtol, atol=atol)
        if call.block not in recorded.mixed:  # the pixels are first or last
            expected = rebuilt + recorded.bias[call.block].float()
            output = recorded.layer_outputs[call.block][0].float()
            ends = (output[: len(expected)], output[-len(expected) :])
            assert any(torch.allclose(expected, rows, rtol=rtol, atol=atol) for rows in ends)


def state(pipeline: Any) -> dict[str, Any]:
    """What a call must leave alone: modules and their hooks, processors, and every weight."""
    modules = [m for part in pipeline.components.values() if isinstance(part, nn.Module) for m in part.modules()]
    return {
        "attributes": {name: id(value) for name, value in vars(pipeline).items()},
        "modules": [(id(m), type(m)) for m in modules],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules],
        "processors": [id(getattr(m, "processor", None)) for m in modules],
        "weights": [(type(p), p.dtype, p.device) for m in modules for p in m.parameters(recurse=False)],
    }


def distance(first: RecordedPass, second: RecordedPass) -> float:
    """How far the attention to the text of two passes is apart at most, in [0, 1]."""
    maps = [
        [probabilities(c.q, c.k, c.scale, c.mask)[..., c.text].cpu() for c in recorded.reads]
        for recorded in (first, second)
    ]
    return max(float((a - b).abs().max()) for a, b in zip(*maps, strict=True))


def score_maps(pipeline: Any, image: Callable[..., Image.Image]) -> np.ndarray:
    """The score maps of an image whose sides differ, after everything about them was checked."""
    result = Segmenter.from_pipeline(pipeline, GOCA, size=64)(
        image(), classes=["cat", "traffic light"], background_classes=["sky"]
    )
    assert result.labels.shape == (96, 160)
    assert result.scores.grid.shape[0] == 2
    assert np.isfinite(result.scores.grid).all()
    assert 0 <= result.scores.grid.min() <= result.scores.grid.max() <= 1
    return result.scores.grid

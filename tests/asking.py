"""A pipeline that is wrapped somehow, asked once about one image: everything that the tap saw, and what ran."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from goca.diffusion.attention_call import AttentionCall
from goca.diffusion.attention_modules import AttentionModule, attention_modules
from goca.diffusion.backbone import Backbone
from goca.maths.attention import probabilities
from goca.maths.heads import head_weights, output_share
from goca.segmenter import Segmenter

CAPTION = "cat, traffic light, grass"
SIZE = (64, 96)
TIMESTEP = 100
NAMES = ("sd15", "pixart_sigma", "flux", "flux2_klein")
"""A UNet, a transformer with cross-attention, and two with joint attention whose single blocks fuse it with an MLP."""


@dataclass(frozen=True)
class Seen:
    """One pass under the tap: its output, the same pass' without it, the calls, and what projects them, by block.

    alone: what the layer behind an attention makes of the attended channels, bias left out, asked for while its weights
    are there. made: what it gave in the pass, for all rows, from all channels.
    """

    output: Tensor
    plain: Tensor
    calls: tuple[AttentionCall, ...]
    alone: dict[str, Tensor]
    bias: dict[str, Tensor]
    made: dict[str, Tensor]

    @property
    def reads(self) -> list[AttentionCall]:
        """The calls of attention that reads the text."""
        return [call for call in self.calls if call.text is not None]


@torch.no_grad()
def ask(pipeline: Any) -> Seen:
    """Ask a pipeline about an image of random colours."""
    backbone = Backbone(pipeline)
    layers = {
        site.block: _projection(site) for site in attention_modules(backbone.denoiser) if site.block in backbone.blocks
    }
    seen = Seen(torch.empty(0), torch.empty(0), (), {}, {}, {})
    calls: list[AttentionCall] = []
    inputs: list[Any] = []

    def sink(_: int, call: AttentionCall) -> None:
        calls.append(call)
        if call.text is not None:
            layer, rows = layers[call.block], call.output.transpose(0, 1).flatten(1)
            seen.bias[call.block] = layer(rows.new_zeros(1, layer.in_features))
            silent = rows.new_zeros(len(rows), layer.in_features - rows.shape[1])
            seen.alone[call.block] = layer(torch.cat([rows, silent], 1)) - seen.bias[call.block]

    def keep(block: str) -> Callable[..., None]:
        return lambda module, args, output: seen.made.__setitem__(block, output)

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        inputs.append((args, kwargs))

    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8))
    handles = [backbone.denoiser.register_forward_hook(enter, with_kwargs=True)]
    handles += [layer.register_forward_hook(keep(block)) for block, layer in layers.items()]
    output = backbone.session().forward(backbone.latents([image], SIZE), [CAPTION], TIMESTEP, 0, sink)
    for handle in handles:
        handle.remove()
    ((args, kwargs),) = inputs
    return replace(seen, output=output, plain=backbone.denoiser(*args, **kwargs)[0], calls=tuple(calls))


def _projection(site: AttentionModule) -> Any:
    linear = getattr(site.module, "to_out", None)
    if linear is None:
        return site.owner.proj_out
    return linear[0] if isinstance(linear, nn.ModuleList) else linear


def check(pipeline: Any, seen: Seen, rtol: float = 1e-3, atol: float = 1e-5) -> None:
    """What the tap tells of a wrapped pipeline is what ran, and the tap changes nothing of it."""
    assert torch.equal(seen.output, seen.plain)
    assert sorted(call.block for call in seen.reads) == sorted(Backbone(pipeline).blocks)
    for call in seen.reads:
        assert call.projection is not None
        weights = head_weights(output_share, call.output.transpose(0, 1), call.projection)
        torch.testing.assert_close(weights.sum(-1), torch.ones(len(weights)), rtol=1e-3, atol=1e-3)
        rebuilt = torch.einsum("hpd,hdm->pm", call.output.float(), call.projection.float())
        torch.testing.assert_close(rebuilt, seen.alone[call.block].float(), rtol=rtol, atol=atol)
        # In a single-stream block the MLP has its part in what was made; elsewhere the pixels are first or last.
        if not call.block.startswith("single"):
            made, whole = seen.made[call.block][0].float(), rebuilt + seen.bias[call.block].float()
            ends = (made[: len(whole)], made[-len(whole) :])
            assert any(torch.allclose(whole, rows, rtol=rtol, atol=atol) for rows in ends)


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


def far(one: Seen, other: Seen) -> float:
    """How far the attention to the text of two passes is apart at most, in [0, 1]."""
    maps = [[probabilities(c.q, c.k, c.scale, c.mask)[..., c.text].cpu() for c in seen.reads] for seen in (one, other)]
    return max(float((a - b).abs().max()) for a, b in zip(*maps, strict=True))


def masks(pipeline: Any, image: Callable[..., Image.Image]) -> np.ndarray:
    """The score maps of an image whose sides differ, after everything about them was checked."""
    result = Segmenter.from_pipeline(pipeline, size=64)(
        image(), classes=["cat", "traffic light"], background_classes=["sky"]
    )
    assert result.labels.shape == (96, 160)
    assert result.scores.grid.shape[0] == 2
    assert np.isfinite(result.scores.grid).all()
    assert 0 <= result.scores.grid.min() <= result.scores.grid.max() <= 1
    return result.scores.grid

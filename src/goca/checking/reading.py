"""Is attention read as it was computed? Compares one recorded pass with the outputs of its modules."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import einsum, rearrange
from torch import Tensor, nn

from goca.aggregation import AttentionAggregator
from goca.checking.subject import Subject
from goca.checking.verdict import Verdict, judged
from goca.diffusion.attention_call import AttentionCall
from goca.diffusion.attention_modules import AttentionModule, attention_modules, output_projection
from goca.maths.attention import probabilities
from goca.maths.heads import head_weights
from goca.probing.passes import denoiser_call
from goca.text.nouns import Noun, caption_of
from goca.text.token_spans import find_noun_tokens

PIXELS = 256
"""Number of pixels of each attention that are rebuilt."""
ROUNDING = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 1e-1}
"""Largest accepted relative error, by the denoiser's dtype."""


@dataclass
class RecordedPass:
    """One denoiser pass over noise, with attention read and not read.

    Attributes:
        identical: Whether both gave the same output, bit for bit.
        attention_errors: {module: relative error of softmax(q k) v}, of all softmax attention.
        output_errors: {module: relative error after the output projection}, for modules that return only that.
        head_sums: {block: largest deviation over pixels of the heads' summed weights from 1}.
        layers: {block: weight}.
    """

    identical: bool = False
    attention_errors: dict[str, float] = field(default_factory=dict)
    output_errors: dict[str, float] = field(default_factory=dict)
    head_sums: dict[str, float] = field(default_factory=dict)
    layers: dict[str, float] = field(default_factory=dict)


def hook(subject: Subject) -> Verdict:
    """The denoiser's output is the same whether attention is read or not."""
    identical = subject.once(record).identical
    return judged(
        "hook changes nothing",
        identical,
        {"identical": str(identical).lower()},
        "bit for bit",
        "the denoiser's output is the same with attention read",
        "reading attention changes the output: another processor or a patch interferes; load the pipeline again",
    )


def records(subject: Subject) -> Verdict:
    """softmax(q k) v, and its output projection, equal what the modules returned."""
    recorded = subject.once(record)
    errors = dict(recorded.attention_errors)
    for module, error in recorded.output_errors.items():
        errors[module] = max(errors[module], error)
    worst = max(errors, key=lambda module: errors[module])
    limit = ROUNDING.get(subject.backbone.dtype, ROUNDING["bfloat16"])
    return judged(
        "records rebuild outputs",
        errors[worst] <= limit,
        {"worst relative error": errors[worst], "modules": len(errors), "with projection": len(recorded.output_errors)},
        f"<= {limit:g}",
        "queries, keys, values and projections rebuild what the modules returned",
        f"{worst} does not return what its records give: please report this model",
    )


def weights(subject: Subject) -> Verdict:
    """The heads' weights sum to 1 at every pixel, the layers' to 1, and none is negative."""
    recorded = subject.once(record)
    worst, layers = max(recorded.head_sums.values()), recorded.layers.values()
    off, least = abs(sum(layers) - 1), min(layers)
    return judged(
        "weights sum to 1",
        worst <= 1e-3 and off <= 1e-5 and least >= 0,
        {"heads off by": worst, "layers off by": off, "least layer": least},
        "1e-3; layers: 1e-5, none < 0",
        "heads at every pixel, and layers",
        "weights of heads or layers are wrong or not finite: load it in float32, or please report this model",
    )


@torch.no_grad()
def record(subject: Subject) -> RecordedPass:
    """One pass at the size of an image, recorded."""
    backbone, plan = subject.backbone, subject.plan
    nouns = [Noun(name, (name,)) for name in subject.pairs[0]]
    caption = caption_of(nouns)
    recorded = RecordedPass()
    with denoiser_call(backbone, subject.latent_size, caption) as (args, kwargs, prompt):
        tokens = find_noun_tokens(caption, backbone.texts(prompt), nouns, (), named=False)
        aggregator = AttentionAggregator(plan, tokens, plan.common_grid(subject.latent_size))
        plain = backbone.denoiser(*args, **kwargs)[0]
        with _modules(backbone.denoiser) as running:

            def sink(_: int, call: AttentionCall) -> None:
                modules = running[-1][1]
                aggregator.add(call)
                if call.text is not None:
                    assert call.projection is not None  # the hook has one wherever text is read
                    parts = rearrange(call.output, "head pixel dim -> pixel head dim")
                    sums = head_weights(plan.heads, parts, call.projection).sum(-1)
                    recorded.head_sums[call.block] = float((sums - 1).abs().max())
                if call.kind == "self" and backbone.family.linear_self_attention:
                    return  # no module computes this one
                name = f"{call.block} {call.kind}"
                rows = torch.linspace(0, call.q.shape[1] - 1, min(PIXELS, call.q.shape[1]), device=call.q.device).long()
                mask = call.mask if call.mask is None or call.mask.shape[1] == 1 else call.mask[:, rows]
                rebuilt = probabilities(call.q[:, rows], call.k, call.scale, mask) @ call.v.float()
                recorded.attention_errors[name] = _error(rebuilt, call.output[:, rows])
                modules.append((name, rebuilt, rows, call))

            with backbone.attention_hook(subject.latent_size, sink):
                read = backbone.denoiser(*args, **kwargs)[0]
            for attention, calls, output in running.finished:
                for name, rebuilt, rows, call in calls:
                    if (error := _output_error(attention, rebuilt, rows, call, output)) is not None:
                        recorded.output_errors[name] = error
        recorded.identical = _same(plain, read)
        aggregator.global_map()
        recorded.layers = aggregator.layer_weights()
    return recorded


class _Running(list[tuple[AttentionModule, list[Any]]]):
    """The running attention modules, innermost last, with what was rebuilt; `finished` with their outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.finished: list[tuple[AttentionModule, list[Any], Any]] = []


@contextmanager
def _modules(denoiser: nn.Module) -> Iterator[_Running]:
    running = _Running()
    with ExitStack() as stack:
        for attention in attention_modules(denoiser):

            def starts(*_: Any, attention: AttentionModule = attention) -> None:
                running.append((attention, []))

            def ends(module: nn.Module, args: Any, output: Any) -> None:
                running.finished.append((*running.pop(), output))

            stack.callback(attention.module.register_forward_pre_hook(starts).remove)
            stack.callback(attention.module.register_forward_hook(ends).remove)
        yield running


def _output_error(
    attention: AttentionModule, rebuilt: Tensor, rows: Tensor, call: AttentionCall, output: Any
) -> float | None:
    """The relative error of a module's output for pixels; None if its block projects, gates or mixes it."""
    layer: Any = getattr(attention.module, "to_out", None)
    layer = layer[0] if isinstance(layer, nn.ModuleList | nn.Sequential) else layer
    fused = layer is not None and layer.in_features != rebuilt.shape[0] * rebuilt.shape[2]  # with an MLP's
    if layer is None or fused or hasattr(attention.module, "to_gate"):
        return None
    weight = call.projection if call.projection is not None else output_projection(attention, call.q[None])
    bias = layer(call.q.new_zeros(1, layer.in_features)).float()
    expected = einsum(rebuilt, weight.float(), "head pixel dim, head dim model -> pixel model") + bias
    expected = expected / getattr(attention.module, "rescale_output_factor", 1.0)
    outputs = [each[0] for each in (output if isinstance(output, tuple) else (output,)) if isinstance(each, Tensor)]
    count = call.q.shape[1]
    # The pixels are first or last, or alone.
    ends = [end for each in outputs if each.ndim == 2 and len(each) >= count for end in (each[:count], each[-count:])]
    if not ends or getattr(attention.module, "residual_connection", False):
        return None
    return min(_error(expected, pixels[rows]) for pixels in ends)


def _error(rebuilt: Tensor, returned: Tensor) -> float:
    returned = returned.float()
    return float((rebuilt - returned).norm() / returned.norm().clamp(min=1e-12))


def _same(first: Any, second: Any) -> bool:
    """Whether two outputs are equal bit for bit; Z-Image gives a list."""
    return torch.equal(first, second) if isinstance(first, Tensor) else all(map(_same, first, second))

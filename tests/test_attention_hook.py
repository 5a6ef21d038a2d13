"""The hook sees every attention of a denoiser as it was computed, changes nothing, and leaves nothing behind."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from goca.diffusion.attention_call import AttentionCall
from goca.diffusion.attention_hook import AttentionHook
from goca.diffusion.attention_modules import attention_modules, native
from goca.diffusion.backbone import Backbone
from goca.errors import GocaError
from goca.maths.attention import probabilities

LATENT = (6, 10)


def inputs(pipeline: Any, batch: int = 2) -> dict[str, Any]:
    """A direct call of the denoiser, conditioning made up."""
    config = pipeline.unet.config
    generator = torch.Generator().manual_seed(1)
    out: dict[str, Any] = {
        "sample": torch.randn(batch, config.in_channels, *LATENT, generator=generator),
        "timestep": torch.tensor(100),
        "encoder_hidden_states": torch.randn(batch, 77, config.cross_attention_dim, generator=generator),
    }
    if config.addition_embed_type == "text_time":
        out["added_cond_kwargs"] = {"text_embeds": torch.randn(batch, 32), "time_ids": torch.ones(batch, 6)}
    return out


def recorded(pipeline: Any, call: dict[str, Any]) -> tuple[Tensor, list[tuple[int, AttentionCall]]]:
    seen: list[tuple[int, AttentionCall]] = []
    grids = Backbone(pipeline).family.grids(pipeline.unet, LATENT)
    hook = AttentionHook(pipeline.unet, grids, lambda index, handed: seen.append((index, handed)))
    with torch.no_grad(), native(pipeline.unet), hook:
        output = pipeline.unet(**call).sample
    return output, seen


def hooks(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


@torch.no_grad()
def test_the_output_is_bit_identical_and_nothing_stays_behind(pipeline: Any) -> None:
    call = inputs(pipeline)
    before = {attention: attention.module.processor for attention in attention_modules(pipeline.unet)}
    plain = pipeline.unet(**call).sample
    state = torch.get_rng_state()
    output, seen = recorded(pipeline, call)
    assert torch.equal(output, plain)
    assert torch.equal(torch.get_rng_state(), state)
    assert hooks(pipeline.unet) == 0
    assert all(attention.module.processor is processor for attention, processor in before.items())
    assert len(seen) == 2 * len(before)


@torch.no_grad()
def test_a_record_rebuilds_its_module_s_output(pipeline: Any) -> None:
    outputs: dict[tuple[str, bool], Tensor] = {}
    handles = [
        attention.module.register_forward_hook(
            lambda module, args, kwargs, output, attention=attention: outputs.__setitem__(
                (attention.block, kwargs.get("encoder_hidden_states") is not None), output
            ),
            with_kwargs=True,
        )
        for attention in attention_modules(pipeline.unet)
    ]
    _, seen = recorded(pipeline, inputs(pipeline))
    for handle in handles:
        handle.remove()
    crosses = [(index, call) for index, call in seen if call.kind == "cross"]
    assert len(crosses) == len(seen) // 2
    for index, call in crosses:
        parts = probabilities(call.q, call.k, call.scale, call.mask) @ call.v
        module = next(
            a.module for a in attention_modules(pipeline.unet) if a.block == call.block and a.module.is_cross_attention
        )
        assert call.projection is not None
        rebuilt = torch.einsum("hpd,hdm->pm", parts, call.projection) + module.to_out[0].bias
        torch.testing.assert_close(rebuilt, outputs[call.block, True][index], rtol=1e-4, atol=1e-6)


def test_self_and_cross_of_a_block_share_its_name_and_grids_follow_the_levels(pipeline: Any) -> None:
    _, seen = recorded(pipeline, inputs(pipeline))
    blocks = {kind: {call.block: call.grid for _, call in seen if call.kind == kind} for kind in ("self", "cross")}
    assert blocks["self"] == blocks["cross"]
    assert set(blocks["self"].values()) <= {(6, 10), (3, 5), (2, 3)}
    for _, call in seen:
        assert call.q.shape[1] == call.grid[0] * call.grid[1]
        assert call.k.shape[1] == (77 if call.kind == "cross" else call.q.shape[1])


def test_a_text_position_is_its_own_key_column(pipeline: Any) -> None:
    call = inputs(pipeline)
    _, before = recorded(pipeline, call)
    changed = call["encoder_hidden_states"].clone()
    changed[:, 13] += 3.0
    _, after = recorded(pipeline, {**call, "encoder_hidden_states": changed})
    first = next(i for i, (_, handed) in enumerate(before) if handed.kind == "cross")
    moved = (before[first][1].k - after[first][1].k).abs().amax((0, 2)) > 1e-6
    assert moved.nonzero().flatten().tolist() == [13]


@pytest.mark.parametrize("hide", ["slicing", "plain processor", "compiled", "compiled in place"])
def test_other_routes_step_aside_for_one_call(sd15: Any, hide: str) -> None:
    call = inputs(sd15)
    expected, _ = recorded(sd15, call)
    if hide == "slicing":
        sd15.enable_attention_slicing(1)
    elif hide == "plain processor":
        sd15.unet.set_attn_processor(AttnProcessor())
    elif hide == "compiled":
        sd15.unet = torch.compile(sd15.unet, backend="eager")
    else:
        sd15.unet.compile(backend="eager")
    denoiser = Backbone(sd15).denoiser
    before = [attention.module.processor for attention in attention_modules(denoiser)]
    seen: list[AttentionCall] = []
    with (
        torch.no_grad(),
        native(denoiser),
        AttentionHook(denoiser, [(6, 10), (3, 5), (2, 3)], lambda _, handed: seen.append(handed)),
    ):
        output = denoiser(**call).sample
    assert torch.equal(output, expected)
    assert len(seen) == 2 * len(before)
    assert all(
        attention.module.processor is old for attention, old in zip(attention_modules(denoiser), before, strict=True)
    )


class Unseen:
    """Attention by a route of its own, as a third-party kernel would take it."""

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Any = None, **_: Any) -> Tensor:
        return hidden_states


class Twice(Unseen):
    """Attends a second time, as an image-prompt adapter does."""

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Any = None, **_: Any) -> Tensor:
        heads = hidden_states[:, None]
        for _ in range(2):
            F.scaled_dot_product_attention(heads, heads, heads)
        return hidden_states


@pytest.mark.parametrize(("processor", "cause"), [(Unseen(), "without scaled_dot"), (Twice(), "2 times")])
def test_attention_that_cannot_be_read_is_an_error_with_cause_and_remedy(
    sd15: Any, processor: Callable[..., Tensor], cause: str
) -> None:
    block = attention_modules(sd15.unet)[0]
    block.module.processor = processor
    with pytest.raises(GocaError, match=cause) as caught:
        recorded(sd15, inputs(sd15))
    message = str(caught.value)
    assert block.block in message
    assert type(processor).__name__ in message
    assert "pipe." in message
    assert hooks(sd15.unet) == 0


def test_an_exception_inside_leaves_nothing_behind(sd15: Any) -> None:
    sd15.enable_attention_slicing(1)
    before = [attention.module.processor for attention in attention_modules(sd15.unet)]

    def fail(index: int, call: AttentionCall) -> None:
        raise ZeroDivisionError

    hook = AttentionHook(sd15.unet, [(6, 10), (3, 5), (2, 3)], fail)
    with pytest.raises(ZeroDivisionError), native(sd15.unet), hook:
        sd15.unet(**inputs(sd15))
    assert hooks(sd15.unet) == 0
    assert all(
        attention.module.processor is old for attention, old in zip(attention_modules(sd15.unet), before, strict=True)
    )


def test_an_unknown_grid_is_named(sd15: Any) -> None:
    hook = AttentionHook(sd15.unet, [(7, 11)], lambda index, call: None)
    with pytest.raises(GocaError, match="60 positions"), torch.no_grad(), hook:
        sd15.unet(**inputs(sd15))


class Wrapped(nn.Linear):
    """A linear layer that does more than its weight says, as an adapter does."""

    def forward(self, states: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(states) * 3


def test_what_really_projects_is_what_is_weighed(sd15: Any) -> None:
    module = next(attention.module for attention in attention_modules(sd15.unet) if attention.module.is_cross_attention)
    plain = module.to_out[0]
    wrapped = Wrapped(plain.in_features, plain.out_features)
    wrapped.load_state_dict(plain.state_dict())
    _, before = recorded(sd15, inputs(sd15))
    module.to_out[0] = wrapped
    _, after = recorded(sd15, inputs(sd15))
    first = next(i for i, (_, handed) in enumerate(before) if handed.kind == "cross")
    assert before[first][1].projection is not None
    torch.testing.assert_close(after[first][1].projection, before[first][1].projection * 3)


def test_masks_are_handed_on_as_additive(sd15: Any) -> None:
    call = inputs(sd15)
    mask = torch.ones(2, 77)
    mask[0, 40:] = 0
    _, seen = recorded(sd15, {**call, "encoder_attention_mask": mask})
    for index, handed in seen:
        if handed.kind == "cross":
            assert handed.mask is not None
            attention = probabilities(handed.q, handed.k, handed.scale, handed.mask)
            assert (attention[..., 40:].amax() < 1e-6) == (index == 0)

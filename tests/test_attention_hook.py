"""The hook sees every attention of a denoiser as it was computed, changes nothing, and leaves nothing behind."""

from collections.abc import Callable
from dataclasses import replace
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
from goca.recipe import GOCA
from goca.segmenter import Segmenter
from goca.testing.tiny import BUILDERS

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
    with torch.no_grad(), native(pipeline.unet, "unet"), hook:
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
        native(denoiser, "unet"),
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
    with pytest.raises(ZeroDivisionError), native(sd15.unet, "unet"), hook:
        sd15.unet(**inputs(sd15))
    assert hooks(sd15.unet) == 0
    assert all(
        attention.module.processor is old for attention, old in zip(attention_modules(sd15.unet), before, strict=True)
    )


def test_an_unknown_grid_is_named() -> None:
    pixart = BUILDERS["pixart_sigma"]()
    backbone = Backbone(pixart, family=replace(Backbone(pixart).family, grids=lambda *_: ((7, 11),)))
    with pytest.raises(GocaError, match=r"16 positions, which are not a grid of this image \(\[\(7, 11\)\]\)"):
        backbone.session().forward(torch.zeros(1, 4, 8, 8), ["cat"], 100, 0, lambda *_: None)


def test_a_layer_s_input_tells_its_grid(sd15: Any) -> None:
    """Kohya's deep shrink, for one, shows the first layers a smaller map: no level of this UNet has 3 x 9 cells."""
    layer = sd15.unet.down_blocks[0].attentions[0]
    layer.register_forward_pre_hook(lambda module, args: (F.interpolate(args[0], (3, 9)), *args[1:]))
    layer.register_forward_hook(lambda module, args, output: (F.interpolate(output[0], (6, 10)),))
    _, seen = recorded(sd15, inputs(sd15))
    grids = {call.grid for _, call in seen if call.block.startswith("down_blocks.0.attentions.0.")}
    assert grids == {(3, 9)}


class Merged:
    """Attends with a share of the positions that an attention is given less, as merging does, or in tiles."""

    def __init__(self, attention: nn.Module, share: float, in_tiles: bool = False) -> None:
        self.forward, self.share, self.in_tiles = attention.forward, share, in_tiles

    def __call__(self, states: Tensor, *args: Any, **kwargs: Any) -> Any:
        kept = int(states.shape[1] * (1 - self.share))
        if self.in_tiles:
            tiles = states.reshape(states.shape[0] * 4, -1, states.shape[2])
            return self.forward(tiles, *args, **kwargs).reshape(states.shape)
        output = self.forward(states[:, :kept], *args, **kwargs)
        return torch.cat([output, output.new_zeros(len(output), states.shape[1] - kept, output.shape[2])], 1)


@pytest.mark.parametrize("which", ["attn1", "attn2"])
@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("name", ["sd15", "sdxl", "pixart_sigma"])
def test_merged_tokens_are_no_coarser_grid(name: str, share: float, which: str, image: Any) -> None:
    pipeline = BUILDERS[name]()
    modules = dict(Backbone(pipeline).denoiser.named_modules())
    path = next(path for path in modules if path.endswith(f".{which}"))
    modules[path].forward = Merged(modules[path], share)
    segmenter = Segmenter.from_pipeline(pipeline, GOCA, size=64)
    with pytest.raises(GocaError, match=rf"{path[:-6]} sees \d+ positions where its block is given \d+: .* remove it"):
        segmenter(image(), classes=["cat", "grass"])
    del modules[path].forward
    assert segmenter(image(), classes=["cat", "grass"]).scores.grid.max() == 1


@pytest.mark.parametrize(("what", "told"), [("keys", r"compares \d+ positions with"), ("tiles", r"sees \d+ positions")])
def test_keys_that_are_fewer_and_tokens_in_tiles(what: str, told: str, sd15: Any) -> None:
    attention = sd15.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1
    if what == "keys":  # as ToDo has them: the module itself is called with all positions
        project = attention.to_k.forward, attention.to_v.forward
        attention.to_k.forward, attention.to_v.forward = (lambda states, to=to: to(states[:, ::4]) for to in project)
    else:
        attention.forward = Merged(attention, 0.0, in_tiles=True)
    with pytest.raises(GocaError, match=told):
        recorded(sd15, inputs(sd15))


def test_merged_positions_of_joint_attention() -> None:
    flux = BUILDERS["flux"]()
    attention = flux.transformer.single_transformer_blocks[0].attn
    forward = attention.forward

    def merged(hidden_states: Tensor, **kwargs: Any) -> Tensor:
        rotary = tuple(part[:-4] for part in kwargs.pop("image_rotary_emb"))
        output = forward(hidden_states=hidden_states[:, :-4], image_rotary_emb=rotary, **kwargs)
        return torch.cat([output, output[:, -4:]], 1)

    attention.forward = merged
    with pytest.raises(GocaError, match=r"single_transformer_blocks\.0 sees 524 positions where its block is given"):
        Backbone(flux).session().forward(torch.zeros(1, 4, 8, 8), ["cat"], 100, 0, lambda *_: None)


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


def test_a_block_that_a_patch_leaves_out_is_named(sd15: Any) -> None:
    backbone = Backbone(sd15)
    sd15.unet.mid_block.attentions[0].forward = lambda states, *args, **kwargs: (states,)
    with pytest.raises(GocaError, match=r"attention of mid_block\.attentions\.0.* did not run: a patch of pipe\.unet"):
        backbone.session().forward(torch.zeros(1, 4, 8, 8), ["cat"], 100, 0, lambda row, call: None)

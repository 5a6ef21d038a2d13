"""A probe establishes the facts of a denoiser that no family lists, or says which it cannot."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import Outcome
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image

from goca import GOCA, GocaError, Recipe, Segmenter
from goca.diffusion.families import FAMILIES, family_of
from goca.diffusion.families.spec import Family
from goca.probing import probe, source
from goca.probing.passes import moved
from goca.testing.tiny import BUILDERS
from goca.testing.tiny.parts import components, ready, shifting_vae, t5

pytestmark = pytest.mark.slow

Make = Callable[..., Image.Image]
REQUEST: dict[str, Any] = {"classes": ["cat", "grass"], "background_classes": ["sky"]}
WRITTEN_DOWN = ("bria", "ovis", "cogview3", "longcat", "krea2")
"""Those whose family files are what a probe printed."""


@ready
def prx() -> Any:
    """PRX, which no family lists: the pixels alone attend, to words and pixels together."""
    from diffusers import FlowMatchEulerDiscreteScheduler, PRXPipeline, PRXTransformer2DModel

    transformer = PRXTransformer2DModel(
        in_channels=4,
        patch_size=2,
        context_in_dim=32,
        hidden_size=32,
        mlp_ratio=2,
        num_heads=2,
        depth=4,
        axes_dim=[8, 8],
    )
    pipeline = PRXPipeline(
        transformer=transformer,
        vae=shifting_vae(),
        **components(t5(limit=256)),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        default_sample_size=64,
    )
    # It would clean the caption with a package that is not installed here.
    pipeline.text_preprocessor.basic_clean = str
    return pipeline


@pytest.mark.parametrize("name", [name for name in BUILDERS if name != "hidream"])
def test_a_listed_family_is_recognised(name: str, image: Make) -> None:
    pipeline = BUILDERS[name]()
    listed = Segmenter.from_pipeline(pipeline, GOCA, size=64)
    row, family = listed.backbone.family, probe(pipeline)
    for fact in ("component", "flow", "linear_self_attention", "optional_image_input", "feature", "edm_sigmas"):
        assert getattr(family, fact) == getattr(row, fact), fact
    assert _layout(family) == _layout(row)
    # Blocks and timestep are the nearest of kin's.
    plan = listed.plan
    same = {key: getattr(plan, key) for key in ("heads", "layers", "cross", "reference", "refine", "order")}
    recipe = Recipe(**same, timestep=plan.timestep[0])
    probed = Segmenter.from_pipeline(pipeline, recipe, size=64, family=family)
    assert probed.backbone.blocks == listed.backbone.blocks
    assert probed.backbone.vae_scale_factor == listed.backbone.vae_scale_factor
    for latent in ((24, 40), (16, 56)):
        assert family.grids(probed.backbone.denoiser, latent) == row.grids(listed.backbone.denoiser, latent)
    # A listed row may name a tokenizer that a pipeline of its family does not have.
    assert [text.tokenizer for text in family.texts] == [
        text.tokenizer for text in row.texts if getattr(pipeline, text.tokenizer, None) is not None
    ]
    expected, result = (segmenter(image(96, 48), **REQUEST) for segmenter in (listed, probed))
    np.testing.assert_array_equal(result.scores.grid, expected.scores.grid)
    np.testing.assert_array_equal(result.labels, expected.labels)


def _layout(family: Family) -> Any:
    joint = family.joint
    return joint and (joint.text_first, joint.multiple, set(joint.unimodal_blocks))


@pytest.mark.parametrize("name", WRITTEN_DOWN)
def test_a_family_that_a_probe_established_is_written_down_as_it_was(name: str) -> None:
    pipeline = BUILDERS[name]()
    row, family = family_of(pipeline), probe(pipeline)
    # A VAE's statistics are named so that a wrong VAE can be refused, and how a pipeline counts its scale is its own
    # affair: they are no facts about the denoiser.
    for fact in {entry.name for entry in fields(Family)} - {"name", "tiny", "vae_statistics", "guidance_offset"}:
        assert getattr(family, fact) == getattr(row, fact), fact


@pytest.mark.parametrize("name", ["sana", "flux2", "krea2", "longcat", "bria"])
def test_the_source_of_a_family_is_that_family(name: str) -> None:
    (row,) = (family for family in FAMILIES if name in family.tiny)
    namespace: dict[str, Any] = {}
    exec(source(row), namespace)
    assert namespace["FAMILY"] == row


def test_the_command_prints_a_family_s_source(goca: Callable[..., Outcome], tmp_path: Path) -> None:
    pipeline = BUILDERS["bria"]()
    pipeline.save_pretrained(tmp_path)
    printed = goca("models", "--probe", tmp_path)
    assert printed.code == 0
    namespace: dict[str, Any] = {}
    exec(printed.out, namespace)
    assert namespace["FAMILY"] == probe(pipeline)
    assert "give it alone" in goca("models", "--probe", tmp_path, "--json").mistake()


class ByHand(AttnProcessor):
    """Softmax attention by matrix products, under a name that is nobody's."""


def state(pipeline: Any) -> tuple[Any, ...]:
    modules = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    hooks = [
        hook
        for part in modules
        for module in part.modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    ]
    # The text encoders' own library leaves some, by which it collects hidden states.
    ours = [hook for hook in hooks if getattr(hook, "__module__", "goca").startswith("goca")]
    attributes = {name: id(value) for name, value in vars(pipeline).items()}
    return attributes, pipeline.tokenizer.padding_side, ours, torch.get_rng_state().tolist()


@pytest.mark.parametrize(("build", "readable"), [(BUILDERS["ovis"], True), (BUILDERS["sana"], True), (prx, False)])
def test_a_probe_leaves_nothing_behind(build: Callable[[], Any], readable: bool) -> None:
    pipeline = build()
    before = state(pipeline)
    if readable:
        probe(pipeline)
    else:
        with pytest.raises(GocaError):
            probe(pipeline)
    assert state(pipeline) == before


def test_a_pass_that_fails_is_the_reason_and_leaves_nothing_behind() -> None:
    pipeline = BUILDERS["bria"]()

    def fails(*args: Any) -> None:
        raise RuntimeError("no\nmore")

    handle = pipeline.transformer.single_transformer_blocks[2].register_forward_pre_hook(fails)
    before = state(pipeline)
    with pytest.raises(GocaError, match=r"it does not run \(RuntimeError: no more\)"):
        probe(pipeline)
    assert state(pipeline) == before
    handle.remove()


def _without(part: str) -> Callable[[Any], None]:
    return lambda pipeline: setattr(pipeline, part, None)


def _deaf(pipeline: Any) -> None:
    with torch.no_grad():
        pipeline.transformer.context_embedder.weight.zero_()


def _columns_first(pipeline: Any) -> None:
    pack = type(pipeline)._pack_latents

    def transposed(latents: Any, batch: int, channels: int, height: int, width: int) -> Any:
        return pack(latents.transpose(2, 3), batch, channels, width, height)

    pipeline._pack_latents = transposed


def _shuffled(pipeline: Any) -> None:
    encode = pipeline.encode_prompt

    def late(*args: Any, **kwargs: Any) -> Any:
        embeddings, *rest = encode(*args, **kwargs)
        # Every other position: no token has the column after its neighbour's.
        return (torch.cat([embeddings[:, ::2], embeddings[:, 1::2]], 1), *rest)

    pipeline.encode_prompt = late


BROKEN: dict[str, tuple[Callable[[Any], None], str]] = {
    "no denoiser": (_without("transformer"), "none of its parts is a denoiser"),
    "no VAE": (_without("vae"), "no VAE"),
    "no text encoder": (_without("text_encoder"), "no tokenizer with a text encoder"),
    "no tokenizer": (_without("tokenizer"), "no tokenizer with a text encoder"),
    "deaf": (_deaf, "negating a token's embedding changed no key"),
    "columns first": (_columns_first, r"corners of 12 x 20 cells are at positions 128, 182 and 187 .*: not the rows"),
    "shuffled": (_shuffled, "the text columns cannot be found: in captions of several lengths"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_the_fact_that_cannot_be_established_is_named(case: str) -> None:
    breaks, reason = BROKEN[case]
    pipeline = BUILDERS["bria"]()
    breaks(pipeline)
    with pytest.raises(GocaError, match=f"BriaPipeline cannot be read: .*{reason}") as caught:
        probe(pipeline)
    assert "\n" not in str(caught.value)


def test_pixels_that_look_at_words_and_each_other_without_being_looked_at() -> None:
    with pytest.raises(GocaError, match=r"PRXPipeline cannot be read: 60 positions attend to 316"):
        probe(prx())


def test_a_pipeline_that_makes_every_image_as_large_cannot_be_probed() -> None:
    with pytest.raises(GocaError, match=r"HiDreamImagePipeline cannot be read: .* expects a latent of"):
        probe(BUILDERS["hidream"]())


def test_attention_that_is_not_seen() -> None:
    pipeline = BUILDERS["pixart_sigma"]()
    pipeline.transformer.transformer_blocks[1].attn2.set_processor(ByHand())
    with pytest.raises(GocaError, match=r"attention of transformer_blocks\.1 ran without .* \(processor ByHand\)"):
        probe(pipeline)


def test_the_position_that_moved() -> None:
    before = torch.zeros(7, 3)
    before[0, 0] = 10.0
    after = before.clone()
    assert moved(before, after) == ()
    after[5, 1] += 4.0
    after[2, 2] -= 2.0
    after[3, 2] -= 1.9
    assert moved(before, after) == (5, 2)
    # Every position alike, as what is pooled moves them; and rounding.
    assert moved(before, before + 1) == ()
    after = before.clone()
    after[5] += 1e-3
    assert moved(before, after) == ()

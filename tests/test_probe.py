"""Pipelines that no row lists: recognised by asking them, or refused by name with what is missing."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import unlisted
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image

from goca import GocaError, Recipe, Segmenter
from goca.diffusion import backbone as backbone_module
from goca.diffusion import families
from goca.diffusion.attention_call import AttentionCall
from goca.diffusion.backbone import Backbone
from goca.probing import probe
from goca.probing.passes import moved
from goca.testing.tiny import BUILDERS
from goca.text.nouns import Noun
from goca.text.token_spans import find_noun_tokens

pytestmark = pytest.mark.slow

Make = Callable[..., Image.Image]
NOUNS = tuple(Noun(name, (name,)) for name in ("cat", "traffic light", "grass"))
CAPTION = "cat, traffic light, grass"
ASK: dict[str, Any] = {"classes": ["cat", "grass"], "background_classes": ["sky"]}
RECOGNISED = {
    "bria": unlisted.bria,
    "ovis": unlisted.ovis,
    "cogview3": unlisted.cogview3,
    "longcat": unlisted.longcat,
    "krea2": unlisted.krea2,
}


@cache
def segmenter(name: str) -> Segmenter:
    """One of the recognised, recognised once."""
    return Segmenter.from_pipeline(RECOGNISED[name](), size=64)


def hide(pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take every row out that knows the pipeline's denoiser."""
    kind = type(getattr(pipeline, "transformer", None) or pipeline.unet).__name__
    monkeypatch.setattr(families, "FAMILIES", [row for row in families.FAMILIES if kind not in row.denoisers])


def columns(backbone: Backbone) -> tuple[Any, ...]:
    """The columns of the nouns, and of everything in the caption."""
    found = find_noun_tokens(CAPTION, backbone.texts(backbone.prompt(CAPTION, {})), NOUNS, (), named=False)
    return found.classes, found.prompt


def test_a_pipeline_that_makes_every_image_as_large_is_not_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = BUILDERS["hidream"]()
    hide(pipeline, monkeypatch)
    with pytest.raises(GocaError, match=r"HiDreamImagePipeline .* expects a latent of"):
        Segmenter.from_pipeline(pipeline)


@pytest.mark.parametrize("name", [name for name in BUILDERS if name != "hidream"])
def test_a_family_whose_row_is_hidden_is_found_again(name: str, image: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = BUILDERS[name]()
    listed = Segmenter.from_pipeline(pipeline, size=64)
    expected = listed(image(96, 48), **ASK)
    hide(pipeline, monkeypatch)
    row, plan = listed.backbone.family, listed.plan
    same = {key: getattr(plan, key) for key in ("heads", "layers", "cross", "reference", "refine", "order")}
    probed = Segmenter.from_pipeline(pipeline, Recipe(**same, timestep=plan.timestep[0]), size=64)
    found = probed.backbone.family
    for fact in ("component", "flow", "linear_self_attention", "optional_image_input", "feature", "edm_sigmas"):
        assert getattr(found, fact) == getattr(row, fact), fact
    assert _layout(found.joint) == _layout(row.joint)
    for latent in ((24, 40), (16, 56)):
        assert found.grids(probed.backbone.denoiser, latent) == row.grids(listed.backbone.denoiser, latent)
    assert probed.backbone.blocks == listed.backbone.blocks
    assert probed.backbone.vae_scale_factor == listed.backbone.vae_scale_factor
    # A listed row may name a tokenizer that a pipeline of its family does not have.
    assert [text.tokenizer for text in found.texts] == [
        text.tokenizer for text in row.texts if getattr(pipeline, text.tokenizer, None) is not None
    ]
    assert columns(probed.backbone) == columns(listed.backbone)
    result = probed(image(96, 48), **ASK)
    np.testing.assert_array_equal(result.scores.grid, expected.scores.grid)
    np.testing.assert_array_equal(result.labels, expected.labels)
    assert result.plan.notes[0] == f"recognised by a probe: {found.found}"
    assert "recognised by a probe" in result.plan.settings


def _layout(joint: Any) -> Any:
    return joint and (joint.text_first, joint.multiple, set(joint.unimodal_blocks) or set())


@pytest.mark.parametrize("name", RECOGNISED)
def test_a_pipeline_that_nobody_has_listed_makes_masks(name: str, image: Make) -> None:
    results = segmenter(name)([image(160, 96, 0), image(160, 96, 1)], **ASK)
    for result in results:
        assert result.labels.shape == (96, 160)
        assert result.mask("cat").shape == (96, 160)
        assert np.isfinite(result.scores.grid).all()
        assert result.plan.notes[0].startswith("recognised by a probe: joint attention, text before the pixels")
        assert "recognised by a probe; Flux's settings in proportion to the depth" in result.plan.settings
    assert not np.array_equal(results[0].scores.grid, results[1].scores.grid)


@pytest.mark.parametrize("name", RECOGNISED)
def test_the_tap_changes_no_bit_of_it_and_a_noun_has_its_own_column(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = segmenter(name).backbone
    prompts: dict[str, Any] = {}
    latents = torch.randn(1, probe.channels(backbone.pipeline.vae), 8, 12, generator=torch.Generator().manual_seed(1))

    def ask(known: dict[str, Any]) -> tuple[Any, list[AttentionCall]]:
        calls: list[AttentionCall] = []
        output = backbone.forward(latents, [CAPTION], 300, 0, lambda _, call: calls.append(call), known)
        return output, calls

    output, calls = ask(prompts)
    # Another way than the probe's: what `encode_prompt` returned is changed, at the noun's column.
    (column, *_), *_ = columns(backbone)[0]
    prompt = prompts[CAPTION]
    first = prompt.encoded[0]
    changed = (first[0] if isinstance(first, tuple) else first).clone()
    changed[:, column] += 3
    encoded = (changed, *first[1:]) if isinstance(first, tuple) else changed
    _, others = ask({CAPTION: replace(prompt, encoded=(encoded, *prompt.encoded[1:]))})
    (before, after) = (next(call for call in some if call.text is not None) for some in (calls, others))
    far = (after.k[:, after.text] - before.k[:, before.text]).abs().amax((0, 2))
    assert int(far.argmax()) == column
    monkeypatch.setattr(backbone_module, "AttentionHook", lambda *_: nullcontext())
    plain, seen = ask(prompts)
    assert seen == []
    assert torch.equal(plain, output)


def test_one_that_was_saved_is_loaded_and_probed(image: Make, tmp_path: Path) -> None:
    expected = segmenter("bria")(image(), **ASK)
    segmenter("bria").backbone.pipeline.save_pretrained(tmp_path)
    found = Segmenter.from_pretrained(tmp_path, size=64)(image(), **ASK)
    np.testing.assert_allclose(found.scores.grid, expected.scores.grid, atol=2e-2)


def test_what_pads_its_text_to_a_fixed_length_says_how_many_tokens_it_keeps() -> None:
    pipeline = unlisted.longcat()
    pipeline.tokenizer_max_length = 83
    (text,) = Backbone(pipeline).family.texts
    assert text.max_tokens == 83
    # Where the call has a `max_sequence_length`, that is what counts.
    (text,) = segmenter("bria").backbone.family.texts
    assert text.respects_max_sequence_length
    assert text.max_tokens is None


def test_a_listed_pipeline_is_not_probed(sd15: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for question in ("guess", "recognise", "confirm"):
        monkeypatch.setattr(probe, question, None)
    assert Backbone(sd15).family.found == ""


class ByHand(AttnProcessor):
    """Softmax attention by matrix products, under a name that is nobody's."""


def hook_free(pipeline: Any) -> bool:
    modules = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    hooks = (
        hook
        for part in modules
        for one in part.modules()
        for hook in (*one._forward_hooks.values(), *one._forward_pre_hooks.values())
    )
    # The text encoders' own library leaves some, by which it collects hidden states.
    return not any(hook.__module__.startswith("goca") for hook in hooks)


@pytest.mark.parametrize("build", [unlisted.ovis, unlisted.prx, BUILDERS["sana"]], ids=["found", "refused", "hidden"])
def test_nothing_borrowed_stays_behind(build: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = build()
    hide(pipeline, monkeypatch)
    before, side, state = dict(vars(pipeline)), pipeline.tokenizer.padding_side, torch.get_rng_state()
    with nullcontext() if build is not unlisted.prx else pytest.raises(GocaError):
        Backbone(pipeline)
    assert vars(pipeline).keys() == before.keys()
    assert all(vars(pipeline)[name] is value for name, value in before.items())
    assert pipeline.tokenizer.padding_side == side
    assert hook_free(pipeline)
    assert torch.equal(torch.get_rng_state(), state)


def test_nothing_borrowed_stays_behind_when_a_pass_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = unlisted.bria()
    before = dict(vars(pipeline))

    def fails(*args: Any) -> None:
        raise RuntimeError("no\nmore")

    handle = pipeline.transformer.single_transformer_blocks[2].register_forward_pre_hook(fails)
    with pytest.raises(GocaError, match=r"it does not run \(RuntimeError: no more\)"):
        Backbone(pipeline)
    handle.remove()
    assert all(vars(pipeline)[name] is value for name, value in before.items())
    assert hook_free(pipeline)


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


def _silent(pipeline: Any) -> None:
    pipeline.transformer.config.in_channels = None


BROKEN: dict[str, tuple[Callable[[Any], None], str]] = {
    "no denoiser": (_without("transformer"), "BriaPipeline is not supported: .* none of its parts is a denoiser"),
    "no VAE": (_without("vae"), "no VAE that says how many channels a latent has"),
    "no text encoder": (_without("text_encoder"), "no tokenizer beside a text encoder"),
    "no tokenizer": (_without("tokenizer"), "no tokenizer beside a text encoder"),
    "no channels": (_silent, "its denoiser does not say how many channels it takes"),
    "deaf": (_deaf, "its text columns cannot be told: turning the embedding of a token moved no key"),
    "columns first": (
        _columns_first,
        r"the corners of 12 x 20 cells stand at positions 128, 182 and 187: not the rows",
    ),
    "shuffled": (_shuffled, "its text columns cannot be told: in captions of several lengths"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_missing_is_named(case: str) -> None:
    breaks, told = BROKEN[case]
    pipeline = unlisted.bria()
    breaks(pipeline)
    with pytest.raises(GocaError, match=told) as caught:
        Segmenter.from_pipeline(pipeline)
    said = str(caught.value)
    assert said.startswith("BriaPipeline ")
    assert said.endswith("report this line")
    assert "\n" not in said


def test_pixels_that_look_at_words_and_each_other_without_being_looked_at() -> None:
    with pytest.raises(GocaError, match=r"PRXPipeline with PRXTransformer2DModel .* 60 positions ask and 316 answer"):
        Segmenter.from_pipeline(unlisted.prx())


def test_attention_that_is_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = BUILDERS["pixart_sigma"]()
    hide(pipeline, monkeypatch)
    pipeline.transformer.transformer_blocks[1].attn2.set_processor(ByHand())
    with pytest.raises(GocaError, match=r"attention of transformer_blocks\.1 is not seen: .* \(processor ByHand\)"):
        Segmenter.from_pipeline(pipeline)


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

"""What can be asked of attention: of a trace step by step and head by head, and of an image that was segmented."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import HeunDiscreteScheduler
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from goca import GOCA, VANILLA, GocaError, Segmenter, trace
from goca.aggregation import AttentionAggregator
from goca.diffusion.attention_call import AttentionCall
from goca.diffusion.loading import quiet
from goca.inspection import layer_maps
from goca.inspection.layer_maps import Budget, LayerMaps
from goca.maths.heads import mean_heads
from goca.maths.refine import Affinity
from goca.testing.tiny import BUILDERS, sd15
from goca.tracing import Trace

PROMPT, NEGATIVE = "a cat on grass, a cat", "an ugly dog"
RAW = replace(GOCA, rescale=(), order=0)
ALL = ("steps", "heads", "special", "negative")


def make(pipe: Any, **options: Any) -> Tensor:
    given = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "height": 32, "width": 48, "num_inference_steps": 3}
    generator = torch.Generator().manual_seed(0)
    return torch.as_tensor(pipe(**{**given, "output_type": "np", "generator": generator, **options})[0])


@pytest.fixture(scope="module")
def pipe() -> Any:
    pipeline = sd15()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def kept(pipe: Any) -> Trace:
    with trace(pipe, keep=ALL) as tr:
        make(pipe)
    return tr


# --- a trace


def test_what_is_kept_changes_neither_images_nor_maps(pipe: Any, kept: Trace) -> None:
    plain = make(pipe)
    with trace(pipe) as tr:
        assert torch.equal(make(pipe), plain)
    with trace(pipe, keep=ALL) as all_kept:
        assert torch.equal(make(pipe), plain)
    assert [step.layers for step in tr.steps] == [step.layers for step in all_kept.steps]
    for word in tr.words():
        assert np.array_equal(tr.map(word), kept.map(word))


def test_the_steps_sum_to_the_whole() -> None:
    pipe = sd15()
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = HeunDiscreteScheduler.from_config(pipe.scheduler.config)  # two calls a step but for the last
    with trace(pipe, recipe=RAW, keep="steps") as tr:
        make(pipe)
    numbers = [step.step for step in tr.steps]
    assert numbers == [0, 0, 1, 1, 2]
    weighted = sum(numbers.count(step) * tr.map("grass", step=step) for step in set(numbers))
    np.testing.assert_allclose(weighted / len(numbers), tr.map("grass"), rtol=1e-5)
    assert not np.allclose(tr.map("grass", step=0), tr.map("grass", step=2), rtol=1e-3)
    with trace(pipe, recipe=RAW, steps=[1]) as second:
        make(pipe)
    np.testing.assert_allclose(tr.map("grass", step=1), second.map("grass"), rtol=1e-6)
    assert np.asarray(tr.heatmap("grass", step=1)).std() > 0


@pytest.mark.parametrize(("name", "kind"), [("cat.gif", "GIF"), ("cat.webp", "WEBP")])
def test_an_animation_shows_every_step(kept: Trace, tmp_path: Path, name: str, kind: str) -> None:
    animation = kept.animation("cat")
    expected = [kept.heatmap("cat", step=step) for step in range(3)]
    assert all(np.array_equal(*pair) for pair in zip(animation.frames, expected, strict=True))
    with Image.open(animation.save(tmp_path / name)) as image:
        assert (image.format, image.n_frames, image.size) == (kind, 3, (48, 32))
    with pytest.raises(GocaError, match=r"let it end in \.gif or \.webp"):
        animation.save(tmp_path / "cat.mp4")
    sheets = kept.animation().frames
    assert len(sheets) == 3
    # Cells of 224 px between gaps of 12: the image and its words.
    assert all(sheet.width == 12 + (1 + len(kept.words())) * (224 + 12) for sheet in sheets)


def test_a_step_is_segmented_by_its_own_maps(pipe: Any, kept: Trace) -> None:
    steps = [kept.segment(["cat", "grass"], step=step).scores.grid for step in range(3)]
    assert not np.allclose(steps[0], steps[2])
    with pytest.raises(GocaError, match="step 3 was not traced"):
        kept.segment(["cat"], step=3)


def test_what_is_kept_has_a_size(pipe: Any, kept: Trace) -> None:
    with trace(pipe) as tr:
        make(pipe)
    maps = tr.attention.maps()
    assert tr.attention.nbytes >= maps.nbytes
    assert kept.attention.nbytes >= tr.attention.nbytes + 3 * maps.nbytes


def test_special_tokens_have_maps_and_are_sinks(pipe: Any) -> None:
    with trace(pipe, recipe=RAW, keep="special") as tr:
        make(pipe)
    start = tr.tokens[0]
    assert (start.text, start.special, start.encoder) == ("<|startoftext|>", True, "text_encoder")
    assert "".join(token.text for token in tr.tokens if not token.special) == PROMPT.replace(" ", "")
    # Every pixel's attention is shared out among the tokens.
    whole = sum(tr.map(token=token.index) for token in tr.tokens)
    np.testing.assert_allclose(whole, 1, atol=1e-5)
    spoken = sum(float(tr.map(token=token.index).mean()) for token in tr.tokens if not token.special)
    assert sum(tr.sinks.values()) == pytest.approx(1 - spoken, abs=1e-5)
    assert tr.sinks["<|startoftext|>"] == pytest.approx(float(tr.map(token=0).mean()), abs=1e-6)


def test_the_negative_prompt_s_words(pipe: Any, kept: Trace) -> None:
    assert [str(word) for word in kept.negative.words()] == ["ugly", "dog"]
    assert kept.negative.image == kept.image
    assert [step.step for step in kept.negative.steps] == [step.step for step in kept.steps]
    # At the first call both branches are given the same latent: what is negative here is the prompt there.
    with trace(pipe, recipe=RAW, steps=[0], keep=["negative", "steps"]) as tr:
        make(pipe)
    with trace(pipe, recipe=RAW, steps=[0], keep="steps") as swapped:
        make(pipe, prompt=NEGATIVE, negative_prompt=PROMPT)
    first = tr.negative.attention.calls[0], swapped.attention.calls[0]
    torch.testing.assert_close(*first, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["flux", "wan"])
def test_a_negative_prompt_of_a_call_of_its_own(name: str) -> None:
    with quiet():
        pipeline = BUILDERS[name]()
        pipeline.set_progress_bar_config(disable=True)
        options = {"num_frames": 1} if name == "wan" else {"true_cfg_scale": 3.0}
        sized = {"height": 64, "width": 96, "num_inference_steps": 2, **options}
        with trace(pipeline, keep="negative") as tr:
            make(pipeline, **sized)
    assert [str(word) for word in tr.negative.words()] == ["ugly", "dog"]
    assert len(tr.negative.steps) == len(tr.steps) == 2
    assert not np.allclose(tr.negative.map("dog"), tr.map("grass"))


def test_layers_and_heads_are_what_the_sums_are_made_of(pipe: Any) -> None:
    """Of a single layer, the layer's map is the whole map; its heads, by their weights, are the layer's."""
    block = "mid_block.attentions.0.transformer_blocks.0"
    recipe = replace(RAW, cross=(block,), reference=block, heads="mean")
    with trace(pipe, recipe=recipe, keep="heads", layers=[block]) as tr:
        make(pipe)
    layer = tr.layer_map("grass", block)
    heads = [tr.layer_map("grass", block, head) for head in range(len(tr.steps[0].heads[block]))]
    np.testing.assert_allclose(np.mean(heads, 0), layer, rtol=1e-5)
    assert not np.allclose(heads[0], heads[1], rtol=1e-3)
    resized = torch.nn.functional.interpolate(torch.from_numpy(layer)[None, None], tr.attention.grid, mode="bilinear")
    np.testing.assert_allclose(tr.map("grass"), resized[0, 0], rtol=1e-4)
    with pytest.raises(GocaError, match=r"there is no map of layer .*choose from mid_block"):
        tr.layer_map("grass", "down_blocks.0.attentions.0.transformer_blocks.0")
    with pytest.raises(GocaError, match="there is no head 99"):
        tr.layer_map("grass", block, 99)


def test_each_text_encoder_has_a_map_of_its_own() -> None:
    with quiet():
        pipeline = BUILDERS["sd3"]()
        pipeline.set_progress_bar_config(disable=True)
        with trace(pipeline, recipe=RAW) as tr:
            make(pipeline, height=64, width=96)
    encoders = list(dict.fromkeys(token.encoder for token in tr.tokens))
    assert encoders == ["text_encoder", "text_encoder_2", "text_encoder_3"]
    # The first two write into the same tokens.
    assert np.array_equal(tr.map("grass", encoder=encoders.pop(1)), tr.map("grass", encoder=encoders[0]))
    counts = [len(spelling(tr, "grass", name)) for name in encoders]
    parts = [tr.map("grass", encoder=name) for name in encoders]
    assert not np.allclose(*parts, rtol=1e-3)
    both = (counts[0] * parts[0] + counts[1] * parts[1]) / sum(counts)
    np.testing.assert_allclose(tr.map("grass"), both, rtol=1e-5)
    with pytest.raises(
        GocaError, match="there are no tokens of 'clip': choose from text_encoder, text_encoder_2, text_encoder_3"
    ):
        tr.map("grass", encoder="clip")


def spelling(tr: Trace, word: str, encoder: str) -> list[int]:
    """The tokens of an encoder that spell a word."""
    tokens = [token for token in tr.tokens if token.encoder == encoder and not token.special]
    ends = np.cumsum([len(token.text) for token in tokens])
    start = "".join(token.text for token in tokens).index(word)
    wanted = range(start + 1, start + len(word) + 1)
    return [token.index for token, end in zip(tokens, ends, strict=True) if end in wanted]


def test_the_words_of_a_pixel(pipe: Any) -> None:
    with trace(pipe, recipe=replace(GOCA, rescale=()), keep="steps") as tr:
        make(pipe)
    cells = tr.attention.grid
    x, y = 29, 19
    row, column = int((y + 0.5) * cells[0] / 32), int((x + 0.5) * cells[1] / 48)
    pixel = tr.at(x, y)
    assert [entry.share for entry in pixel.words] == sorted((entry.share for entry in pixel.words), reverse=True)
    assert sum(entry.share for entry in pixel.words) == pytest.approx(1)
    assert {entry.word for entry in pixel.words} == {"cat", "on", "grass"}
    for word, share, attention in pixel.words:
        count = len(spelling(tr, word, "text_encoder")) * PROMPT.count(word)
        assert attention == pytest.approx(count * tr.map(word)[row, column], rel=1e-4)
        assert share == pytest.approx(attention / sum(entry.attention for entry in pixel.words))
    assert tr.at(x, y, step=0).words != pixel.words
    # Where the patch looks is its row of the affinity that refines: a column of it for each place looked at.
    for place in [(0, 0), (row, column), (cells[0] - 1, 2)]:
        there = torch.zeros(1, *cells)
        there[0, place[0], place[1]] = 1
        assert pixel.looks[place] == pytest.approx(float(tr.attention.affinity.apply(there)[0, row, column]), rel=1e-4)
    assert pixel.heatmap().size == (48, 32)
    for outside in [(48, 0), (0, 32), (-1, 0)]:
        with pytest.raises(GocaError, match="x goes from 0 to 47, y from 0 to 31"):
            tr.at(*outside)


def test_tensors_are_saved_with_what_they_mean(kept: Trace, tmp_path: Path) -> None:
    path = kept.save_tensors(tmp_path / "cat.safetensors")
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        told = {name: text if name.endswith("prompt") else json.loads(text) for name, text in file.metadata().items()}
    assert (told["prompt"], told["negative.prompt"]) == (PROMPT, NEGATIVE)
    assert torch.equal(tensors["calls"].mean(0), tensors["maps"])
    assert told["token_indices"] == list(range(77))
    assert told["tokens"][0] == {"index": 0, "text": "<|startoftext|>", "special": True, "encoder": "text_encoder"}
    assert [(step["step"]) for step in told["steps"]] == [step.step for step in kept.steps]
    np.testing.assert_allclose(tensors["layer_weights"].sum(1), 1, rtol=1e-5)
    block = told["layers"][0]
    grass = [told["token_indices"].index(token) for token in told["words"]["grass"]]
    assert np.array_equal(tensors[f"layers.{block}"][grass].mean(0), kept.layer_map("grass", block))
    assert np.array_equal(tensors[f"heads.{block}"][1][grass].mean(0), kept.layer_map("grass", block, 1))
    assert tensors[f"head_weights.{block}"].shape == (3, len(tensors[f"heads.{block}"]))
    assert tensors["negative.maps"].shape == tensors["maps"].shape
    with pytest.raises(GocaError, match=r"let it end in \.safetensors"):
        kept.save_tensors(tmp_path / "cat.pt")


def test_what_is_not_kept_is_told(pipe: Any, kept: Trace) -> None:
    with trace(pipe) as tr:
        make(pipe)
    for ask, told in (
        (lambda: tr.map("cat", step=0), 'keep="steps"'),
        (lambda: tr.animation("cat"), 'keep="steps"'),
        (lambda: tr.map(token=0), 'keep="special"'),
        (lambda: tr.sinks, 'keep="special"'),
        (lambda: tr.layer_map("cat", "x"), 'keep="layers"'),
        (lambda: tr.negative, 'keep="negative"'),
        (lambda: tr.map(), "None with occurrence None is not a word"),
        (lambda: kept.map("cat", step=9), "step 9 was not traced: choose from 0, 1, 2"),
        (lambda: kept.map(token=77), "there is no token 77"),
        (
            lambda: trace(pipe, keep="all"),
            "'all' cannot be kept: choose from steps, layers, heads, special, negative",
        ),
        (lambda: trace(pipe, keep="layers", layers=["up"]), "the model has no layer 'up'"),
    ):
        with pytest.raises(GocaError, match=told):
            ask()


def test_there_is_room_for_so_much(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with trace(pipe, keep="steps") as tr:
        make(pipe)
    size = tr.attention.total.numel() * 4
    monkeypatch.setattr(layer_maps, "MAX_KEPT", 2 * size)  # of three calls
    with trace(pipe, keep="steps") as cut:
        make(pipe)
    assert np.array_equal(cut.map("cat", step=1), tr.map("cat", step=1))
    assert np.array_equal(cut.map("cat"), tr.map("cat"))
    with pytest.raises(GocaError, match="the maps of step 2 did not fit"):
        cut.map("cat", step=2)


# --- an image


@pytest.fixture(scope="module")
def segmenter(pipe: Any) -> Segmenter:
    return Segmenter.from_pipeline(pipe, recipe=GOCA, size=40)


@pytest.mark.parametrize("background_classes", [[], ["sky", "road"]])
def test_an_inspection_is_of_the_segmentation_s_own_pass(
    segmenter: Segmenter, image: Callable[..., Image.Image], background_classes: list[str]
) -> None:
    photo = image(60, 40)
    expected = segmenter(photo, ["cat", "grass"], background_classes)
    passes: list[int] = []
    handle = segmenter.backbone.denoiser.mid_block.register_forward_pre_hook(lambda module, args: passes.append(1))
    inspection = segmenter.inspect(photo, ["cat", "grass"], background_classes, keep="heads")
    handle.remove()
    assert len(passes) == 1
    assert np.array_equal(inspection.segmentation.labels, expected.labels)
    assert np.array_equal(inspection.segmentation.scores.grid, expected.scores.grid)
    assert np.array_equal(inspection.map("grass"), expected.scores.grid[1])
    assert inspection.classes == ("cat", "grass", *background_classes)
    assert sum(layer.weight for layer in inspection.layers) == pytest.approx(1)
    assert all(sum(layer.heads) == pytest.approx(1, abs=1e-5) for layer in inspection.layers)
    assert sum(inspection.shares.values()) == pytest.approx(1, abs=1e-5)
    assert inspection.sheet().width > 600


def test_an_inspection_by_a_slow_loop(segmenter: Segmenter, image: Callable[..., Image.Image]) -> None:
    """Maps, layers, heads, shares and affinity from every attention matrix written out."""
    seen: list[AttentionCall] = []
    add = AttentionAggregator.add
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AttentionAggregator, "add", lambda self, call: (seen.append(call), add(self, call))[1])
        inspection = segmenter.inspect(image(60, 40), ["cat", "grass"], [], keep="heads")
    whole, grid = 0.0, inspection.map("cat").shape
    cross = {call.block: call for call in seen if call.kind == "cross"}
    places = {name: [t.index for t in inspection.tokens if t.index in spelled] for name, spelled in words(inspection)}
    assert [layer.name for layer in inspection.layers] == list(cross)
    for layer in inspection.layers:
        call = cross[layer.name]
        attention = torch.softmax(call.q @ call.k.transpose(1, 2) * call.scale, -1)
        made = torch.einsum("hpd,hdm->phm", call.output, call.projection.detach())
        weights = (made * made.sum(1, keepdim=True)).sum(-1)
        weights = weights / weights.sum(1, keepdim=True)
        np.testing.assert_allclose(layer.heads, weights.mean(0), rtol=1e-4, atol=1e-6)
        layer_map = torch.einsum("ph,hpt->tp", weights, attention).unflatten(1, layer.grid)
        for name, tokens in places.items():
            np.testing.assert_allclose(
                inspection.layer_map(name, layer.name), layer_map[tokens].mean(0), rtol=1e-3, atol=1e-7
            )
            head = attention[1].T.unflatten(1, layer.grid)[tokens].mean(0)
            np.testing.assert_allclose(inspection.layer_map(name, layer.name, 1), head, rtol=1e-4, atol=1e-7)
        resized = torch.nn.functional.interpolate(layer_map[None], grid, mode="bilinear")[0]
        whole = whole + layer.weight * resized
    whole = whole.clamp(min=0)
    whole = whole / whole.sum(0)
    raw = {name: whole[tokens].mean(0) for name, tokens in places.items()}
    content = sum(whole[tokens].sum(0) for tokens in places.values())
    for name, expected in raw.items():
        np.testing.assert_allclose(inspection.map(name, "raw"), expected, rtol=1e-3, atol=1e-7)
        np.testing.assert_allclose(inspection.map(name, "shared"), expected / content, rtol=1e-3)
    means = whole.mean((1, 2))
    np.testing.assert_allclose([inspection.shares[index] for index in range(77)], means, rtol=1e-3, atol=1e-7)
    special = [token.index for token in inspection.tokens if token.special]
    assert sum(inspection.sinks.values()) == pytest.approx(float(means[special].sum()), rel=1e-3)
    x, y = 41, 13
    row, column = int((y + 0.5) * grid[0] / 40), int((x + 0.5) * grid[1] / 60)
    for word, share, attention in inspection.at(x, y).words:
        taken = whole[places[word]].sum(0)[row, column]
        assert attention == pytest.approx(float(taken), rel=1e-3)
        assert share == pytest.approx(float(taken / content[row, column]), rel=1e-3)


def words(inspection: Any) -> list[tuple[str, set[int]]]:
    """The tokens of each class of the caption "cat, grass"."""
    spoken = [token for token in inspection.tokens if not token.special]
    comma = next(token.index for token in spoken if token.text == ",")
    before = {token.index for token in spoken if token.index < comma}
    return [("cat", before), ("grass", {token.index for token in spoken if token.index > comma and token.text != ","})]


def test_where_a_patch_looks_is_its_row_of_the_affinity() -> None:
    """Layers on the maps' grid, a coarser and a finer one, and one that is only kept as queries and keys."""
    generator = torch.Generator().manual_seed(0)
    grid = (3, 5)
    for largest in (64, 0):
        affinity = Affinity(grid, largest=largest)
        for own in (grid, (2, 3), (5, 7)):
            q, k = torch.randn(2, 2, own[0] * own[1], 3, generator=generator).unbind(0)
            affinity.add(q, k, 0.5, own)
        there = torch.eye(15).reshape(15, *grid)
        columns = affinity.apply(there)
        for pixel in (0, 7, 14):
            row = affinity.row(pixel, grid)
            torch.testing.assert_close(row.flatten(), columns.flatten(1)[:, pixel], rtol=1e-4, atol=1e-6)
    assert Affinity(grid).row(0, grid) is None


def test_an_inspection_asks_for_every_class_in_one_pass(bundled: Segmenter, image: Callable[..., Image.Image]) -> None:
    photo = image(64, 64)
    open_ended = Segmenter.from_pipeline(bundled.backbone.pipeline, recipe="goca-open", flip=True, seeds=2)
    once = Segmenter.from_pipeline(bundled.backbone.pipeline, recipe="goca-balanced")
    inspection = open_ended.inspect(photo, ["cat", "grass"])
    assert np.array_equal(inspection.map("cat"), once(photo, ["cat", "grass"]).scores.grid[0])


def test_what_cannot_be_inspected(segmenter: Segmenter, image: Callable[..., Image.Image], pipe: Any) -> None:
    photo = image(60, 40)
    inspection = segmenter.inspect(photo, ["cat", "grass"], ["sky"], layers=[])
    side = Segmenter.from_pipeline(pipe, recipe=replace(GOCA, keys="side"))
    unrefined = Segmenter.from_pipeline(pipe, recipe=replace(VANILLA, order=0)).inspect(photo, ["cat"])
    for ask, told in (
        (lambda: inspection.map("dog"), "there is no class 'dog': choose from cat, grass, sky"),
        (lambda: inspection.map("cat", "best"), "there is no stage 'best'"),
        (lambda: inspection.map("sky", "refined"), 'choose raw or shared for "sky"'),
        (lambda: inspection.layer_map("cat", "mid_block.attentions.0.transformer_blocks.0"), "it is not kept"),
        (lambda: inspection.at(60, 0), "there is no pixel"),
        (lambda: segmenter.inspect(photo, ["cat"], keep="steps"), "choose from heads"),
        (lambda: segmenter.inspect(image(600, 20), ["cat"]), "this image takes several windows"),
        (
            lambda: segmenter.inspect(photo, [f"thing number {n}" for n in range(40)]),
            "these classes take several prompts",
        ),
        (lambda: side.inspect(photo, ["cat"]), "choose another one for an inspection"),
        (lambda: unrefined.affinity(3, 3), "the recipe does not refine"),
    ):
        with pytest.raises(GocaError, match=told):
            ask()


def test_layers_beyond_the_budget_are_left_out() -> None:
    q = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0))
    calls = [
        AttentionCall(name, q, q, q, q, None, None, slice(0, 6), None, None, 1.0, torch.ones(2, 3, 4), (2, 3))
        for name in ("a", "b")
    ]
    maps = LayerMaps((1, 9), mean_heads, None, True, Budget(4 * 2 * 6 * 3))
    for call in calls:
        maps.add(call)
    # The second token is beyond the keys: a pipeline masks the end of its prompt.
    assert maps.layer("a")[1].abs().max() == 0
    expected = torch.softmax(q @ q.transpose(1, 2), -1)[1, :, 1].reshape(2, 3)
    torch.testing.assert_close(maps.heads("a")[1, 0], expected)
    with pytest.raises(GocaError, match="it did not fit in the memory limit"):
        maps.layer("b")

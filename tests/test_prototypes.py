"""Prototypes: the Gaussians by hand, maps summed block by block, files, and learning on the bundled model."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save

from goca import GocaError, Segmenter
from goca.bundled import pipeline as bundled_folder
from goca.bundled import scenes, vocabulary
from goca.diffusion.attention_call import AttentionCall
from goca.diffusion.backbone import Backbone, BatchItem
from goca.maths.prototypes import ClassMoments, discriminants, k_means
from goca.maths.windows import Windows
from goca.prototype_learning import (
    ChannelMoments,
    FeatureMap,
    Learned,
    LearningOptions,
    PrototypeLearner,
    learn,
    palette,
    restyled,
)
from goca.prototypes import FILE, ImageLogits, Prototypes, load_beside, weight_sample
from goca.request import PreparedImage, SegmentationRequest
from goca.testing.tiny import BUILDERS
from goca.text.nouns import caption_of


def moments_of(features: torch.Tensor, classes: torch.Tensor, count: int) -> ClassMoments:
    moments = ClassMoments(count, len(features))
    moments.add(features[:, :2], classes[:2])
    moments.add(features[:, 2:], classes[2:])
    return moments


def test_two_gaussians_by_hand() -> None:
    # Means 1 and 4, mean of all 2.5.
    features = torch.tensor([[0.0, 2.0, 4.0, 4.0]])
    weight, bias = discriminants(moments_of(features, torch.tensor([0, 0, 1, 1]), 2), shrinkage=0.5)
    # Within: (1 + 1 + 0 + 0) / 4 = 0.5; variance of all: 36/4 - 2.5^2 = 2.75; denominator 0.5 + 0.5 * 2.75 = 1.875.
    torch.testing.assert_close(weight, torch.tensor([[-1.5], [1.5]], dtype=torch.float64) / 1.875)
    torch.testing.assert_close(bias, torch.tensor([1.5 * 3.5, -1.5 * 6.5], dtype=torch.float64) / (2 * 1.875))


def test_log_posteriors_are_those_of_gaussians_with_one_covariance() -> None:
    generator = torch.Generator().manual_seed(0)
    classes = torch.arange(41) % 3
    features = (
        torch.randn(5, 41, generator=generator) * torch.tensor([[1.0], [30.0], [0.1], [2.0], [1.0]]) + 7 * classes
    )
    weight, bias = discriminants(moments_of(features, classes, 3), shrinkage=0.2)
    x = features.double()
    means = torch.stack([x[:, classes == index].mean(1) for index in range(3)])
    within = sum(torch.outer(d, d) for d in (x.T - means[classes])) / 41 + 0.2 * x.var(1, correction=0).diag()
    gaussians = [torch.distributions.MultivariateNormal(mean, within) for mean in means]
    expected = torch.stack([gaussian.log_prob(x.T) for gaussian in gaussians]).log_softmax(0)
    torch.testing.assert_close((weight @ x + bias[:, None]).log_softmax(0), expected)


def test_a_feature_that_never_changes_and_a_class_that_never_shows_do_no_harm() -> None:
    features = torch.tensor([[0.0, 2.0, 4.0, 4.0], [0.3, 0.3, 0.3, 0.3]])
    weight, bias = discriminants(moments_of(features, torch.tensor([0, 0, 2, 2]), 3), shrinkage=0.5)
    assert weight.isfinite().all()
    torch.testing.assert_close(weight[0], torch.tensor([-1.5 / 1.875, 0.0], dtype=torch.float64))
    torch.testing.assert_close(bias[[0, 2]], torch.tensor([1.4, -2.6], dtype=torch.float64))


def test_like_points_are_one_group() -> None:
    generator = torch.Generator().manual_seed(0)
    middles = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]])
    points = (middles[:, None] + torch.rand(3, 20, 2, generator=generator)).flatten(0, 1)
    centres = min(
        (k_means(points, 3, seed) for seed in range(5)), key=lambda each: float(torch.cdist(points, each).amin(1).sum())
    )
    order = torch.cdist(middles, centres).argmin(1)
    torch.testing.assert_close(centres[order], points.reshape(3, 20, 2).mean(1))
    assert sorted(k_means(points[:2], 4, 0).tolist()) == sorted(points[:2].tolist())


def random_prototypes(pipeline: Any, nouns: int = 3) -> Prototypes:
    """Prototypes that fit a pipeline, with random weights; the second noun has two Gaussians."""
    segmenter = Segmenter.from_pipeline(pipeline)
    channels: dict[str, int] = {}

    def sink(call: Any) -> None:
        if call.text is not None:
            channels[call.block] = call.q.shape[0] * call.q.shape[2]

    run(segmenter.backbone, [sink], 60)
    generator = torch.Generator().manual_seed(1)
    gaussians = tuple(2 if index == 1 else 1 for index in range(nouns))
    weight = torch.randn(sum(gaussians), sum(channels.values()), generator=generator)
    bias = torch.randn(sum(gaussians), generator=generator)
    names = ("cat", "dog", "sky", "sea", "fog")[:nouns]
    sample = weight_sample(segmenter.backbone.denoiser)
    return Prototypes(names, channels, 60, gaussians, weight, bias, sample, {"model": "mine"})


def run(backbone: Backbone, sinks: list[Any], timestep: int) -> None:
    side = 4 * backbone.size_multiple
    latents = backbone.latents([Image.linear_gradient("L").convert("RGB")], (side, side))
    backbone.session().run([BatchItem(latents, (side, side), "", timestep, 0, sink) for sink in sinks], len(sinks))


@pytest.mark.parametrize("name", ["sd15", "pixart_sigma", "flux", "sd3"])
def test_logits_are_the_resized_features_times_the_weights(name: str) -> None:
    pipeline = BUILDERS[name]()
    prototypes = random_prototypes(pipeline)
    backbone = Backbone(pipeline)
    prototypes.check(backbone)
    calls: list[Any] = []
    image = ImageLogits.of(prototypes, Windows.whole((6, 10)))
    run(backbone, [image.parts[0].add, calls.append], 60)
    reads = [call for call in calls if call.text is not None]
    assert tuple(call.block for call in reads) == tuple(prototypes.channels)
    assert set(backbone.blocks) == prototypes.channels.keys()
    features = []
    for call in reads:
        queries = call.q.permute(0, 2, 1).flatten(0, 1) if call.query is None else call.query.T
        maps = queries.reshape(1, -1, *call.grid)
        features.append(torch.nn.functional.interpolate(maps, (6, 10), mode="bilinear")[0])
    parts = torch.einsum("nc,chw->nhw", prototypes.weight, torch.cat(features)) + prototypes.bias[:, None, None]
    expected = torch.stack([parts[0], parts[1:3].exp().sum(0).log(), parts[3]])
    torch.testing.assert_close(image.logits(), expected, rtol=1e-4, atol=1e-4)
    some = ImageLogits.of(prototypes.among(["sky", "dog"]), Windows.whole((6, 10)))
    run(backbone, [some.parts[0].add], 60)
    torch.testing.assert_close(some.logits(), image.logits()[[2, 1]], rtol=1e-4, atol=1e-4)


def test_windows_are_joined(sd15: Any) -> None:
    prototypes = random_prototypes(sd15)
    segmenter = Segmenter.from_pipeline(sd15)
    windows = Windows.tiled((8, 20), 8)
    image = ImageLogits.of(prototypes, windows)
    side = 4 * segmenter.backbone.size_multiple
    tile = Image.linear_gradient("L").convert("RGB")
    latents = segmenter.backbone.latents([tile] * len(windows.boxes), (side, side))
    segmenter.backbone.session().run(image.items(latents, (side, side)), 2)
    assert image.logits().shape == (3, 8, 20)
    torch.testing.assert_close(image.logits()[:, :, :3], image.parts[0].logits()[:, :, :3])


def test_a_file_is_what_was_saved(sd15: Any, tmp_path: Path) -> None:
    prototypes = random_prototypes(sd15)
    assert load_beside(tmp_path) is None
    path = prototypes.save(tmp_path / FILE)
    read = load_beside(tmp_path)
    assert read is not None
    for name in ("nouns", "timestep", "facts", "channels", "gaussians"):
        assert getattr(read, name) == getattr(prototypes, name)
    for name in ("weight", "bias", "sample"):
        torch.testing.assert_close(getattr(read, name), getattr(prototypes, name), rtol=0, atol=0)
    with pytest.raises(GocaError, match='no prototype of "horse": learn'):
        read.among(["cat", "horse"])
    # In half precision the model is the same one.
    read.check(Backbone(sd15.to(torch.bfloat16)))
    assert path.read_bytes() == prototypes.save(tmp_path / "again.safetensors").read_bytes()


def metadata(**changes: Any) -> dict[str, str]:
    nouns = {"nouns": ["cat", "dog", "sky"], "gaussians": [1, 1, 1]}
    declared = nouns | {"channels": {"a": 4}, "timestep": 60, "facts": {}} | changes
    return {"goca_prototypes": json.dumps(declared)}


def tensors(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"weight": torch.zeros(3, 4), "bias": torch.zeros(3), "sample": torch.zeros(2)} | changes


DAMAGED = {
    "nothing": (b"", "complete prototypes"),
    "cut off": (save(tensors(), metadata())[:-8], "complete prototypes"),
    "other weights": (save({"weight": torch.zeros(3, 4)}), "metadata are missing"),
    "no tensor": (save({"weight": torch.zeros(3, 4)}, metadata()), "missing or unexpected"),
    "no JSON": (save(tensors(), {"goca_prototypes": "{"}), "complete prototypes"),
    "nouns twice": (save(tensors(), metadata(nouns=["cat", "cat", "sky"])), "distinct names"),
    "fewer nouns": (save(tensors(), metadata(nouns=["cat", "sky"])), "do not match"),
    "more Gaussians": (save(tensors(), metadata(gaussians=[1, 2, 1])), "do not match"),
    "no Gaussian": (save(tensors(), metadata(gaussians=[0, 2, 1])), "whole number"),
    "a timestep in words": (save(tensors(), metadata(timestep="early")), "whole number"),
    "no channels": (save(tensors(), metadata(channels={"a": 0})), "whole number"),
    "NaN": (save(tensors(bias=torch.full((3,), torch.nan)), metadata()), "finite"),
    "whole numbers": (save(tensors(weight=torch.zeros(3, 4, dtype=torch.int32)), metadata()), "finite"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_file_is_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    content, reason = DAMAGED[kind]
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(GocaError, match=reason) as caught:
        load_beside(tmp_path)
    assert str(tmp_path / FILE) in str(caught.value)
    assert "learn them again" in str(caught.value)


def test_another_model_is_refused(sd15: Any) -> None:
    prototypes = random_prototypes(sd15)
    with pytest.raises(GocaError, match=r"another model \(mine\)"):
        prototypes.check(Backbone(BUILDERS["sdxl"]()))
    with torch.no_grad():
        sd15.unet.down_blocks[0].attentions[0].proj_in.weight.mul_(1.1)
    with pytest.raises(GocaError, match="other weights"):
        prototypes.check(Backbone(sd15))
    narrower = replace(prototypes, channels=dict.fromkeys(prototypes.channels, 3))
    with pytest.raises(GocaError, match="another model"):
        run(Backbone(sd15), [ImageLogits.of(narrower, Windows.whole((4, 4))).parts[0].add], 60)


def test_what_is_painted(bundled: Segmenter) -> None:
    nouns = palette(bundled, ["Cats", "boat", "sky"])
    assert [noun.name for noun in nouns.leading] == ["cat", "boat"]
    assert [noun.name for noun in nouns.around] == ["grass", "sand", "water", "snow", "brick", "wood", "road", "sky"]
    captions = list(nouns.captions(40, 0))
    assert captions == list(nouns.captions(40, 0)) != list(nouns.captions(40, 1))
    for index, caption in enumerate(captions):
        assert nouns.leading[index % 2] in caption
        assert 1 <= sum(noun in nouns.around for noun in caption) <= 2
        assert 2 <= len(set(caption)) == len(caption) <= 4
    named = palette(bundled, ["cat"], ["road"])
    assert [noun.name for noun in named.nouns] == ["cat", "road"]
    stuff_alone = palette(bundled, ["sky", "grass"], [])
    assert {caption_of(caption) for caption in stuff_alone.captions(9, 0)} == {"sky, grass", "grass, sky"}
    with pytest.raises(GocaError, match="two or more"):
        palette(bundled, ["cat"], [])
    with pytest.raises(GocaError, match='does not know "horse"'):
        palette(bundled, ["horse"])


def test_learning_repeats_itself_and_leaves_the_pipeline_alone(goca: Any, bundled: Segmenter, tmp_path: Path) -> None:
    """Once by the command, once in Python, with a model loaded anew: the same bytes."""
    out = tmp_path / FILE
    done = goca(
        *("prototypes", "--classes", "cat", "--background-classes", "sky, grass", "--batch", "4"),
        *("--images", "1", "--steps", "1", "--scale", "3", "--timestep", "50", "--out", out, "--json"),
    )
    assert done.code == 0
    assert "generates 3 images in 1 steps" in done.err
    assert json.loads(done.out)["file"] == str(out)
    pipeline = bundled.backbone.pipeline
    parts, settings, state = dict(pipeline.components), dict(pipeline.scheduler.config), torch.get_rng_state()
    options = LearningOptions(images=1, steps=1, scale=3.0, timestep=50)
    *events, prototypes = learn(bundled, ["cat"], ["sky", "grass"], options)
    assert events == [Learned(3, 3)]
    assert isinstance(prototypes, Prototypes)
    assert prototypes.save(tmp_path / "again.safetensors").read_bytes() == out.read_bytes()
    assert prototypes.nouns == ("cat", "sky", "grass")
    assert prototypes.gaussians == (4, 1, 1)
    assert set(prototypes.facts["cells"]) == {"cat", "sky", "grass"}
    assert prototypes.timestep == prototypes.facts["timestep"] == 50
    prototypes.check(bundled.backbone)
    assert all(pipeline.components[name] is part for name, part in parts.items())
    assert dict(pipeline.scheduler.config) == settings
    assert torch.equal(torch.get_rng_state(), state)


def test_another_style_has_the_same_shapes(bundled: Segmenter) -> None:
    image = next(scenes()).image
    copies = [restyled(image, seed) for seed in range(12)]
    assert restyled(image, 3).tobytes() == copies[3].tobytes()
    assert len({copy.tobytes() for copy in copies}) == 12
    assert all(copy.size == image.size and copy.mode == "RGB" for copy in copies)
    options = LearningOptions(timestep=50, restyled=0)
    learner = PrototypeLearner(bundled, palette(bundled, ["cat"], ["sky"]), options)
    learner.add([bundled(image, ["cat", "sky"], background=None)], 0)
    plain = learner.prototypes()
    learner.options = replace(options, restyled=2)
    more = learner.prototypes()
    # Every copy has the cells of its image.
    assert more.facts["cells"] == {noun: 3 * cells for noun, cells in plain.facts["cells"].items()}


def test_many_channels_become_few_and_the_weights_are_of_all() -> None:
    """A projection is folded into the weights: they are applied to a block's own channels."""
    generator = torch.Generator().manual_seed(0)
    moments = ChannelMoments()
    channels = torch.randn(90, 400, generator=generator) * 5 + 100
    queries = channels.reshape(9, 10, 400).transpose(1, 2)
    text = torch.zeros(9, 1, 10)
    call = AttentionCall("a", queries, text, text, queries, None, None, slice(0, 1), None, None, 1.0, None, (20, 20))
    moments.add(call)
    reductions = moments.reductions(max_channels=6, seed=3)
    mean, matrix = reductions["a"]
    assert matrix.shape == (90, 6)
    torch.testing.assert_close(mean, channels.double().mean(1))
    features = FeatureMap(reductions)
    features.add(call)
    reduced = features.value((20, 20)).flatten(1).double()
    torch.testing.assert_close(reduced.mean(1), torch.zeros(6, dtype=torch.float64), atol=1e-4, rtol=0)
    # Sums of 90 standardised channels with weights of variance 1 / 90.
    assert 0.5 < float(reduced.std()) < 1.5
    whole = moments.reductions(max_channels=90, seed=3)["a"].matrix
    torch.testing.assert_close(whole, (1 / channels.double().std(1, correction=0)).diag())


def test_the_bundled_prototypes_are_of_the_bundled_model(bundled: Segmenter) -> None:
    prototypes = load_beside(bundled_folder())
    assert prototypes is not None
    prototypes.check(bundled.backbone)
    assert set(prototypes.nouns) == set(vocabulary())
    assert min(prototypes.facts["cells"].values()) > 0
    assert (bundled_folder() / FILE).stat().st_size < 400_000
    # Most of the first scene is taken for what it shows: 5 of 32 nouns, none of them named.
    scene = next(scenes())
    session, request = bundled.backbone.session(), SegmentationRequest(scene.image, scene.classes)
    image = bundled.prepare(request, session)
    assert isinstance(image, PreparedImage)
    logits = ImageLogits.of(prototypes, image.windows)
    session.run(logits.items(bundled.backbone.latents(image.tiles, image.size), image.size), 1)
    winners = [prototypes.nouns[index] for index in logits.logits().argmax(0).flatten().tolist()]
    assert sum(winner in scene.classes for winner in winners) > len(winners) / 2


def test_mistakes_on_the_command_line(goca: Any, tmp_path: Path) -> None:
    refused = goca("prototypes", "--classes", "cat", "--background-classes", "", "--out", tmp_path / FILE)
    assert (refused.code, refused.out) == (2, "")
    assert refused.err.count("\n") == 1
    assert "name two or more (--classes)" in refused.err
    refused = goca("prototypes", "--classes", "cat", "--out", tmp_path)
    assert refused.code == 2
    assert "is a folder: name a file (--out)" in refused.err

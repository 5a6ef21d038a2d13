"""Scores fitted to the image's features, against loops over pixels; and the recipe that does so, on several models."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from yardsticks import Grid, bilinear_matrix, softmax

from goca import GOCA_BALANCED, GOCA_OPEN, GOCA_REFINED, GocaError, Segmenter, guide, trace
from goca.class_maps import ClassMaps, joined
from goca.maths.refit import COMPONENTS, PROJECTED, ImageFeatures, components, gaussians
from goca.maths.windows import Windows
from goca.testing.tiny import BUILDERS

Make = Callable[..., Image.Image]
EVERYTHING = replace(GOCA_BALANCED, affinity="distinct", refit="gaussians", edges=True)
CANVAS: Grid = (4, 6)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def positive(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def equal(ours: Tensor, other: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(ours.double(), other.double(), rtol=1e-4, atol=atol)


def alike(features: Tensor) -> Tensor:
    """The products of all pixels' features: the same whatever the signs of the components."""
    return features.double() @ features.double().T


# ---- features


@pytest.mark.parametrize(("widths", "pixels"), [((5, 9), 40), ((50, 70), 90), ((80,), 11)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_components_are_whitened_and_the_largest(widths: tuple[int, ...], pixels: int, dtype: torch.dtype) -> None:
    outputs = [(3 * numbers(pixels, width, seed=width) + 2).to(dtype) for width in widths]
    scaled = []
    for output in outputs:
        rows = output.double() - output.double().mean(0)
        scaled.append(rows / (sum(math.hypot(*row) for row in rows.tolist()) / pixels))
    wide = torch.cat(scaled, 1)
    if sum(widths) > PROJECTED:
        wide = wide @ torch.randn(sum(widths), PROJECTED, generator=torch.Generator().manual_seed(0)).double()
    left, sizes, _ = torch.linalg.svd(wide, full_matrices=False)
    kept = min(COMPONENTS, sum(widths), pixels - 1)
    assert float(sizes[kept - 1]) > 1e-6
    features = components(outputs)
    assert features.shape == (pixels, kept)
    assert features.dtype == torch.float32
    equal(alike(features), alike(left[:, :kept] * math.sqrt(pixels)), atol=1e-3)


def test_what_does_not_vary_is_no_feature() -> None:
    flat, varied = torch.full((12, 6), 0.3), numbers(12, 3)
    assert components([flat]).shape == (12, 0)
    equal(alike(components([flat, varied])), alike(components([varied])), atol=1e-4)


# ---- Gaussians


def slow_gaussians(scores: Tensor, features: Tensor) -> Tensor:
    classes, pixels, width = len(scores), len(features), features.shape[1]
    values, old = features.double().tolist(), scores.double().tolist()
    weights = [[0.0] * pixels for _ in range(classes)]
    for pixel in range(pixels):
        column = [max(1e-6, old[label][pixel]) for label in range(classes)]
        for label in range(classes):
            best = old[label][pixel] == max(old[each][pixel] for each in range(classes))
            weights[label][pixel] = column[label] / sum(column) * (best + 0.05)
    means = [
        [sum(w * row[axis] for w, row in zip(line, values, strict=True)) / sum(line) for axis in range(width)]
        for line in weights
    ]
    variances = []
    for axis in range(width):
        square = sum(
            weights[label][pixel] * (values[pixel][axis] - means[label][axis]) ** 2
            for label in range(classes)
            for pixel in range(pixels)
        )
        ridge = 0.1 * sum(row[axis] ** 2 for row in values) / pixels
        variances.append(square / sum(map(sum, weights)) + ridge)
    out = torch.zeros(classes, pixels, dtype=torch.float64)
    for pixel in range(pixels):
        logits = []
        for label in range(classes):
            parts = zip(values[pixel], means[label], variances, strict=True)
            logits.append(-0.5 * sum((x - mean) ** 2 / v for x, mean, v in parts) / math.sqrt(width))
        for label, share in enumerate(softmax(logits)):
            out[label, pixel] = (old[label][pixel] + share) / 2
    return out


@pytest.mark.parametrize("classes", [2, 5])
def test_gaussians_are_the_loop(classes: int) -> None:
    scores, features = positive(classes, 24), numbers(24, 7, seed=1)
    scores[0, :3] = 0
    scores[1, 5] = scores[0, 5]
    equal(gaussians(scores, features), slow_gaussians(scores, features))


def test_a_class_wins_the_pixels_that_look_like_its_own() -> None:
    """Of four pixels alike the attention is weak in one, and of the others' class there."""
    features = torch.tensor([[1.0]] * 4 + [[-1.0]] * 4)
    scores = torch.tensor([[0.9, 0.9, 0.9, 0.4, 0.1, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.5, 0.9, 0.9, 0.9, 0.9]])
    assert gaussians(scores, features).argmax(0).tolist() == [0] * 4 + [1] * 4
    # Features that tell nothing change no label.
    assert gaussians(scores, features[:, :0]).argmax(0).tolist() == scores.argmax(0).tolist()


# ---- an image


def test_windows_are_more_pixels_of_the_same_classes() -> None:
    windows, grid = Windows.tiled(CANVAS, 4), (2, 2)
    assert len(windows.boxes) > 1
    maps, features = positive(3, *CANVAS), numbers(4 * len(windows.boxes), 3, seed=1)
    areas = []
    for box in windows.boxes:
        for row in (0, 2):
            for column in (0, 2):
                part = maps[:, box.top + row : box.top + row + 2, box.left + column : box.left + column + 2]
                areas.append(part.mean((1, 2)))
    scores = slow_gaussians(torch.stack(areas, 1), features)
    up = bilinear_matrix(grid, (4, 4))
    pieces = [(part @ up.T).reshape(3, 4, 4) for part in scores.split(4, 1)]
    equal(ImageFeatures(windows, grid, features).refit(gaussians, maps), windows.join(pieces))


def test_the_classes_of_all_prompts_and_the_background_compete(bundled: Segmenter) -> None:
    plan = replace(bundled.plan, refit=gaussians)
    first, second = (ImageFeatures(Windows.whole(CANVAS), CANVAS, numbers(24, 3, seed=seed)) for seed in (1, 2))
    maps, background = positive(3, *CANVAS), positive(2, *CANVAS, seed=1)
    prompts = [
        ClassMaps(maps[:2], background[0], torch.zeros(2), first),
        ClassMaps(maps[2:], background[1], torch.zeros(1), second),
    ]
    merged = joined(plan, prompts)
    every = torch.cat([maps, background.amax(0, keepdim=True)]).flatten(1)
    low, high = every.amin(1, keepdim=True), every.amax(1, keepdim=True)
    expected = slow_gaussians((every - low) / (high - low), first.components).reshape(4, *CANVAS)
    equal(merged.classes, expected[:3])
    assert merged.background is not None
    equal(merged.background, expected[3])
    # By itself a class has nobody to compete with.
    alone = ClassMaps(maps[:1], None, torch.zeros(1), first)
    assert torch.equal(joined(plan, [alone]).classes, maps[:1])


# ---- the recipe


@pytest.mark.parametrize("name", ["sd15", "sdxl", "pixart_sigma", "sana", "flux", "sd3"])
def test_every_family_refits(name: str, image: Make) -> None:
    pipeline = BUILDERS[name]()
    shown = [image(96, 64, 0), image(96, 64, 1)]
    options = {"background_classes": ["sky"]}
    refined, balanced = (Segmenter.from_pipeline(pipeline, recipe, size=64) for recipe in (EVERYTHING, GOCA_BALANCED))
    together = refined(shown, ["cat", "grass"], **options)
    for photo, result in zip(shown, together, strict=True):
        assert np.isfinite(result.scores.grid).all()
        assert 0 <= result.scores.grid.min() <= result.scores.grid.max() <= 1
        assert np.abs(result.scores.grid - refined(photo, ["cat", "grass"], **options).scores.grid).max() < 2e-2
    others = balanced(shown[0], ["cat", "grass"], **options).scores.grid
    assert np.abs(together[0].scores.grid - others).max() > 0.1


def test_the_recipe_with_windows_several_prompts_flip_and_seeds(bundled: Segmenter, image: Make) -> None:
    pipeline = bundled.backbone.pipeline
    windowed = Segmenter.from_pipeline(pipeline, GOCA_REFINED, window=True)(image(160, 96), ["cat", "grass"])
    assert any("windows" in note for note in windowed.plan.notes)
    assert windowed.labels.shape == (96, 160)
    once, again = (Segmenter.from_pipeline(pipeline, GOCA_REFINED, seed=seed) for seed in (0, 1))
    photo = image(64, 64)
    both = Segmenter.from_pipeline(pipeline, GOCA_REFINED, seeds=2)(photo, ["cat", "grass"])
    grids = [each(photo, ["cat", "grass"]).scores.grid for each in (once, again)]
    np.testing.assert_allclose(both.scores.grid, np.mean(grids, 0), atol=1e-4)
    flipped = Segmenter.from_pipeline(pipeline, GOCA_REFINED, flip=True)
    turned = photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    there, back = (once(each, ["cat", "grass"]).scores.grid for each in (photo, turned))
    scores = flipped(photo, ["cat", "grass"]).scores.grid
    np.testing.assert_allclose(scores, (there + back[:, :, ::-1]) / 2, atol=1e-4)
    # An inspection's last stage is what the segmentation has.
    inspection = once.inspect(photo, ["cat", "grass"])
    np.testing.assert_allclose(inspection.map("grass"), grids[0][1], atol=1e-5)


def test_classes_of_several_prompts_are_refitted_together(sd15: object, image: Make) -> None:
    names = [f"thing number {number}" for number in range(40)]
    result = Segmenter.from_pipeline(sd15, GOCA_REFINED, size=64)(image(), names, background=None)
    assert len(result.plan.captions) > 1
    assert np.isfinite(result.scores.grid).all()


def test_evidence_comes_before_refitting(bundled: Segmenter, image: Make) -> None:
    recipe = replace(GOCA_OPEN, affinity="distinct", refit="gaussians", edges=True, evidence="attention", floor=0.0)
    result = Segmenter.from_pipeline(bundled.backbone.pipeline, recipe)(image(64, 64), ["cat", "grass"])
    expected = Segmenter.from_pipeline(bundled.backbone.pipeline, EVERYTHING)(image(64, 64), ["cat", "grass"])
    np.testing.assert_allclose(result.scores.grid, expected.scores.grid, atol=1e-5)


def test_a_trace_does_without_and_guidance_refuses(sd15: object) -> None:
    with trace(sd15, recipe=EVERYTHING) as tr:
        sd15("cat, grass", num_inference_steps=2, height=64, width=64, generator=torch.Generator().manual_seed(0))
    result = tr.segment(["cat", "grass"])
    assert result.plan.to_json()["refit"] == "never"
    assert result.plan.to_json()["affinity"] == "distinct"
    assert "a trace's scores are not refitted" in result.plan.notes
    seen_twice = tr.segment(["cat", "grass"], recipe=replace(GOCA_BALANCED, flip=True)).plan
    assert (seen_twice.flip, seen_twice.seeds) == (False, ())
    assert any("flips" in note for note in seen_twice.notes)
    with pytest.raises(GocaError, match="differently than the trace"):
        tr.segment(["cat", "grass"], recipe=replace(EVERYTHING, grid="tokens"))
    with pytest.raises(GocaError, match=r"goca-refined.*weighs tokens"), guide(sd15, recipe="goca-refined"):
        raise AssertionError

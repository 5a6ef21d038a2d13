"""The guided filter against a loop over pixels and windows, and labels along edges against labels without."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from maths_steps import label
from PIL import Image
from torch import Tensor
from yardsticks import Allocations, bilinear_matrix

from goca.maths.background import Background, constant, maximum, none, offset
from goca.maths.edges import EPSILON, Edges, GuidedFilter, box
from goca.recipe import GOCA
from goca.segmenter import Segmenter

RULES = [offset, maximum, constant, none]
SIZE = (11, 13)
INF = float("inf")


def label_along_edges(
    classes: Tensor, background_scores: Tensor | None, background: Background, image: Tensor
) -> Tensor:
    return label(classes, background_scores, background, (image.shape[0], image.shape[1]), guide=image)


def followed(edges: Edges, scores: Tensor) -> Tensor:
    return edges.follow(edges.fit(scores), slice(None))


def positive(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def colours(*size: int, seed: int = 5) -> Tensor:
    return torch.randint(0, 256, (*size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def equal(ours: Tensor, other: Tensor, atol: float = 1e-9) -> None:
    torch.testing.assert_close(ours.double(), other.double(), rtol=0, atol=atol)


def window(y: int, x: int, radius: int, size: tuple[int, int]) -> list[tuple[int, int]]:
    near = [range(max(0, at - radius), min(side, at + radius + 1)) for at, side in zip((y, x), size, strict=True)]
    return [(row, column) for row in near[0] for column in near[1]]


def slow_filter(guide: Tensor, scores: Tensor, radius: int, epsilon: float) -> Tensor:
    """Each window's ridge regression solved by itself; each pixel asks every window that it lies in."""
    height, width = scores.shape
    fits = {}
    for y in range(height):
        for x in range(width):
            inside = window(y, x, radius, (height, width))
            seen = torch.stack([guide[:, row, column] for row, column in inside])
            told = torch.stack([scores[row, column] for row, column in inside])
            mean, level = seen.mean(0), told.mean()
            spread = (seen - mean).T @ (seen - mean) / len(inside)
            slope = torch.linalg.solve(
                spread + epsilon * torch.eye(3, dtype=torch.float64), (seen - mean).T @ (told - level) / len(inside)
            )
            fits[y, x] = (slope, level - slope @ mean)
    out = torch.zeros(height, width, dtype=torch.float64)
    for y in range(height):
        for x in range(width):
            told = [slope @ guide[:, y, x] + offset for slope, offset in map(fits.get, window(y, x, radius, SIZE))]
            out[y, x] = torch.stack(told).mean()
    return out


# ---- the filter


@pytest.mark.parametrize("radius", [1, 2, 5, 17])
def test_box_is_the_mean_of_what_lies_in_the_image(radius: int) -> None:
    maps = positive(2, *SIZE).double()
    slow = torch.zeros_like(maps)
    for y in range(SIZE[0]):
        for x in range(SIZE[1]):
            slow[:, y, x] = torch.stack([maps[:, row, column] for row, column in window(y, x, radius, SIZE)]).mean(0)
    equal(box(maps, radius), slow)


@pytest.mark.parametrize("radius", [1, 3])
@pytest.mark.parametrize("epsilon", [EPSILON, 0.1])
def test_the_filter_is_the_loop(radius: int, epsilon: float) -> None:
    guide, scores = positive(3, *SIZE, seed=1).double(), positive(*SIZE).double()
    slope, offset = GuidedFilter(guide, radius, epsilon).fit(scores)
    equal((slope * guide).sum(0) + offset, slow_filter(guide, scores, radius, epsilon))


def test_scores_that_are_linear_in_the_colours_stay() -> None:
    guide = positive(3, *SIZE, seed=1).double()
    scores = 0.2 * guide[0] - 0.5 * guide[1] + 0.1 * guide[2] + 0.3
    slope, offset = GuidedFilter(guide, 2, 1e-9).fit(scores)
    equal((slope * guide).sum(0) + offset, scores, atol=1e-6)


def test_without_an_edge_scores_are_only_averaged() -> None:
    scores = positive(*SIZE).double()
    slope, offset = GuidedFilter(torch.full((3, *SIZE), 0.4, dtype=torch.float64), 2).fit(scores)
    equal(slope, torch.zeros(3, *SIZE), atol=1e-7)
    equal(offset, box(box(scores, 2), 2), atol=1e-7)


# ---- an image and scores on its cells


def test_a_small_image_guides_at_its_own_size() -> None:
    image, scores = colours(*SIZE), positive(5, 7)
    # A cell is about 2 x 2 pixels.
    guide = image.permute(2, 0, 1).double() / 255
    wide = (bilinear_matrix((5, 7), SIZE) @ scores.double().flatten()).reshape(SIZE)
    equal(followed(Edges(image, (5, 7)), scores), slow_filter(guide, wide, 2, EPSILON), atol=1e-5)


def test_a_large_image_guides_by_a_smaller_copy() -> None:
    image, scores = colours(59, 41), positive(3, 2)
    edges = Edges(image, (3, 2))
    # A cell is 20.08 pixels a side, of which 8 are left: 59 and 41 times 0.398, and a window reaches 8.
    assert (edges.small, edges.filter.radius) == ((24, 16), 8)
    slope, offset = edges.filter.fit((bilinear_matrix((3, 2), (24, 16)) @ scores.double().flatten()).view(24, 16))
    up = bilinear_matrix((24, 16), (59, 41))
    slope = (slope.flatten(1) @ up.T).view(3, 59, 41)
    expected = (slope * image.permute(2, 0, 1) / 255).sum(0) + (up @ offset.flatten()).view(59, 41)
    equal(followed(edges, scores), expected, atol=1e-5)
    # The copy is made of areas, so a flat colour is what it was.
    flat = Edges(torch.tensor([51, 102, 204], dtype=torch.uint8).expand(59, 41, 3), (3, 2))
    equal(flat.filter.guide, torch.tensor([0.2, 0.4, 0.8]).view(3, 1, 1).expand(3, 24, 16), atol=1e-6)


def two_halves(height: int, width: int, at: int) -> Tensor:
    image = torch.zeros(height, width, 3, dtype=torch.uint8)
    image[:, at:] = 255
    return image


@pytest.mark.parametrize("scale", [1, 5], ids=["at its size", "by a copy"])
def test_a_border_moves_to_the_edge_beside_it(scale: int) -> None:
    # Scores change between cells 3 and 4, at pixel 32 of 64; the colours change 3 pixels further.
    classes = torch.stack([torch.tensor([1.0, 1, 1, 1, 0, 0, 0, 0]).expand(8, 8)] * 2)
    classes[1] = 1 - classes[0]
    size = (64 * scale, 64 * scale)
    image = two_halves(*size, at=35 * scale)
    there = 1 + (torch.arange(size[1]) >= 35 * scale).long().expand(size)
    before = label(classes, None, Background(none), size)
    after = label_along_edges(classes, None, Background(none), image)
    assert float((before != there).float().mean()) == pytest.approx(3 / 64, abs=1e-3)
    # A copy has the edge within one of its pixels, of which a cell has 8.
    assert float((after != there).float().mean()) < (0.004 if scale == 1 else 0.016)


# ---- labels


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("supported", [True, False], ids=["background_scores", "alone"])
def test_labels_are_the_loop(rule: Any, supported: bool) -> None:
    image, classes, background_scores = colours(*SIZE), positive(3, 5, 7), positive(5, 7, seed=1) if supported else None
    edges = Edges(image, (5, 7))
    extra = torch.zeros(SIZE) if background_scores is None else followed(edges, background_scores)
    scores = torch.stack([rule(0.3, extra), *(followed(edges, scores) for scores in classes)])
    found = label_along_edges(classes, background_scores, Background(rule, 0.3), image)
    assert torch.equal(found, scores.argmax(0))
    assert len(found.unique()) >= 3


def test_labels_without_any_edge_are_those_of_the_averaged_scores() -> None:
    classes, background_scores = positive(3, 5, 7), positive(5, 7, seed=1)
    flat = torch.full((*SIZE, 3), 77, dtype=torch.uint8)
    smooth = [box(box((bilinear_matrix((5, 7), SIZE) @ one.double().flatten()).view(SIZE), 2), 2) for one in classes]
    expected = torch.stack(smooth).argmax(0) + 1
    assert torch.equal(label_along_edges(classes, background_scores, Background(none), flat), expected)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_an_absent_class_never_wins_and_disturbs_nobody(rule: Any) -> None:
    image, classes, background_scores = colours(*SIZE), positive(4, 5, 7), positive(5, 7, seed=1)
    classes[1] = -INF
    classes[3] = -INF
    labels = label_along_edges(classes, background_scores, Background(rule, 0.2), image)
    alone = label_along_edges(classes[[0, 2]], background_scores, Background(rule, 0.2), image)
    assert torch.equal(torch.tensor([0, 1, 3])[alone], labels)


def test_ties_go_to_the_background_then_to_the_first_class() -> None:
    flat, half = torch.zeros(*SIZE, 3, dtype=torch.uint8), torch.full((2, 5, 7), 0.5)
    assert label_along_edges(half, None, Background(none), flat).unique().tolist() == [1]
    assert not label_along_edges(torch.zeros(2, 5, 7), None, Background(constant, 0.0), flat).any()


def test_memory_does_not_grow_with_the_number_of_classes() -> None:
    image = colours(97, 101)
    largest = []
    for count in (2, 23):
        with Allocations() as seen:
            label_along_edges(positive(count, 5, 7), None, Background(none), image)
        largest.append(seen.largest)
    # The largest piece is one of the image's, not one of all classes.
    assert largest[0] == largest[1] < 23 * 97 * 101


# ---- as an option


def test_edges_are_an_option_that_the_plan_tells(bundled: Segmenter, image: Callable[..., Image.Image]) -> None:
    asked = {"classes": ["cat", "grass"], "background_classes": ["sky"]}
    wanted = Segmenter.from_pretrained("bundled", GOCA, refine_edges=True)
    plain, along = bundled(image(), **asked), wanted(image(), **asked)
    assert (plain.plan.to_json()["refine_edges"], along.plan.to_json()["refine_edges"]) == (False, True)
    assert np.array_equal(plain.scores.grid, along.scores.grid)
    assert along.labels.shape == plain.labels.shape == (96, 160)
    expected = label_along_edges(
        torch.from_numpy(along.scores.grid),
        torch.from_numpy(along.scores.background),
        Background(offset, 0.0),
        torch.from_numpy(np.array(image())),
    )
    assert np.array_equal(along.labels, expected.numpy())
    assert not np.array_equal(along.labels, plain.labels)
    by_recipe = Segmenter.from_pretrained("bundled", replace(GOCA, edges=True))
    assert np.array_equal(by_recipe(image(), **asked).labels, expected.numpy())
    origins = [each.plan.origin["refine_edges"] for each in (bundled, wanted, by_recipe)]
    assert origins == ["default", "user", "recipe"]


def test_other_backgrounds_follow_the_same_edges(bundled: Segmenter, image: Callable[..., Image.Image]) -> None:
    segmenter = Segmenter.from_pretrained("bundled", GOCA, refine_edges=True)
    backgrounds = [Background(constant, threshold) for threshold in (0.2, 0.6)]
    result = segmenter(image(), ["cat", "grass"], background=0.2)
    first, second = result.relabelled(backgrounds)
    assert np.array_equal(first, result.labels)
    assert np.array_equal(second, segmenter(image(), ["cat", "grass"], background=0.6).labels)
    coarse = next(replace(result, plan=replace(result.plan, refine_edges=False)).relabelled(backgrounds))
    assert not np.array_equal(coarse, first)

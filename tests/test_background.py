"""The background rules by hand, and labels against a loop over every pixel of the upsampled maps."""

import pytest
import torch
from maths_steps import label
from torch import Tensor
from yardsticks import bilinear_axis

from goca.maths.background import Background, constant, labels, maximum, none, offset

RULES = [offset, maximum, constant, none]
SIZES = [((5, 7), (11, 13)), ((5, 7), (3, 17)), ((7, 3), (41, 2)), ((5, 7), (5, 7)), ((1, 1), (5, 3))]
INF = float("inf")


def positive(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def slow_score(rule: object, threshold: float, background_scores: float) -> float:
    if rule is offset:
        return threshold + background_scores
    if rule is maximum:
        return max(threshold, background_scores)
    return threshold if rule is constant else -INF


def slow_upsample(maps: Tensor, size: tuple[int, int]) -> list[list[list[float]]]:
    """(class, height, width)"""
    down, across = (bilinear_axis(i, o) for i, o in zip(maps.shape[-2:], size, strict=True))
    return [
        [
            [
                sum(
                    wy * wx * value
                    for wy, line in zip(row, image, strict=True)
                    if wy
                    for wx, value in zip(column, line, strict=True)
                    if wx
                )
                for column in across
            ]
            for row in down
        ]
        for image in maps.tolist()
    ]


def slow_label(
    classes: Tensor, background_scores: Tensor | None, background: Background, size: tuple[int, int]
) -> list[list[int]]:
    maps = slow_upsample(classes, size)
    extra = slow_upsample(
        torch.zeros_like(classes[:1]) if background_scores is None else background_scores[None], size
    )[0]
    out = []
    for y in range(size[0]):
        row = []
        for x in range(size[1]):
            best, winner = slow_score(background.rule, background.threshold, extra[y][x]), 0
            for index, image in enumerate(maps, start=1):
                if image[y][x] > best:
                    best, winner = image[y][x], index
            row.append(winner)
        out.append(row)
    return out


# ---- rules


def test_rules_by_hand() -> None:
    background_scores = torch.tensor([[0.0, 0.25, 1.0]])
    assert offset(0.5, background_scores).tolist() == [[0.5, 0.75, 1.5]]
    assert offset(-0.25, background_scores).tolist() == [[-0.25, 0.0, 0.75]]
    assert maximum(0.5, background_scores).tolist() == [[0.5, 0.5, 1.0]]
    assert maximum(0.125, background_scores).tolist() == [[0.125, 0.25, 1.0]]
    assert constant(0.5, background_scores).tolist() == [[0.5, 0.5, 0.5]]
    assert none(0.5, background_scores).tolist() == [[-INF, -INF, -INF]]
    # What is given is left as it was.
    assert background_scores.tolist() == [[0.0, 0.25, 1.0]]


def test_labels_by_hand() -> None:
    # Four pixels, two classes, one background map, nothing to upsample.
    classes = torch.tensor([[[0.9, 0.2, 0.4, 0.0]], [[0.1, 0.3, 0.6, 0.1]]])
    background_scores = torch.tensor([[0.5, 0.25, 0.5, 0.0]])
    by_hand = {
        offset: [[1, 0, 0, 0]],  # background 0.7, 0.45, 0.7, 0.2
        maximum: [[1, 2, 2, 0]],  # 0.5, 0.25, 0.5, 0.2
        constant: [[1, 2, 2, 0]],  # 0.2 everywhere
        none: [[1, 2, 2, 2]],
    }
    for rule, expected in by_hand.items():
        assert label(classes, background_scores, Background(rule, 0.2), (1, 4)).tolist() == expected
    assert label(classes, background_scores, Background(maximum, 0.5), (1, 4)).tolist() == [[1, 0, 2, 0]]
    # Without background classes their map is 0.
    assert label(classes, None, Background(offset, 0.2), (1, 4)).tolist() == [[1, 2, 2, 0]]


# ---- upsampling, settling, argmax


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize(("grid", "size"), SIZES, ids=str)
@pytest.mark.parametrize("supported", [True, False], ids=["background_scores", "alone"])
def test_label_is_the_loop(rule: object, grid: tuple[int, int], size: tuple[int, int], supported: bool) -> None:
    classes, background_scores = positive(3, *grid), positive(*grid, seed=1) if supported else None
    background = Background(rule, 0.3)  # type: ignore[arg-type]
    assert label(classes, background_scores, background, size).tolist() == slow_label(
        classes, background_scores, background, size
    )


def test_the_rule_is_applied_to_the_upsampled_map() -> None:
    # Half way between 0 and 1 the background map is 0.5; its maximum with 0.6, taken first, would be 0.8.
    background_scores = torch.tensor([[0.0, 1.0]])
    classes = torch.full((1, 1, 2), 0.7)
    assert label(classes, background_scores, Background(maximum, 0.6), (1, 3)).tolist() == [[1, 1, 0]]


@pytest.mark.parametrize("guided", [False, True], ids=["bilinear", "along edges"])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("strip", [1, 2, 13, 96, 1000, None])
def test_strips_change_nothing(rule: object, strip: int | None, guided: bool) -> None:
    size = (97, 53)
    classes, background_scores = positive(67, 5, 7), positive(5, 7, seed=1)
    classes[11] = -INF
    background = Background(rule, 0.4)  # type: ignore[arg-type]
    guide = (255 * positive(*size, 3, seed=2)).to(torch.uint8) if guided else None
    whole = label(classes, background_scores, background, size, guide, rows=[slice(0, 97)])
    assert len(whole.unique()) >= 3
    rows = None if strip is None else [slice(start, min(start + strip, 97)) for start in range(0, 97, strip)]
    assert torch.equal(label(classes, background_scores, background, size, guide, rows=rows), whole)


@pytest.mark.parametrize("supported", [True, False], ids=["background_scores", "alone"])
def test_many_backgrounds_are_each_by_itself(supported: bool) -> None:
    classes, background_scores = positive(3, 5, 7), positive(5, 7, seed=1) if supported else None
    classes[1] = -INF
    backgrounds = [Background(rule, threshold) for rule in RULES for threshold in (-0.4, 0.0, 0.3, 0.7)]
    found = labels(classes, background_scores, backgrounds, (41, 37)).long()
    for background, one in zip(backgrounds, found, strict=True):
        assert torch.equal(one, label(classes, background_scores, background, (41, 37)))
    assert len({tuple(one.flatten().tolist()) for one in found}) > 2


# ---- who can win


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize(("grid", "size"), SIZES, ids=str)
def test_an_absent_class_never_wins_and_disturbs_nobody(
    rule: object, grid: tuple[int, int], size: tuple[int, int]
) -> None:
    classes, background_scores = positive(4, *grid), positive(*grid, seed=1)
    classes[1] = -INF
    classes[3] = -INF
    before = classes.clone()
    background = Background(rule, 0.2)  # type: ignore[arg-type]
    labels = label(classes, background_scores, background, size)
    assert set(labels.unique().tolist()) <= {0, 1, 3}
    # The others, asked alone, get the same pixels.
    alone = label(classes[[0, 2]], background_scores, background, size)
    assert torch.equal(torch.tensor([0, 1, 3])[alone], labels)
    assert torch.equal(classes, before)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_where_all_are_absent_there_is_background(rule: object) -> None:
    labels = label(torch.full((2, 5, 7), -INF), None, Background(rule, 0.5), (11, 13))  # type: ignore[arg-type]
    assert not labels.any()


def test_without_a_background_every_pixel_gets_a_class() -> None:
    for classes in (positive(3, 5, 7), torch.zeros(3, 5, 7), positive(3, 5, 7) - 5):
        labels = label(classes, positive(5, 7, seed=1), Background(none), (41, 37))
        assert int(labels.min()) >= 1
        assert int(labels.max()) <= 3


@pytest.mark.parametrize("size", [(5, 7), (97, 53), (3, 2)], ids=str)
def test_ties_go_to_the_background_then_to_the_first_class(size: tuple[int, int]) -> None:
    # A half is exact, and so is every mean of halves.
    half = torch.full((2, 5, 7), 0.5)
    assert not label(half, None, Background(constant, 0.5), size).any()
    assert not label(half, half[0], Background(offset, 0.0), size).any()
    assert not label(half, half[0], Background(maximum, 0.5), size).any()
    assert label(half, None, Background(constant, 0.4375), size).unique().tolist() == [1]
    assert label(half, None, Background(none), size).unique().tolist() == [1]
    # A map that is 0, as a constant one is after min-max, does not beat no background map at all.
    assert not label(torch.zeros(2, 5, 7), None, Background(offset, 0.0), size).any()

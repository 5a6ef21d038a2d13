"""The steps of per-pixel rescaling, against loops over the method's words and by hand."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from goca.maths.rescale import (
    TokenMass,
    blur,
    mass_of_means,
    minmax,
    peak,
    rescale,
    share,
    share_of_prompt,
    times_raw,
    token_mass,
)

GRIDS = [(5, 7), (3, 11), (13, 3)]
NARROW = [(1, 7), (7, 1), (2, 11), (11, 2), (1, 1), (2, 2)]

# exp(-x^2 / (2 x 1.1^2)) for x = -2 .. 2: 0.19150, 0.66151, 1, 0.66151, 0.19150; they sum to 2.70603.
TAPS = [0.07077, 0.24446, 0.36955, 0.24446, 0.07077]


def positive(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) + 0.01


def given(maps: Tensor) -> TokenMass:
    """TokenMass for steps that must not look at it."""
    return TokenMass(torch.full_like(maps, math.nan), *torch.full_like(maps[:1].expand(2, -1, -1), math.nan))


def equal(ours: Tensor, slow: Tensor | list[object], atol: float = 1e-5) -> None:
    torch.testing.assert_close(ours.double(), torch.as_tensor(slow).double(), rtol=0, atol=atol)


def reflected(place: int, size: int) -> int:
    """... 2 1 0 1 2 ...: the edge cell itself is not repeated."""
    if place < 0:
        return -place
    return 2 * (size - 1) - place if place >= size else place


def replicated(place: int, size: int) -> int:
    return min(max(place, 0), size - 1)


def slow_blur(maps: Tensor, edge: Callable[[int, int], int]) -> Tensor:
    height, width = maps.shape[-2:]
    bell = [[math.exp(-(y * y + x * x) / (2 * 1.1**2)) for x in range(-2, 3)] for y in range(-2, 3)]
    total = sum(map(sum, bell))
    out = torch.zeros(maps.shape, dtype=torch.float64)
    for index, image in enumerate(maps.tolist()):
        for y in range(height):
            for x in range(width):
                out[index, y, x] = sum(
                    bell[dy + 2][dx + 2] / total * image[edge(y + dy, height)][edge(x + dx, width)]
                    for dy in range(-2, 3)
                    for dx in range(-2, 3)
                )
    return out


# ---- token_mass


def test_evidence_is_the_mean_of_a_noun_and_the_sum_of_all_content() -> None:
    # Five tokens on a 1 x 2 image: <sos>, "polar", "bear", a comma, "snow".
    tokens = torch.tensor([[[8.0, 9.0]], [[1.0, 2.0]], [[3.0, 6.0]], [[7.0, 7.0]], [[5.0, 4.0]]])
    seen = token_mass(tokens, nouns=[[1, 2], [4]], content=[1, 2, 4])
    equal(seen.raw, [[[2.0, 4.0]], [[5.0, 4.0]]])
    equal(seen.content, [[9.0, 12.0]])


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_evidence_is_the_loop(grid: tuple[int, int]) -> None:
    tokens = positive(17, *grid)
    nouns, content = [[2], [5, 3, 11], [13, 7]], [2, 3, 5, 7, 11, 13]
    seen = token_mass(tokens, nouns, content)
    for y in range(grid[0]):
        for x in range(grid[1]):
            column = tokens[:, y, x].tolist()
            equal(seen.raw[:, y, x], [sum(column[t] for t in noun) / len(noun) for noun in nouns])
            equal(seen.content[y, x], sum(column[t] for t in content))


def test_the_means_of_nouns_and_their_counts_tell_what_all_their_tokens_take() -> None:
    nouns, tokens = [[2], [3, 5], [7, 11, 13]], [2, 3, 5, 7, 11, 13]
    seen = token_mass(positive(17, 5, 7), nouns, content=tokens, prompt=tokens)
    for told, read in zip(mass_of_means(seen.raw, [1, 2, 3]), seen, strict=True):
        equal(told, read)


# ---- steps


def test_share_by_hand_and_where_there_is_no_content() -> None:
    seen = TokenMass(torch.full((2, 1, 3), math.nan), torch.tensor([[4.0, 0.0, 5.0]]), torch.zeros(1, 3))
    maps = torch.tensor([[[1.0, 0.0, 5.0]], [[3.0, 2.0, 0.0]]])
    equal(share(maps, seen), [[[0.25, 0.0, 1.0]], [[0.75, 0.0, 0.0]]])


def test_shares_of_nouns_of_one_token_sum_to_1() -> None:
    seen = token_mass(positive(17, 5, 7), nouns=[[2], [3], [5]], content=[2, 3, 5])
    equal(share(seen.raw, seen).sum(0), torch.ones(5, 7))


def test_blur_by_hand_inside_and_at_the_edge() -> None:
    spot = torch.zeros(1, 7, 11)
    spot[0, 3, 5] = 1
    equal(blur(spot, given(spot))[0, 1:6, 3:8], torch.outer(torch.tensor(TAPS), torch.tensor(TAPS)), 1e-4)
    edge = torch.zeros(1, 7, 11)
    edge[0, 1, 5] = 1
    # Row 0 sees row 1 twice: below, and reflected above. Row 1 would have to reach up to row -1, two away.
    down = torch.tensor([2 * TAPS[1], TAPS[2] + TAPS[0], TAPS[1], TAPS[0], 0, 0, 0])
    equal(blur(edge, given(edge))[0, :, 5], down * TAPS[2], 1e-4)
    corner = torch.zeros(1, 7, 11)
    corner[0, 6, 0] = 1
    # The corner cell is not repeated by the reflection: it counts once.
    equal(blur(corner, given(corner))[0, 6, 0], TAPS[2] ** 2, 1e-4)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_blur_is_the_loop(grid: tuple[int, int]) -> None:
    maps = positive(3, *grid)
    equal(blur(maps, given(maps)), slow_blur(maps, reflected))


@pytest.mark.parametrize("grid", NARROW, ids=str)
def test_blur_of_a_grid_too_narrow_to_reflect_repeats_its_edge(grid: tuple[int, int]) -> None:
    maps = positive(2, *grid)
    equal(blur(maps, given(maps)), slow_blur(maps, replicated))


@pytest.mark.parametrize("grid", [*GRIDS, *NARROW], ids=str)
def test_blur_keeps_a_constant(grid: tuple[int, int]) -> None:
    maps = torch.full((2, *grid), 0.7)
    equal(blur(maps, given(maps)), maps)


def test_minmax_by_hand() -> None:
    maps = torch.tensor([[[-1.0, 0.0, 3.0]], [[4.0, 4.0, 4.0]], [[0.0, 0.0, 0.0]], [[2.0, 6.0, 4.0]]])
    by_hand = [[[0.0, 0.25, 1.0]], [[0.0, 0.0, 0.0]], [[0.0, 0.0, 0.0]], [[0.0, 1.0, 0.5]]]
    equal(minmax(maps, given(maps)), by_hand)
    equal(minmax(maps), by_hand)


def test_minmax_stretches_a_faint_map_and_not_rounding() -> None:
    faint = torch.tensor([[[0.8, 0.8004, 0.8001]]])
    equal(minmax(faint), [[[0.0, 1.0, 0.25]]], atol=1e-3)
    # 0.8 and the next number that float32 has: that is rounding, and no map.
    rounding = torch.tensor([[[0.8, 0.8 + 6e-8, 0.8]]])
    assert minmax(rounding).tolist() == [[[0.0, 0.0, 0.0]]]


def test_peak_by_hand() -> None:
    maps = torch.tensor([[[-1.0, 0.0, 4.0]], [[4.0, 4.0, 4.0]], [[0.0, 0.0, 0.0]], [[-2.0, -1.0, 0.0]]])
    equal(
        peak(maps, given(maps)),
        [[[-0.25, 0.0, 1.0]], [[1.0, 1.0, 1.0]], [[0.0, 0.0, 0.0]], [[0.0, 0.0, 0.0]]],
    )


@pytest.mark.parametrize("grid", [*GRIDS, *NARROW], ids=str)
def test_minmax_peak_and_times_raw_are_the_loops(grid: tuple[int, int]) -> None:
    maps, seen = (
        positive(3, *grid),
        TokenMass(positive(3, *grid, seed=1), positive(*grid, seed=2), positive(*grid, seed=3)),
    )
    for index in range(3):
        values = maps[index].flatten().tolist()
        low, high = min(values), max(values)
        spread = high - low
        equal(minmax(maps)[index].flatten(), [(v - low) / spread if spread else 0.0 for v in values])
        equal(peak(maps, seen)[index].flatten(), [v / high for v in values])
        pairs = zip(values, seen.raw[index].flatten().tolist(), strict=True)
        equal(times_raw(maps, seen)[index].flatten(), [v * raw for v, raw in pairs])


# ---- their composition


def test_steps_are_taken_in_their_order_from_the_raw_scores() -> None:
    seen = token_mass(positive(17, 5, 7), nouns=[[2], [3, 5]], content=[2, 3, 5])
    assert torch.equal(rescale(seen, ()), seen.raw)
    equal(rescale(seen, (share, blur, minmax)), minmax(blur(share(seen.raw, seen), seen)))
    other = rescale(seen, (share, minmax, blur))
    assert not torch.allclose(other, rescale(seen, (share, blur, minmax)), atol=1e-2)


def test_published_rule_by_hand() -> None:
    # Three pixels, "cat" (token 1) and "polar bear" (tokens 2, 3), and a loud token 0 that must not matter.
    tokens = torch.tensor([[[9.0, 1.0, 5.0]], [[1.0, 2.0, 6.0]], [[1.0, 1.0, 1.0]], [[2.0, 1.0, 1.0]]])
    seen = token_mass(tokens, nouns=[[1], [2, 3]], content=[1, 2, 3])
    # Shares: cat 1/4, 2/4, 6/8; bear 1.5/4, 1/4, 1/8.
    equal(rescale(seen, (share, minmax)), [[[0.0, 0.5, 1.0]], [[1.0, 0.5, 0.0]]])
    # Raw, after the share and not the share itself: cat 1, 2, 6; bear 1.5, 1, 1.
    equal(rescale(seen, (share, minmax, times_raw)), [[[0.0, 1.0, 6.0]], [[1.5, 0.5, 0.0]]])


@pytest.mark.parametrize("grid", NARROW, ids=str)
def test_narrow_and_empty_images_come_through_the_longest_rule(grid: tuple[int, int]) -> None:
    longest = (share, blur, minmax, times_raw, blur, minmax)
    for tokens in (positive(11, *grid), torch.zeros(11, *grid)):
        maps = rescale(token_mass(tokens, nouns=[[2], [3, 5]], content=[2, 3, 5]), longest)
        assert maps.shape == (2, *grid)
        assert maps.isfinite().all()
        assert maps.min() >= 0
        # What varies over the image spans [0, 1]; what does not is 0.
        assert maps.amax((1, 2)).tolist() == pytest.approx([float(bool(tokens.any()) and grid != (1, 1))] * 2)


def test_share_of_prompt_keeps_stop_words_in_the_denominator() -> None:
    tokens = positive(17, 5, 7)
    seen = token_mass(tokens, nouns=[[2], [5, 7]], content=[2, 5, 7], prompt=[2, 3, 5, 7, 11])
    ours = share_of_prompt(seen.raw, seen)
    for y, x in itertools.product(range(5), range(7)):
        taken = sum(float(tokens[column, y, x]) for column in (2, 3, 5, 7, 11))
        assert float(ours[0, y, x]) == pytest.approx(float(tokens[2, y, x]) / taken, rel=1e-5)
        pair = (float(tokens[5, y, x]) + float(tokens[7, y, x])) / 2
        assert float(ours[1, y, x]) == pytest.approx(pair / taken, rel=1e-5)

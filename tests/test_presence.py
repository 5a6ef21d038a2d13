"""How evidence is read off logits, and which classes it is enough for: by hand, and what always holds."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from goca.maths.presence import AROUND, EXPECTED, PresenceRule, present

PLAIN = PresenceRule(sharpness=1.0, window=0.0, half=0.35)
rules = st.builds(
    PresenceRule,
    sharpness=st.floats(0.1, 4),
    window=st.floats(0, 1),
    half=st.floats(0.05, 2),
)


@st.composite
def looks(draw: st.DrawFn) -> Tensor:
    count, height, width = draw(st.integers(1, 7)), draw(st.integers(1, 9)), draw(st.integers(1, 9))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    return 3 * torch.randn(count, height, width, generator=generator)


# ---- evidence


def test_shares_and_evidence_by_hand() -> None:
    logits = torch.zeros(2, 2, 2)
    logits[0, 0] = math.log(3)  # wins three quarters of two cells, and half of the others
    torch.testing.assert_close(PLAIN.shares(logits), torch.tensor([0.625, 0.375]))
    torch.testing.assert_close(PLAIN.evidence(logits), torch.tensor([1.25 / 1.6, 0.75 / 1.1]))
    sharper = PresenceRule(sharpness=2.0, window=0.0, half=1.0)
    torch.testing.assert_close(sharper.shares(logits), torch.tensor([0.7, 0.3]))
    torch.testing.assert_close(sharper.evidence(logits), torch.tensor([1.4 / 2.4, 0.6 / 1.6]))


def test_logits_are_averaged_over_what_of_the_window_is_inside_the_image() -> None:
    logits = torch.zeros(2, 3, 3)
    logits[0, 1, 1] = 36 * math.log(2)  # corners see it among 4 cells, edges among 6, the centre among 9
    expected = (4 * 512 / 513 + 4 * 64 / 65 + 16 / 17) / 9
    rule = PresenceRule(sharpness=1.0, window=1.0, half=0.35)
    torch.testing.assert_close(rule.shares(logits), torch.tensor([expected, 1 - expected]))


def test_a_noun_with_the_share_of_chance_has_the_same_evidence_among_any_number() -> None:
    for count in (1, 2, 50):
        torch.testing.assert_close(PLAIN.evidence(torch.zeros(count, 4, 5)), torch.full((count,), 1 / 1.35))


@given(looks(), rules)
def test_shares_sum_to_one_and_evidence_is_between_zero_and_one(logits: Tensor, rule: PresenceRule) -> None:
    torch.testing.assert_close(rule.shares(logits).sum(), torch.tensor(1.0))
    evidence = rule.evidence(logits)
    assert ((evidence >= 0) & (evidence <= 1)).all()
    assert (evidence.argsort() == rule.shares(logits).argsort()).all()


@given(looks(), rules, st.floats(0.1, 3))
def test_more_of_one_noun_is_more_evidence_for_it_and_none_for_others(
    logits: Tensor, rule: PresenceRule, more: float
) -> None:
    higher = logits.clone()
    higher[0] += more
    before, after = rule.evidence(logits), rule.evidence(higher)
    assert after[0] >= before[0] - 1e-6
    assert (after[1:] <= before[1:] + 1e-6).all()


@given(looks(), rules, st.randoms(use_true_random=False))
def test_the_order_of_nouns_and_what_all_cells_share_do_not_matter(logits: Tensor, rule: PresenceRule, rng) -> None:
    order = list(range(len(logits)))
    rng.shuffle(order)
    torch.testing.assert_close(rule.evidence(logits[order]), rule.evidence(logits)[order], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rule.evidence(logits + 1.5), rule.evidence(logits), rtol=1e-4, atol=1e-5)


# ---- presence


def kept(evidence: list[float], floor: float, background: bool = True) -> list[bool]:
    return present(torch.tensor(evidence), floor, background).tolist()


@pytest.mark.parametrize("count", [2, EXPECTED, 2 * (EXPECTED - AROUND)])
def test_of_few_names_those_that_reach_the_floor(count: int) -> None:
    fill = [0.0] * (count - 2)
    assert kept([0.31, 0.29, *fill], 0.3) == [True, False, *([False] * len(fill))]
    assert kept([0.71, 0.69, *fill], 0.7) == [True, False, *([False] * len(fill))]


def test_of_many_names_each_needs_more() -> None:
    # 6 of 24: odds of 1 to 3, so that even odds need evidence of 3 to 1; without a background 8 of 32 have the same.
    assert kept([0.76, 0.74, *([0.5] * 22)], 0.5) == [True, *([False] * 23)]
    assert kept([0.76, 0.74, *([0.5] * 30)], 0.5, background=False) == [True, *([False] * 31)]


def test_without_a_background_few_names_are_all_there() -> None:
    assert kept([0.0] * EXPECTED, 0.9, background=False) == [True] * EXPECTED
    # 8 of 12: odds of 2 to 1, so that even odds need 1 to 2.
    assert kept([0.34, 0.33, *([0.1] * 10)], 0.5, background=False) == [True, *([False] * 11)]


@pytest.mark.parametrize("background", [False, True])
def test_the_ends_of_the_floor(background: bool) -> None:
    evidence = [0.0, 0.5, 0.999, *([0.0] * 30)]
    assert all(kept(evidence, 0.0, background))
    assert not any(kept(evidence, 1.0, background))
    assert kept([1.0, *evidence], 1.0, background) == [True, *([False] * len(evidence))]
    assert kept([1.0, 0.0, *evidence], 0.5, background)[:2] == [True, False]
    assert kept([], 0.5, background) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.floats(0, 1), st.floats(0, 1), st.booleans())
def test_a_higher_floor_keeps_no_more(evidence: list[float], low: float, high: float, background: bool) -> None:
    low, high = sorted((low, high))
    pairs = zip(kept(evidence, high, background), kept(evidence, low, background), strict=True)
    assert all(at_low or not at_high for at_high, at_low in pairs)

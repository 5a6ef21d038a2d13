"""Attention in blocks, against one softmax over everything."""

import pytest
import torch
from torch import Tensor

from goca.maths import attention
from goca.maths.attention import affinity_blocks, joint_blocks

HEADS, PIXELS, TOKENS, DIM, SCALE = 3, 35, 11, 5, 0.4
TEXT_FIRST = (slice(0, TOKENS), slice(TOKENS, None))
IMAGE_FIRST = (slice(PIXELS, None), slice(0, PIXELS))


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def whole(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """Every probability at once, in double precision."""
    logits = q.double() @ k.double().transpose(-1, -2) * SCALE
    return torch.softmax(logits if mask is None else logits + mask, dim=-1)


MASKS = {
    "none": None,
    "keys": numbers(1, 1, PIXELS + TOKENS, seed=5),
    "rows": numbers(1, PIXELS, PIXELS + TOKENS, seed=6),
    "heads": numbers(HEADS, PIXELS, PIXELS + TOKENS, seed=7),
}


@pytest.fixture(params=[False, True], ids=["some heads", "all heads"], autouse=True)
def heads_together(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks as a CPU computes them, and as a GPU does."""
    monkeypatch.setitem(attention.HEADS_TOGETHER, "cpu", request.param)


@pytest.mark.parametrize("weighed", [True, False], ids=["weighed heads", "equal heads"])
@pytest.mark.parametrize("elements", [1, 500, 2000, 2**20])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("order", [TEXT_FIRST, IMAGE_FIRST], ids=["text first", "image first"])
def test_joint_attention_is_one_softmax_of_which_no_part_is_normalised_again(
    order: tuple[slice, slice], mask: Tensor | None, elements: int, weighed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(attention.BLOCK_ELEMENTS, "cpu", elements)
    text, image = order
    q, k = numbers(HEADS, PIXELS, DIM, seed=1), numbers(HEADS, PIXELS + TOKENS, DIM, seed=2)
    weights = numbers(PIXELS, HEADS, seed=3) if weighed else torch.full((PIXELS, HEADS), 1 / HEADS)
    full = whole(q, k, mask)
    rows = list(joint_blocks(q, k, SCALE, weights if weighed else None, text, image, mask))
    tokens, pixels = torch.cat([part for _, part, _ in rows]), torch.cat([part for _, _, part in rows])
    wanted = torch.einsum("ph,hpt->pt", weights.double(), full[..., text])
    torch.testing.assert_close(tokens.double(), wanted, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(pixels.double(), full[..., image].mean(0), rtol=1e-4, atol=1e-6)
    assert [place for block, _, _ in rows for place in range(*block.indices(PIXELS))] == list(range(PIXELS))


def test_columns_of_every_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(attention.BLOCK_ELEMENTS, "cpu", 2000)
    q, k = numbers(HEADS, PIXELS, DIM, seed=1), numbers(HEADS, PIXELS + TOKENS, DIM, seed=2)
    found = attention.token_columns(q, k, SCALE, [40, 2, 7])
    torch.testing.assert_close(found.double(), whole(q, k, None)[..., [40, 2, 7]], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("elements", [1, 2000, 2**20])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("rows", [None, torch.tensor([0, 7, 8, 30])], ids=["all rows", "some rows"])
def test_the_affinity_of_joint_attention(
    rows: Tensor | None, mask: Tensor | None, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(attention.BLOCK_ELEMENTS, "cpu", elements)
    q, k = numbers(HEADS, PIXELS, DIM, seed=1), numbers(HEADS, PIXELS + TOKENS, DIM, seed=2)
    found = torch.cat([part for _, part in affinity_blocks(q, k, SCALE, rows, image=TEXT_FIRST[1], mask=mask)])
    wanted = whole(q, k, mask)[..., TOKENS:].mean(0)
    torch.testing.assert_close(found.double(), wanted if rows is None else wanted[rows], rtol=1e-4, atol=1e-6)

"""The authors' guidance script on small random attention layers, stage by stage (see tests/parity/README.md)."""

import json
import os
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from einops import rearrange
from torch import Tensor

from goca.aggregation import AttentionAggregator
from goca.diffusion.attention_call import AttentionCall
from goca.diffusion.families.spec import CheckpointSettings
from goca.guidance import CLAMP, LIMIT
from goca.guidance.regions import Columns, Regions, SpecialTokens
from goca.maths import guidance, heads
from goca.maths.attention import probabilities
from goca.maths.refine import propagate
from goca.maths.rescale import TokenMass, minmax, rescale
from goca.plan import Options, plan
from goca.recipe import GOCA, VANILLA
from goca.text.token_spans import NounTokens
from goca.text.tokens import Tokens

OURS = Path(__file__).parent / "parity" / "guidance"
OTHERS = os.environ.get("GOCA_GUIDANCE_DIR")
FILES = [*sorted(OURS.glob("*.npz")), *(sorted(Path(OTHERS).glob("*.npz")) if OTHERS else ())]
RECIPES = {"goca": GOCA, "vanilla": VANILLA}
START, END = "<|startoftext|>", ("<|endoftext|>", "</s>")
MAPS = {"rtol": 0.0, "atol": 2e-5}


class Case:
    """One synthetic denoiser: inputs, the authors' numbers, and what goca's own aggregation makes of the inputs."""

    def __init__(self, path: Path) -> None:
        stored = np.load(path)
        self.meta: dict[str, Any] = json.loads(str(stored["meta"]))
        self.data = {name: torch.from_numpy(stored[name]) for name in stored.files if name != "meta"}
        self.size, self.latent = (self.meta["size"],) * 2, (self.meta["latent"],) * 2
        self.layers = [f"layer{index}" for index in range(len(self.meta["grids"]))]
        settings = CheckpointSettings(
            name="fixture",
            repos=(),
            layout={},
            size=1,
            reference=self.layers[self.meta["reference_layer"]],
            refine=tuple(self.layers[index] for index in self.meta["affinity_layers"]),
            order=self.meta["affinity_order"],
            origin="",
        )
        self.plan = plan(RECIPES[self.meta["recipe"]], settings, self.layers, "fixture", Options())
        special = tuple(index not in self.meta["prompt_ids"] for index in range(len(self.meta["tokens"])))
        numbers = tuple(map(sorted(set(self.meta["tokens"])).index, self.meta["tokens"]))
        names = dict(zip(self.meta["tokens"], numbers, strict=True))
        ids = SpecialTokens(
            frozenset(names[name] for name in (START,) if name in names),
            frozenset(names[name] for name in END if name in names),
        )
        text = Tokens("", ((0, 0),) * len(special), special, ids=numbers)
        self.columns = Columns.of([text], {"": ids})

    def expected(self, name: str) -> Tensor:
        return self.data[f"expected.{name}"]

    def close(self, ours: Tensor, name: str) -> None:
        torch.testing.assert_close(ours, self.expected(name), **MAPS)

    def projection(self, layer: str) -> Tensor:
        count = len(self.data[f"cond.{layer}.cross_q"])
        return rearrange(self.data[f"{layer}.to_out_weight"], "model (head dim) -> head dim model", head=count)

    def mask(self, branch: str) -> Tensor | None:
        shown = self.data.get(f"{branch}.text_mask")
        return None if shown is None else (shown.float() - 1)[None, None] * 10000

    def head_map(self, branch: str, layer: str) -> Tensor:
        q, k, v = (self.data[f"{branch}.{layer}.cross_{name}"] for name in "qkv")
        attention = probabilities(q, k, self.meta["head_dim"] ** -0.5, self.mask(branch))
        parts = rearrange(attention @ v, "head pixel dim -> pixel head dim")
        weights = heads.head_weights(self.plan.heads, parts, self.projection(layer))
        return heads.head_map(weights, attention)

    def aggregated(self, branch: str) -> AttentionAggregator:
        """What the hook would hand on of a pass, summed up as in a generation."""
        aggregator = AttentionAggregator(self.plan, NounTokens("", (), (), ()), self.size)
        for layer, side in zip(self.layers, self.meta["grids"], strict=True):
            scale, grid = self.meta["head_dim"] ** -0.5, (side, side)
            for kind in ("self", "cross"):
                q, k = (self.data[f"{branch}.{layer}.{kind}_{name}"] for name in "qk")
                v = self.data.get(f"{branch}.{layer}.{kind}_v", k)
                text, image = (slice(None), None) if kind == "cross" else (None, slice(None))
                mask = self.mask(branch) if kind == "cross" else None
                output = probabilities(q, k, scale, mask) @ v
                weight = self.projection(layer) if kind == "cross" else None
                aggregator.add(
                    AttentionCall(layer, q, k, v, output, None, None, text, image, mask, scale, weight, grid)
                )
        return aggregator

    @cached_property
    def cond(self) -> AttentionAggregator:
        return self.aggregated("cond")

    @cached_property
    def maps(self) -> dict[str, Tensor]:
        return {"cond": self.cond.global_map(), "uncond": self.aggregated("uncond").global_map()}

    @cached_property
    def nothing(self) -> Tensor:
        """The column that is low in the foreground."""
        start = self.columns.start
        return self.maps["cond"][self.columns.end] if start is None else self.maps["uncond"][start]

    @cached_property
    def regions(self) -> Regions:
        start_map = None if self.columns.start is None else self.nothing
        return Regions.read(self.columns, self.cond, start_map, self.latent)

    @cached_property
    def energy(self) -> Tensor:
        return guidance.energy(self.data["eps_cond"] - self.data["eps_uncond"])

    def of_all_tokens(self, ours: Tensor) -> Tensor:
        """What is known of the competing tokens, with zeros for the others."""
        everything = torch.zeros(len(self.meta["tokens"]), *ours.shape[1:])
        everything[list(self.columns.competing)] = ours.float()
        return everything


@pytest.fixture(scope="module", params=FILES, ids=[file.stem for file in FILES])
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def test_the_folder_holds_cases() -> None:
    assert FILES, f"no .npz file in {OURS}"


def test_the_columns(case: Case) -> None:
    branch, number = case.meta["foreground_branch"], case.meta["foreground_column"]
    assert case.columns.competing == tuple(range(case.meta["last_prompt"] + 1))
    assert case.columns.prompt == tuple(case.meta["prompt_ids"])
    assert (case.columns.end if case.columns.start is None else case.columns.start) == number
    assert (branch == "uncond") == (case.columns.start is not None)


def test_head_maps(case: Case) -> None:
    for branch in ("cond", "uncond"):
        for layer in case.layers:
            case.close(case.head_map(branch, layer), f"{branch}.{layer}.head_map")


def test_layer_weights(case: Case) -> None:
    for branch in ("cond", "uncond"):
        aggregator = case.aggregated(branch)
        aggregator.global_map()
        raw = torch.tensor([aggregator.weights[layer] for layer in case.layers])
        torch.testing.assert_close(raw, case.expected(f"{branch}.layer_weights_raw"), rtol=1e-5, atol=2e-5)
        weights = aggregator.layer_weights()
        case.close(torch.tensor([weights[layer] for layer in case.layers]), f"{branch}.layer_weights")


def test_aggregated(case: Case) -> None:
    for branch, ours in case.maps.items():
        case.close(ours, f"{branch}.aggregated")


def test_rescaled(case: Case) -> None:
    maps = case.maps["cond"]
    prompt = maps[list(case.columns.prompt)].sum(0)
    ours, theirs = rescale(TokenMass(maps, prompt, prompt), case.plan.rescale), case.expected("rescaled")
    defined = torch.isfinite(theirs)  # masked tokens are 0/0
    assert defined[: case.meta["last_prompt"] + 1].all()
    torch.testing.assert_close(ours[defined], theirs[defined], **MAPS)


def test_affinity(case: Case) -> None:
    case.cond.global_map()
    pixels = case.size[0] * case.size[1]
    columns = case.cond.affinity.apply(torch.eye(pixels).reshape(pixels, *case.size))
    case.close(columns.flatten(1).T, "affinity")


def test_refined(case: Case) -> None:
    maps = case.maps["cond"]
    prompt = maps[list(case.columns.prompt)].sum(0)
    competing = maps[list(case.columns.competing)]
    ours = guidance.token_maps(competing, prompt, case.plan.rescale, case.cond.affinity, case.plan.order)
    case.close(case.of_all_tokens(ours), "refined")


def test_foreground(case: Case) -> None:
    affinity, order = case.cond.affinity, case.plan.order
    case.close(minmax(propagate(affinity, case.nothing[None], order))[0], "foreground_refined")
    ours = guidance.foreground_map(case.nothing, affinity, order)
    case.close(ours, "foreground_map")
    case.close(guidance.foreground_of(ours).float(), "foreground")


def test_masks(case: Case) -> None:
    case.close(guidance.winners(case.expected("refined")).float(), "masks")
    masks = case.expected("masks")
    case.close(guidance.to_grid(masks, case.latent), "latent_masks")
    assert int((masks.sum(0) > 1).sum()) == case.meta["ties"]
    # From the attention on; two tokens that both reach their 1 at a pixel are equal there, whatever was rounded.
    theirs = case.expected("latent_masks").bool()
    assert torch.equal(case.regions.masks, theirs[theirs.any(-1).any(-1)])
    assert torch.equal(torch.from_numpy(case.regions.labels.astype(int)), theirs.int().argmax(0))
    assert torch.equal(case.regions.foreground.float(), case.expected("latent_foreground"))


def test_rates(case: Case) -> None:
    masks, foreground = case.expected("latent_masks").bool(), case.expected("latent_foreground").bool()
    case.close(case.energy, "delta_norm")
    case.close(guidance.region_means(case.energy, masks), "region_means")
    case.close(guidance.region_means(case.energy, foreground)[None], "foreground_mean")
    case.close(guidance.region_rates(case.energy, masks, foreground), "region_rates")
    raw = guidance.rate_of_regions(case.energy, masks, foreground)
    case.close(raw, "rate_raw")
    clamped = guidance.clamped(raw, CLAMP, LIMIT, case.meta["scale"])
    case.close(clamped, "rate_clamped")
    case.close(guidance.smoothed(clamped), "rate_smooth")


def plainly_guided(u: Tensor, c: Tensor, rate: Tensor, scale: float) -> Tensor:
    """What a stock pipeline makes of the moved prediction without the prompt."""
    moved = guidance.moved_uncond(u, c, rate, scale)
    return moved + scale * (c - moved)


def test_predictions(case: Case) -> None:
    u, c, scale = case.data["eps_uncond"], case.data["eps_cond"], case.meta["scale"]
    rate, theirs = case.expected("rate_smooth"), case.expected("eps")
    atol = 1e-5 * float(theirs.abs().max())
    torch.testing.assert_close(plainly_guided(u, c, rate, scale), theirs, rtol=1e-5, atol=atol)


def test_from_attention_to_prediction(case: Case) -> None:
    u, c, scale = case.data["eps_uncond"], case.data["eps_cond"], case.meta["scale"]
    rate = guidance.rate_of_regions(case.energy, case.regions.masks, case.regions.foreground)
    rate = guidance.smoothed(guidance.clamped(rate, CLAMP, LIMIT, scale))
    atol = 1e-5 * float(case.expected("eps").abs().max())
    torch.testing.assert_close(plainly_guided(u, c, rate, scale), case.expected("eps"), rtol=1e-5, atol=atol)


def test_a_branch_that_attends_to_zeros_says_nothing(case: Case) -> None:
    """Its start token has the same share everywhere, but for rounding; resizing would make a foreground of that."""
    even = 0.1 + 1e-8 * torch.rand(case.size, generator=torch.Generator().manual_seed(0))
    ours, of_the_prompt = (Regions.read(case.columns, case.cond, start, case.latent) for start in (even, None))
    assert torch.equal(ours.foreground, of_the_prompt.foreground)
    assert 0 < ours.foreground.sum() < ours.foreground.numel()


STAGES = {
    "cond.layer0.head_map": test_head_maps,
    "uncond.layer2.head_map": test_head_maps,
    "uncond.layer_weights_raw": test_layer_weights,
    "cond.layer_weights": test_layer_weights,
    "uncond.aggregated": test_aggregated,
    "rescaled": test_rescaled,
    "affinity": test_affinity,
    "refined": test_refined,
    "foreground_refined": test_foreground,
    "foreground_map": test_foreground,
    "foreground": test_foreground,
    "masks": test_masks,
    "latent_masks": test_masks,
    "latent_foreground": test_masks,
    "delta_norm": test_rates,
    "region_means": test_rates,
    "foreground_mean": test_rates,
    "region_rates": test_rates,
    "rate_raw": test_rates,
    "rate_clamped": test_rates,
    "rate_smooth": test_rates,
    "eps": test_predictions,
}


@pytest.mark.parametrize("name", STAGES)
def test_one_wrong_number_fails(name: str, tmp_path: Path) -> None:
    with np.load(OURS / "guidance.npz") as stored:
        wrong = dict(stored)
    numbers = wrong[f"expected.{name}"] = wrong[f"expected.{name}"].copy()
    where = np.unravel_index(np.abs(numbers).argmax(), numbers.shape)  # in the last tokens all is masked
    numbers[where] += 1e-4 * (1 + abs(numbers[where]))
    np.savez(tmp_path / "wrong.npz", **wrong)
    with pytest.raises(AssertionError):
        STAGES[name](Case(tmp_path / "wrong.npz"))


def test_every_expected_array_is_looked_at() -> None:
    stages = {name.split(".")[-1] for name in STAGES}
    for file in FILES:
        names = {name for name in np.load(file).files if name.startswith("expected.")}
        assert {name.split(".")[-1] for name in names} <= stages


def test_the_effective_scale_is_that_of_the_projection() -> None:
    generator = torch.Generator().manual_seed(0)
    uncond, cond = torch.randn(2, 5, 7, 11, generator=generator)
    rate = torch.rand(7, 11, generator=generator) + 0.5
    delta = cond - uncond
    moved = plainly_guided(uncond, cond, rate, 4.0) - uncond
    expected = float((moved * delta).sum() / delta.square().sum())
    assert guidance.effective_scale(rate, guidance.energy(delta), 4.0) == pytest.approx(expected, rel=1e-5)
    # A prompt that changes nothing, as an empty one against an empty one.
    assert guidance.effective_scale(torch.full((7, 11), 1.5), torch.zeros(7, 11), 4.0) == 6.0

"""The authors' own code on small random attention layers, stage by stage (see tests/parity/README.md)."""

import json
import os
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
import torch
from maths_steps import global_map, layer_weight
from torch import Tensor

from goca.maths import heads, layers, rescale
from goca.maths.attention import probabilities
from goca.maths.refine import Affinity, propagate
from goca.maths.rules import CHANNELS

FOLDER = Path(os.environ.get("GOCA_PARITY_DIR", Path(__file__).parent / "parity"))
FILES = sorted(FOLDER.glob("*.npz"))

HEADS = {
    "average": heads.mean_heads,
    "dot-product w/o clamp": heads.output_share,
    "dot-product": heads.output_share_clamped,
    "l2-norm": heads.l2_norm,
    "cosine": heads.cosine,
}
LAYERS = {
    "vanilla": layers.mean_layers,
    "dot-product similarity": layers.agreement,
    "iou-like": layers.iou_like,
    "mse": layers.inverse_distance,
}
STEPS = {
    "raw": (),
    "sum-1 rescaling": (rescale.share,),
    "per-token renorm": (rescale.peak,),
    "per-token renorm+": (rescale.blur, rescale.minmax),
    "renorm": (rescale.blur, rescale.minmax),
    "x raw": (rescale.times_raw,),
}


def steps(method: str) -> list[rescale.Step]:
    """'A + B x raw' names steps one after the other."""
    names = method.replace(" x raw", " + x raw").split(" + ")
    return [step for name in names for step in STEPS[name]]


class Case:
    """One synthetic denoiser: inputs, the authors' numbers, and ours."""

    def __init__(self, path: Path) -> None:
        stored = np.load(path)
        self.meta = json.loads(str(stored["meta"]))
        self.data = {name: torch.from_numpy(stored[name]) for name in stored.files if name != "meta"}
        self.grids = [(side, side) for side in self.meta["grids"]]
        self.grid = (self.meta["size"], self.meta["size"])
        self.scale = self.meta["head_dim"] ** -0.5

    def layer(self, index: int, *names: str) -> list[Tensor]:
        return [self.data[f"layer{index}.{name}"] for name in names]

    def expected(self, name: str) -> Tensor:
        return self.data[f"expected.{name}"]

    @cached_property
    def heads(self) -> list[tuple[Tensor, Tensor]]:
        """(head weights, head map) of every layer."""
        out = []
        for index in range(len(self.grids)):
            q, k, v, weight = self.layer(index, "cross_q", "cross_k", "cross_v", "to_out_weight")
            attention = probabilities(q, k, self.scale)
            parts = (attention @ v).transpose(0, 1)
            per_head = weight.T.reshape(q.shape[0], q.shape[-1], -1)
            weights = heads.head_weights(HEADS[self.meta["head_method"]], parts, per_head)
            out.append((weights, heads.head_map(weights, attention)))
        return out

    @cached_property
    def layer_weights(self) -> Tensor:
        return self.weights_by("all")

    def weights_by(self, channels: str) -> Tensor:
        chosen = self.meta["reference_layer"]
        (q,) = self.layer(chosen, "cross_q")
        feature = CHANNELS[channels](q.transpose(0, 1).flatten(1))
        reference = layers.Reference(feature, self.grids[chosen])
        rule = LAYERS[self.meta["layer_method"]]
        return torch.tensor([
            layer_weight(rule, reference, *self.layer(index, "self_q", "self_k"), self.scale, grid)
            for index, grid in enumerate(self.grids)
        ])  # fmt: skip

    @cached_property
    def global_map(self) -> Tensor:
        maps = [layer_map for _, layer_map in self.heads]
        return global_map(zip(self.layer_weights.tolist(), maps, self.grids, strict=True), self.grid)

    @cached_property
    def class_maps(self) -> Tensor:
        objects = list(self.meta["objects"].values())
        nouns = rescale.token_mass(self.global_map, objects + self.meta["background"], self.meta["rescale_ids"])
        maps = rescale.rescale(nouns, steps(self.meta["rescale_method"]))
        found, supporting = maps[: len(objects)], maps[len(objects) :]
        merged = supporting.amax(0) if len(supporting) else torch.zeros(self.grid)
        return torch.cat([found, merged[None]])

    @cached_property
    def affinity(self) -> Affinity:
        affinity = Affinity()
        for index in self.meta["affinity_layers"]:
            q, k = self.layer(index, "self_q", "self_k")
            affinity.add(q, k, self.scale, self.grids[index])
        return affinity

    @cached_property
    def refined_maps(self) -> Tensor:
        with_background = bool(self.meta["background"])
        kept = self.class_maps if with_background else self.class_maps[:-1]
        refined = rescale.minmax(propagate(self.affinity, kept, self.meta["affinity_order"]))
        return refined if with_background else torch.cat([refined, torch.zeros(1, *self.grid)])


@pytest.fixture(scope="module", params=FILES, ids=[file.stem for file in FILES])
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours.float(), theirs, rtol=1e-5, atol=1e-5)


def test_the_folder_holds_cases() -> None:
    assert FILES, f"no .npz file in {FOLDER}"


def test_head_weights(case: Case) -> None:
    for index, (weights, _) in enumerate(case.heads):
        close(weights, case.expected(f"layer{index}.head_weights"))


def test_head_maps(case: Case) -> None:
    for index, (_, layer_map) in enumerate(case.heads):
        close(layer_map, case.expected(f"layer{index}.head_map"))


def test_layer_weights(case: Case) -> None:
    close(case.layer_weights, case.expected("layer_weights_raw"))
    close(case.layer_weights / case.layer_weights.sum(), case.expected("layer_weights"))


def test_layer_weights_by_one_channel_as_released(case: Case) -> None:
    close(case.weights_by("first"), case.expected("layer_weights_raw_first_channel_only"))


def test_global_map(case: Case) -> None:
    close(case.global_map.permute(1, 2, 0), case.expected("global_map"))


def test_class_maps(case: Case) -> None:
    close(case.class_maps, case.expected("class_maps"))


def test_affinity(case: Case) -> None:
    pixels = case.grid[0] * case.grid[1]
    columns = case.affinity.apply(torch.eye(pixels).reshape(pixels, *case.grid))
    close(columns.flatten(1).T, case.expected("affinity"))


def test_refined_maps(case: Case) -> None:
    close(case.refined_maps, case.expected("refined_maps"))

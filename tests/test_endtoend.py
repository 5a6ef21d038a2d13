"""The authors' own scripts on the bundled pipeline, from image to labels (see tests/parity/endtoend/README.md)."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from goca import GOCA, GOCA_RELEASED, VANILLA, Segmenter
from goca import bundled as shipped

FOLDER = Path(os.environ.get("GOCA_PARITY_DIR", Path(__file__).parent / "parity")) / "endtoend"
VARIANTS = {
    "goca": GOCA,
    "goca_first_channel": GOCA_RELEASED,
    "vanilla": VANILLA,
    "goca_background_nouns": GOCA,
}
"""{file, and what its meta calls it: the recipe that reproduces it}."""
TOLERANCE = 1e-5
MOST_TIES = 10
"""Of the 98,304 pixels of a file."""


def segmenter(recipe: Any, timestep: float) -> Segmenter:
    return Segmenter.from_pretrained("bundled", recipe=recipe, timestep=int(timestep))


def answer(segmenter: Segmenter, image: Any, scene: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """(maps in the file's order, labels) of a scene."""
    context = scene["background_classes"]
    result = segmenter(image, scene["classes"], background_classes=context, background="auto" if context else None)
    maps = [*result.scores.grid, *([] if result.scores.background is None else [result.scores.background])]
    return np.stack(maps), result.labels


def lead(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """How far the best score of each pixel is ahead of the second best; here every map competes as it is."""
    wide = torch.nn.functional.interpolate(torch.from_numpy(maps)[None], size, mode="bilinear")[0]
    first, second = wide.topk(2, dim=0).values
    return (first - second).numpy()


@pytest.mark.parametrize("variant", VARIANTS)
def test_maps_and_labels_are_those_of_the_authors_scripts(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = np.load(FOLDER / f"{variant}.npz")
    meta = json.loads(str(stored["meta"]))
    scenes = list(shipped.scenes())
    ties = 0
    ours = segmenter(VARIANTS[variant], meta["timestep"])
    assert len(meta["scenes"]) == 24
    for scene in meta["scenes"]:
        number = scene["scene"]
        noise = torch.from_numpy(stored[f"{number}.noise"])
        # Whatever draws noise is given the scripts'.
        monkeypatch.setattr(torch, "randn", lambda *size, noise=noise, **unused: noise.reshape(*size))
        maps, labels = answer(ours, scenes[int(number)].image, scene)
        monkeypatch.undo()
        assert len(scene["map_order"]) == len(maps)
        np.testing.assert_allclose(maps, stored[f"{number}.refined"], rtol=0, atol=TOLERANCE, err_msg=number)
        differ = labels != stored[f"{number}.labels"]
        # Maps that are as close as that cannot tell which of two classes is ahead by less.
        assert (lead(maps, labels.shape)[differ] <= TOLERANCE).all(), number
        ties += int(differ.sum())
    assert ties <= MOST_TIES

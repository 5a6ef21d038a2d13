from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from goca.model.tiny import BUILDERS

# Two workers share two cores.
torch.set_num_threads(1)


@pytest.fixture(params=BUILDERS)
def pipeline(request: pytest.FixtureRequest) -> Any:
    """A fresh tiny pipeline of each kind."""
    return BUILDERS[request.param]()


@pytest.fixture
def sd15() -> Any:
    return BUILDERS["sd15"]()


@pytest.fixture(scope="session")
def picture() -> Callable[..., Image.Image]:
    """picture(width, height, seed): smooth random colours, the same for the same seed."""

    def make(width: int = 160, height: int = 96, seed: int = 0) -> Image.Image:
        coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
        return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)

    return make

import gc
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from commands import Outcome
from diffusers.models.transformers import transformer_cosmos
from PIL import Image

from goca.cli.main import main
from goca.recipe import GOCA
from goca.segmenter import Segmenter
from goca.testing.tiny import UNET_BUILDERS

# A run that was started in the background ignores Ctrl-C, and so would every process that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Two workers share two cores.
torch.set_num_threads(1)
# The same examples in every run, so that a failure is the change's and not the day's.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.load_profile("repeatable")


def pytest_collection_finish() -> None:
    # What is imported by now stays. To look through it for garbage took a fifteenth of all tests' time.
    gc.freeze()


class Transforms:
    """The one function of torchvision that Cosmos calls, on machines for whose torch there is no torchvision."""

    class InterpolationMode:
        NEAREST = "nearest"

    class functional:  # noqa: N801 - as torchvision names it
        @staticmethod
        def resize(image: torch.Tensor, size: list[int], interpolation: str) -> torch.Tensor:
            return torch.nn.functional.interpolate(image, size, mode=interpolation)


if not hasattr(transformer_cosmos, "transforms"):
    transformer_cosmos.transforms = Transforms


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The user's cache of these tests and of the processes that they start."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(params=UNET_BUILDERS)
def pipeline(request: pytest.FixtureRequest) -> Any:
    """A fresh tiny pipeline of each kind of UNet."""
    return UNET_BUILDERS[request.param]()


@pytest.fixture
def sd15() -> Any:
    return UNET_BUILDERS["sd15"]()


@pytest.fixture(scope="session")
def image() -> Callable[..., Image.Image]:
    """image(width, height, seed): smooth random colours, the same for the same seed."""

    def make(width: int = 160, height: int = 96, seed: int = 0) -> Image.Image:
        coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
        return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)

    return make


@pytest.fixture(scope="session")
def bundled() -> Segmenter:
    return Segmenter.from_pretrained("bundled", recipe=GOCA)


@pytest.fixture
def goca(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """goca("segment", ...) in this process; libraries that write past Python are heard too."""
    # `main` sets it for the process it is in.
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")

    def run(*arguments: str | Path) -> Outcome:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        return Outcome(code, *capfd.readouterr())

    return run

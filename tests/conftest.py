import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from commands import Outcome
from PIL import Image

if TYPE_CHECKING:
    from goca.segmenter import Segmenter

UNETS = ("sd15", "sd2", "sdxl")


def pytest_collect_file() -> None:
    # Not above: the process that hands tests to workers collects none, and torch would keep the workers waiting for it.
    import preparation  # noqa: F401


def pytest_collection_finish() -> None:
    # What is imported by now stays. To look through it for garbage took a fifteenth of all tests' time.
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The user's cache of these tests and of the processes that they start."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(params=UNETS)
def pipeline(request: pytest.FixtureRequest) -> Any:
    """A fresh tiny pipeline of each kind of UNet."""
    from goca.testing.tiny import UNET_BUILDERS

    return UNET_BUILDERS[request.param]()


@pytest.fixture
def sd15() -> Any:
    from goca.testing.tiny import UNET_BUILDERS

    return UNET_BUILDERS["sd15"]()


@pytest.fixture(scope="session")
def image() -> Callable[..., Image.Image]:
    """image(width, height, seed): smooth random colours, the same for the same seed."""

    def make(width: int = 160, height: int = 96, seed: int = 0) -> Image.Image:
        coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
        return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)

    return make


@pytest.fixture(scope="session")
def bundled() -> "Segmenter":
    from goca.recipe import GOCA
    from goca.segmenter import Segmenter

    return Segmenter.from_pretrained("bundled", recipe=GOCA)


@pytest.fixture
def goca(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """goca("segment", ...) in this process; libraries that write past Python are heard too."""
    from goca.cli.main import main

    # `main` sets it for the process it is in.
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")

    def run(*arguments: str | Path) -> Outcome:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        return Outcome(code, *capfd.readouterr())

    return run

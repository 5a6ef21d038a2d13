"""Exclusive access goes by parts: pipelines that share one wait for each other, and others do not."""

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from diffusers import StableDiffusionPipeline
from PIL import Image

from goca import GOCA, GocaError, Segmenter, trace
from goca.diffusion.exclusive import exclusive
from goca.testing.tiny import BUILDERS

TIMEOUT = 60


def pipeline(**components: Any) -> Any:
    return SimpleNamespace(components=components)


def part() -> Any:
    return SimpleNamespace()


def started(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("name", ["unet", "vae", "text_encoder", "scheduler"])
@pytest.mark.parametrize("for_user", [False, True])
def test_pipelines_that_share_a_part_wait_for_each_other(name: str, for_user: bool) -> None:
    shared, entered = part(), threading.Event()
    first, second = (pipeline(**{name: shared, "tokenizer": part()}) for _ in range(2))

    def work() -> None:
        with exclusive(second):
            entered.set()

    with exclusive(first, for_user):
        thread = started(work)
        assert not entered.wait(0.1)
    assert entered.wait(TIMEOUT)
    thread.join(TIMEOUT)


def test_a_compiled_part_is_the_part() -> None:
    shared, entered = part(), threading.Event()
    with exclusive(pipeline(unet=shared)):
        started(lambda: exclusive(pipeline(unet=SimpleNamespace(_orig_mod=shared))).__enter__() or entered.set())
        assert not entered.wait(0.1)
    assert entered.wait(TIMEOUT)


def test_pipelines_that_share_nothing_do_not_wait() -> None:
    entered = threading.Event()

    def work() -> None:
        with exclusive(pipeline(unet=part(), safety_checker=None, clip_skip=1)):
            entered.set()

    with exclusive(pipeline(unet=part(), safety_checker=None, clip_skip=1), for_user=True):
        started(work)
        assert entered.wait(TIMEOUT)


def test_one_thread_may_nest_pipelines_but_not_one_that_is_observed() -> None:
    shared = part()
    first, second = pipeline(unet=shared), pipeline(unet=shared)
    with exclusive(first), exclusive(first), exclusive(second, for_user=True), exclusive(first):
        with pytest.raises(GocaError, match="this pipeline is observed by a `with` block around this call"):
            exclusive(second).__enter__()
        with pytest.raises(GocaError, match="shares parts with this one is observed by a `with` block around"):
            exclusive(first, nested=False).__enter__()
    with exclusive(second, nested=False):
        pass


@pytest.mark.parametrize("length", [2, 3])
def test_threads_that_would_wait_for_each_other_are_told(length: int) -> None:
    """Each thread keeps one pipeline and wants the next one's: the last to ask is refused, all others go on."""
    pipelines = [pipeline(unet=part()) for _ in range(length)]
    barrier, refused, done = threading.Barrier(length), [], []

    def work(number: int) -> None:
        try:
            with exclusive(pipelines[number], for_user=True):
                barrier.wait(TIMEOUT)
                with exclusive(pipelines[(number + 1) % length]):
                    done.append(number)
        except GocaError as error:
            refused.append(str(error))

    threads = [started(lambda number=number: work(number)) for number in range(length)]  # type: ignore[misc]
    for thread in threads:
        thread.join(TIMEOUT)
    assert len(done) == length - 1
    (message,) = refused
    assert message.startswith("another thread has a part of this pipeline and waits for a part that this thread")


def test_an_exception_and_an_exit_in_another_thread_give_the_parts_back() -> None:
    first = pipeline(unet=part())
    with pytest.raises(KeyboardInterrupt), exclusive(first):
        raise KeyboardInterrupt
    block = exclusive(first, for_user=True)
    started(block.__enter__).join(TIMEOUT)
    block.__exit__(None, None, None)
    with exclusive(first, nested=False):
        pass


def test_segmenters_and_traces_of_pipelines_with_one_denoiser_do_not_disturb_each_other(
    image: Callable[..., Image.Image],
) -> None:
    pipe = BUILDERS["sd15"]()
    twins = [StableDiffusionPipeline(**pipe.components, requires_safety_checker=False) for _ in range(2)]
    results: dict[int, Any] = {}

    def segment(number: int) -> None:
        segmenter = Segmenter.from_pipeline(twins[number], GOCA, size=64)
        results[number] = segmenter(image(), classes=["cat", "grass"]).scores.grid

    def generate(number: int) -> None:
        twins[number].set_progress_bar_config(disable=True)
        with trace(twins[number]) as tr:
            twins[number]("a cat", height=64, width=64, num_inference_steps=2, guidance_scale=1.0, latents=None)
        results[number] = [step.step for step in tr.steps]

    segment(0)
    expected = results.pop(0)
    for work in ((segment, segment), (segment, generate)):
        threads = [started(lambda f=f, number=number: f(number)) for number, f in enumerate(work)]  # type: ignore[misc]
        for thread in threads:
            thread.join(TIMEOUT)
        assert np.array_equal(results[0], expected)
        if work[1] is segment:
            assert np.array_equal(results[1], expected)
        else:
            assert results[1] == [0, 1]

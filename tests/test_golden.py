"""Stored numbers, so that a default, a rule or a figure that drifts is noticed (see tests/golden/README.md)."""

import importlib.util

import numpy as np
import pytest
from golden.make import FILES, FOLDER, processor, stored

CASES = [(file, case) for file, cases in FILES.items() for case in cases]

SAME_PROCESSOR = (FOLDER / "processor.txt").read_text().strip() == processor()
"""On the model of CPU that wrote the files, with one thread, numbers agree to 1e-6."""
EXACT = 1e-6

# Elsewhere: how far float32's rounding moves a number at most, measured with other threads and instruction sets (AVX2,
# AVX-512). Min-max divides by how far a map ranges, and so multiplies the rounding by as much.
RELATIVE = 3e-6
SCORES = 1e-5
FLAT = {
    # The affinity of random queries and keys is nearly uniform, and min-max follows it.
    **dict.fromkeys(("sd15", "sd2", "sdxl", "kolors"), 1e-3),
    **dict.fromkeys(("pixart_alpha", "pixart_alpha_1024", "pixart_sigma", "sana", "wan", "cosmos2"), 3e-4),
    "hunyuan_dit": 5e-3,
    "sd15, goca": 2e-3,
    # Three steps of a sampler, each grid min-maxed at each of them.
    "bundled, goca": 3e-5,
    "bundled, diffsegmenter": 3e-5,
}
# A pixel that changes its label moves mIoU by some 1e-5. Where scores of the classes and of the background classes are
# equal, as both are 0 under "vanilla", several do.
FIGURES = {"vanilla": 5e-4}
FIGURE = 2e-5


def tolerance(case: str, name: str, array: np.ndarray) -> float:
    """Beside `RELATIVE`, which is all that raw class scores need: nothing multiplies their rounding."""
    if SAME_PROCESSOR:
        return EXACT
    if name.startswith("raw "):
        return 0.0
    return FIGURES.get(case, FIGURE) if array.ndim == 1 else FLAT.get(case, SCORES)


@pytest.mark.parametrize("file", FILES)
def test_every_case_is_stored_and_no_other(file: str) -> None:
    assert stored(file).keys() == FILES[file].keys()


@pytest.mark.parametrize(("file", "case"), CASES, ids=[f"{file}-{case}" for file, case in CASES])
def test_the_numbers_are_those_stored(file: str, case: str) -> None:
    if case == "kolors" and importlib.util.find_spec("sentencepiece") is None:
        pytest.skip("the tokenizer of Kolors needs sentencepiece")
    computed, expected = FILES[file][case](), stored(file)[case]
    assert computed.arrays.keys() == expected.keys()
    for name, array in computed.arrays.items():
        assert array.shape == expected[name].shape, name
        if array.dtype == np.uint8:
            # Two scores that may each move that far may change their order where they are closer than twice as much.
            differ = array != expected[name]
            lead = computed.leads.get(name, np.full(array.shape, np.inf))
            assert (lead[differ] <= 2 * tolerance(case, name, lead)).all(), f"{name}: {differ.sum()} other labels"
        else:
            np.testing.assert_allclose(
                array, expected[name], rtol=RELATIVE, atol=tolerance(case, name, array), err_msg=name
            )

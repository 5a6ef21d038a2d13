"""The parity test sees a single wrong number of any stage, and does not pass on an empty folder."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

TESTS = Path(__file__).parent

# The number that is put wrong, and the one test that has to see it.
STAGES = {
    "layer0.head_weights": "test_head_weights",
    "layer3.head_weights": "test_head_weights",
    "layer0.head_map": "test_head_maps",
    "layer3.head_map": "test_head_maps",
    "layer_weights_raw": "test_layer_weights",
    "layer_weights": "test_layer_weights",
    "layer_weights_raw_first_channel_only": "test_layer_weights_by_one_channel_as_released",
    "global_map": "test_global_map",
    "class_maps": "test_class_maps",
    "affinity": "test_affinity",
    "refined_maps": "test_refined_maps",
}


@pytest.mark.slow
def test_one_wrong_number_fails_its_own_stage_and_no_other(tmp_path: Path) -> None:
    # One run sees all: the unharmed case beside one copy for each wrong number; the tests' ids say which.
    folder = tmp_path / "cases"
    folder.mkdir()
    with np.load(TESTS / "parity" / "dit.npz") as stored:
        right = dict(stored)
    np.savez(folder / "unharmed.npz", **right)
    for name in STAGES:
        wrong = right[f"expected.{name}"].copy()
        # The last number, by ten times the tolerance and no more.
        wrong.flat[-1] += 1e-4 * (1 + abs(wrong.flat[-1]))
        np.savez(folder / f"{name}.npz", **{**right, f"expected.{name}": wrong})

    report = tmp_path / "report.xml"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    settings = {"GOCA_PARITY_DIR": str(folder), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "OMP_NUM_THREADS": "1"}
    # Bare: plugins, shape checks, the other tests' fixtures and tracebacks would take most of the time.
    bare = ["-q", "--tb=no", "-o", "addopts=", "--noconftest", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *bare, f"--junitxml={report}", "test_parity.py"],
        cwd=TESTS,
        env={**clean, **settings},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 1, done.stdout + done.stderr
    cases = ElementTree.parse(report).iter("testcase")
    failed = {case.attrib["name"]: case.find("failure") is not None for case in cases}
    files, tests = [*STAGES, "unharmed"], set(STAGES.values())
    expected = {f"{test}[{file}]": STAGES.get(file) == test for file in files for test in tests}
    assert failed == {**expected, "test_the_folder_holds_cases": False}


def test_an_empty_folder_is_no_parity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOCA_PARITY_DIR", str(tmp_path))
    spec = importlib.util.spec_from_file_location("parity_of_nothing", TESTS / "test_parity.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.raises(AssertionError, match=r"no \.npz file"):
        module.test_the_folder_holds_cases()

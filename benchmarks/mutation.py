"""How many of the small faults that mutmut puts into a module its tests notice: the mutation score.

python benchmarks/mutation.py maths/heads tagging --sample 20

A name is a row of `TESTS` or a folder of rows; none means all of them. Each mutant is a copy of the package with one
change, which a process of its own tests. It is killed when a test fails or does not end, or when the module cannot be
imported. The wording of errors is left alone. mutmut makes the mutants, and is not part of the dev extra:
`pip install mutmut==3.8.1`.
"""

import argparse
import difflib
import importlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src/goca"

# What imports slowly and is the same for every mutant.
LIBRARIES = {"PIL", "accelerate", "diffusers", "huggingface_hub", "numpy", "scipy", "torch", "transformers"}

# The tests of each module, the ones that find most first: a mutant is done with when one fails.
TESTS = {
    "maths/attention": "test_attention test_aggregate test_refine test_parity",
    "maths/background": "test_background test_edges test_evidence",
    "maths/concepts": "test_recipe test_peers",
    "maths/edges": "test_edges",
    "maths/frames": "test_trace_video",
    "maths/fusion": "test_aggregate",
    "maths/guidance": "test_guidance_parity test_guidance",
    "maths/heads": "test_aggregate test_parity",
    "maths/layers": "test_aggregate test_parity test_aggregation",
    "maths/presence": "test_presence test_evidence",
    "maths/prototypes": "test_prototypes",
    "maths/refine": "test_refine test_parity",
    "maths/refit": "test_refit",
    "maths/rescale": "test_rescale test_parity",
    "maths/resize": "test_resize",
    "maths/rules": "test_recipe test_parity",
    "maths/structure": "test_structure",
    "maths/windows": "test_windows test_images test_refit",
    "aggregation": "test_aggregation test_aggregate test_side_keys test_parity test_inspecting",
    "self_tagging": "test_taggers test_default",
    "tagging/__init__": "test_taggers test_vlm test_readers test_nouns",
    "tagging/answers": "test_nouns test_taggers test_vlm",
    "tagging/base": "test_tagged test_taggers test_evaluate",
    "tagging/candidates": "test_taggers test_tagged",
    "tagging/caption_nouns": "test_nouns test_protocol",
    "tagging/captions": "test_readers test_taggers test_nouns test_vlm",
    "tagging/clip": "test_clip_tagger",
    "tagging/endpoint": "test_vlm",
    "tagging/fixed": "test_taggers test_evaluate",
    "tagging/instruction": "test_vlm test_taggers",
    "tagging/loading": "test_taggers test_clip_tagger test_model_files",
    "tagging/local": "test_taggers",
    "tagging/multilabel": "test_taggers test_presence",
    "tagging/vlm": "test_vlm",
    "evaluation/metrics": "test_beyond test_evaluate test_report test_compare",
}


@dataclass(frozen=True, kw_only=True)
class Score:
    """What became of a module's mutants.

    Attributes:
        mutants: How many mutants the module has.
        survivors: Of those that were tried, what the ones that no test noticed changed, as a diff.
        tried: How many were tried.
    """

    mutants: int
    survivors: tuple[str, ...]
    tried: int

    @property
    def killed(self) -> int:
        return self.tried - len(self.survivors)


def mutants(code: str, name: str) -> list[Callable[[], str]]:
    """What makes the code with one fault, for each; there are none in the wording of errors."""
    from libcst import BaseString, Raise
    from mutmut.mutation.file_mutation import create_mutations

    module, mutations, _, _ = create_mutations(name, code)
    errors = [node for node in nodes(module) if isinstance(node, Raise)]
    wording = {id(node) for error in errors for node in nodes(error) if isinstance(node, BaseString)}
    inside = [each for each in mutations if each.contained_by_top_level_function]
    faults = [(each.original_node, each.mutated_node) for each in inside if id(each.original_node) not in wording]
    return [lambda fault=fault: module.deep_replace(*fault).code for fault in faults]


def nodes(tree: Any) -> Iterator[Any]:
    """A node of libcst and all nodes below it."""
    yield tree
    for child in tree.children:
        yield from nodes(child)


def in_child(run: Callable[[], int], seconds: float) -> int | None:
    """What `run` returns in a process of its own, or None where it takes longer."""
    child = os.fork()
    if not child:
        code = 70
        try:
            code = run()
        finally:
            os._exit(code)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def tested(copy: Path, tests: list[str]) -> int:
    """pytest's exit code for the tests, with the package in `copy`."""
    import pytest

    output = os.open(copy / "output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.path.insert(0, str(copy))
    os.environ["PYTHONPATH"] = str(copy)
    os.chdir(ROOT)
    plugins = ["-p", "no:cacheprovider", "-p", "no:xdist"]
    return int(pytest.main(["-x", "-q", "-m", "not slow", *plugins, f"--basetemp={copy / 'tmp'}", *tests]))


def score(module: str, copy: Path, sample: int | None, seed: int) -> Score:
    """Try mutants of a module in a copy of the package, all of them or a sample, and print those that survive.

    Raises:
        SystemExit: The tests fail without a fault, so that they cannot tell anything.
    """
    tests = [str(ROOT / f"tests/{name}.py") for name in TESTS[module].split()]
    began = time.monotonic()
    if in_child(lambda: tested(copy, tests), 3600) != 0:
        sys.exit(f"{module}: its tests fail without a fault\n{(copy / 'output').read_text()[-2000:]}")
    patience = 30 + 3 * (time.monotonic() - began)

    file = copy / f"goca/{module}.py"
    code = file.read_text(encoding="utf-8")
    every = mutants(code, file.name)
    chosen = range(len(every))
    if sample is not None and sample < len(every):
        chosen = sorted(random.Random(f"{seed} {module}").sample(chosen, sample))
    survivors = []
    for index in chosen:
        mutant = every[index]()
        file.write_text(mutant, encoding="utf-8")
        for compiled in (file.parent / "__pycache__").glob(f"{file.stem}.*"):
            compiled.unlink()
        if in_child(lambda: tested(copy, tests), patience) == 0:
            changed = difflib.unified_diff(code.splitlines(), mutant.splitlines(), n=0, lineterm="")
            survivors.append("\n".join(list(changed)[2:]))
            print("    " + survivors[-1].replace("\n", "\n    "), flush=True)
    file.write_text(code, encoding="utf-8")
    return Score(mutants=len(every), survivors=tuple(survivors), tried=len(chosen))


def preload(copy: Path, tests: list[str]) -> None:
    """Import here what of `LIBRARIES` the tests import, so that no child has to."""
    listed = copy / "modules"

    def listing() -> int:
        code = tested(copy, ["--collect-only", *tests])
        listed.write_text("\n".join(name for name in sys.modules if name.partition(".")[0] in LIBRARIES))
        return code

    in_child(listing, 3600)
    for name in listed.read_text().split():
        try:
            importlib.import_module(name)
        except ImportError:  # a library's own stand-in for what is not installed
            continue
    import torch

    torch.set_num_threads(1)  # a process with more must not fork


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", help="rows of TESTS, or folders of them")
    parser.add_argument("--sample", type=int, help="mutants of each module to try (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    wanted = arguments.modules or [*TESTS]
    modules = [name for name in TESTS if any(name == each or name.startswith(f"{each}/") for each in wanted)]
    if not modules:
        parser.error(f"none of {', '.join(wanted)} is a row of TESTS")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        shutil.copytree(PACKAGE, copy / "goca", ignore=shutil.ignore_patterns("__pycache__"))
        preload(copy, [str(ROOT / f"tests/{TESTS[name].split()[0]}.py") for name in modules])
        # That run has compiled the package; the bytecode of a mutant must not outlive it.
        sys.dont_write_bytecode = True
        for module in modules:
            found = score(module, copy, arguments.sample, arguments.seed)
            killed = f"{found.killed} of {found.tried} killed, {found.killed / max(found.tried, 1):.0%}"
            print(f"{module}: {killed}; {found.mutants} mutants in all", flush=True)


if __name__ == "__main__":
    main()

"""Checks that the dependencies of each extra can be had, with each Python that pyproject.toml names.

`python .ci/extras.py UV`: uv asks the index and installs nothing. All extras that can be had together can be had alone;
only `web` stands apart, which wants an older Pillow. The oldest releases that are allowed must be had too.
"""

import subprocess
import sys
import tomllib
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
PREFIX = "Programming Language :: Python :: 3."


def resolve(uv: str, python: str, *options: str) -> None:
    print(python, *options, flush=True)
    command = [uv, "pip", "compile", "pyproject.toml", "--quiet", "--python-version", python, *options]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)


def main(uv: str) -> None:
    pythons = [f"3.{name.removeprefix(PREFIX)}" for name in PROJECT["classifiers"] if name.startswith(PREFIX)]
    together = [f"--extra={name}" for name in PROJECT["optional-dependencies"] if name != "web"]
    for python in pythons:
        resolve(uv, python, *together)
        resolve(uv, python, "--extra=web")
    resolve(uv, pythons[0], "--resolution=lowest-direct")


if __name__ == "__main__":
    main(sys.argv[1])

"""Checks the sdist and the wheel in a folder: what is in them, how large they are, and that the wheel works.

`python .ci/distributions.py dist` takes its dependencies from the environment that runs it, which saves gigabytes.
"""

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
LARGEST = 60_000_000  # bytes
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
"""It installs into the environment that --python names, which so needs no pip of its own."""


def contents(sdist: Path, wheel: Path) -> None:
    """What is tracked is in the sdist, the package is in the wheel, nothing else is in either; links lead elsewhere."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    tracked = set(listed.stdout.splitlines())
    with tarfile.open(sdist) as file:
        packed = {member.name.partition("/")[2] for member in file if member.isfile()} - {"PKG-INFO"}
    same("the sdist", packed, tracked)
    with zipfile.ZipFile(wheel) as file:
        installed = {name for name in file.namelist() if ".dist-info/" not in name}
        (metadata,) = (name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
        description = file.read(metadata).decode().partition("\n\n")[2]
    package = {path.removeprefix("src/") for path in tracked if path.startswith("src/goca/")}
    same("the wheel", installed, package)
    if unseen := re.findall(r"\]\((?!https:|#)[^)]*\)", description):
        sys.exit(f"the long description links to files, which a package index does not have: {unseen[:9]}")


def same(what: str, found: set[str], expected: set[str]) -> None:
    if found != expected:
        sys.exit(f"{what} lacks {sorted(expected - found)[:9]} and has {sorted(found - expected)[:9]} besides")


def installed(wheel: Path, folder: Path) -> None:
    """The wheel's own files load the model that ships and segment an image with it."""
    python, goca = folder / "bin/python", folder / "bin/goca"
    install = ["install", "--quiet", "--no-compile", "--no-deps", "--no-index", wheel.resolve()]
    subprocess.run([*PIP, "--python", python, *install], check=True)
    # An editable install beside the dependencies hangs on a .pth file, which this variable leaves unread.
    env = os.environ | {"PYTHONPATH": sysconfig.get_path("purelib")}
    ask = [python, "-c", "import goca; print(goca.__file__)"]
    where = subprocess.run(ask, cwd=folder, env=env, capture_output=True, text=True, check=True).stdout.strip()
    if not where.startswith(str(folder)):
        sys.exit(f"goca was imported from {where}, not from the wheel in {folder}")
    segment = [goca, "segment", ROOT / "examples/cat.png", "--classes", "cat, water", "--out", "masks"]
    subprocess.run(segment, cwd=folder, env=env, check=True)
    if not (folder / "masks/cat.labels.png").exists():
        sys.exit("goca segment of the installed wheel wrote no labels")


def main(dist: Path) -> None:
    (sdist,), (wheel,) = dist.glob("*.tar.gz"), dist.glob("*.whl")
    contents(sdist, wheel)
    for file in (sdist, wheel):
        print(f"{file}: {file.stat().st_size / 1e6:.1f} MB")
        if file.stat().st_size > LARGEST:
            sys.exit(f"{file} is larger than {LARGEST / 1e6:.0f} MB")
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder)
        installed(wheel, Path(folder).resolve())


if __name__ == "__main__":
    main(Path(sys.argv[1]))

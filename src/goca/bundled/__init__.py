"""What ships with the package: a small trained pipeline. Data only."""

from pathlib import Path


def pipeline() -> Path:
    """The folder of the bundled diffusers pipeline."""
    return Path(__file__).parent / "pipeline"

"""Stage export: the trained parts as a StableDiffusionPipeline folder, float16 safetensors, at most 18 MB
in all.

    python -m training.export [--work FOLDER] [--percent 100]
"""

import json
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel

from . import clip
from .commands import command
from .loop import SNAPSHOTS, snapshot
from .nouns import NAMES
from .unet import build_scheduler, load_vae

LARGEST = 18_000_000  # bytes


def assemble(work: Path, percent: int = 100) -> StableDiffusionPipeline:
    """The pipeline with the UNet's snapshot at `percent` of its training, in float32."""
    trained, tokenizer = clip.load(work)
    pipeline = StableDiffusionPipeline(
        vae=load_vae(work),
        text_encoder=trained.text,
        tokenizer=tokenizer,
        unet=UNet2DConditionModel.from_pretrained(snapshot(work / "unet", percent)).eval(),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    for part in (pipeline.vae, pipeline.unet):
        part.register_to_config(_name_or_path="")  # where it lay on the machine that trained it
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def size(folder: Path) -> int:
    """Bytes in all files of `folder`."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("--percent", type=int, default=100, choices=SNAPSHOTS, help="snapshot of the UNet")
    arguments = parser.parse_args()
    folder = arguments.work / "pipeline"
    assemble(arguments.work, arguments.percent).to(torch.float16).save_pretrained(folder)
    # transformers would load its part in half precision by itself, which does not go with diffusers' single.
    config = folder / "text_encoder" / "config.json"
    config.write_text(config.read_text().replace('"dtype": "float16"', '"dtype": "float32"'))
    (folder / "vocabulary.json").write_text(json.dumps(NAMES, indent=2) + "\n")
    written = size(folder)
    print(f"{folder}: {written / 1e6:.2f} MB")
    if written > LARGEST:
        raise SystemExit(f"more than {LARGEST / 1e6:.0f} MB: make the UNet or the autoencoder smaller")


if __name__ == "__main__":
    main()

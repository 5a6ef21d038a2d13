"""Stage export: the trained parts of a model as a diffusers folder, float16 safetensors, with goca's facts of it.

python -m training.export [--work FOLDER] [--model unet] [--percent 100]
"""

import json
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
from diffusers import DiffusionPipeline

from goca.bundled import FACTS
from goca.text.nouns import unknown_words

from . import captions, dit, joint, unet
from .commands import command
from .loop import SNAPSHOTS
from .nouns import NAMES, STUFF, THINGS

MODELS: dict[str, ModuleType | SimpleNamespace] = {"unet": unet, "dit": dit, "joint": joint}
NARROW = {unet.stage(width, seed): (width, seed) for width, seed in ((0.5, 0), (0.25, 0), (0.25, 1))}
MODELS |= {name: unet.narrow(*of) for name, of in NARROW.items()}


def assemble(model: str, work: Path, percent: int = 100) -> DiffusionPipeline:
    """The pipeline with the denoiser's snapshot at `percent` of its training, in float32."""
    pipeline = MODELS[model].assemble(work, percent)
    for part in (pipeline.vae, denoiser(pipeline)):
        part.register_to_config(_name_or_path="")  # a path of the machine that trained it
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def exported(model: str, percent: int = 100) -> str:
    """The path in the work folder of a snapshot's exported pipeline."""
    return f"pipelines/{model}" + (f"@{percent}" if percent < 100 else "")


def denoiser(pipeline: DiffusionPipeline) -> torch.nn.Module:
    """The part of `pipeline` that denoises."""
    return pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer


def size(folder: Path) -> int:
    """Bytes in all files of `folder`."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def facts(model: str) -> str:
    """The content of goca.json: the nouns that the model knows, the other words of captions, and its settings."""
    words: list[str] = []
    for word in captions.words():
        if word.isalpha() and unknown_words(word, (*NAMES, *words)):
            words.append(word)
    nouns = {"things": [noun.name for noun in THINGS], "stuff": [noun.name for noun in STUFF]}
    return json.dumps({**nouns, "words": words, "settings": MODELS[model].SETTINGS}, indent=2) + "\n"


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("--model", default="unet", choices=MODELS)
    parser.add_argument("--percent", type=int, default=100, choices=SNAPSHOTS, help="snapshot of the denoiser")
    arguments = parser.parse_args()
    folder = arguments.work / exported(arguments.model, arguments.percent)
    assemble(arguments.model, arguments.work, arguments.percent).to(torch.float16).save_pretrained(folder)
    # transformers would load its part in half precision, which does not match diffusers' single precision.
    for config in folder.glob("text_encoder*/config.json"):
        config.write_text(config.read_text().replace('"dtype": "float16"', '"dtype": "float32"'))
    (folder / FACTS).write_text(facts(arguments.model))
    written, largest = size(folder), MODELS[arguments.model].LARGEST
    print(f"{folder}: {written / 1e6:.2f} MB")
    if written > largest:
        raise SystemExit(f"more than {largest / 1e6:.0f} MB: make the denoiser smaller")


if __name__ == "__main__":
    main()

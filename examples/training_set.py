"""A painted training set: painted/NUMBER.png, NUMBER.labels.png (indexed; ids in classes.txt) and prompts.jsonl."""

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline

from goca import bundled, trace
from goca.export import labels_png

CLASSES = ("cat", "bus", "grass", "sky")
PROMPTS = (("cat", "grass", "sky"), ("bus", "grass", "sky"))
folder = Path("painted")
folder.mkdir(exist_ok=True)
(folder / "classes.txt").write_text("".join(f"{place}: {name}\n" for place, name in enumerate(CLASSES, start=1)))
pipe = DiffusionPipeline.from_pretrained(bundled.pipeline(), torch_dtype=torch.float32)
with (folder / "prompts.jsonl").open("w") as prompts:
    for number, nouns in enumerate(PROMPTS):
        with trace(pipe) as tr:
            pipe(", ".join(nouns), num_inference_steps=20, generator=torch.Generator().manual_seed(number))
        found = tr.segment(nouns, background=None)
        ids = np.array([0, *(CLASSES.index(name) + 1 for name in nouns)], np.uint16)
        found.image.save(folder / f"{number}.png")
        (folder / f"{number}.labels.png").write_bytes(labels_png(ids[found.labels], CLASSES))
        prompts.write(json.dumps({"image": f"{number}.png", "prompt": ", ".join(nouns)}) + "\n")

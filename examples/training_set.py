"""Generate a training set: images, indexed masks and prompts, for `goca evaluate folder` and training code."""

import torch
from diffusers import DiffusionPipeline

from goca import TrainingSet, bundled, trace

pipe = DiffusionPipeline.from_pretrained(bundled.pipeline(), torch_dtype=torch.float32)
painted = TrainingSet("painted", ["cat", "bus", "grass", "sky"])
for number, nouns in enumerate((["cat", "grass", "sky"], ["bus", "grass", "sky"])):
    with trace(pipe) as tr:
        pipe(", ".join(nouns), num_inference_steps=20, generator=torch.Generator().manual_seed(number))
    painted.add(tr.segment(nouns, background=None), ", ".join(nouns))

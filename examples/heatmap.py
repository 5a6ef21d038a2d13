"""Show what the word "cat" attended to while a pipeline generated: any stock diffusers pipeline, any sampler."""

import torch
from diffusers import DiffusionPipeline

from goca import bundled, trace

pipe = DiffusionPipeline.from_pretrained(bundled.pipeline(), torch_dtype=torch.float32)
with trace(pipe) as tr:
    image = pipe("cat, grass, sky", num_inference_steps=20, generator=torch.Generator().manual_seed(7)).images[0]
image.save("cat.png")
tr.heatmap("cat").save("cat.heatmap.png")

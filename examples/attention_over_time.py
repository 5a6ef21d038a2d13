"""Where a word is attended to in every step of a generation, as a GIF and as numbers."""

import torch

from goca import trace
from goca.diffusion.loading import load

pipe = load("bundled")
with trace(pipe, keep="steps") as tr:
    pipe("cat, grass, sky", num_inference_steps=8, generator=torch.Generator().manual_seed(7))
tr.animation("cat").save("cat.gif")
for step in tr.steps:
    layer, weight = max(step.layers.items(), key=lambda item: item[1])
    print(f"step {step.step}, timestep {step.timestep:.0f}: {layer} weighs most, {weight:.0%}")

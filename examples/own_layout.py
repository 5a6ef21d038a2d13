"""Guide an image by a layout of your own: the left half is the foreground, whatever attention says."""

import numpy as np
import torch

from goca import guide
from goca.diffusion.loading import load

pipe = load("bundled")
layout = np.zeros((64, 64), np.uint8)
layout[:, :32] = 1
with guide(pipe, masks=layout, clamp=(0.8, 3.0)) as guidance:
    image = pipe(
        "a tree on the grass", guidance_scale=4.0, num_inference_steps=12, generator=torch.Generator().manual_seed(2)
    ).images[0]
image.save("own_layout.png")
print("effective scale", guidance.effective_scales[0])

"""Guide each region of an image as strongly as the foreground, beside plain guidance of the same strength."""

import torch

from goca import GOCA, guide
from goca.diffusion.loading import load
from goca.imaging.sheet import Cell, contact_sheet

pipe = load("bundled")
prompt, steps = "a mushroom on the grass under the sky", 12


def paint(scale: float):
    return pipe(prompt, guidance_scale=scale, num_inference_steps=steps, generator=torch.Generator().manual_seed(1))


with guide(pipe, recipe=GOCA) as guidance:
    guided = paint(4.0).images[0]
scale = float(guidance.effective_scales[0][0])
cells = [Cell(guided, "guided by regions"), Cell(paint(scale).images[0], f"plain, scale {scale:.1f}")]
contact_sheet([cells]).save("guided.png")

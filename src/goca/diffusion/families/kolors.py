"""Kolors: the UNet of Stable Diffusion XL, which projects the text of ChatGLM."""

from dataclasses import replace

from goca.diffusion.families.blocks import UP_PATH
from goca.diffusion.families.grids import level_of, levels
from goca.diffusion.families.spec import Family, sample_size
from goca.diffusion.families.unet import SDXL, check

KOLORS = replace(
    SDXL,
    name="Kolors",
    repos=("Kwai-Kolors/Kolors-diffusers",),
    layout={**SDXL.layout, "encoder_hid_dim": 4096},
    origin="the authors' settings for SDXL, whose layout it shares; nobody has reported a score",
    scores=(),
)
FAMILY = Family(
    name="kolors",
    component="unet",
    denoisers=("UNet2DConditionModel",),
    pipelines=("KolorsPipeline",),
    check=check,
    image_size=sample_size,
    grids=levels,
    grid_of=level_of,
    block_rule=UP_PATH,
    checkpoints=(KOLORS,),
    tiny=("kolors",),
)

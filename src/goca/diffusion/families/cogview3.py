"""CogView3-Plus: text before pixels in one sequence, trained on a chain of steps.

These facts were found by a probe of a tiny pipeline with random weights; no real checkpoint was tried.
"""

from goca.diffusion.families.blocks import FLUX_DEPTH
from goca.diffusion.families.grids import Patches
from goca.diffusion.families.spec import Family, JointLayout, sample_size

FAMILY = Family(
    name="cogview3",
    denoisers=("CogView3PlusTransformer2DModel",),
    image_size=sample_size,
    grids=Patches(2),
    block_rule=FLUX_DEPTH,
    feature="output",
    joint=JointLayout(text_first=True),
    tiny=("cogview3",),
)

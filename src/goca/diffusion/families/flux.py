"""Flux.1: text and pixels in two streams, then in one, with one softmax over both."""

from goca.diffusion.families.blocks import like_flux
from goca.diffusion.families.grids import Patches
from goca.diffusion.families.reported import paper_scores
from goca.diffusion.families.spec import CheckpointSettings, TextInput

FLUX = CheckpointSettings(
    name="Flux.1",
    repos=("black-forest-labs/FLUX.1-dev", "black-forest-labs/FLUX.1-schnell"),
    layout={"num_layers": 19, "num_single_layers": 38, "num_attention_heads": 24, "joint_attention_dim": 4096},
    size=1024,
    timestep=407,
    heads="mean",
    reference="single_transformer_blocks.8",
    feature="output",
    refine=("transformer_blocks.12", "transformer_blocks.18"),
    order=2,
    origin='the authors\' settings for Flux.1-dev ("t 150", in effect sigma 0.407), whose scores these are',
    scores=paper_scores(voc=70.7, context=51.1, coco_object=48.1, cityscapes=27.1, ade20k=29.3),
)
FAMILY = like_flux(
    name="flux",
    denoisers=("FluxTransformer2DModel",),
    grids=Patches(2),
    # The other tokenizer is for a pooled embedding.
    texts=(TextInput("tokenizer_2", respects_max_sequence_length=True),),
    checkpoints=(FLUX,),
    tiny=("flux", "flux_schnell"),
)

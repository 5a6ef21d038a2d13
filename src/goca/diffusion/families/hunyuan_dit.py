"""HunyuanDiT: cross-attention to BERT's tokens and, behind them, T5's."""

from goca.diffusion.families.blocks import HUNYUAN_DEPTH
from goca.diffusion.families.grids import configured_patches
from goca.diffusion.families.spec import CheckpointSettings, Family, TextInput, sample_size

HUNYUAN = CheckpointSettings(
    name="HunyuanDiT",
    repos=("Tencent-Hunyuan/HunyuanDiT-v1.2-Diffusers", "Tencent-Hunyuan/HunyuanDiT-v1.1-Diffusers"),
    layout={"num_layers": 40, "num_attention_heads": 16, "attention_head_dim": 88},
    size=1024,
    timestep=81,
    heads="mean",
    reference="blocks.25",
    refine=tuple(f"blocks.{index}" for index in range(20, 30)),
    cross=tuple(f"blocks.{index}" for index in range(20, 30)),
    order=4,
    origin='the authors\' settings for HunyuanDiT ("t 100", in effect timestep 81); nobody has reported a score',
)
FAMILY = Family(
    name="hunyuan-dit",
    denoisers=("HunyuanDiT2DModel",),
    image_size=sample_size,
    grids=configured_patches,
    block_rule=HUNYUAN_DEPTH,
    timestep=81,
    order=4,
    texts=(TextInput("tokenizer"), TextInput("tokenizer_2", start=77)),
    options={"use_resolution_binning": False},
    checkpoints=(HUNYUAN,),
    tiny=("hunyuan_dit",),
)

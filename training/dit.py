"""Stage dit: a small PixArt on latents of 128 px images, with the frozen T5.

Eight blocks of 160 channels, each with a self-attention and a cross-attention of five heads; padding is masked.
Velocity on Stable Diffusion's noise levels; PixArt's own solver samples it.

    python -m training.dit [--work FOLDER] [--steps N] [--resume]
"""

import functools
from pathlib import Path

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from . import scenes, t5
from .clip import WIDTH
from .commands import make_plan, training_command
from .denoiser import load_vae
from .loop import snapshot, train
from .text_encoders import text_encoder
from .transformer import TransformerTask, prepare
from .unet import build_scheduler, velocity
from .vae import LATENT_CHANNELS

LAYERS, HEADS, HEAD = 8, 5, 32
LARGEST = 12_000_000  # bytes of the pipeline
# By itself the pipeline would round 128 px up to a size of a large PixArt.
OPTIONS = {"use_resolution_binning": False, "clean_caption": False}
SETTINGS = {  # of goca
    "size": scenes.CANVAS,
    "options": OPTIONS,
    "timestep": 200,
    "refine": [f"transformer_blocks.{block}" for block in (4, 5, 6, 7)],
    "order": 2,
    "reference": "transformer_blocks.2",  # block 7 gave 0.801 for 0.796, but hardly tells regions apart
    "origin": "chosen on 100 scenes in training art (python -m training.tune)",
}
SIZELESS = {"resolution": None, "aspect_ratio": None}  # as the pipeline calls models that are not for 1024 px


def build() -> PixArtTransformer2DModel:
    """A fresh transformer that at first predicts nothing, and whose blocks do not yet depend on the time."""
    model = PixArtTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=HEAD,
        num_layers=LAYERS,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        cross_attention_dim=HEADS * HEAD,
        sample_size=scenes.CANVAS // 4,
        caption_channels=WIDTH,
    )
    for linear in (model.adaln_single.linear, model.proj_out):
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
    return model


class DitTask(TransformerTask):
    """Denoising with T5's tokens in cross-attention."""

    aligned_block = f"transformer_blocks.{LAYERS // 2 - 1}"

    def __init__(self, work: Path, batch: int):
        super().__init__(work, batch)
        self.scheduler = build_scheduler()

    def build(self) -> tuple[nn.Module, int]:
        model = build()
        model.set_attn_processor(AttnProcessor())  # plain products: 1.3 times faster here than fused attention
        return model, HEADS * HEAD

    def tokens(self, output: Tensor) -> Tensor:
        return output

    def noised(self, clean: Tensor, noise: Tensor, levels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return velocity(self.scheduler, clean, noise, levels)

    def predict(
        self, denoiser: nn.Module, noisy: Tensor, times: Tensor, captions: list[str], rng: np.random.Generator | None
    ) -> Tensor:
        with torch.no_grad():
            states, real = t5.encode_masked(self.text, self.tokenizer, captions)
        return denoiser(noisy, states, times, SIZELESS, encoder_attention_mask=real).sample


def assemble(work: Path, percent: int = 100) -> PixArtSigmaPipeline:
    """The pipeline with the transformer's snapshot at `percent` of its training, in float32."""
    text, tokenizer = text_encoder(work, "t5")
    return PixArtSigmaPipeline(
        vae=load_vae(work, scenes.CANVAS),
        text_encoder=text,
        tokenizer=tokenizer,
        transformer=PixArtTransformer2DModel.from_pretrained(snapshot(work / "dit", percent)).eval(),
        scheduler=DPMSolverMultistepScheduler.from_config(build_scheduler().config),
    )


def call(captions: list[str], guidance: float) -> dict[str, object]:
    """How the pipeline is called."""
    return {"prompt": captions, "guidance_scale": guidance, **OPTIONS}


Task, texts = DitTask, t5  # what `training.judge` asks


def main() -> None:
    arguments = training_command(__doc__, steps=13_000, batch=12).parse_args()
    prepare(arguments.work)
    plan = make_plan(arguments, "dit", rate=1e-3, warm_up=300)
    train(plan, functools.partial(DitTask, arguments.work, arguments.batch))


if __name__ == "__main__":
    main()

"""Stage unet: the denoiser, laid out as Stable Diffusion 2's is, on latents computed once and a frozen text
encoder.

Two layers a block, more heads on coarser levels, cross-attention on every level but the deepest, and in the
middle: 11 cross-attentions of 4 or 8 heads on three grids. The loss is the squared error of the velocity at
a random noise level.

    python -m training.unet [--work FOLDER] [--steps N] [--resume]
"""

import functools
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from . import clip, scenes
from .commands import make_plan, training_command
from .denoiser import DenoiserTask, latents_file, load_vae, write_latents
from .loop import DEVICE, snapshot, train
from .vae import LATENT_CHANNELS

GRID = scenes.SIZE // 4
LARGEST = 18_000_000  # bytes of the pipeline
_UP = [f"up_blocks.2.attentions.{index}.transformer_blocks.0" for index in range(3)]
_DOWN = [f"down_blocks.0.attentions.{index}.transformer_blocks.0" for index in range(2)]
SETTINGS = {  # of goca
    "size": scenes.SIZE,
    "grid": 32,
    "timestep": 300,
    "reference": _UP[1],
    "refine": _UP,
    "order": 1,
    "evidence_blocks": _DOWN + _UP,
    "origin": "chosen on 100 scenes in training art (python -m training.tune)",
}


def build() -> UNet2DConditionModel:
    """A fresh UNet. In its configuration, as in SD 2's, `attention_head_dim` is the number of heads."""
    return UNet2DConditionModel(
        sample_size=GRID,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(64, 96, 112),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=clip.WIDTH,
        attention_head_dim=(4, 8, 8),
        norm_num_groups=16,
    )


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise levels, with velocity as what is predicted."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )


def velocity(scheduler: DDIMScheduler, clean: Tensor, noise: Tensor, levels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What `DenoiserTask.noised` returns, by the scheduler's chain of 1000 timesteps."""
    times = (levels * scheduler.config.num_train_timesteps).long()
    return scheduler.add_noise(clean, noise, times), scheduler.get_velocity(clean, noise, times), times


class UnetTask(DenoiserTask):
    """Denoising with CLIP's tokens."""

    def __init__(self, work: Path, batch: int):
        super().__init__(work, batch)
        self.model = build()
        # A head has 12 to 16 channels: plain products train 1.4 times faster here than fused attention.
        self.model.set_attn_processor(AttnProcessor())
        self.scheduler = build_scheduler()
        self.clip, self.tokenizer = clip.load(work)

    def noised(self, clean: Tensor, noise: Tensor, levels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return velocity(self.scheduler, clean, noise, levels)

    def predict(
        self, denoiser: nn.Module, noisy: Tensor, times: Tensor, captions: list[str], rng: np.random.Generator | None
    ) -> Tensor:
        # Captions as SD 2 reads them: padded, nothing masked.
        ids = self.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        with torch.no_grad():
            states = self.clip.text(ids.to(DEVICE)).last_hidden_state
        return denoiser(noisy, times, states).sample


def assemble(work: Path, percent: int = 100) -> StableDiffusionPipeline:
    """The pipeline with the UNet's snapshot at `percent` of its training, in float32."""
    trained, tokenizer = clip.load(work)
    return StableDiffusionPipeline(
        vae=load_vae(work),
        text_encoder=trained.text,
        tokenizer=tokenizer,
        unet=UNet2DConditionModel.from_pretrained(snapshot(work / "unet", percent)).eval(),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def call(captions: list[str], guidance: float) -> dict[str, object]:
    """How the pipeline is called."""
    return {"prompt": captions, "guidance_scale": guidance}


Task, texts = UnetTask, clip  # what `training.judge` asks


def main() -> None:
    arguments = training_command(__doc__, steps=9000, batch=12).parse_args()
    if not arguments.resume:  # the autoencoder may be another one now
        latents_file(arguments.work, UnetTask.size).unlink(missing_ok=True)
    write_latents(arguments.work, UnetTask.size)
    plan = make_plan(arguments, "unet", rate=9e-4, warm_up=150)
    train(plan, functools.partial(UnetTask, arguments.work, arguments.batch))


if __name__ == "__main__":
    main()

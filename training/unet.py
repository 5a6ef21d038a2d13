"""Stage unet: the denoiser, laid out as Stable Diffusion 2's is, on latents computed once and a frozen text
encoder.

Two layers a block, more heads on coarser levels, cross-attention on every level but the deepest, and in the
middle: 11 cross-attentions of 4 or 8 heads on three grids. The loss is the squared error of the velocity at
a random noise level.

    python -m training.unet [--work FOLDER] [--width 1] [--steps N] [--resume]
"""

import functools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from . import clip, scenes, t5
from .commands import make_plan, training_command
from .denoiser import DenoiserTask, latents_file, load_vae, write_latents
from .loop import DEVICE, snapshot, train
from .text_encoders import text_encoder
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
WIDTHS = {  # about that share of the parameters: channels, heads of 12 to 16 channels, groups of the norms
    1.0: ((64, 96, 112), (4, 8, 8), 16),
    0.5: ((48, 64, 80), (3, 4, 5), 16),
    0.25: ((32, 48, 56), (2, 4, 4), 8),
}


def stage(width: float, seed: int = 0) -> str:
    """The name of the folder that a UNet is trained in."""
    return "unet" + (f"-{width:g}" if width < 1 else "") + (f"-seed{seed}" if seed else "")


def build(width: float = 1.0) -> UNet2DConditionModel:
    """A fresh UNet. In its configuration, as in SD 2's, `attention_head_dim` is the number of heads."""
    channels, heads, groups = WIDTHS[width]
    return UNet2DConditionModel(
        sample_size=GRID,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=channels,
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=clip.WIDTH,
        attention_head_dim=heads,
        norm_num_groups=groups,
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

    def __init__(self, work: Path, batch: int, width: float = 1.0):
        super().__init__(work, batch)
        self.model = build(width)
        # A head has 12 to 16 channels: plain products train 1.4 times faster here than fused attention.
        self.model.set_attn_processor(AttnProcessor())
        self.scheduler = build_scheduler()
        self.text, self.tokenizer = text_encoder(work, "clip")

    def noised(self, clean: Tensor, noise: Tensor, levels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return velocity(self.scheduler, clean, noise, levels)

    def predict(
        self, denoiser: nn.Module, noisy: Tensor, times: Tensor, captions: list[str], rng: np.random.Generator | None
    ) -> Tensor:
        # Captions as SD 2 reads them: padded, nothing masked.
        ids = self.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        with torch.no_grad():
            states = self.text(ids.to(DEVICE)).last_hidden_state
        return denoiser(noisy, times, states).sample


def assemble(work: Path, percent: int = 100, name: str = "unet") -> StableDiffusionPipeline:
    """The pipeline with the snapshot at `percent` of the training in the folder `name`, in float32."""
    text, tokenizer = text_encoder(work, "clip")
    return StableDiffusionPipeline(
        vae=load_vae(work),
        text_encoder=text,
        tokenizer=tokenizer,
        unet=UNet2DConditionModel.from_pretrained(snapshot(work / name, percent)).eval(),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def call(captions: list[str], guidance: float) -> dict[str, object]:
    """How the pipeline is called."""
    return {"prompt": captions, "guidance_scale": guidance}


Task, texts = UnetTask, clip  # what `training.judge` asks


def narrow(width: float, seed: int = 0) -> SimpleNamespace:
    """What `training.export` and `training.judge` ask of a UNet of another width, as they ask a module."""
    return SimpleNamespace(
        build=functools.partial(build, width),
        assemble=functools.partial(assemble, name=stage(width, seed)),
        call=call,
        Task=functools.partial(UnetTask, width=width),
        texts=t5,  # of the text encoder that ships there are no projections
        SETTINGS=SETTINGS,
        LARGEST=LARGEST,
    )


def main() -> None:
    parser = training_command(__doc__, steps=9000, batch=12)
    parser.add_argument("--width", type=float, default=1.0, choices=WIDTHS, help="share of the parameters, about")
    arguments = parser.parse_args()
    if arguments.width == 1 and not arguments.resume:  # the autoencoder may be another one now
        latents_file(arguments.work, UnetTask.size).unlink(missing_ok=True)
    write_latents(arguments.work, UnetTask.size)
    plan = make_plan(arguments, stage(arguments.width, arguments.seed), rate=9e-4, warm_up=150)
    train(plan, functools.partial(UnetTask, arguments.work, arguments.batch, arguments.width))


if __name__ == "__main__":
    main()

"""Stage joint: a small Flux on latents of 128 px images, with the frozen T5 and the pooled text of the CLIP that ships.

Three blocks of two streams and five of one, 128 channels, four heads, one softmax over text and image. Latents are
packed 2 x 2, the path from image to noise is straight (flow matching), guidance is the true one: the model takes no
guidance as input. The text is padded to a random length up to Flux's 512 tokens (see t5.py).

    python -m training.joint [--work FOLDER] [--steps N] [--start FOLDER] [--resume]
"""

import functools
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from . import scenes, t5
from .clip import WIDTH
from .commands import make_plan, training_command
from .denoiser import load_vae
from .loop import DEVICE, snapshot, train
from .text_encoders import shipped, text_encoder
from .tokenizer import T5_POSITIONS
from .transformer import SIDE, TransformerTask, prepare
from .vae import LATENT_CHANNELS

DOUBLE, SINGLE, HEADS, HEAD = 3, 5, 4, 32
TOKENS = 128  # of text, where goca or the judge calls it: a quarter of Flux's, for half of the time
AXES = (4, 14, 14)  # channels of a head that turn with the token's kind (none do), row and column
LARGEST = 12_000_000  # bytes of the pipeline
SETTINGS = {  # of goca. The pipeline by itself makes 512 px, and does not guide.
    "size": scenes.CANVAS,
    "options": {"true_cfg_scale": 4.0, "negative_prompt": "", "max_sequence_length": TOKENS},
    "timestep": 400,
    "refine": ["single_transformer_blocks.1"],
    "order": 2,
    "reference": "transformer_blocks.2",
    "origin": "chosen on 40 scenes in training art (python -m training.tune)",
}


def build() -> FluxTransformer2DModel:
    """A fresh transformer that at first predicts nothing, and whose blocks do nothing yet."""
    model = FluxTransformer2DModel(
        in_channels=4 * LATENT_CHANNELS,
        num_layers=DOUBLE,
        num_single_layers=SINGLE,
        num_attention_heads=HEADS,
        attention_head_dim=HEAD,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=AXES,
    )
    doubles, singles = model.transformer_blocks, model.single_transformer_blocks
    modulations = [norm for block in doubles for norm in (block.norm1, block.norm1_context)]
    modulations += [block.norm for block in singles]
    for linear in (*(norm.linear for norm in modulations), model.norm_out.linear, model.proj_out):
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
    return model


def build_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Straight paths, sampled evenly: images are small, so no level needs more than its share."""
    return FlowMatchEulerDiscreteScheduler(shift=1.0)


def pack(latents: Tensor) -> Tensor:
    """[n, channel, 2 h, 2 w] to tokens [n, h w, 4 channel], as the pipeline packs."""
    count, channels, height, width = latents.shape
    return FluxPipeline._pack_latents(latents, count, channels, height, width)


def unpack(tokens: Tensor) -> Tensor:
    """The inverse of `pack`."""
    return FluxPipeline._unpack_latents(tokens, 2 * SIDE, 2 * SIDE, vae_scale_factor=1)


class JointTask(TransformerTask):
    """Denoising with T5's tokens beside the image's."""

    aligned_block = f"transformer_blocks.{DOUBLE - 1}"

    def __init__(self, work: Path, batch: int, start: Path | None = None):
        super().__init__(work, batch, start)
        self.clip, self.clip_tokenizer = shipped("clip")
        self.places = FluxPipeline._prepare_latent_image_ids(1, SIDE, SIDE, DEVICE, torch.float32)

    @property
    def products(self) -> AbstractContextManager[None]:
        """On a CPU plain products, not in float32: they train 1.2 times faster than fused attention."""
        if DEVICE.type != "cpu":
            return nullcontext()
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # of the CPU too
        return sdpa_kernel(SDPBackend.MATH)

    def build(self) -> tuple[nn.Module, int]:
        return build(), HEADS * HEAD

    def tokens(self, output: tuple[Tensor, Tensor]) -> Tensor:
        return output[1]

    def noised(self, clean: Tensor, noise: Tensor, levels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        share = levels[:, None, None, None]
        return (1 - share) * clean + share * noise, noise - clean, levels

    def predict(
        self, denoiser: nn.Module, noisy: Tensor, times: Tensor, captions: list[str], rng: np.random.Generator | None
    ) -> Tensor:
        length = t5.draw_length(rng) if rng else T5_POSITIONS
        ids = self.clip_tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        with torch.no_grad():
            states, _, bias = t5.encode_padded(self.text, self.tokenizer, captions, length)
            pooled = self.clip(ids.to(DEVICE)).pooler_output
        bias = torch.cat([bias, torch.zeros(SIDE * SIDE, device=DEVICE)])
        with self.products:
            tokens = denoiser(
                pack(noisy),
                states,
                pooled,
                times,
                img_ids=self.places,
                txt_ids=torch.zeros(states.shape[1], 3, device=DEVICE),
                joint_attention_kwargs={"attention_mask": bias.expand(len(captions), 1, 1, -1)},
            ).sample
        return unpack(tokens)


def assemble(work: Path, percent: int = 100) -> FluxPipeline:
    """The pipeline with the transformer's snapshot at `percent` of its training, in float32."""
    text, tokenizer = text_encoder(work, "t5")
    clip, clip_tokenizer = shipped("clip")
    vae = load_vae(work, scenes.CANVAS)
    vae.register_to_config(shift_factor=0.0)  # the pipeline adds it
    return FluxPipeline(
        vae=vae,
        text_encoder=clip,
        tokenizer=clip_tokenizer,
        text_encoder_2=text,
        tokenizer_2=tokenizer,
        transformer=FluxTransformer2DModel.from_pretrained(snapshot(work / "joint", percent)).eval(),
        scheduler=build_scheduler(),
    )


def call(captions: list[str], guidance: float) -> dict[str, object]:
    """How the pipeline is called: its own `guidance_scale` is for models that take guidance as input."""
    size = {"height": scenes.CANVAS, "width": scenes.CANVAS}
    guided = {"negative_prompt": [""] * len(captions), "true_cfg_scale": guidance}
    return {"prompt": captions, **guided, "max_sequence_length": TOKENS, **size}


Task, texts = JointTask, t5  # what `training.judge` asks


def main() -> None:
    parser = training_command(__doc__, steps=10_000, batch=12)
    parser.add_argument(
        "--start", type=Path, help="folder of a transformer to start from, such as that of bundled-joint"
    )
    arguments = parser.parse_args()
    prepare(arguments.work)
    plan = make_plan(arguments, "joint", rate=1e-3, warm_up=300)
    train(plan, functools.partial(JointTask, arguments.work, arguments.batch, arguments.start))


if __name__ == "__main__":
    main()

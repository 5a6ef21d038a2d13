"""The cost of a segmentation at 1024 px on top of the denoiser pass it needs: SDXL and Flux.1 with random weights.

    python benchmarks/memory.py sdxl flux [--whole] [--dtype float32|bfloat16] [--rounds 3] [--threads 1] [--json]

The models do not fit a small machine, so slices of them do: random weights, real widths and 4096 positions, few blocks.
SDXL keeps its blocks of two; of those that are ten deep one and two are kept. Flux keeps one double and two single
blocks, then two and four, and compares with the last: the whole has 19 and 38, and 27 of them before the reference.
Seconds are taken to grow in a straight line with the depth, and memory by the queries and keys of each further block
that waits for the reference: SDXL's as measured between the slices, Flux's as counted, because the peak of a short
slice may be elsewhere. The figures for the whole depth are such extrapolations, not measurements.

With `--whole` nothing is extrapolated: every block is there and runs with activations of its own, at its place and with
the authors' layers, but blocks of a kind share one block's weights (`deepen`), which neither seconds nor extra memory
depend on.

Seconds are CPU seconds, medians of rounds in which plain passes and segmentations alternate. Memory is the resident
peak above what the process held before the call (Linux). In bfloat16 only the memory means something: many processors
have to emulate its products, so linear and convolution layers compute theirs in float32 here, a small block at a time
(`Widened`), which is as exact and several times as fast.

Last figures, over a plain pass, whole and in float32: SDXL 1.18 times the seconds and 0.83 GiB more, Flux.1 1.21 times
and 2.79 GiB. In bfloat16: SDXL 0.51 GiB, Flux.1 1.43 GiB (extrapolated). Bars: 1.3 times; in bfloat16 0.7 and 1.5 GiB.
"""

import argparse
import copy
import ctypes
import json
import statistics
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel, StableDiffusionXLPipeline
from diffusers import UNet2DConditionModel as UNet
from overhead import peak
from PIL import Image
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from goca import GOCA, Segmenter
from goca.diffusion.families.flux import FLUX
from goca.diffusion.families.unet import SDXL
from goca.testing import tiny
from goca.testing.tiny.parts import t5

SIZE = 1024
BLOCK = 512  # rows and columns of a product at a time
CLASSES = ("cat", "grass", "traffic light")
FLUX_WAITING = 19 + 8  # all double blocks, and the single ones before the authors' reference
M_MMAP_THRESHOLD = -3


class Widened(TorchFunctionMode):
    """Products of linear and convolution layers in float32, block by block, so that no layer is ever held widened."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.linear and args[0].dtype == torch.bfloat16:
            return _linear(*args, **kwargs)
        if func is F.conv2d and args[0].dtype == torch.bfloat16:
            return _convolution(*args, **kwargs)
        return func(*args, **kwargs)


def _linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    flat = rows.flatten(0, -2)
    out = rows.new_empty(len(flat), len(weight))
    for here in range(0, len(flat), BLOCK):
        part = flat[here : here + BLOCK].float()
        for there in range(0, len(weight), BLOCK):
            some = slice(there, there + BLOCK)
            out[here : here + BLOCK, some] = F.linear(
                part, weight[some].float(), None if bias is None else bias[some].float()
            )
    return out.view(*rows.shape[:-1], len(weight))


def _convolution(image: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any) -> Tensor:
    wide = image.float()
    parts = []
    for place, kernels in enumerate(weight.split(64)):
        own = None if bias is None else bias[place * 64 : (place + 1) * 64].float()
        parts.append(F.conv2d(wide, kernels.float(), own, *rest).to(image.dtype))
    return torch.cat(parts, 1)


@dataclass(frozen=True)
class Slice:
    """A pipeline, its plain denoiser pass, and its layers. waiting: blocks that run before the reference."""

    pipeline: Any
    plain: Callable[[], Any]
    reference: str
    refine: tuple[str, ...]
    waiting: int


@dataclass(frozen=True)
class Measured:
    """CPU seconds (medians) and GiB of a segmentation, and of the plain pass. waiting: as in the slice."""

    waiting: int
    seconds: float
    plain_seconds: float
    gib: float
    plain_gib: float

    @property
    def extra_gib(self) -> float:
        return self.gib - self.plain_gib


@dataclass(frozen=True)
class Whole:
    """The cost of the whole model: measured with one of `slices`, extrapolated from two."""

    model: str
    dtype: str
    extra_gib: float
    time_ratio: float
    extra_gib_per_waiting_block: float | None
    slices: tuple[Measured, ...]


def deepen(blocks: nn.ModuleList, depth: int) -> None:
    """Extend to `depth` blocks, which all share the first one's weights."""
    weights = {id(weight): weight for weight in (*blocks[0].parameters(), *blocks[0].buffers())}
    blocks.extend(copy.deepcopy(blocks[0], dict(weights)) for _ in range(depth - len(blocks)))


def flux(groups: int, dtype: torch.dtype, whole: bool = False, device: torch.device | str = "cpu") -> Slice:
    """`groups` double and twice as many single blocks; the reference is the last, so that all others wait for it.

    whole: all 19 and 38, and the authors' layers.
    """
    small = tiny.BUILDERS["flux"]()
    with torch.device(device):
        transformer = FluxTransformer2DModel(
            num_layers=groups,
            num_single_layers=2 * groups,
            guidance_embeds=True,
            pooled_projection_dim=small.transformer.config.pooled_projection_dim,
        )
    if whole:
        deepen(transformer.transformer_blocks, 19)
        deepen(transformer.single_transformer_blocks, 38)
        transformer.register_to_config(num_layers=19, num_single_layers=38)
    width = transformer.config.joint_attention_dim
    parts = {
        **small.components,
        "transformer": transformer.to(dtype).eval(),
        "vae": _vae(16, dtype),
        "text_encoder": small.text_encoder.to(dtype),
        "text_encoder_2": t5(width=width)[1].to(dtype).eval(),
    }
    pixels = (SIZE // 16) ** 2
    call = {
        "hidden_states": torch.randn(1, pixels, 64, dtype=dtype),
        "encoder_hidden_states": torch.randn(1, 512, width, dtype=dtype),
        "pooled_projections": torch.randn(1, transformer.config.pooled_projection_dim, dtype=dtype),
        "timestep": torch.tensor([0.4], dtype=dtype),
        "guidance": torch.tensor([1.0]),
        "img_ids": torch.zeros(pixels, 3),
        "txt_ids": torch.zeros(512, 3),
    }
    pipeline, plain = FluxPipeline(**parts), partial(transformer, **call)
    if whole:
        return Slice(pipeline, plain, FLUX.reference, FLUX.refine, FLUX_WAITING)
    last = f"single_transformer_blocks.{2 * groups - 1}"
    return Slice(pipeline, plain, last, ("transformer_blocks.0",), 3 * groups - 1)


def sdxl(depth: int, dtype: torch.dtype, whole: bool = False, device: torch.device | str = "cpu") -> Slice:
    """The deep parts `depth` blocks deep; the model has 10, and so has the `whole`."""
    small = tiny.sdxl()
    with torch.device(device):
        unet = UNet(
            sample_size=SIZE // 8,
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, depth),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )
    if whole:
        for stage in (unet.down_blocks[2], unet.mid_block, unet.up_blocks[0]):
            for attention in stage.attentions:
                deepen(attention.transformer_blocks, 10)
        unet.register_to_config(transformer_layers_per_block=(1, 2, 10))
    parts = {
        **small.components,
        "unet": unet.to(dtype).eval(),
        "vae": _vae(4, dtype),
        "text_encoder": _clip(CLIPTextModel, small.text_encoder, 768, dtype),
        "text_encoder_2": _clip(CLIPTextModelWithProjection, small.text_encoder_2, 1280, dtype),
    }
    sample, text = torch.randn(1, 4, SIZE // 8, SIZE // 8, dtype=dtype), torch.randn(1, 77, 2048, dtype=dtype)
    added = {"text_embeds": torch.randn(1, 1280, dtype=dtype), "time_ids": torch.ones(1, 6, dtype=dtype)}
    pipeline = StableDiffusionXLPipeline(**parts, add_watermarker=False)

    plain = partial(unet, sample, torch.tensor(100), text, added_cond_kwargs=added)
    # Four blocks of two that are finer, and six deep ones.
    return Slice(pipeline, plain, SDXL.reference, SDXL.refine, 4 + 6 * (10 if whole else depth))


def _vae(channels: int, dtype: torch.dtype) -> AutoencoderKL:
    """A VAE of the right shape but thin, as it is not measured."""
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8,) * 4,
        latent_channels=channels,
        norm_num_groups=4,
        mid_block_add_attention=False,
    )
    return vae.to(dtype).eval()


def _clip(kind: Any, small: Any, width: int, dtype: torch.dtype) -> Any:
    changes = {"hidden_size": width, "num_attention_heads": 4, "num_hidden_layers": 2, "projection_dim": width}
    return kind(CLIPTextConfig(**{**small.config.to_dict(), **changes})).to(dtype).eval()


@torch.no_grad()
def measure(one: Slice, rounds: int) -> Measured:
    """Plain passes and segmentations in turn, after a small segmentation to warm up."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8))
    recipe = replace(GOCA, reference=one.reference, refine=one.refine)
    Segmenter.from_pipeline(one.pipeline, recipe=recipe, size=SIZE // 4)(image, classes=CLASSES)
    segmenter = Segmenter.from_pipeline(one.pipeline, recipe=recipe, size=SIZE)
    seen = [
        (peak(one.plain), peak(lambda: segmenter(image, classes=CLASSES, background_classes=()))) for _ in range(rounds)
    ]
    plain_seconds, seconds = (statistics.median(each[call][0] for each in seen) for call in (0, 1))
    # Of the first round: what it leaves with the process would be missing in the next.
    (_, plain_gib), (_, gib) = seen[0]
    return Measured(one.waiting, seconds, plain_seconds, gib, plain_gib)


def measured_flux(dtype: torch.dtype, rounds: int) -> Whole:
    """All blocks, of shared weights."""
    return _measured("Flux.1", dtype, measure(flux(1, dtype, whole=True), rounds))


def measured_sdxl(dtype: torch.dtype, rounds: int) -> Whole:
    """All blocks; the deep ones share weights."""
    return _measured("SDXL", dtype, measure(sdxl(1, dtype, whole=True), rounds))


def _measured(name: str, dtype: torch.dtype, found: Measured) -> Whole:
    return Whole(name, str(dtype), found.extra_gib, found.seconds / found.plain_seconds, None, (found,))


def extrapolated_flux(dtype: torch.dtype, rounds: int) -> Whole:
    """19 double and 38 single blocks."""
    small, large = measure(flux(1, dtype), rounds), measure(flux(2, dtype), rounds)
    pixels, words, width = (SIZE // 16) ** 2, 512, 24 * 128
    waits = (pixels + pixels + words) * width * dtype.itemsize / 2**30  # the pixels' queries, everybody's keys
    ratio = _at(small.seconds, large.seconds, 19) / _at(small.plain_seconds, large.plain_seconds, 19)
    extra = large.extra_gib + (FLUX_WAITING - large.waiting) * waits
    return Whole("Flux.1", str(dtype), extra, ratio, waits, (small, large))


def extrapolated_sdxl(dtype: torch.dtype, rounds: int) -> Whole:
    """The deep parts ten blocks deep."""
    small, large = measure(sdxl(1, dtype), rounds), measure(sdxl(2, dtype), rounds)
    block = (large.extra_gib - small.extra_gib) / (large.waiting - small.waiting)
    ratio = _at(small.seconds, large.seconds, 10) / _at(small.plain_seconds, large.plain_seconds, 10)
    return Whole("SDXL", str(dtype), _at(small.extra_gib, large.extra_gib, 10), ratio, block, (small, large))


def _at(first: float, second: float, depth: int) -> float:
    """The straight line through the values at depths 1 and 2, at another depth."""
    return first + (depth - 1) * (second - first)


MODELS = {"sdxl": (extrapolated_sdxl, measured_sdxl), "flux": (extrapolated_flux, measured_flux)}


def told(names: list[str], dtype: torch.dtype, rounds: int, whole: bool) -> Iterator[dict[str, Any]]:
    for name in names:
        torch.manual_seed(0)
        with Widened() if dtype == torch.bfloat16 else nullcontext():
            yield asdict(MODELS[name][whole](dtype, rounds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", choices=tuple(MODELS))
    parser.add_argument("--whole", action="store_true", help="use every block, with shared weights, instead of slices")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each, alternating (%(default)s)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print one line of JSON per model")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    # Otherwise memory freed by a large tensor may stay with the process, and count as held.
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**20)
    for facts in told(options.models, getattr(torch, options.dtype), options.rounds, options.whole):
        print(json.dumps(facts, indent=None if options.json else 2), flush=True)


if __name__ == "__main__":
    main()

"""Known checkpoints as data: how to ask each, and what it is said to score.

Nothing published here could be measured again with real weights when this was written: scores are printed as reported,
"not verified here".
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from goca.diffusion.families.spec import Family

REPORTED = (
    "Meng et al., CVPR 2026 (arXiv 2603.06178), as reported; tags from the ground truth, threshold picked on the split"
)
RERUN = "a later third-party rerun of the released code"


@dataclass(frozen=True)
class ReportedScore:
    """A figure somebody reported for the GoCA recipe: mIoU in per cent on a data set."""

    dataset: str
    miou: float
    source: str


@dataclass(frozen=True)
class CheckpointSettings:
    """One checkpoint's facts.

    layout: entries of the denoiser's configuration that recognise it. size: pixels a side; grid: cells a side of the
    common grid. noise: training timestep; to a flow model, thousandths. heads, layers, rescale, background: names of
    rules. reference, refine: blocks of the denoiser; feature: what the reference is compared by, its "query" or the
    "output" of its attention; cross: those whose cross-attention takes part, () for all. background_classes: nouns added when one
    noun stands alone. nouns: the whole vocabulary, for a model that knows no other words. origin: where all this comes
    from.
    """

    name: str
    repos: tuple[str, ...]
    layout: Mapping[str, Any]
    size: int
    reference: str
    refine: tuple[str, ...]
    order: int
    origin: str
    feature: str = "query"
    timestep: int = 100
    heads: str = "output-share"
    layers: str = "agreement"
    cross: tuple[str, ...] = ()
    rescale: tuple[str, ...] = ("share", "blur", "minmax")
    background: str = "auto"
    grid: int = 64
    background_classes: tuple[str, ...] = ("background",)
    nouns: tuple[str, ...] = ()
    scores: tuple[ReportedScore, ...] = field(default=())


def _up(level: int, attention: int, depth: int = 0) -> str:
    return f"up_blocks.{level}.attentions.{attention}.transformer_blocks.{depth}"


def _down(level: int, attention: int, depth: int = 0) -> str:
    return f"down_blocks.{level}.attentions.{attention}.transformer_blocks.{depth}"


_SD_REFINE = (_up(3, 0), _up(3, 1), _down(0, 1))

SD15 = CheckpointSettings(
    name="Stable Diffusion 1.5",
    repos=("stable-diffusion-v1-5/stable-diffusion-v1-5", "CompVis/stable-diffusion-v1-4"),
    layout={"block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768},
    size=512,
    reference=_up(2, 1),
    refine=_SD_REFINE,
    order=2,
    origin="the authors' settings for SD 1.5",
    scores=(
        ReportedScore("VOC", 60.7, REPORTED),
        ReportedScore("Context", 40.4, REPORTED),
        ReportedScore("COCO-Object", 39.2, REPORTED),
        ReportedScore("Cityscapes", 16.1, REPORTED),
        ReportedScore("ADE20K", 22.0, REPORTED),
        ReportedScore("VOC", 54.97, RERUN),
    ),
)
SD21 = CheckpointSettings(
    name="Stable Diffusion 2.x",
    repos=("stabilityai/stable-diffusion-2-1", "stabilityai/stable-diffusion-2-1-base"),
    layout={"block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 1024},
    size=768,
    reference=_up(2, 1),
    refine=_SD_REFINE,
    order=2,
    origin="the authors' settings for SD 1.5, whose layout it shares; nobody has reported a score",
)
SDXL = CheckpointSettings(
    name="Stable Diffusion XL",
    repos=("stabilityai/stable-diffusion-xl-base-1.0",),
    layout={"block_out_channels": (320, 640, 1280), "cross_attention_dim": 2048},
    size=1024,
    reference=_up(1, 0),
    refine=(
        *(_up(1, attention, depth) for attention in (0, 1) for depth in (0, 1)),
        _up(1, 2),
        *(_down(1, 0, depth) for depth in (0, 1)),
    ),
    order=2,
    origin="the authors' settings for SDXL",
    scores=(
        ReportedScore("VOC", 65.6, REPORTED),
        ReportedScore("Context", 42.3, REPORTED),
        ReportedScore("COCO-Object", 44.3, REPORTED),
        ReportedScore("Cityscapes", 21.2, REPORTED),
        ReportedScore("ADE20K", 23.2, REPORTED),
    ),
)
KOLORS = replace(
    SDXL,
    name="Kolors",
    repos=("Kwai-Kolors/Kolors-diffusers",),
    layout={**SDXL.layout, "encoder_hid_dim": 4096},
    origin="the authors' settings for SDXL, whose layout it shares; nobody has reported a score",
    scores=(),
)
PIXART = CheckpointSettings(
    name="PixArt",
    repos=(
        "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS",
        "PixArt-alpha/PixArt-Sigma-XL-2-512-MS",
        "PixArt-alpha/PixArt-XL-2-1024-MS",
        "PixArt-alpha/PixArt-XL-2-512x512",
    ),
    layout={"num_layers": 28, "num_attention_heads": 16, "attention_head_dim": 72, "caption_channels": 4096},
    size=1024,
    reference="transformer_blocks.13",
    refine=tuple(f"transformer_blocks.{index}" for index in range(10, 18)),
    order=5,
    origin="the authors' settings for PixArt-alpha and PixArt-Sigma; scores are Sigma's",
    scores=(
        ReportedScore("VOC", 63.6, REPORTED),
        ReportedScore("Context", 43.2, REPORTED),
        ReportedScore("COCO-Object", 39.8, REPORTED),
        ReportedScore("Cityscapes", 22.6, REPORTED),
        ReportedScore("ADE20K", 23.8, REPORTED),
    ),
)
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
    scores=(
        ReportedScore("VOC", 70.7, REPORTED),
        ReportedScore("Context", 51.1, REPORTED),
        ReportedScore("COCO-Object", 48.1, REPORTED),
        ReportedScore("Cityscapes", 27.1, REPORTED),
        ReportedScore("ADE20K", 29.3, REPORTED),
    ),
)
CHROMA = replace(
    FLUX,
    name="Chroma",
    repos=("lodestones/Chroma1-HD", "lodestones/Chroma1-Base"),
    layout={**FLUX.layout, "approximator_num_channels": 64},
    origin="the authors' settings for Flux.1-dev, whose layout it shares; nobody has reported a score",
    scores=(),
)
_BUNDLED_NOUNS = """
cat dog cow pig elephant frog turtle fish bird penguin butterfly car bus boat airplane rocket house tree
cactus mushroom apple banana pizza ball grass sand water sky snow brick wood road
"""
BUNDLED = CheckpointSettings(
    name="bundled",
    repos=("bundled",),
    layout={"block_out_channels": (64, 96, 112), "cross_attention_dim": 128, "in_channels": 6, "sample_size": 16},
    size=64,
    grid=32,
    timestep=300,
    reference=_up(2, 1),
    refine=(_up(2, 0), _up(2, 1), _up(2, 2)),
    order=1,
    origin="chosen on 100 scenes in training art (python -m training.tune)",
    background_classes=("grass", "sky", "road"),
    nouns=tuple(_BUNDLED_NOUNS.split()),
)
# Where one layout says more than another, it comes first.
ZOO = (BUNDLED, SD15, SD21, KOLORS, SDXL, PIXART, HUNYUAN, CHROMA, FLUX)

BY_RULE: Mapping[str, tuple[str, ...]] = {
    "sana": (
        "Efficient-Large-Model/Sana_1600M_1024px_diffusers",
        "Efficient-Large-Model/Sana_600M_1024px_diffusers",
        "Efficient-Large-Model/SANA1.5_4.8B_1024px_diffusers",
    ),
    "wan": ("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "Wan-AI/Wan2.1-T2V-14B-Diffusers"),
    "cosmos2": ("nvidia/Cosmos-Predict2-2B-Text2Image", "nvidia/Cosmos-Predict2-14B-Text2Image"),
    "sd3": (
        "stabilityai/stable-diffusion-3-medium-diffusers",
        "stabilityai/stable-diffusion-3.5-medium",
        "stabilityai/stable-diffusion-3.5-large",
    ),
    "flux2": (
        "black-forest-labs/FLUX.2-dev",
        "black-forest-labs/FLUX.2-klein-4B",
        "black-forest-labs/FLUX.2-klein-9B",
    ),
    "qwen-image": ("Qwen/Qwen-Image",),
    "auraflow": ("fal/AuraFlow-v0.3", "fal/AuraFlow"),
    "cogview4": ("THUDM/CogView4-6B",),
    "lumina2": ("Alpha-VLLM/Lumina-Image-2.0",),
    "z-image": ("Tongyi-MAI/Z-Image-Turbo",),
    "hidream": ("HiDream-ai/HiDream-I1-Full", "HiDream-ai/HiDream-I1-Dev", "HiDream-ai/HiDream-I1-Fast"),
}
"""Families for which nobody has published settings, and their best-known checkpoints: layers by the family's rule."""


def settings_for(denoiser: Any, family: Family, cell: int, blocks: Collection[str]) -> CheckpointSettings:
    """The settings of the checkpoint whose layout the denoiser has, or those of the family's stated rule.

    cell: pixels a side of one latent cell. blocks: the denoiser's; a distilled model may lack some of its teacher's. SD
    2.1 exists at 512 and 768 px with one layout, so the size is always the denoiser's own.
    """
    size = family.size(denoiser, cell)
    for known in ZOO:
        alike = all(_plain(denoiser.config.get(key)) == value for key, value in known.layout.items())
        if alike and {known.reference, *known.refine} <= set(blocks):
            return CheckpointSettings(**{**vars(known), "size": size})
    reference, refine = family.default_layers(denoiser)
    return CheckpointSettings(
        name=f"unlisted {family.name}",
        repos=(),
        layout={},
        size=size,
        reference=reference,
        refine=refine,
        order=family.order,
        timestep=family.timestep,
        feature=family.feature,
        origin=f"no checkpoint known by this layout; {family.rule}",
    )


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value

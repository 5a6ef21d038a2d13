"""What differs between kinds of denoiser, as rows of facts."""

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from goca.diffusion.attention_call import JointLayout
from goca.diffusion.families import transformer, unet
from goca.diffusion.families.spec import Family, TextInput
from goca.errors import GocaError

_UNET = Family(
    name="unet",
    component="unet",
    denoisers=("UNet2DConditionModel",),
    check=unet.check,
    size=unet.size,
    grids=unet.grids,
    default_layers=unet.default_layers,
    rule=unet.RULE,
)
_PIXART = Family(
    name="pixart",
    component="transformer",
    denoisers=("PixArtTransformer2DModel",),
    check=transformer.check,
    size=transformer.size,
    grids=transformer.grid,
    default_layers=transformer.layers_by_depth(13 / 27, (10 / 27, 17 / 27)),
    rule="PixArt's settings in proportion to the depth",
    order=5,
    texts=(TextInput("tokenizer", respects_max_sequence_length=True),),
    options={"use_resolution_binning": False, "clean_caption": False},
)
_FLUX = Family(
    name="flux",
    component="transformer",
    denoisers=("FluxTransformer2DModel",),
    check=transformer.check,
    size=transformer.size_unsaid,
    grids=transformer.packed_grid,
    default_layers=transformer.layers_by_depth(27 / 56, (12 / 56, 12 / 56), (18 / 56, 18 / 56)),
    rule="Flux's settings in proportion to the depth",
    timestep=407,
    flow=True,
    # The other tokenizer is for a pooled embedding.
    texts=(TextInput("tokenizer_2", respects_max_sequence_length=True),),
    joint=JointLayout(text_first=True),
    feature="output",
)
_ALONE = (TextInput("tokenizer", respects_max_sequence_length=True),)
_AT_THE_END = (TextInput("tokenizer", right_aligned=True, respects_max_sequence_length=True),)

# What a row does not say is as in the family that it comes from. One of a pipeline's own comes before its denoiser's.
FAMILIES = (
    replace(_UNET, name="kolors", pipelines=("KolorsPipeline",), texts=_ALONE),
    _UNET,
    _PIXART,
    replace(
        _PIXART,
        name="hunyuan-dit",
        denoisers=("HunyuanDiT2DModel",),
        default_layers=transformer.layers_by_depth(25 / 39, (20 / 39, 29 / 39)),
        rule="HunyuanDiT's settings in proportion to the depth",
        timestep=81,
        order=4,
        texts=(TextInput("tokenizer"), TextInput("tokenizer_2", start=77)),
        options={"use_resolution_binning": False},
    ),
    replace(
        _PIXART,
        name="sana",
        denoisers=("SanaTransformer2DModel",),
        timestep=150,
        order=2,
        flow=True,
        linear_self_attention=True,
        size_multiple=32,
        texts=_AT_THE_END,  # of its instruction only the end is kept
        options={**_PIXART.options, "complex_human_instruction": None},
    ),
    replace(
        _PIXART,
        name="wan",
        denoisers=("WanTransformer3DModel",),
        size=transformer.size_of_frames,
        timestep=150,
        order=2,
        flow=True,
        options={"num_frames": 1},
    ),
    replace(
        _PIXART,
        name="cosmos2",
        denoisers=("CosmosTransformer3DModel",),
        size=transformer.size_unsaid,
        timestep=150,
        order=2,
        flow=True,
        edm_sigmas=True,
        max_grid=transformer.largest_frame,
        options={},
    ),
    _FLUX,
    replace(_FLUX, name="chroma", denoisers=("ChromaTransformer2DModel",), texts=_ALONE),
    replace(
        _FLUX,
        name="sd3",
        denoisers=("SD3Transformer2DModel",),
        size=transformer.size,
        max_grid=transformer.rows_of_table,
        grids=transformer.grid,
        texts=(
            TextInput("tokenizer"),
            TextInput("tokenizer_2"),
            TextInput("tokenizer_3", start=77, respects_max_sequence_length=True),
        ),
        joint=JointLayout(text_first=False),
    ),
    replace(_FLUX, name="flux2", denoisers=("Flux2Transformer2DModel",), texts=_ALONE, optional_image_input=True),
    replace(
        _FLUX,
        name="qwen-image",
        denoisers=("QwenImageTransformer2DModel",),
        texts=_AT_THE_END,
        options={"true_cfg_scale": 1.0, "guidance_scale": None},
    ),
    replace(
        _FLUX,
        name="auraflow",
        denoisers=("AuraFlowTransformer2DModel",),
        max_grid=transformer.root_of_table,
        grids=transformer.grid,
        texts=(TextInput("tokenizer", start=8, respects_max_sequence_length=True),),
    ),
    replace(
        _FLUX,
        name="cogview4",
        denoisers=("CogView4Transformer2DModel",),
        grids=transformer.grid,
        texts=_AT_THE_END,
        size_multiple=16,
    ),
    replace(
        _FLUX,
        name="lumina2",
        denoisers=("Lumina2Transformer2DModel",),
        grids=transformer.grid,
        texts=_ALONE,
        joint=JointLayout(text_first=True, unimodal_blocks=transformer.REFINERS, packed_text=True),
    ),
    replace(
        _FLUX,
        name="z-image",
        denoisers=("ZImageTransformer2DModel",),
        texts=_ALONE,
        max_grid=transformer.lengths_of_axes,
        joint=JointLayout(text_first=False, unimodal_blocks=transformer.REFINERS, multiple=32),
        options={"guidance_scale": 0.0},
    ),
    replace(
        _FLUX,
        name="hidream",
        denoisers=("HiDreamImageTransformer2DModel",),
        grids=transformer.grid,
        # Llama says each word twice: its last layer does, and the layer that belongs to the block.
        texts=tuple(
            TextInput(tokenizer, start=start, respects_max_sequence_length=True)
            for tokenizer, start in (("tokenizer_3", 0), ("tokenizer_4", 128), ("tokenizer_4", 256))
        ),
        joint=JointLayout(text_first=False, pad_to_attr="max_seq"),
        fixed_area=True,
    ),
)


def family_of(pipeline: Any) -> Family | None:
    """The family of a loaded pipeline, None where nobody has listed it."""
    for family in FAMILIES:
        alike = type(bare(getattr(pipeline, family.component, None))).__name__ in family.denoisers
        if alike and (not family.pipelines or type(pipeline).__name__ in family.pipelines):
            return family
    return None


def bare(denoiser: Any) -> Any:
    """A denoiser without what is around it: a compiled module, or peft's model, whose adapters stay in the layers."""
    inner = getattr(denoiser, "_orig_mod", denoiser)
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


def unsupported(pipeline_class: str, missing: Sequence[str] = ()) -> GocaError:
    """The error for a pipeline of no listed family; missing: the parts that it lacks, so that no probe can help."""
    known = ", ".join(dict.fromkeys(name for family in FAMILIES for name in family.denoisers))
    if missing:
        return GocaError(
            f"{pipeline_class} is not supported: goca reads latent text-to-image pipelines, and this one has no "
            f"{', no '.join(missing)}; load one that has, such as those built on {known}"
        )
    return GocaError(
        f"{pipeline_class} is not supported: goca reads pipelines built on {known}; for another denoiser let "
        "goca models probe it, and pass the family that it prints",
        hint="probe",
    )


def check_kind(pipeline: Any, family: Family) -> None:
    """Refuse pipelines that share a text-to-image pipeline's parts but cannot be asked as one."""
    kind = type(pipeline).__name__
    if getattr(pipeline, "vae", None) is None or not callable(getattr(pipeline, "encode_prompt", None)):
        raise GocaError(f"{kind} has no VAE or no text encoder: goca reads latent text-to-image pipelines")
    known = inspect.signature(pipeline.__call__).parameters
    others = {"mask_image", "pag_scale"} if family.optional_image_input else {"image", "mask_image", "pag_scale"}
    if "height" not in known or others & known.keys():
        raise GocaError(
            f"{kind} is no plain text-to-image pipeline: load the checkpoint as one, for instance with "
            "StableDiffusionPipeline(**pipe.components)"
        )
    if None not in (getattr(pipeline, "transformer", None), getattr(pipeline, "transformer_2", None)):
        raise GocaError(
            f"{kind} has two denoisers, for much noise and for little: give goca the second alone, "
            f'{kind}(**{{**pipe.components, "transformer": pipe.transformer_2, "transformer_2": None}})'
        )
    check_tokenizers(pipeline, family)


def check_tokenizers(pipeline: Any, family: Family) -> None:
    """Refuse pipelines that were loaded from a folder with files missing."""
    kind = type(pipeline).__name__
    for text in family.texts:
        tokenizer = getattr(pipeline, text.tokenizer, None)
        model = getattr(pipeline, text.tokenizer.replace("tokenizer", "text_encoder"), None)
        # A tokenizer folder with files missing loads as an almost empty vocabulary, or without a limit.
        if tokenizer is None or model is None:
            continue
        unlimited = not text.respects_max_sequence_length and tokenizer.model_max_length > 10**6
        words = getattr(model.config, "text_config", model.config)
        known = getattr(words, "vocab_size", None) or words.padded_vocab_size
        if len(tokenizer if hasattr(tokenizer, "__len__") else tokenizer.tokenizer) < known // 2 or unlimited:
            raise GocaError(f"the {text.tokenizer} of {kind} is incomplete: is every file of its folder there?")

"""A denoiser that is in no row: its facts, found by asking it; or a refusal that names what is missing.

`guess` reads off a loaded pipeline what it takes to run it. `recognise` finds out the rest, by the questions of
`goca.probing.checks`. `confirm` shows the tap the result.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from goca.diffusion.attention_call import AttentionCall
from goca.diffusion.attention_modules import attention_modules
from goca.diffusion.families import bare, transformer, unet, unsupported
from goca.diffusion.families.spec import Family, TextInput
from goca.diffusion.loading import quiet
from goca.diffusion.timesteps import is_flow
from goca.errors import GocaError
from goca.probing.checks import Probe, is_unet
from goca.probing.passes import CAPTIONS, TIMESTEP, Asking, encoder_of

PLAIN = {
    "num_frames": 1,
    "true_cfg_scale": 1.0,
    "use_resolution_binning": False,
    "clean_caption": False,
    "complex_human_instruction": None,
    "enable_prompt_rewrite": False,
    "use_pe": False,
    "skip_text_cleaning": True,
}
"""What a pipeline is told where it knows the word: to make one image, of the size and the caption it was given."""
_NO_DENOISER = ("vae", "text_encoder", "image_encoder", "safety_checker")


def guess(pipeline: Any) -> Family:
    """What can be read off an unlisted pipeline, enough to run it; GocaError, naming the part, where one is missing."""
    component = _denoiser_of(pipeline)
    denoiser = bare(getattr(pipeline, component))
    tokenizers = [name for name in pipeline.components if name.startswith("tokenizer") and getattr(pipeline, name)]
    missing = {
        "it has no VAE that says how many channels a latent has": channels(getattr(pipeline, "vae", None)),
        "its denoiser does not say how many channels it takes": getattr(denoiser.config, "in_channels", None),
        "it has no tokenizer beside a text encoder": any(encoder_of(pipeline, name) is not None for name in tokenizers),
    }
    for what, found in missing.items():
        if not found:
            raise refused(pipeline, denoiser, what)
    known = {name: one.default for name, one in inspect.signature(pipeline.__call__).parameters.items()}
    options = {name: value for name, value in PLAIN.items() if name in known}
    if known.get("guidance_scale", 1.0) is None:
        options["guidance_scale"] = None  # it does without, unless it is asked
    limited = known.get("max_sequence_length") is not None
    return Family(
        name=type(denoiser).__name__,
        component=component,
        denoisers=(type(denoiser).__name__,),
        check=unet.check if is_unet(denoiser) else transformer.check,
        size=transformer.size if getattr(denoiser.config, "sample_size", None) else transformer.size_unsaid,
        grids=unet.grids if is_unet(denoiser) else transformer.every(1),
        default_layers=unet.default_layers,
        rule=unet.RULE,
        texts=tuple(TextInput(name, respects_max_sequence_length=limited) for name in tokenizers),
        flow=is_flow(pipeline.scheduler),
        options=options,
        optional_image_input=known.get("image", "") is None,
    )


def recognise(backbone: Any) -> Family:
    """The facts of a backbone whose family is a guess. Raises GocaError for one that cannot be established."""
    with _refusing(backbone), quiet():
        return _row(*Probe(Asking(backbone, channels(backbone.pipeline.vae))).answers())


def confirm(backbone: Any) -> None:
    """Show the tap two images of another size, told all that was found; GocaError where it sees anything else."""
    calls: list[AttentionCall] = []
    prompts: dict[str, Any] = {}
    step = backbone.size_multiple // backbone.vae_scale_factor
    noise = torch.randn(
        2, channels(backbone.pipeline.vae), 4 * step, 3 * step, generator=torch.Generator().manual_seed(0)
    )
    with _refusing(backbone), quiet():
        backbone.forward(noise, CAPTIONS[:1] * 2, TIMESTEP, 0, lambda image, call: calls.append(call), prompts)
        texts = {call.block: range(call.k.shape[1])[call.text] for call in calls if call.text is not None}
        for block in backbone.blocks:
            if block not in texts:
                raise GocaError(f"{block} attends, but not to the text")
        last = max(text.start + max(_own(text.special)) for text in backbone.texts(prompts[CAPTIONS[0]]))
        if last >= min(map(len, texts.values())):
            raise GocaError(f"a token has column {last} of {min(map(len, texts.values()))}")


def channels(vae: Any) -> int:
    """How many a latent of this VAE has; 0 where it does not say."""
    config = getattr(vae, "config", None)
    return getattr(config, "latent_channels", None) or getattr(config, "z_dim", None) or 0


def refused(pipeline: Any, denoiser: Any, missing: str) -> GocaError:
    """The error for a pipeline that nobody has listed and the probe cannot make out."""
    kind = type(pipeline).__name__ + ("" if denoiser is None else f" with {type(denoiser).__name__}")
    return GocaError(
        f"{kind} is not supported: nobody has listed it, and a probe found that {missing}; take a checkpoint of a "
        "family that goca reads (goca models --check lists them), or report this line"
    )


def _denoiser_of(pipeline: Any) -> str:
    """The attribute that holds the denoiser: a part that attends, and neither reads the caption nor sees pixels."""
    if not hasattr(pipeline, "components"):
        raise unsupported(type(pipeline).__name__, ["parts"])
    parts = {name: getattr(pipeline, name) for name in pipeline.components if not name.startswith(_NO_DENOISER)}
    attending = [name for name, part in parts.items() if isinstance(part, nn.Module) and attention_modules(part)]
    for name in ("transformer", "unet", *attending):
        if name in attending and hasattr(parts[name], "config"):
            return name
    raise refused(pipeline, None, "none of its parts is a denoiser whose attention modules have processors")


def _own(special: tuple[bool, ...]) -> list[int]:
    """The places of the tokens that are a caption's own."""
    return [place for place, flag in enumerate(special) if not flag]


@contextmanager
def _refusing(backbone: Any) -> Iterator[None]:
    """Whatever goes wrong inside is why a pipeline is refused."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except GocaError as error:
        raise refused(backbone.pipeline, backbone.denoiser, str(error)) from None
    except Exception as error:  # it is others' code that runs
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise refused(backbone.pipeline, backbone.denoiser, f"it does not run ({reason})") from error


def _row(family: Family, cells: int) -> Family:
    """The row, with what no question can settle, layers and noise, as its nearest of kin has it."""
    joint, noise = family.joint, 150 if family.flow else 100
    texts = [
        f"{one.tokenizer} {'at the end' if one.right_aligned else f'from column {one.start}'}" for one in family.texts
    ]
    if joint is not None:
        kind = f"joint attention, text {'before' if joint.text_first else 'behind'} the pixels"
        choose = transformer.layers_by_depth(
            27 / 56, (12 / 56, 12 / 56), (18 / 56, 18 / 56), unimodal_blocks=joint.unimodal_blocks
        )
        family = replace(family, default_layers=choose, rule="Flux's settings in proportion to the depth")
        family = replace(family, timestep=407 if family.flow else noise, feature="output")
    elif cells:
        kind = "cross-attention"
        choose = transformer.layers_by_depth(13 / 27, (10 / 27, 17 / 27), unimodal_blocks=())
        family = replace(family, default_layers=choose, rule="PixArt's settings in proportion to the depth")
        family = replace(family, timestep=noise, order=2 if family.flow else 5)
    else:
        kind = "cross-attention at every timestep"
        family = replace(family, timestep=noise)
    if cells:
        family = replace(family, grids=transformer.every(cells))
        kind += f" of {cells} x {cells} cells" if joint else f", pixels of {cells} x {cells} cells"
    found = f"{kind}, words of {', '.join(texts)}"
    return replace(family, found=found, rule=f"recognised by a probe; {family.rule}")

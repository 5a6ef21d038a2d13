"""From a name to a loaded pipeline: "bundled", a local diffusers folder, or a Hub id. Safetensors only."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from goca import bundled
from goca.diffusion.families import FAMILIES, unsupported
from goca.errors import GocaError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
DTYPES |= {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_UNLOADABLE = (OSError, ValueError, TypeError, AttributeError, RuntimeError, LookupError, ImportError, SafetensorError)
PARTS = (("vae",), ("text_encoder",), ("tokenizer",), ("transformer", "unet"))
"""The parts of a text-to-image pipeline, by their names: one of each."""


def load(
    name: str | Path,
    device: str | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    variant: str | None = None,
    unlisted: bool = False,
) -> Any:
    """A ready pipeline, without its safety checker (it only judges generated images).

    Args:
        name: "bundled", a diffusers folder, which is never fetched, or a Hub id, which is.
        device: such as "cuda:1"; by default the first of cuda, mps and cpu that this machine has.
        dtype: "float32", "float16" or "bfloat16"; by default float32 on a CPU, else float16.
        revision: branch, tag or commit of a Hub id.
        variant: of the weight files, such as "fp16".
        unlisted: load a denoiser that no family lists as well, to probe it.

    Raises:
        GocaError: where there is no such pipeline, goca cannot read it, its weights are not complete safetensors, it
            does not fit the device, or the network fails.
    """
    target = _device(device)
    weights = _dtype(dtype, target)
    source = bundled.pipeline() if str(name) == "bundled" else name
    local = Path(source).is_dir()
    if local and not (Path(source) / "model_index.json").is_file():
        raise GocaError(
            f"{source} is not a diffusers pipeline: it has no model_index.json; save one with save_pretrained"
        )
    if not local and (isinstance(name, Path) or str(name).count("/") != 1 or str(name).startswith((".", "/", "~"))):
        raise GocaError(f'no model "{name}": give "bundled", a diffusers folder, or a Hub id such as owner/name')
    if local and revision is not None:
        raise GocaError(f'"{name}" is a local folder, which has no revision "{revision}": leave revision out')
    try:
        # A local folder loads in silence; what is fetched shows the libraries' own progress.
        with quiet() if local else nullcontext():
            return _from_pretrained(source, weights, revision, variant, local, unlisted).to(target)
    except torch.OutOfMemoryError:
        raise GocaError(
            f'{name} does not fit {target}: load it with dtype "float16" or device "cpu"', hint="dtype"
        ) from None


def _from_pretrained(
    source: str | Path, dtype: torch.dtype, revision: str | None, variant: str | None, local: bool, unlisted: bool
) -> Any:
    import diffusers

    options: dict[str, Any] = {"revision": revision, "local_files_only": local}
    try:
        index = diffusers.DiffusionPipeline.load_config(source, **options)
        kind = str(index.get("_class_name"))
        classes = {name: part[-1] for name, part in index.items() if isinstance(part, list | tuple) and part}
        if not any(set(classes.values()).intersection(family.denoisers) for family in FAMILIES):
            missing = [" or ".join(names) for names in PARTS if not any(map(classes.get, names))]
            if missing or not unlisted:
                raise unsupported(kind, missing)
        for part in ("safety_checker", "feature_extractor", "image_encoder"):
            if part in index:
                options[part] = None
        if "requires_safety_checker" in index:
            options["requires_safety_checker"] = False
        return diffusers.DiffusionPipeline.from_pretrained(
            source, torch_dtype=dtype, variant=variant, use_safetensors=True, **options
        )
    except (GocaError, torch.OutOfMemoryError):
        raise
    except _UNLOADABLE as error:
        # diffusers and the hub client raise many kinds for a folder or id they cannot load, often over many lines.
        reason = " ".join(str(error).split())[:200]
        advice = "is the folder complete, with its weights as safetensors?" if local else "check the id and the network"
        if isinstance(error, ImportError):
            advice = "install what it needs"
        raise GocaError(f"cannot load {source}: {advice} ({type(error).__name__}: {reason})") from None


def _device(device: str | None) -> torch.device:
    counts = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    if device is None:
        return torch.device(next(name for name, count in counts.items() if count))
    try:
        target = torch.device(device)
        exists = (target.index or 0) < counts.get(target.type, 0)
    except RuntimeError:
        exists = False
    if not exists:
        raise GocaError(
            f'no device "{device}" on this machine, which has {counts["cuda"]} CUDA devices: give cpu, cuda, cuda:1 or '
            "mps",
            hint="device",
        )
    return target


def _dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype is None:
        return torch.float32 if device.type == "cpu" else torch.float16
    if dtype not in DTYPES:
        raise GocaError(f'no dtype "{dtype}": give {", ".join(DTYPES)}', hint="dtype")
    return DTYPES[dtype]


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the logs and bars of diffusers and transformers while a pipeline is loaded; errors still raise."""
    # The bars first: that imports the libraries, which set their loggers' levels on import.
    with without_bars(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
        before = [logger.level for logger in loggers]
        try:
            for logger in loggers:
                logger.setLevel(logging.CRITICAL)
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)


@contextmanager
def without_bars() -> Iterator[None]:
    """Keep diffusers, transformers and the hub client from drawing progress bars."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    drawing = [library for library in (diffusers_logging, transformers_logging) if library.is_progress_bar_enabled()]
    try:
        for library in drawing:
            library.disable_progress_bar()
        yield
    finally:
        for library in drawing:
            library.enable_progress_bar()

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
_UNLOADABLE = (OSError, ValueError, TypeError, AttributeError, RuntimeError, LookupError, ImportError, SafetensorError)
PARTS = (("vae",), ("text_encoder",), ("tokenizer",), ("transformer", "unet"))
"""What a text-to-image pipeline is made of, by the names of its parts: one of each."""
_SHORT = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def load(
    name: str | Path,
    device: str | None,
    dtype: str | torch.dtype | None,
    revision: str | None,
    variant: str | None,
    unlisted: bool = False,
) -> Any:
    """A ready pipeline, without its safety checker (it only judges generated images).

    device: the first of cuda, mps, cpu that is there; dtype: float32 on a CPU, else float16. A Hub id is fetched, a
    path never is. unlisted: load a denoiser that no family lists as well, to probe it.

    Raises GocaError, saying what to do, where there is no pipeline, none that goca reads, no network, or
    a revision is named of a local folder, which has none.
    """
    place = _device(device)
    kind = _dtype(dtype, place)
    where = bundled.pipeline() if str(name) == "bundled" else name
    local = Path(where).is_dir()
    if local and not (Path(where) / "model_index.json").is_file():
        raise GocaError(f"{where} is no diffusers pipeline: it has no model_index.json; save one with save_pretrained")
    if not local and (isinstance(name, Path) or str(name).count("/") != 1 or str(name).startswith((".", "/", "~"))):
        raise GocaError(f'no model "{name}": give "bundled", a diffusers folder, or a Hub id such as owner/name')
    if local and revision is not None:
        raise GocaError(f'"{name}" is a local folder, which has no revision "{revision}": leave revision out')
    try:
        # A local folder loads in silence; what is fetched shows the libraries' own progress.
        with quiet() if local else nullcontext():
            return _from_pretrained(where, kind, revision, variant, local, unlisted).to(place)
    except torch.OutOfMemoryError:
        raise GocaError(
            f'{name} does not fit {place}: load it with dtype "float16" (--dtype) or device "cpu" (--device)'
        ) from None


def _from_pretrained(
    where: str | Path, dtype: torch.dtype, revision: str | None, variant: str | None, local: bool, unlisted: bool
) -> Any:
    import diffusers

    options: dict[str, Any] = {"revision": revision, "local_files_only": local}
    try:
        index = diffusers.DiffusionPipeline.load_config(where, **options)
        kind = str(index.get("_class_name"))
        classes = {name: part[-1] for name, part in index.items() if isinstance(part, list | tuple) and part}
        if not any(set(classes.values()).intersection(family.denoisers) for family in FAMILIES):
            # What nobody has listed is loaded to be probed, if there is all that a probe needs.
            missing = [" or ".join(names) for names in PARTS if not any(map(classes.get, names))]
            if missing or not unlisted:
                raise unsupported(kind, missing)
        for part in ("safety_checker", "feature_extractor", "image_encoder"):
            if part in index:
                options[part] = None
        if "requires_safety_checker" in index:
            options["requires_safety_checker"] = False
        return diffusers.DiffusionPipeline.from_pretrained(
            where, torch_dtype=dtype, variant=variant, use_safetensors=True, **options
        )
    except (GocaError, torch.OutOfMemoryError):
        raise
    except _UNLOADABLE as error:
        # diffusers and the hub client raise many kinds for a folder or id they cannot load, often over many lines.
        reason = " ".join(str(error).split())[:200]
        hint = "is the folder complete, with its weights as safetensors?" if local else "check the id and the network"
        if isinstance(error, ImportError):
            hint = "install what it needs"
        raise GocaError(f"cannot load {where}: {hint} ({type(error).__name__}: {reason})") from None


def _device(device: str | None) -> torch.device:
    if device is None:
        backends = (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available()), ("cpu", True))
        return torch.device(next(name for name, there in backends if there))
    try:
        place = torch.device(device)
    except RuntimeError:
        raise GocaError(f'no device "{device}": give cpu, cuda, cuda:1 or mps') from None
    if place.type not in ("cpu", "cuda", "mps") or (place.type == "mps" and not torch.backends.mps.is_available()):
        raise GocaError(f'no device "{device}" on this machine: give cpu, cuda, cuda:1 or mps')
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise GocaError(f'no device "{device}" on this machine: {torch.cuda.device_count()} CUDA devices found')
    return place


def _dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype is None:
        return torch.float32 if device.type == "cpu" else torch.float16
    name = _SHORT.get(dtype, dtype)
    if name not in DTYPES:
        raise GocaError(f'no dtype "{dtype}": give {", ".join(DTYPES)}')
    return DTYPES[name]


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what diffusers and transformers say while a pipeline is loaded; errors still raise."""
    # The bars first: that imports the libraries, which set their loggers' levels when they are imported.
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

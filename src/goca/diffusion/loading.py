"""From a name to a loaded pipeline: a bundled model, a local diffusers folder, or a Hub id. Safetensors only."""

import errno
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from goca.diffusion.model_facts import local_folder
from goca.diffusion.model_files import (
    check_complete,
    check_numbers,
    check_scheduler,
    check_settings,
    check_size,
    check_types,
    check_weights,
    read_settings,
    variant_of,
)
from goca.diffusion.model_index import UNUSED, model_index
from goca.errors import GocaError
from goca.storage.reading import read_json

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
DTYPES |= {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_INDEX = "model_index.json"


def load(
    name: str | Path,
    device: str | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    variant: str | None = None,
    unlisted: bool = False,
) -> Any:
    """Load a pipeline, without its safety checker, which only judges generated images.

    Args:
        name: One of `goca.bundled.names()`, a local diffusers folder, or a Hub id to download.
        device: Such as "cuda:1"; by default the first of cuda, mps and cpu that this machine has.
        dtype: "float32", "float16" or "bfloat16"; by default float32 on a CPU, else float16.
        revision: Branch, tag or commit of a Hub id.
        variant: Variant of the weight files, such as "fp16".
        unlisted: Also load a denoiser that no family lists, to probe it.

    Raises:
        GocaError: There is no such pipeline, goca cannot read it, its weights are not complete safetensors, it
            does not fit on the device, or the network fails.
    """
    target = _device(device)
    weights = _dtype(dtype, target)
    folder = local_folder(name)
    source, local = folder or name, folder is not None
    if local and revision is not None:
        raise GocaError(f'"{name}" is a local folder, which has no revision "{revision}": leave revision out')
    try:
        pipeline = _from_pretrained(source, weights, revision, variant, local, unlisted)
        with quiet():
            return pipeline.to(target)
    except torch.OutOfMemoryError:
        raise GocaError(
            f'{name} does not fit on {target}: load it with dtype "float16" or device "cpu"', hint="dtype"
        ) from None


def _from_pretrained(
    source: str | Path, dtype: torch.dtype, revision: str | None, variant: str | None, local: bool, unlisted: bool
) -> Any:
    try:
        folder = Path(source) if local else _fetched(str(source), revision, variant, unlisted)
        with quiet():
            return _assembled(folder, dtype, variant, unlisted)
    except (GocaError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # these libraries may raise anything
        raise unloadable(source, error, local) from None


def unloadable(source: str | Path, error: Exception, local: bool) -> GocaError:
    """The GocaError for a library's error.

    Args:
        source: What was to be loaded.
        error: The library's error.
        local: Whether the source is a local folder, not a Hub id.
    """
    reason = " ".join(str(error).split())[:200]
    advice = "check that the folder is complete, with safetensors" if local else "check the id and the network"
    if isinstance(error, MemoryError) or "allocate memory" in reason:
        return GocaError(f'{source} does not fit in memory: load it with dtype "float16"', hint="dtype")
    if isinstance(error, ImportError):
        advice = "install what it needs"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        advice = "make room on the disk"
    return GocaError(f"cannot load {source}: {advice} ({type(error).__name__}: {reason})")


def hub_options(name: str, revision: str | None, file: str) -> dict[str, Any]:
    """Arguments for downloading a Hub id's files: a fixed commit, or offline with what is in the cache.

    The Hub client itself retries for half a minute before it reports that there is no network.

    Args:
        name: The Hub id.
        revision: Branch, tag or commit.
        file: A file that is in the cache if the model is.

    Raises:
        Exception: From the Hub client: the id or revision does not exist or may not be read, or there is neither a
            network nor the file in the cache.
    """
    from huggingface_hub import HfApi, constants, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        info = HfApi().model_info(name, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError):
        raise
    except Exception:  # from the Hub client's HTTP library, which differs between its versions
        if not isinstance(try_to_load_from_cache(name, file, revision=revision), str):
            raise
        return {"revision": revision, "local_files_only": True}
    return {"revision": info.sha, "local_files_only": False}


def _fetched(name: str, revision: str | None, variant: str | None, unlisted: bool) -> Path:
    """The folder of a Hub id's files in the local cache. Its index is checked before weights are downloaded."""
    from huggingface_hub import hf_hub_download

    options = hub_options(name, revision, _INDEX)
    # Slow to import: only after the Hub has answered.
    from diffusers import DiffusionPipeline

    content = read_json(Path(hf_hub_download(name, _INDEX, **options)))
    model_index(content, f"{_INDEX} of {name}", unlisted)
    skipped = {part: None for part in UNUSED if part in content}
    return Path(DiffusionPipeline.download(name, variant=variant, use_safetensors=True, **options, **skipped))


def _assembled(folder: Path, dtype: torch.dtype, variant: str | None, unlisted: bool) -> Any:
    """The pipeline in a folder, part by part: diffusers' own loader also runs Python code from the folder."""
    index = model_index(read_json(folder / _INDEX), str(folder / _INDEX), unlisted)
    loaded = [name for name, kind in index.parts.items() if kind is not None]
    if absent := [name for name in loaded if not (folder / name).is_dir()]:
        raise GocaError(
            f"{folder} has no folder {absent[0]}, which its {_INDEX} names: fetch it, or write [null, null] there to "
            "do without"
        )
    if variant is not None and not any(variant_of(folder / name, variant) for name in loaded):
        raise GocaError(f'{folder} has no weights of variant "{variant}": leave variant out', hint="variant")
    parts: dict[str, Any] = dict.fromkeys(index.parts)
    for name in loaded:
        parts[name] = load_part(index.parts[name], folder / name, dtype, variant)
    pipeline = index.pipeline(**parts, **index.settings)
    pipeline.register_to_config(_name_or_path=str(folder))
    return pipeline


def load_part(kind: Any, folder: Path, dtype: torch.dtype, variant: str | None = None) -> Any:
    """One part of a pipeline, complete or refused.

    Args:
        kind: Its class, from diffusers or transformers.
        folder: Folder of its files.
        dtype: Dtype of its weights, if it has any.
        variant: Variant of the weight files, such as "fp16"; a part without it is loaded from the plain files.

    Raises:
        GocaError: The part cannot be loaded; names the file or tensor.
        ImportError: A package that the part needs is not installed.
    """
    from diffusers import SchedulerMixin

    try:
        check_settings(folder)
        if issubclass(kind, SchedulerMixin):
            check_scheduler(folder / "scheduler_config.json")
        if not issubclass(kind, torch.nn.Module):
            return kind.from_pretrained(folder, local_files_only=True)
        return _model(kind, folder, dtype, variant_of(folder, variant))
    except (GocaError, ImportError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise unloadable(folder, error, local=True) from None


def _model(kind: Any, folder: Path, dtype: torch.dtype, variant: str | None) -> torch.nn.Module:
    from diffusers import ModelMixin

    weights = check_weights(folder, variant)
    path = folder / "config.json"
    config = read_settings(path)
    check_numbers(path, config, weights.tensors)
    options: dict[str, Any] = {} if variant is None else {"variant": variant}
    if issubclass(kind, ModelMixin):
        check_types(path, config, kind)
        build = partial(kind.from_config, config)
        options["torch_dtype"] = dtype
    else:
        build = partial(kind, kind.config_class.from_pretrained(folder, local_files_only=True))
        # Tensors of another shape are then reported by name.
        options |= {"dtype": dtype, "ignore_mismatched_sizes": True}
    with torch.device("meta"):
        check_size(path, build(), weights)
    model, info = kind.from_pretrained(
        folder, use_safetensors=True, local_files_only=True, output_loading_info=True, **options
    )
    check_complete(folder, model, info)
    return model


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
    # The bars first: this imports the libraries, which set their loggers' levels on import, and in a
    # notebook warn about missing widgets.
    with warnings.catch_warnings(action="ignore"), without_bars():
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
    """Keep diffusers, transformers and the Hub client from drawing progress bars."""
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

"""Local transformers models, loaded with the checks of a pipeline and identified by their files."""

from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch

from goca.diffusion.loading import hub_options, quiet, unloadable
from goca.diffusion.model_files import (
    check_complete,
    check_numbers,
    check_settings,
    check_size,
    check_weights,
    read_settings,
)
from goca.errors import GocaError
from goca.tagging import check_model_name

PIECES, PIECE = 64, 4096
"""Number of pieces of a file that a fingerprint covers, and bytes of each."""
_DECISIVE = (".safetensors", ".json", ".jinja")
"""Suffixes of files that decide a model's answers: weights, settings, templates."""
_SETTINGS = ["*.json", "*.jinja", "*.txt", "*.model"]
"""Files of a Hub id that are checked before its weights are downloaded."""


def load_model(model: str, kind: str) -> tuple[Any, Any]:
    """Load (processor, model), the model on an accelerator if there is one.

    Weights are read from safetensors only, incomplete ones are refused, and no code from a repository runs.

    Args:
        model: A folder, for which nothing is downloaded, or a Hub id.
        kind: The transformers class that loads it, such as "AutoModelForImageTextToText".

    Raises:
        GocaError: It is not such a model, or cannot be loaded.
    """
    local = Path(model).is_dir()
    try:
        folder, options = (Path(model), {"local_files_only": True}) if local else _settings(model)
        check_settings(folder)
        weights = check_weights(folder, fetched=local)
        # Slow to import: only after the folder, or the Hub, was checked.
        import transformers

        auto = getattr(transformers, kind)
        with quiet():
            if local:
                path = folder / "config.json"
                check_numbers(path, read_settings(path), weights.tensors)
                config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
                with torch.device("meta"):
                    check_size(path, auto.from_config(config), weights)
            processor = transformers.AutoProcessor.from_pretrained(model, trust_remote_code=False, **options)
            loaded, info = auto.from_pretrained(
                model,
                dtype="auto",
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported by name below
                **options,
            )
        check_complete(folder, loaded, info)
    except GocaError:
        raise
    except Exception as error:  # transformers and the Hub client may raise anything
        raise unloadable(model, error, local) from None
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    return processor, loaded.to(device).eval()


def pooled(features: Any) -> Any:
    """The pooled features of a transformers model, as its different versions return them."""
    return features if isinstance(features, torch.Tensor) else features.pooler_output


def model_name(model: str) -> str:
    """The name of a model: a Hub id, or a folder's name with a fingerprint, as its content may change."""
    folder = Path(model)
    return f"{folder.absolute().name} ({_fingerprint(folder)})" if folder.is_dir() else model


def check_model(model: str) -> None:
    """Raise GocaError for an invalid name, or a folder without a model; nothing is loaded or downloaded."""
    check_model_name(model)
    folder = Path(model)
    try:
        if folder.is_dir():
            check_settings(folder)
            check_weights(folder)
    except OSError as error:
        raise unloadable(model, error, local=True) from None


def _settings(name: str) -> tuple[Path, dict[str, Any]]:
    """A Hub id's settings in the local cache, and the arguments for loading the rest of the same commit."""
    from huggingface_hub import snapshot_download

    options = hub_options(name, None, "config.json")
    folder = Path(snapshot_download(name, allow_patterns=_SETTINGS, ignore_patterns="*/*", **options))
    return folder, {**options, "revision": folder.name}


def _fingerprint(folder: Path) -> str:
    """A digest of a model's files: names, sizes, and part of their content, or all of it if they are small."""
    digest = blake2b(digest_size=4)
    try:
        for path in sorted(path for path in folder.iterdir() if path.suffix in _DECISIVE):
            size = path.stat().st_size
            digest.update(f"{path.name} {size}".encode())
            with path.open("rb") as file:
                for start in range(0, size, max(PIECE, size // PIECES)):
                    file.seek(start)
                    digest.update(file.read(PIECE))
    except OSError as error:
        raise GocaError(f"cannot read {error.filename}: {error.strerror}; check the folder") from None
    return digest.hexdigest()

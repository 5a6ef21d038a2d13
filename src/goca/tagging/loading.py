"""A model of transformers on this machine: loaded with the checks of a pipeline, and named by its files."""

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
"""How many pieces of a file a fingerprint covers, and the bytes of each."""
_DECISIVE = (".safetensors", ".json", ".jinja")
"""Suffixes of what decides a model's answers: weights, settings, templates."""
_SETTINGS = ["*.json", "*.jinja", "*.txt", "*.model"]
"""What of a Hub id is looked at before its weights are fetched."""


def load_model(model: str, kind: str) -> tuple[Any, Any]:
    """(processor, model), the model on an accelerator where there is one.

    Weights are read from safetensors, complete or refused, and no code of a repository runs.

    Args:
        model: a folder, for which nothing is fetched, or a Hub id.
        kind: the class of transformers that loads it, such as "AutoModelForImageTextToText".

    Raises:
        GocaError: it is not such a model, or cannot be loaded.
    """
    local = Path(model).is_dir()
    try:
        folder, options = (Path(model), {"local_files_only": True}) if local else _settings(model)
        check_settings(folder)
        weights = check_weights(folder, fetched=local)
        # Slow to import: not before the folder, or the Hub, has answered.
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
                ignore_mismatched_sizes=True,  # and told by name
                **options,
            )
        check_complete(folder, loaded, info)
    except GocaError:
        raise
    except Exception as error:  # transformers and the hub client raise any kind for what they cannot load
        raise unloadable(model, error, local) from None
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    return processor, loaded.to(device).eval()


def pooled(features: Any) -> Any:
    """What a model of transformers says of whole images or texts, as versions of it return that."""
    return features if isinstance(features, torch.Tensor) else features.pooler_output


def model_name(model: str) -> str:
    """A Hub id as it is; a folder with a fingerprint, because another model may be put into it."""
    folder = Path(model)
    return f"{folder.absolute().name} ({_fingerprint(folder)})" if folder.is_dir() else model


def check_model(model: str) -> None:
    """Raise GocaError for what is not a model's name, and for a folder without one; nothing is loaded or fetched."""
    check_model_name(model)
    folder = Path(model)
    try:
        if folder.is_dir():
            check_settings(folder)
            check_weights(folder)
    except OSError as error:
        raise unloadable(model, error, local=True) from None


def _settings(name: str) -> tuple[Path, dict[str, Any]]:
    """The settings of a Hub id, in the local cache, and how to ask for the rest of the same commit."""
    from huggingface_hub import snapshot_download

    options = hub_options(name, None, "config.json")
    folder = Path(snapshot_download(name, allow_patterns=_SETTINGS, ignore_patterns="*/*", **options))
    return folder, {**options, "revision": folder.name}


def _fingerprint(folder: Path) -> str:
    """Of a model's files: names, sizes, and some of their content; all of it if they are small."""
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

"""The files of one part of a model, checked before a library reads them.

They must be complete safetensors, and must not make a library run code, download, read outside the folder, or build
more than the weights fill.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_type_hints

import torch
from safetensors import SafetensorError, safe_open

from goca.errors import GocaError
from goca.storage.reading import parse_json, read_json, read_text, require_regular

SETTINGS = (
    *("config.json", "scheduler_config.json", "generation_config.json", "tokenizer_config.json"),
    *("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json"),
)
"""Files of settings that libraries read besides a part's weights."""
QUANTISED = (
    *("bitsandbytes", "bitsandbytes_4bit", "bitsandbytes_8bit", "torchao", "quanto", "hqq", "gptq", "awq"),
    "compressed-tensors",
)
"""Quantisations whose library only runs installed code; others download their kernels from the Hub."""
MAX_TIMESTEPS = 100_000
"""Most timesteps of a scheduler, which has tables of that length; every known one has 1000."""
MAX_EXTRA_IDS = 10_000
"""Most extra ids of a T5 tokenizer, each of which becomes a token; T5 has 100."""
MAX_COUNT = 1 << 31
"""Largest whole number in a model's configuration."""
_PLAIN = re.compile(r"[^/\\:]+\.(safetensors|json)")
# Not block_out_channels or expert_intermediate_size, which are widths.
_COUNTED = re.compile(r"(^|_)(layers?|blocks?|depth|experts?|axes_dims?(_rope)?)$")
_HEADS = ("text_projection.weight", "logit_scale")
"""Tensors of a whole CLIP, often in the file of its text model, which does not use them."""
_WEIGHTS = re.compile(r"(model|diffusion_pytorch_model)(-\d+-of-\d+)?\.safetensors(\.index\.json)?")


class Weights(NamedTuple):
    """The weight files of a part: numbers of tensors and bytes."""

    tensors: int
    size: int


def check_settings(folder: Path) -> None:
    """Refuse settings that would lead a library away from the folder's own settings and weights.

    Raises:
        GocaError: A file is refused; names it and its content.
    """
    for path in folder.iterdir():
        if path.exists() and not path.is_dir():
            require_regular(path)
    for name in ("adapter_config.json", "audio_tokenizer_config.json"):
        if (folder / name).exists():
            raise GocaError(f"{folder / name} would load another model beside this one: merge the two, or remove it")
    for path in (folder / name for name in SETTINGS if (folder / name).exists()):
        settings = read_settings(path)
        if not isinstance(settings, dict):
            raise GocaError(f"{path} does not hold settings but {_shown(settings)}: fetch it again")
        for key, value in _pairs(settings):
            _check_setting(path, key, value)


def read_settings(path: Path) -> Any:
    """The content of a file of settings, for checks: the libraries read the file themselves.

    Raises:
        GocaError: It is missing or not JSON.
    """
    if not path.exists():
        raise GocaError(f"{path} is missing: fetch the folder again")
    # diffusers writes -Infinity for a scheduler without a lower limit; JSON has no such number.
    return parse_json(read_text(path).replace("-Infinity", "-1e308"), str(path))


def _check_setting(path: Path, key: str, value: Any) -> None:
    if value is None:
        return
    if key == "transformers_weights" and not (_plain(value) and value.endswith(".safetensors")):
        raise GocaError(f"{path} names {_shown(value)} as its weights: only a safetensors file beside it is read")
    if key == "fast_tokenizer_files" and not (isinstance(value, list) and all(map(_plain, value))):
        raise GocaError(f"{path} names tokenizer files outside its folder, {_shown(value)}: name files beside it")
    if key == "audio_tokenizer" or (
        key.endswith(("attn_implementation", "experts_implementation")) and "/" in str(value)
    ):
        raise GocaError(f"{path} names code or a model to download ({key} = {_shown(value)}): remove it")
    if key == "extra_ids" and not (isinstance(value, int) and 0 <= value <= MAX_EXTRA_IDS):
        raise GocaError(f"{path} has extra_ids = {_shown(value)}: give a whole number from 0 to {MAX_EXTRA_IDS}")
    if key == "quant_method" and value not in QUANTISED:
        raise GocaError(
            f"{path} is quantised by {_shown(value)}, whose library may fetch code: use weights in full, or quantised "
            f"by one of {', '.join(QUANTISED)}"
        )


def check_weights(folder: Path, variant: str | None = None, fetched: bool = True) -> Weights:
    """Refuse an index that names anything but safetensors files beside it, or tensors that they lack.

    Args:
        folder: Folder of the part.
        variant: Variant of the weight files, such as "fp16", if the part has one.
        fetched: Whether the files in indexes must already exist.

    Returns:
        The numbers from the headers; no tensor is read.

    Raises:
        GocaError: A file is refused; names it.
    """
    files = sorted(filter(_holds_weights, folder.iterdir()))
    chosen = [path for path in files if _has_variant(path, variant)] or [
        path for path in files if _WEIGHTS.fullmatch(path.name)
    ]
    if fetched and not chosen and files:
        raise GocaError(f"{folder} only has weights of a variant, {files[0].name}: give the variant", hint="variant")
    if fetched and not chosen:
        raise GocaError(f"{folder} has no weights as safetensors: fetch them, or save it with save_pretrained")
    holders: dict[Path, set[str]] = {}
    for path in chosen:
        if path.suffix == ".safetensors":
            holders.setdefault(path, set())
            continue
        for tensor, name in _weight_map(path).items():
            if fetched and not (folder / name).is_file():
                raise GocaError(f"{path} names {name}, which is missing: fetch the folder again")
            holders.setdefault(folder / name, set()).add(tensor)
    tensors: set[str] = set()
    joined: set[str] = set()  # of files that an index lists, not those left from an earlier save
    for path, listed in holders.items():
        if not path.exists():
            continue
        names = _tensor_names(path)
        if absent := listed - names:
            raise GocaError(f"{path} is incomplete: it lacks {_listed(absent)}, which its index lists; fetch it again")
        if listed and (twice := names & joined):
            raise GocaError(f"{path} holds {_listed(twice)} again, from another file: fetch the folder again")
        tensors |= names
        joined |= names if listed else set()
    return Weights(len(tensors), sum(path.stat().st_size for path in holders if path.exists()))


def variant_of(folder: Path, variant: str | None) -> str | None:
    """The variant, if the part has weight files of it; None otherwise."""
    return variant if any(_has_variant(path, variant) for path in folder.iterdir()) else None


def _has_variant(path: Path, variant: str | None) -> bool:
    return variant is not None and _holds_weights(path) and f".{variant}" in path.name


def _holds_weights(path: Path) -> bool:
    """Whether it is safetensors, or an index of them."""
    return ".safetensors" in path.name and path.suffix in (".safetensors", ".json")


def _weight_map(index: Path) -> dict[str, str]:
    content = read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise GocaError(f"{index} has no weight_map with each tensor's file: fetch it again")
    for name in weight_map.values():
        if not _plain(name) or not name.endswith(".safetensors"):
            raise GocaError(f"{index} names {_shown(name)} as weights: only safetensors files beside it are read")
    return weight_map


def _tensor_names(path: Path) -> set[str]:
    require_regular(path)
    try:
        with safe_open(path, framework="pt") as file:
            return set(file.keys())
    except (SafetensorError, OSError, ValueError) as error:
        raise GocaError(f"{path} is not complete safetensors ({error}): fetch it again") from None


def check_numbers(path: Path, config: Mapping[str, Any], tensors: int) -> None:
    """Refuse a configuration with more layers or experts than tensors, or with other absurd numbers.

    Args:
        path: Path of the file, for the message.
        config: Its content.
        tensors: Number of tensors in the weight files.

    Raises:
        GocaError: A setting is refused; names the file, the setting and its value.
    """
    most = max(tensors, 1024)
    for key, value in _pairs(config):
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int) and abs(number) > (most if _COUNTED.search(key) else MAX_COUNT):
                raise GocaError(f"{path} has {key} = {_shown(number)}, more than its weights can fill: fetch it again")
        if isinstance(value, list) and len(value) > max(most, 4096):
            raise GocaError(f"{path} has {len(value)} entries for {key}: fetch it again")


def check_types(path: Path, config: Mapping[str, Any], kind: Any) -> None:
    """Refuse settings of other types than a diffusers class declares, and negative counts.

    Raises:
        GocaError: A setting is refused; names the file, the setting and its value.
    """
    hints = get_type_hints(kind.__init__)
    defaults = signature(kind.__init__).parameters
    for key, hint in hints.items():
        allowed = {*_leaf_types(hint), type(defaults[key].default)} if key in defaults else set()
        if key not in config or not allowed & {int, float} or Any in allowed:
            continue
        for value in _leaves(config[key]):
            wrong = isinstance(value, str) and str not in allowed
            if wrong or (type(value) in (int, float) and value < 0 and int in allowed and not _negative(defaults[key])):
                raise GocaError(f"{path} has {key} = {_shown(value)}, which {kind.__name__} cannot have: correct it")


def _negative(parameter: Any) -> bool:
    return isinstance(parameter.default, int | float) and parameter.default < 0


def check_scheduler(path: Path) -> None:
    """Refuse a scheduler's settings whose tables would be too large or cannot be made.

    Raises:
        GocaError: A setting is refused; names the file, the setting and its value.
    """
    config = read_settings(path)
    steps = config.get("num_train_timesteps", 1)
    if not isinstance(steps, int) or isinstance(steps, bool) or not 1 <= steps <= MAX_TIMESTEPS:
        raise GocaError(
            f"{path} has num_train_timesteps = {_shown(steps)}: give a whole number from 1 to {MAX_TIMESTEPS}"
        )
    for key, value in _pairs(config):
        if isinstance(value, int) and abs(value) > MAX_TIMESTEPS:
            raise GocaError(f"{path} has {key} = {_shown(value)}, which no scheduler needs: correct it")


def check_size(path: Path, model: torch.nn.Module, weights: Weights) -> None:
    """Refuse a configuration whose model is larger than its weight files, before memory is allocated for it.

    Args:
        path: Path of the configuration, for the message.
        model: The model on the meta device, where tensors have no content.
        weights: Its files.

    Raises:
        GocaError: The model is too large; names the file and the largest tensor.
    """
    sizes = {name: tensor.numel() for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    for module in model.modules():
        for name, value in vars(module).items():  # tables that are not buffers
            tables = [value] if isinstance(value, torch.Tensor) else value if isinstance(value, list | tuple) else []
            sizes |= {f"{name} of {type(module).__name__}": t.numel() for t in tables if isinstance(t, torch.Tensor)}
    # Eight numbers per byte: no quantisation packs more. Plus room for computed tables of positions.
    if sum(sizes.values()) > 8 * weights.size + (1 << 27):
        largest = max(sizes, key=lambda name: sizes[name])
        raise GocaError(
            f"{path} describes a model of {sum(sizes.values()):.1e} numbers (the largest tensor is {largest}), but its "
            f"weight files have {weights.size} bytes: fetch the folder again"
        )


def check_complete(folder: Path, model: torch.nn.Module, info: Mapping[str, Any]) -> None:
    """Refuse a loaded model whose weights are not all from its files, or are not all that the files hold.

    Args:
        folder: Folder of the part, for the message.
        model: The loaded model.
        info: The library's own report, its `output_loading_info`.

    Raises:
        GocaError: Tensors are missing or unexpected; names the first, and the number of others.
    """
    tensors = (*model.named_parameters(), *model.named_buffers())
    missing = {*info["missing_keys"], *(name for name, tensor in tensors if tensor.is_meta)}
    missing = {name for name in missing if not name.startswith("pooler.")}  # of BERT: no pipeline uses it
    mismatched = {key[0] if isinstance(key, tuple | list) else key for key in info["mismatched_keys"]}
    unexpected = {name for name in info["unexpected_keys"] if not _harmless(name, model)}
    for names, verb in ((missing, "lack"), (mismatched, "have another shape for"), (unexpected, "hold an unknown")):
        if names:
            raise GocaError(f"the weights in {folder} {verb} {_listed(names)}: fetch the folder again")


def _harmless(name: str, model: torch.nn.Module) -> bool:
    """Whether a tensor without a parameter in the model can be ignored."""
    if getattr(model, "hf_quantizer", None) is not None:
        return True  # scales and zero points, which the quantisation's library reads
    if name in _HEADS or any(name.endswith(buffer) for buffer, _ in model.named_buffers()):
        return True  # stored by older versions, computed now
    architectures = getattr(model.config, "architectures", None)
    if not architectures or type(model).__name__ in architectures:
        return False
    # Saved as a larger class, such as a language model with its head, of which this one is a part.
    path = name.removeprefix(f"{model.base_model_prefix}.").split(".")
    return path[0] not in dict(model.named_children())


def _pairs(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting with its key, including those in nested dictionaries and lists."""
    if key:
        yield key, value
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _pairs(inner, str(name))
    elif isinstance(value, list):
        for inner in value:
            if isinstance(inner, dict | list):
                yield from _pairs(inner, key)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        for inner in value:
            yield from _leaves(inner)
    elif not isinstance(value, dict):
        yield value


def _leaf_types(hint: Any) -> set[Any]:
    arguments = get_args(hint)
    return set().union(*map(_leaf_types, arguments)) if arguments else {hint}


def _plain(name: Any) -> bool:
    """Whether it is the name of a file in the folder itself."""
    return isinstance(name, str) and _PLAIN.fullmatch(name) is not None


def _listed(names: Collection[str]) -> str:
    """The first two names, in order, and the number of others."""
    shown = sorted(names)[:2]
    return f"{', '.join(shown)} and {len(names) - 2} more" if len(names) > 2 else " and ".join(shown)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

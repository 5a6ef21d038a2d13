"""The content of a model_index.json: the classes of a pipeline and its parts, all from diffusers or transformers."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from inspect import Parameter, signature
from typing import Any

from goca.diffusion.families import FAMILIES, unsupported
from goca.errors import GocaError

PARTS = (("vae",), ("text_encoder",), ("tokenizer",), ("transformer", "unet"))
"""The parts of a text-to-image pipeline, by name: one of each."""
UNUSED = ("safety_checker", "feature_extractor", "image_encoder")
"""Parts that judge generated images or read image prompts: not loaded."""
_LEGACY = "Transformer2DModel"  # older name of transformers such as PixArt's, distinguished by their settings
_NEEDED = ("vae", "unet", "transformer", "scheduler")
_ADVICE = "fetch the folder again, or save it with save_pretrained"


@dataclass(frozen=True)
class ModelIndex:
    """A pipeline that can be loaded: its class, the classes of its parts (None if absent), its other arguments."""

    pipeline: type
    parts: Mapping[str, type | None]
    settings: Mapping[str, Any]


def model_index(content: Any, path: str, unlisted: bool = False) -> ModelIndex:
    """Check the content of a model_index.json; only the two libraries' own modules are imported.

    Args:
        content: Content of the file.
        path: Path of the file, for the message.
        unlisted: Also accept a denoiser that no family lists.

    Raises:
        GocaError: An entry is refused; names it.
    """
    if not isinstance(content, dict):
        raise GocaError(f"{path} does not declare a pipeline: {_ADVICE}")
    kind = str(content.get("_class_name"))[:60]
    classes = {name: str(entry[1]) for name, entry in content.items() if isinstance(entry, list) and len(entry) == 2}
    denoisers = {_LEGACY, *(name for family in FAMILIES for name in family.denoisers)}
    if denoisers.isdisjoint(classes.values()):
        missing = [" or ".join(names) for names in PARTS if not any(map(classes.get, names))]
        if missing or not unlisted:
            raise unsupported(kind, missing)
    pipeline = _pipeline(kind, path)
    parts: dict[str, type | None] = {}
    settings: dict[str, Any] = {}
    optional = getattr(pipeline, "_optional_components", ())
    for name, parameter in _parameters(pipeline).items():
        if parameter.default is Parameter.empty or name in optional:
            entry = _entry(name, content.get(name, [] if name not in optional else [None]), path)
            if entry is None and name in _NEEDED and name not in optional:
                raise GocaError(f"{path} has no {name}, which {kind} needs: {_ADVICE}")
            parts[name] = None if entry is None or name in UNUSED else _part_class(name, *entry, path)
        elif name in content and name not in UNUSED:
            settings[name] = content[name]
    if "requires_safety_checker" in settings:
        settings["requires_safety_checker"] = False
    return ModelIndex(pipeline, parts, settings)


def _entry(name: str, entry: Any, path: str) -> tuple[str, str] | None:
    """(library, class) of a part; None for one that the pipeline does not have."""
    match entry:
        case [None, *_]:
            return None
        case [str(library), str(kind)]:
            return library, kind
    raise GocaError(f"{path} does not name a library and a class for {name}: {_ADVICE}")


def _parameters(pipeline: Any) -> dict[str, Parameter]:
    parameters = signature(pipeline.__init__).parameters
    return {name: parameter for name, parameter in parameters.items() if name != "self"}


def _pipeline(kind: str, path: str) -> type:
    import diffusers

    pipeline = getattr(diffusers, kind, None)
    # A stand-in for a class whose package is not installed raises as soon as it is used.
    getattr(pipeline, "from_pretrained", None)
    if not isinstance(pipeline, type) or not issubclass(pipeline, diffusers.DiffusionPipeline):
        raise GocaError(
            f'{path} names "{kind}", which is not a pipeline of diffusers {diffusers.__version__}: code in a folder is '
            "not run; update diffusers if it is a newer one"
        )
    return pipeline


def _part_class(name: str, library: str, kind: str, path: str) -> type:
    import diffusers
    import transformers

    module: Any = {"diffusers": diffusers, "transformers": transformers}.get(library)
    # A pipeline's own part, such as the text encoder of Kolors, is named by the pipeline's module.
    if module is None and library.isidentifier() and find_spec(f"diffusers.pipelines.{library}") is not None:
        module = getattr(diffusers.pipelines, library, None)
    if module is None:
        raise GocaError(
            f'{path} wants "{library}" for {name}: only parts from diffusers and transformers are loaded; code from '
            "elsewhere is not run"
        )
    part = getattr(module, kind, None)
    getattr(part, "from_pretrained", None)
    tokenizers = (transformers.PreTrainedTokenizerBase, transformers.ProcessorMixin)
    bases = {
        **dict.fromkeys(("vae", "unet", "transformer"), diffusers.ModelMixin),
        "scheduler": diffusers.SchedulerMixin,
        "text_encoder": transformers.PreTrainedModel,
        "tokenizer": tokenizers,
    }
    loadable = (
        *(diffusers.ModelMixin, diffusers.SchedulerMixin, transformers.PreTrainedModel, *tokenizers),
        *(transformers.FeatureExtractionMixin, transformers.ImageProcessingMixin),
    )
    # text_encoder_2 is a text_encoder.
    if not isinstance(part, type) or not issubclass(part, bases.get(name.rstrip("_0123456789"), loadable)):
        raise GocaError(f'{path} wants "{kind}" for {name}, which is not a {name} of {library}: {_ADVICE}')
    return part

"""Metrics of generated images: FID against real ones, CLIP score with their prompts, effective guidance scale."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from goca.errors import GocaError
from goca.evaluation.metrics import Interval, mean
from goca.evaluation.run_folder import FACTS
from goca.imaging import html, images
from goca.imaging.files import suffixes
from goca.storage.json_lines import JsonLines
from goca.storage.reading import inside
from goca.tagging.loading import load_model, pooled

IMAGES, METADATA = "images", "metadata.jsonl"
BATCH = 32
"""Most images that a feature extractor gets at a time."""
CLIP_SCORE, EFFECTIVE_SCALE = "clip_score", "effective_scale"


# ---- folders


@dataclass(frozen=True)
class ImageFolder:
    """The images in a folder, sorted by name, with their metadata from metadata.jsonl."""

    folder: Path
    names: tuple[str, ...]
    metadata: Mapping[str, Mapping[str, Any]]

    @property
    def prompts(self) -> dict[str, str]:
        """The prompt of each image. Raises GocaError if one has none."""
        texts = {name: self.metadata.get(name, {}).get("text") for name in self.names}
        if missing := [name for name, text in texts.items() if not isinstance(text, str)]:
            raise GocaError(
                f'{self.folder} has no prompt for {missing[0]}: write {METADATA} there, a line {{"file_name": NAME, '
                '"text": PROMPT} for each image'
            )
        return {name: str(text) for name, text in texts.items()}

    def figures(self, key: str) -> dict[str, float]:
        """A number that the metadata have for each image; empty if an image lacks it."""
        values = {name: self.metadata.get(name, {}).get(key) for name in self.names}
        numbers = {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
        return numbers if len(numbers) == len(self.names) else {}

    def pixels(self) -> Iterator[UInt8[Tensor, "3 height width"]]:
        """Each image, RGB."""
        for name in self.names:
            yield torch.from_numpy(np.array(images.load(self.folder / name))).permute(2, 0, 1)


def open_folder(folder: str | Path, hint: str = "images") -> ImageFolder:
    """The images of a run of `goca evaluate-generation`, or directly in any folder.

    Raises:
        GocaError: There are no images, the run is incomplete, or its metadata.jsonl is damaged.
    """
    home = Path(folder)
    if is_run := (home / FACTS).is_file():
        home = home / IMAGES
    if is_run and not (home / METADATA).exists():
        raise GocaError(
            f"{folder} is not a finished run of goca evaluate-generation: run the same command again, or name "
            "another folder",
            hint,
        )
    if not home.is_dir():
        raise GocaError(f"{home} is not a folder of images: name one", hint)
    known = suffixes()
    names = sorted(p.name for p in home.iterdir() if p.suffix.lower() in known and not p.name.startswith("."))
    lines = JsonLines(home / METADATA, _with_file_name, dict, "the metadata of an image")
    metadata = {row["file_name"]: row for row in lines.read()} if lines.path.exists() else {}
    if missing := metadata.keys() - set(names):
        raise GocaError(
            f"{home} lacks {min(missing)}, which its {METADATA} names: restore it, or generate it again", hint
        )
    if not names:
        raise GocaError(f"no images in {home}: name a folder with images", hint)
    return ImageFolder(home, tuple(names), metadata)


def _with_file_name(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("it is not an object")
    return {**value, "file_name": inside(value.get("file_name"))}


# ---- models


class ModelFeatures(nn.Module):
    """Features of images by a transformers model: CLIP's image embeddings, or the pooled output of DINO and others.

    Args:
        model: A folder or a Hub id; weights are read from safetensors only.

    Raises:
        GocaError: The model cannot be loaded.
    """

    def __init__(self, model: str) -> None:
        super().__init__()
        self.name = model
        self.processor, self.model = load_model(model, "AutoModel")

    def forward(self, batch: UInt8[Tensor, "image 3 height width"]) -> Float[Tensor, "image feature"]:
        """Features of images, resized and cropped by the model's own processor."""
        inputs = self.processor(images=list(batch.cpu()), return_tensors="pt").to(self.model.device, self.model.dtype)
        features = pooled(getattr(self.model, "get_image_features", self.model)(**inputs))
        if features is None:
            raise GocaError(
                f"{self.name} does not give pooled image features: name a model such as CLIP or DINO", "features"
            )
        return features


class ClipModel(nn.Module):
    """A CLIP for torchmetrics: embeddings are tensors, and a long prompt is truncated before its end token.

    Args:
        model: A folder or a Hub id; weights are read from safetensors only.

    Raises:
        GocaError: The model cannot be loaded, or is not a CLIP.
    """

    def __init__(self, model: str) -> None:
        super().__init__()
        processor, self.model = load_model(model, "AutoModelForZeroShotImageClassification")
        self.config = self.model.config
        if self.config.model_type != "clip":
            raise GocaError(f"{model} is a model of type {self.config.model_type}: name a CLIP", "clip")
        length = self.config.text_config.max_position_embeddings
        self.processor = lambda text=None, **options: (
            processor(**options)
            if text is None
            else processor(text=text, truncation=True, max_length=length, **options)
        )

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        return pooled(self.model.get_image_features(pixel_values=pixel_values.to(self.model.dtype)))

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return pooled(self.model.get_text_features(input_ids=input_ids, attention_mask=attention_mask))


# ---- measuring


@dataclass(frozen=True)
class Distance:
    """An FID, with its reference, the number of its images, the features and their dimensions."""

    value: float
    reference: str
    reference_images: int
    features: str
    dimensions: int


@dataclass(frozen=True, repr=False)
class Measurement:
    """The measurements of a folder of images.

    Attributes:
        folder: The folder, as it was named.
        prompts: {image: prompt}; empty without prompts.
        images: Number of images.
        fid: None without a reference.
        per_image: {"clip_score" or "effective_scale": {image: value}}, for figures that are known for every image.
    """

    folder: str
    images: int
    prompts: Mapping[str, str]
    fid: Distance | None
    per_image: Mapping[str, Mapping[str, float]]

    def __repr__(self) -> str:
        return f"Measurement({self.folder}, {self.images} image{'s' * (self.images != 1)})"

    def _repr_html_(self) -> str:
        """HTML for notebooks: the figures with their intervals, and notes on them."""
        rows = [] if self.fid is None else [("FID", f"{self.fid.value:.2f}", f"to {self.fid.reference}")]
        rows += [
            (name, f"{value:.3f}", f"{low:.3f} to {high:.3f}") for name, (value, (low, high)) in self.means.items()
        ]
        return html.figure("; ".join([repr(self), *self.notes]), None, ("figure", "value", "95 %"), rows)

    @cached_property
    def means(self) -> dict[str, tuple[float, Interval]]:
        """{figure: (mean over images, its 95 % bootstrap interval)}"""
        return {name: mean(list(values.values())) for name, values in self.per_image.items()}

    @property
    def notes(self) -> list[str]:
        """Notes that are needed to interpret the figures."""
        if self.fid is None or min(self.images, self.fid.reference_images) > self.fid.dimensions:
            return []
        return [
            f"FID of {self.images} and {self.fid.reference_images} images in {self.fid.dimensions} dimensions: with no "
            "more images than dimensions it is far too high; compare only FIDs of equally many images"
        ]

    def to_json(self) -> dict[str, Any]:
        """The figures, as JSON."""
        out: dict[str, Any] = {"images": self.images}
        if self.fid is not None:
            out["fid"] = asdict(self.fid)
        out |= {name: {"mean": value, "ci95": bounds} for name, (value, bounds) in self.means.items()}
        return {**out, "notes": self.notes}

    def gain_over(self, first: "Measurement") -> dict[str, tuple[float, Interval]]:
        """{figure: (mean difference to the same images of another folder, its 95 % bootstrap interval)}, paired.

        Raises:
            GocaError: The folders do not have the same images with the same prompts.
        """
        shared = self.per_image.keys() & first.per_image.keys()
        names = self.per_image[min(shared)].keys() if shared else ()
        for name in names:
            if name not in first.prompts or first.prompts[name] != self.prompts.get(name):
                raise GocaError(
                    f"{self.folder} and {first.folder} have different prompts ({name}): compare others",
                    "images",
                )
        if shared and self.images != first.images:
            raise GocaError(
                f"{self.folder} has {self.images} images but {first.folder} {first.images}: complete both", "images"
            )
        return {
            figure: mean([self.per_image[figure][name] - first.per_image[figure][name] for name in names])
            for figure in self.per_image
            if figure in shared
        }


class Meter:
    """Measures folders of images, all in the same way.

    Args:
        reference: Folder of real images for the FID; needs features as well.
        features: Maps uint8 images (n, 3, height, width) to (n, feature), see `features_of`; or the name of a model for
            `ModelFeatures`.
        clip: Name of a model for `ClipModel`, for CLIP scores.

    Raises:
        GocaError: The reference has no images, only one of reference and features is given, torchmetrics is not
            installed, or a model cannot be loaded.
    """

    def __init__(
        self, reference: str | Path | None = None, features: nn.Module | str | None = None, clip: str | None = None
    ) -> None:
        if (reference is None) != (features is None):
            lacking = "reference" if reference is None else "features"
            raise GocaError("an FID needs a folder of real images and a model for features: name both", lacking)
        if features is not None or clip is not None:
            _torchmetrics("image.fid")
        self._reference = None if reference is None else open_folder(reference, "reference")
        self._features = ModelFeatures(features) if isinstance(features, str) else features
        self._clip = None if clip is None else ClipModel(clip)

    def __call__(self, folder: str | Path) -> Measurement:
        """Measure the images of a run, or of any folder. Raises GocaError if it lacks prompts that are needed."""
        opened = open_folder(folder)
        per_image = {EFFECTIVE_SCALE: opened.figures(EFFECTIVE_SCALE)}
        if self._clip is not None:
            per_image[CLIP_SCORE] = clip_scores(opened, self._clip)
        known = {name: values for name, values in per_image.items() if values}
        prompts = opened.prompts if opened.metadata else {}
        return Measurement(str(folder), len(opened.names), prompts, self._distance(opened), known)

    def _distance(self, folder: ImageFolder) -> Distance | None:
        if self._reference is None or self._features is None:
            return None
        for images_of in (self._reference, folder):
            if len(images_of.names) < 2:
                raise GocaError(
                    f"{images_of.folder} has a single image: an FID needs two or more, preferably thousands"
                )
        value = frechet_distance(self._real, features_of(folder, self._features))
        name = getattr(self._features, "name", type(self._features).__name__)
        return Distance(value, str(self._reference.folder), len(self._real), str(name), self._real.shape[1])

    @cached_property
    def _real(self) -> Tensor:
        assert self._reference is not None
        assert self._features is not None
        return features_of(self._reference, self._features)


# ---- metrics


@torch.no_grad()
def features_of(folder: ImageFolder, extractor: nn.Module) -> Float[Tensor, "image feature"]:
    """Features of each image, float64.

    Args:
        folder: The images.
        extractor: Maps uint8 images (n, 3, height, width) to (n, feature); it gets up to 32 at a time, all of one size,
            which is the images' own: an extractor that needs another size has to resize them.
    """
    device = next((parameter.device for parameter in extractor.parameters()), "cpu")
    features = []
    for batch in _of_one_size(folder.pixels()):
        rows = extractor(batch.to(device))
        if rows.ndim != 2 or len(rows) != len(batch):
            raise GocaError(
                f"the extractor returned {tuple(rows.shape)} for {len(batch)} images: it must return one row for each"
            )
        features.append(rows.double().cpu())
    return torch.cat(features)


def frechet_distance(real: Float[Tensor, "real feature"], generated: Float[Tensor, "image feature"]) -> float:
    """FID of the features of two or more images each, by torchmetrics."""
    fid = _torchmetrics("image.fid").FrechetInceptionDistance(feature=_Features(real.shape[1]))
    fid.update(real, real=True)
    fid.update(generated, real=False)
    return max(float(fid.compute()), 0.0)  # the FID of equal features may round below 0


@torch.no_grad()
def clip_scores(folder: ImageFolder, model: nn.Module) -> dict[str, float]:
    """{image: 100 times its cosine with its prompt, at least 0}, by torchmetrics."""
    clip_score = _torchmetrics("functional.multimodal").clip_score
    device = next(model.parameters()).device
    prompts = folder.prompts.items()
    return {
        name: float(clip_score(pixels.to(device), prompt, lambda: (model, model.processor)))
        for (name, prompt), pixels in zip(prompts, folder.pixels(), strict=True)
    }


class _Features(nn.Identity):
    """For torchmetrics, which needs a module even if features are already computed."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.num_features = count


def _of_one_size(pixels: Iterator[Tensor]) -> Iterator[Tensor]:
    """Batches of consecutive images of the same size."""
    for _, group in groupby(pixels, key=lambda image: image.shape):
        batch: list[Tensor] = []
        for image in group:
            batch.append(image)
            if len(batch) == BATCH:
                yield torch.stack(batch)
                batch = []
        if batch:
            yield torch.stack(batch)


def _torchmetrics(module: str) -> Any:
    from importlib import import_module

    try:
        return import_module(f"torchmetrics.{module}")
    except ImportError:
        raise GocaError("FID and CLIP scores need torchmetrics: pip install torchmetrics") from None

"""Generative power: a model's denoising loss on real images, and how often its images show what was asked for."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from goca.diffusion.backbone import BackboneSession
from goca.diffusion.fingerprint import fingerprint
from goca.diffusion.timesteps import latent_error, scales, timestep_at
from goca.errors import GocaError
from goca.evaluation.datasets.base import Dataset
from goca.evaluation.metrics import Figure, Interval, ratio
from goca.evaluation.oracle import OracleTagger
from goca.evaluation.prompts import Prompt, digest
from goca.evaluation.run_folder import IMAGES, RunFolder, read_facts
from goca.evaluation.runner import Stage
from goca.imaging import images
from goca.plan import versions
from goca.segmenter import Segmenter
from goca.self_tagging import squared_errors
from goca.storage.json_lines import JsonLines
from goca.storage.reading import read_json
from goca.tagging.base import BatchTagger, Tagger
from goca.tagging.caption_nouns import captioned

LEVELS = (0.2, 0.35, 0.5, 0.65, 0.8)
"""Noise levels of the loss: noise / (signal + noise), see `goca.diffusion.timesteps.scales`."""
LOSS, FOUND = "denoising loss", "asked nouns found"


@dataclass(frozen=True)
class Power:
    """A measure of the generative power of several models.

    Attributes:
        name: Name of the measure, such as "FID".
        higher: Whether the better model has the higher value.
        values: {label of a model: value}.
        intervals: {label: 95 % interval}, for those that have one.
    """

    name: str
    higher: bool
    values: Mapping[str, float]
    intervals: Mapping[str, Interval] = field(default_factory=dict)


@dataclass(frozen=True)
class Captioned:
    """An image, real or generated, with a caption that names what it shows or should show."""

    id: str
    image: Path
    caption: str


@dataclass(frozen=True)
class Denoised:
    """Squared errors of an image's clean latent at each of `LEVELS`, with their baselines, see `denoised`."""

    id: str
    errors: tuple[float, ...]
    baselines: tuple[float, ...]

    @classmethod
    def from_json(cls, value: Any) -> "Denoised":
        """The inverse of `asdict`. Raises ValueError for what is not a record."""
        try:
            rows = [tuple(map(float, value[name])) for name in ("errors", "baselines")]
            if not isinstance(value["id"], str) or {len(row) for row in rows} != {len(LEVELS)}:
                raise ValueError("it has other levels")
            return cls(value["id"], *rows)
        except (TypeError, KeyError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from None


@dataclass(frozen=True)
class Judgement:
    """A judge's findings in a model's images.

    Attributes:
        judge: Name of the judge.
        images: Digest of the prompts.
        asked: Number of classes that each caption names.
        found: Number of these that the judge sees.
        steps, scale: Sampling steps and guidance scale; None for the pipeline's own.
    """

    judge: str
    images: str
    asked: tuple[int, ...]
    found: tuple[int, ...]
    steps: int | None = None
    scale: float | None = None

    @classmethod
    def from_json(cls, value: Any) -> "Judgement":
        """The inverse of `asdict`. Raises ValueError for what is not a judgement."""
        try:
            asked, found = (tuple(map(int, value[name])) for name in ("asked", "found"))
            if len(asked) != len(found) or not asked:
                raise ValueError("its counts are not of the same images")
            steps, scale = value["steps"], value["scale"]
            return cls(
                str(value["judge"]),
                str(value["images"]),
                asked,
                found,
                None if steps is None else int(steps),
                None if scale is None else float(scale),
            )
        except (TypeError, KeyError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from None

    @property
    def share(self) -> Figure:
        """The share of the requested classes that are found, and its 95 % interval."""
        return ratio(torch.tensor(self.found)[:, None].double(), torch.tensor(self.asked)[:, None].double())


def read_power(path: Path, labels: Sequence[str]) -> Power:
    """A measure that was made elsewhere: {"name": "FID", "better": "lower", "values": {LABEL: 12.3, ...}}.

    Raises:
        GocaError: The file cannot be read, or has no value for one of the models.
    """
    content = read_json(path)
    parts = [content.get(name) for name in ("name", "better", "values")] if isinstance(content, dict) else [None] * 3
    name, better, listed = parts
    if not isinstance(name, str) or better not in ("lower", "higher") or not isinstance(listed, dict):
        raise GocaError(
            f'{path} does not hold a measure: write {{"name": "FID", "better": "lower", "values": {{MODEL: NUMBER}}}}',
            "power",
        )
    values: dict[str, float] = {}
    for label in labels:
        value = listed.get(label)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise GocaError(f'{path} has no number for "{label}": add one to its values', "power")
        values[label] = float(value)
    return Power(name, better == "higher", values)


def captioned_images(dataset: Dataset, most: int) -> tuple[Captioned, ...]:
    """The first images, at most `most`, that show a class, each with the list of its classes."""
    out: list[Captioned] = []
    for sample in dataset.samples:
        if len(out) < most and (caption := OracleTagger().tag(sample, dataset)):
            out.append(Captioned(sample.id, sample.image, caption))
    if not out:
        raise GocaError(f"no image of {dataset.name} shows a class: evaluate other images")
    return tuple(out)


def denoised(segmenter: Segmenter, session: BackboneSession, captioned_image: Captioned, seed: int) -> Denoised:
    """How well a model denoises an image with its caption.

    The errors are those of the clean latent that follows from the prediction. Whether the model predicts noise,
    velocity or image, each follows from any other and the noisy latent; and levels, unlike timesteps, are the same for
    all schedules. The baselines are the errors of a denoiser that only knows the mean and the variance v of each latent
    channel of the image, (noise^2 v) / (signal^2 v + noise^2). `denoising_loss` is the ratio of the two: 1 is as good
    as that denoiser, 0 is perfect.

    So the losses of models that share a VAE and a size can be compared whatever their schedule and parametrisation.
    Across VAEs, sizes or text encoders they say less: one latent may simply hold more unpredictable detail.

    Args:
        segmenter: The model; the image is processed at its size.
        session: Session of its backbone.
        captioned_image: The image to denoise.
        seed: Seed of the noise.
    """
    backbone, size = segmenter.backbone, segmenter.plan.size
    image = images.load(captioned_image.image)
    errors, baselines = [], []
    with segmenter.inference():
        shown = backbone.fit(image, size)
        latents = backbone.latents([image], shown)
        variance = latents.double().var((0, 2, 3), unbiased=False)
        scheduler = backbone.pipeline.scheduler
        for level in LEVELS:
            timestep = timestep_at(scheduler, level)
            squares = squared_errors(session, latents, [captioned_image.caption], timestep, 1, seed)
            errors.append(float(squares.double().mean()) * latent_error(scheduler, timestep))
            signal, noise = scales(scheduler, timestep)
            baselines.append(float((noise**2 * variance / (signal**2 * variance + noise**2)).mean()))
    return Denoised(captioned_image.id, tuple(errors), tuple(baselines))


def denoising_loss(records: Sequence[Denoised]) -> Figure:
    """(errors of all images / their baselines, mean over levels; its 95 % interval)."""
    errors, baselines = ([getattr(record, name) for record in records] for name in ("errors", "baselines"))
    return ratio(torch.tensor(errors), torch.tensor(baselines))


def measure_loss(
    segmenter: Segmenter, pool: Sequence[Captioned], out: Path, command: Sequence[str]
) -> Generator[Stage | int, None, Figure]:
    """Measure the denoising loss of a model, resuming what the folder has.

    Yields:
        A stage, and 1 for each image that is done.

    Raises:
        GocaError: An image cannot be read or denoised, or the folder is another measurement's.
    """
    backbone = segmenter.backbone
    settings = {
        "levels": list(LEVELS),
        "images": images_of(pool),
        "model": {"name": backbone.name, "weights": fingerprint(backbone.pipeline), "dtype": backbone.dtype},
        "size": segmenter.plan.size,
        "versions": dict(versions()),
    }
    session = backbone.session()
    with RunFolder(out, settings, command, denoised_lines) as folder:
        yield Stage("denoising", len(pool), len(folder.images))
        for seed, each in enumerate(pool):
            if each.id not in folder.images:
                folder.add([denoised(segmenter, session, each, seed)])
                yield 1
        value, bounds = denoising_loss([folder.images[each.id] for each in pool])
        folder.finish({"metrics": {LOSS: value, "ci95": bounds}}, {}, None)
    return value, bounds


def images_of(pool: Sequence[Captioned]) -> dict[str, Any]:
    """The images of a loss, as in a run's settings."""
    return {"count": len(pool), "digest": pool_digest(pool)}


def pool_digest(pool: Sequence[Captioned]) -> str:
    """A digest of images and their captions, in order."""
    return digest([Prompt(each.id, each.caption, seed) for seed, each in enumerate(pool)])


def read_loss(folder: Path, pool: Sequence[Captioned]) -> Figure:
    """The denoising loss of a model that `measure_loss` measured.

    Raises:
        GocaError: The folder does not have these images.
    """
    facts = read_facts(folder)
    records = {record.id: record for record in denoised_lines(folder).read()}
    settings = {} if facts is None else facts["settings"]
    same = (settings.get("images"), settings.get("levels")) == (images_of(pool), list(LEVELS))
    if not same or records.keys() != {each.id for each in pool}:
        raise GocaError(
            f"{folder} does not have the denoising loss of the first {len(pool)} images: use as many images as it has",
            "power_images",
        )
    return denoising_loss([records[each.id] for each in pool])


def read_judgement(path: Path) -> Judgement:
    """Read a judge's findings. Raises GocaError if there are none."""
    if not path.exists():
        raise GocaError(f"there is no {path}: leave out the judge, or name the model instead of its folder", "judge")
    try:
        return Judgement.from_json(read_json(path))
    except ValueError as error:
        raise GocaError(f"{path} does not hold a judgement ({error}): restore it, or name the model", "judge") from None


def denoised_lines(folder: Path) -> JsonLines[Denoised]:
    """The records of a folder of denoised images."""
    return JsonLines(folder / IMAGES, Denoised.from_json, asdict, "an image that was denoised")


def asked_nouns_found(paintings: Sequence[Captioned], dataset: Dataset, judge: Tagger) -> Judgement:
    """Count the captions' classes that the judge finds in the images.

    Args:
        paintings: Images that a model generated, each with its caption.
        dataset: The data set from whose classes the judge chooses.
        judge: Says which classes an image shows.
    """
    if isinstance(judge, BatchTagger):
        judge.prepare(paintings, dataset)
    asked, found = [], []
    for painting in paintings:
        wanted, shown = (
            captioned(text, dataset.categories).classes.keys()
            for text in (painting.caption, judge.tag(painting, dataset))
        )
        asked.append(len(wanted))
        found.append(len(wanted & shown))
    return Judgement(judge.name, pool_digest(paintings), tuple(asked), tuple(found))

"""Folders of images from prompts: missing images are generated, written in layouts that other tools read, and measured.

The folder has images/NAME.png; images/metadata.jsonl, Hugging Face's "imagefolder" layout, once all images are there;
images.jsonl, a line per finished image; and run.json, the run's settings and measurements.
"""

import json
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from goca import bundled
from goca.diffusion.fingerprint import fingerprint
from goca.diffusion.loading import load
from goca.errors import GocaError
from goca.evaluation.generation_metrics import IMAGES, METADATA, Measurement, Meter
from goca.evaluation.prompts import Prompt, digest, read_prompts
from goca.evaluation.run_folder import RunFolder, read_facts
from goca.evaluation.runner import Stage
from goca.generation import GenerationOptions, generate_batch
from goca.guidance import UNGUIDED, guidance_named, guide_arguments, guiding
from goca.imaging.draw import png
from goca.parallel import THIS_PROCESS, Executor, run_units
from goca.storage.atomic import sweep, write_atomic
from goca.storage.json_lines import JsonLines

Batch = tuple[Prompt, ...]


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """What to generate, and how.

    Attributes:
        prompts, limit, seed, same_seed: As for `read_prompts`.
        model: As for `goca.diffusion.loading.load`; so are device and dtype.
        steps, scale, size: As for `GenerationOptions`.
        guide: "none", the name of a recipe, "energy" for guidance without attention, or a rate, a positive number;
            1 is "none" with its effective scale.
        every: Guidance reads attention in every `every`-th step.
        batch: Prompts per call of the pipeline, 1 or more.
        threads: Number of torch threads per process, on a CPU.
    """

    prompts: Path
    limit: int | None = None
    seed: int = 0
    same_seed: bool = False
    model: str = bundled.DEFAULT
    steps: int | None = None
    scale: float | None = None
    size: int | None = None
    guide: str = UNGUIDED
    every: int = 1
    batch: int = 8
    device: str | None = None
    dtype: str | None = None
    threads: int = 1

    def load_prompts(self) -> tuple[Prompt, ...]:
        """The prompts, with their seeds."""
        return read_prompts(self.prompts, self.limit, self.seed, self.same_seed)

    def load_pipeline(self) -> Any:
        """Load the pipeline; on a CPU, this sets torch to `threads` threads."""
        pipeline = load(self.model, self.device, self.dtype)
        pipeline.set_progress_bar_config(disable=True)
        if torch.device(pipeline.device).type == "cpu":
            torch.set_num_threads(self.threads)
        return pipeline

    def load_generator(self) -> "ImageGenerator":
        """Load a generator in this process."""
        return ImageGenerator(self.load_pipeline(), self)

    def settings(self, pipeline: Any, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """Everything that decides the images, as JSON."""
        guide = guidance_named(self.guide)
        return {
            "prompts": {
                "count": len(prompts),
                "digest": digest(prompts),
                "seed": self.seed,
                "same_seed": self.same_seed,
            },
            "model": {"name": self.model, "weights": fingerprint(pipeline), "dtype": str(pipeline.dtype)},
            "scheduler": type(pipeline.scheduler).__name__,
            **{name: getattr(self, name) for name in ("steps", "scale", "size")},
            "guidance": {"guide": guide, "every": self.every if guide != UNGUIDED else None},
            "batch": self.batch,
            "threads": self.threads if torch.device(pipeline.device).type == "cpu" else None,
        }


@dataclass(frozen=True)
class GeneratedRecord:
    """A finished image.

    Attributes:
        effective_scale: The scale at which plain guidance would go as far along its direction, mean over steps; None
            without guidance by goca.
        seconds: The batch's time divided by its images.
    """

    id: str
    prompt: str
    seed: int
    effective_scale: float | None
    seconds: float

    @classmethod
    def from_json(cls, value: Any) -> "GeneratedRecord":
        """The inverse of `asdict`. Raises ValueError for what is not a record."""
        try:
            record = cls(**value)
        except TypeError as error:
            raise ValueError(str(error)) from None
        if not isinstance(record.id, str) or not isinstance(record.prompt, str):
            raise ValueError("what should be text is not")
        return record


@dataclass(frozen=True)
class ImagesGenerated:
    """Images were generated and written."""

    images: Sequence[GeneratedRecord]


@dataclass(frozen=True)
class ImagesMeasured:
    """The images were measured: the end of a run."""

    measurement: Measurement


class ImageGenerator:
    """Generates the images of a batch of prompts with a pipeline and its options."""

    def __init__(self, pipeline: Any, config: GenerationConfig) -> None:
        self._pipeline, self._config = pipeline, config

    def __call__(self, batch: Batch) -> list[tuple[GeneratedRecord, bytes]]:
        """Each image's record and PNG file."""
        config = self._config
        start = time.perf_counter()
        with guiding(self._pipeline, config.guide, config.every) as guided:
            images = generate_batch(
                self._pipeline,
                [prompt.text for prompt in batch],
                [prompt.seed for prompt in batch],
                GenerationOptions(prompt="", steps=config.steps, scale=config.scale, size=config.size),
            )
        scales = _effective_scales(guided, len(batch))
        seconds = round((time.perf_counter() - start) / len(batch), 3)
        records = [
            GeneratedRecord(prompt.id, prompt.text, prompt.seed, scale, seconds)
            for prompt, scale in zip(batch, scales, strict=True)
        ]
        return [(record, png(image)) for record, image in zip(records, images, strict=True)]


def _effective_scales(guided: Any, images: int) -> list[float | None]:
    """The mean effective scale of each image over steps."""
    if guided is None:
        return [None] * images
    if not guided.effective_scales:
        raise GocaError('no step was guided: set the guidance to "none"', "guide")
    return torch.as_tensor(guided.effective_scales, dtype=torch.float64).mean(0).tolist()


def run(
    config: GenerationConfig,
    out: Path,
    executor: Executor = THIS_PROCESS,
    command: Sequence[str] = (),
    meter: Meter | None = None,
    pipeline: Any = None,
) -> Generator[Stage | ImagesGenerated | ImagesMeasured, None, None]:
    """Generate images, resuming what `out` has, then measure them. Close the generator to stop the run early.

    The images depend only on the configuration: batches are the same for any number of workers, and wherever an
    earlier run stopped.

    Args:
        config: What to generate.
        out: The run's folder.
        executor: Where images are generated.
        command: The user's command, for the record.
        meter: What to measure at the end; None for the effective scale only.
        pipeline: The pipeline of `config`, if it is already loaded and the work is done in this process.

    Yields:
        Stages, images as they are written, and finally `ImagesMeasured`.

    Raises:
        GocaError: A part of this cannot be done, or the folder is another run's.
    """
    executor.check()
    prompts = config.load_prompts()
    guide_arguments(config.guide)
    read_facts(out)
    if pipeline is None:
        yield Stage(f"loading {config.model}")
        pipeline = config.load_pipeline()
    guiding(pipeline, config.guide, config.every)  # raises for unsupported guidance before anything is written
    decisive = config.settings(pipeline, prompts)
    paths = {prompt.id: out / IMAGES / f"{prompt.id}.png" for prompt in prompts}
    with RunFolder(out, decisive, command, generated_lines) as folder:
        if folder.images.keys() - paths.keys():
            raise GocaError(
                f"{out} has lines of another run: choose another folder, or start again in an empty one", "out"
            )
        sweep([*paths.values(), out / IMAGES / METADATA])
        batches = [prompts[start : start + config.batch] for start in range(0, len(prompts), config.batch)]
        done = {name for name in folder.images if paths[name].is_file()}
        # An incomplete batch is done again as a whole: an image's last bits may depend on the rest of its batch.
        work = [batch for batch in batches if not {prompt.id for prompt in batch} <= done]
        yield Stage("generating", len(prompts), len(prompts) - sum(map(len, work)))
        make_worker: Callable[[], ImageGenerator]
        if executor.here:
            make_worker = partial(ImageGenerator, pipeline, config)
        else:
            make_worker = config.load_generator
            del pipeline  # each worker has its own
        gpus = config.device in (None, "cuda")
        for generated in run_units(make_worker, work, replace(executor, gpus=gpus)):
            write_atomic({paths[record.id]: content for record, content in generated})
            records = [record for record, _ in generated]
            folder.add(records)
            yield ImagesGenerated(records)
        write_atomic({out / IMAGES / METADATA: _metadata(prompts, folder.images)})
        yield Stage("measuring")
        measurement = (meter or Meter())(out)
        folder.finish({"metrics": measurement.to_json()}, {}, str(executor) if work else None)
    yield ImagesMeasured(measurement)


def generated_lines(folder: Path) -> JsonLines[GeneratedRecord]:
    """The records of a run's images, in the order in which they were done."""
    return JsonLines(folder / "images.jsonl", GeneratedRecord.from_json, asdict, "an image of a run")


def _metadata(prompts: Sequence[Prompt], records: Mapping[str, GeneratedRecord]) -> bytes:
    """A line for each image, in the order of the prompts, as Hugging Face's "imagefolder" reads it."""
    lines = [
        {
            "file_name": f"{prompt.id}.png",
            "text": prompt.text,
            "seed": prompt.seed,
            "effective_scale": records[prompt.id].effective_scale,
        }
        for prompt in prompts
    ]
    return "".join(f"{json.dumps(line)}\n" for line in lines).encode()

"""Computes the golden numbers; `write` writes them (see README.md beside this)."""

import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

from goca import GOCA, RECIPES, Recipe, Segmentation, SegmentationRequest, Segmenter, bundled, trace
from goca.diffusion.loading import load, quiet
from goca.evaluation.ablate import scenes_benchmark
from goca.evaluation.config import EvaluationConfig
from goca.evaluation.evaluator import evaluate_dataset
from goca.evaluation.oracle import OracleTagger
from goca.evaluation.runner import evaluate
from goca.testing.tiny import BUILDERS

FOLDER = Path(__file__).parent


# ---- Everything that is not public, or whose names may change, is between here and the cases.


def raw(recipe: Recipe) -> Recipe:
    """A recipe whose scores are the raw class scores of `recipe`: neither rescaled nor refined."""
    return replace(recipe, rescale=(), refine=(), order=0)


def ask(segmenter: Segmenter, image: Any, classes: Any, context: Any = (), **options: Any) -> Segmentation:
    return segmenter(image, classes, background_classes=context, **options)


def ask_all(segmenter: Segmenter, scenes: list[Any], **options: Any) -> list[Segmentation]:
    """As `ask`, scene after scene, in batches, which take less time."""
    questions = [SegmentationRequest(scene.image, scene.classes, (), **options) for scene in scenes]
    return [result for _, result in segmenter.stream(questions)]


def maps(result: Segmentation) -> dict[str, np.ndarray]:
    scores = {
        "scores": result.scores.grid,
        "background": result.scores.background,
        "ensemble_std": result.scores.ensemble_std,
    }
    return {name: value for name, value in scores.items() if value is not None}


def background_scores(result: Segmentation) -> np.ndarray:
    """The score of "none of the classes" at every pixel."""
    rule = result.plan.background
    height, width = result.labels.shape
    background = torch.zeros(1, 1, height, width)
    if result.scores.background is not None:
        background = interpolate(
            torch.from_numpy(result.scores.background)[None, None], (height, width), mode="bilinear"
        )
    return rule.rule(rule.threshold, background[0, 0]).numpy()


def without_background(segmenter: Segmenter, limit: int) -> list[float]:
    """mIoU and the ends of its interval, where every pixel gets a class."""
    dataset, protocol = scenes_benchmark(limit=limit)
    score = evaluate_dataset(segmenter, dataset, OracleTagger(), protocol).score()
    return [score.miou, *score.ci95]


def with_background(recipe: str, stuff: tuple[str, ...], limit: int) -> dict[str, list[float]]:
    """mIoU and the ends of its interval under both labellings of the report, and mIoU along the sweep; `stuff` counts
    as background.
    """
    switches = ("threshold=oracle",)
    config = EvaluationConfig(dataset="scenes", as_background=stuff, limit=limit, switches=switches, recipe=recipe)
    metrics = evaluate(replace(config, threads=torch.get_num_threads())).report.metrics()
    fixed = metrics["fixed_threshold"]
    return {
        "oracle": [metrics["miou"], *metrics["ci95"], metrics["oracle_threshold"]["threshold"]],
        "fixed": [fixed["miou"], *fixed["ci95"]],
        "sweep": [entry["miou"] for entry in metrics["sweep"]],
        "accuracy": [metrics["pixel_accuracy"], metrics["frequency_weighted_iou"]],
    }


def bundled_pipeline() -> Any:
    return load("bundled", None, None, None, None)


SWITCHES: Mapping[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "refine_edges": ({"refine_edges": True}, {}),
    "context": ({}, {"context": ["wood", "sky"], "classes": ["airplane", "cat"]}),
    "flip": ({"flip": True}, {}),
    "timesteps": ({"timestep": (100, 300, 500)}, {}),
    "seeds": ({"seeds": 2}, {}),
    "seed": ({"seed": 7}, {}),
    "window": ({"window": True}, {}),
    "caption": ({}, {"caption": "a cat and an airplane on wood and the sky"}),
    "no background": ({}, {"background": None}),
    "threshold": ({}, {"background": 0.4}),
    "synonyms": ({}, {"classes": {"cat": ["dog"], "sky": []}}),
    "one class": ({}, {"classes": ["cat"], "context": ["grass", "sky", "road"]}),
    "all": (
        {"refine_edges": True, "flip": True, "timestep": (200, 300), "seeds": 2, "window": True},
        {"context": ["wood", "sky"], "classes": ["airplane", "cat"]},
    ),
}
"""{case: (what the segmenter is made with, what it is asked)}."""


# ---- Cases


@dataclass
class Numbers:
    """What a case computes. leads: of each array of labels, how far the best score is ahead of the second best at every
    pixel, where that is known.
    """

    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    leads: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, name: str, value: Any) -> None:
        array = np.asarray(value)
        self.arrays[name] = array.astype(np.float32) if array.ndim > 1 else array

    def add_labels(self, name: str, result: Segmentation) -> None:
        self.arrays[name] = result.labels.astype(np.uint8)
        rivals = np.concatenate([background_scores(result)[None], result.scores.at(result.labels.shape)])
        second, first = np.sort(rivals, axis=0)[-2:]
        self.leads[name] = first - second


SCENES = 10
FEW = 3
"""Scenes of which more is stored than the labels."""
EVERY_MAP = ("goca", "vanilla", "goca-balanced")
"""The recipes whose scores are stored for all scenes."""
UNSUPPORTED = ("fttm", "concept-attention")
"""By the bundled pipeline, which lacks their blocks."""
STUFF = ("brick", "grass", "road", "sand", "sky", "snow", "water", "wood")
STRIDE = 3
LOGITS = tuple(
    f"{attention}.{layer}.weight" for attention in ("attn1", "attn2") for layer in ("to_q", "to_k", "norm_q", "norm_k")
)
"""What makes attention between pixels, and from pixels to words, sharp; joint attention needs no help."""
SHARPER = 8.0


def scenes() -> list[Any]:
    return list(islice(bundled.scenes(), SCENES))


def recipe_case(name: str) -> Numbers:
    numbers = Numbers()
    segmenter = Segmenter.from_pretrained("bundled", recipe=name)
    for index, result in enumerate(ask_all(segmenter, scenes(), background=None)):
        numbers.add_labels(f"{index}/labels", result)
        if name in EVERY_MAP or index < FEW:
            numbers.add(f"{index}/scores", result.scores.grid)
    for index, result in enumerate(ask_all(segmenter, scenes()[:FEW])):
        numbers.add_labels(f"{index}/labels with background", result)
    without_rescaling = Segmenter.from_pretrained("bundled", recipe=raw(RECIPES[name]))
    for index, result in enumerate(ask_all(without_rescaling, scenes()[:FEW])):
        numbers.add(f"{index}/raw", [result.scores.grid.mean((1, 2)), result.scores.grid.max((1, 2))])
    if name == "goca":
        numbers.add("no background", without_background(segmenter, SCENES))
    for labelling, values in with_background(name, STUFF, SCENES).items():
        numbers.add(labelling, values)
    return numbers


def switch_case(name: str) -> Numbers:
    numbers = Numbers()
    settings, options = SWITCHES[name]
    scene = scenes()[6]
    image = scene.image.resize((112, 80)) if "window" in settings else scene.image
    result = ask(Segmenter.from_pretrained("bundled", GOCA, **settings), image, **{"classes": scene.classes, **options})
    for kind, values in maps(result).items():
        numbers.add(kind, values)
    numbers.add_labels("labels", result)
    if "refine_edges" in settings:
        # Its labels follow other scores, which no result tells.
        del numbers.leads["labels"]
    return numbers


@torch.no_grad()
def sharp(pipeline: Any) -> Any:
    """A tiny pipeline whose attention tells pixels apart: queries and keys are longer, or what scales them once they
    are normalised. As built, its maps are so flat that min-max makes 1e-2 of float32's rounding.
    """
    denoiser = getattr(pipeline, "transformer", None) or pipeline.unet
    for name, parameter in denoiser.named_parameters():
        if name.endswith(LOGITS):
            parameter.mul_(SHARPER)
    return pipeline


def image() -> Image.Image:
    coarse = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((96, 64), Image.Resampling.BICUBIC)


def tiny_case(name: str) -> Numbers:
    numbers = Numbers()
    with quiet():
        pipeline = BUILDERS[name]()
        # Raw scores are steady as the pipeline was built; refined ones need the sharper attention.
        for prefix, prepare, recipe in (("raw ", lambda plain: plain, raw(GOCA)), ("", sharp, GOCA)):
            segmenter = Segmenter.from_pipeline(prepare(pipeline), recipe=recipe, size=64)
            result = ask(segmenter, image(), ["cat", "traffic light"], ["sky"])
            for kind, values in maps(result).items():
                numbers.add(prefix + kind, values[..., ::STRIDE, ::STRIDE])
    return numbers


def trace_case(make: Callable[[], Any], recipe: str, stride: int, **options: Any) -> Numbers:
    numbers = Numbers()
    with quiet():
        pipeline = make()
        pipeline.set_progress_bar_config(disable=True)
        with trace(pipeline, recipe=recipe) as tr:
            pipeline(
                ["cat, grass, sky", "dog, snow"],
                num_inference_steps=3,
                generator=[torch.Generator().manual_seed(seed) for seed in (3, 5)],
                **options,
            )
    for index, traced in enumerate(tr.images):
        words = [str(word) for word in traced.words()]
        for word in words:
            numbers.add(f"{index}/map of {word}", traced.map(word)[::stride, ::stride])
        result = traced.segment(words)
        numbers.add(f"{index}/scores", result.scores.grid[:, ::stride, ::stride])
        numbers.add_labels(f"{index}/labels", result)
        numbers.add(f"{index}/layers", [list(step.layers.values()) for step in traced.steps])
        heads = [[weight for layer in step.heads.values() for weight in layer] for step in traced.steps]
        numbers.add(f"{index}/heads", heads)
    return numbers


TRACES: Mapping[str, Callable[[], Numbers]] = {
    "bundled, goca": lambda: trace_case(bundled_pipeline, "goca", 1),
    "bundled, diffsegmenter": lambda: trace_case(bundled_pipeline, "diffsegmenter", 1),
    "sd15, goca": lambda: trace_case(lambda: sharp(BUILDERS["sd15"]()), "goca", STRIDE, height=64, width=96),
    "flux, goca": lambda: trace_case(BUILDERS["flux"], "goca", STRIDE, height=64, width=96),
    "flux, diffsegmenter": lambda: trace_case(BUILDERS["flux"], "diffsegmenter", STRIDE, height=64, width=96),
}


def _each(case: Callable[[str], Numbers], names: Any) -> dict[str, Callable[[], Numbers]]:
    return {name: lambda name=name: case(name) for name in names}  # type: ignore[misc]


FILES: Mapping[str, Mapping[str, Callable[[], Numbers]]] = {
    "recipes": _each(recipe_case, (name for name in RECIPES if name not in UNSUPPORTED)),
    "switches": _each(switch_case, SWITCHES),
    "tiny": _each(tiny_case, BUILDERS),
    "traces": TRACES,
}
"""{file: {case: computes its numbers}}."""


def processor() -> str:
    """What computes here: on another model of CPU, or with other instructions, float32 rounds otherwise."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return f"{names[0].partition(':')[2].strip() if names else 'unknown'}, {torch.backends.cpu.get_cpu_capability()}"


def stored(file: str) -> dict[str, dict[str, np.ndarray]]:
    """{case: {name: array}} of a file."""
    cases: dict[str, dict[str, np.ndarray]] = {}
    with np.load(FOLDER / f"{file}.npz") as arrays:
        for name, array in arrays.items():
            case, _, number = name.partition("/")
            cases.setdefault(case, {})[number] = array
    return cases


def write(only: Collection[str] = ()) -> None:
    """Write the files: every case, or only those named FILE:CASE, beside which nothing moves."""
    for file, cases in FILES.items():
        chosen = {name: case for name, case in cases.items() if not only or f"{file}:{name}" in only}
        if chosen:
            kept = {name: numbers for name, numbers in stored(file).items() if only and name not in chosen}
            kept |= {name: case().arrays for name, case in chosen.items()}
            arrays = {f"{name}/{number}": array for name, numbers in kept.items() for number, array in numbers.items()}
            np.savez_compressed(FOLDER / f"{file}.npz", **arrays)
    if not only:
        (FOLDER / "processor.txt").write_text(processor() + "\n")


if __name__ == "__main__":
    import preparation  # noqa: F401 - one thread, and a torchvision for the pipelines that ask for one

    write(sys.argv[1:])

"""`goca scaling`: the loss by hand, the claim by hand, a study that goes on, and what is refused before it begins."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from commands import Outcome
from PIL import Image
from test_clip_tagger import tiny_clip

from goca import GocaError, Segmenter
from goca.diffusion.timesteps import add_noise, latent_error, scales, target, timestep_at
from goca.evaluation.config import EvaluationConfig
from goca.evaluation.datasets import open_dataset
from goca.evaluation.plot import plot_scaling
from goca.evaluation.power import (
    LEVELS,
    Captioned,
    Denoised,
    Power,
    asked_nouns_found,
    denoised,
    denoising_loss,
    read_judgement,
    read_power,
)
from goca.evaluation.protocol import honest
from goca.evaluation.records import ImageRecord
from goca.evaluation.report import Report
from goca.evaluation.runner import Stage
from goca.evaluation.scaling import ScalingConfig, run
from goca.evaluation.scaling_study import ScalingStudy, compared
from goca.testing.tiny import BUILDERS

Goca = Callable[..., Outcome]
SIDE = 64


def scheduler(kind: str) -> Any:
    return SimpleNamespace(
        config=SimpleNamespace(prediction_type=kind), alphas_cumprod=torch.tensor([0.99, 0.64, 0.36])
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three images with cats on the left and grass on the right."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "classes.txt").write_text("cat\ngrass\n")
    for seed in range(3):
        coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(folder / f"{seed}.jpg")
        labels = np.ones((SIDE, SIDE), np.uint8)
        labels[:, SIDE // 2 + 4 * seed :] = 2
        Image.fromarray(labels).save(folder / f"{seed}.labels.png")
    return folder


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny models of one kind, and a CLIP."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("small", "large"):
        pipeline = BUILDERS["sd15"]()
        if name == "large":
            with torch.no_grad():
                for weight in pipeline.unet.parameters():
                    weight.mul_(1.1)
        pipeline.save_pretrained(folder / name)
    tiny_clip(folder / "clip")
    return folder


# --- The loss


def test_noise_levels_and_error_scales_by_hand() -> None:
    assert scales(scheduler("epsilon"), 1) == pytest.approx((0.8, 0.6))
    # The noise's shares are 0.6 / 1.4 = 0.43 and 0.8 / 1.4 = 0.57.
    assert [timestep_at(scheduler("epsilon"), level) for level in (0.4, 0.55, 0.9)] == [1, 2, 2]
    assert timestep_at(scheduler("flow_prediction"), 0.35) == 350


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample", "flow_prediction"])
def test_the_same_guess_is_the_same_error_in_every_parametrisation(kind: str) -> None:
    """A model that takes the latent for one that is off by `wrong` errs by the square of that, whatever it predicts."""
    latent = torch.randn(1, 3, 5, 7, generator=torch.Generator().manual_seed(1))
    wrong, timestep = 0.3 + torch.rand(latent.shape), 1
    signal, noise = scales(scheduler(kind), timestep)
    noisy = add_noise(scheduler(kind), latent, timestep, seed=4)
    guess = latent + wrong
    guessed_noise = (noisy - signal * guess) / noise
    prediction = {
        "epsilon": guessed_noise,
        "v_prediction": signal * guessed_noise - noise * guess,
        "sample": guess,
        "flow_prediction": guessed_noise - guess,
    }[kind]
    squares = (prediction - target(scheduler(kind), latent, timestep, seed=4)).square() * latent_error(
        scheduler(kind), timestep
    )
    torch.testing.assert_close(squares, wrong.square(), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("off", [0.0, 0.5])
def test_a_loss_by_hand(root: Path, off: float) -> None:
    """A denoiser that always knows the latent, but for `off` everywhere."""
    pipeline = BUILDERS["sd15"]()
    segmenter = Segmenter.from_pipeline(pipeline, "vanilla", size=SIDE)
    picture = Image.open(root / "0.jpg")
    clean = segmenter.backbone.latents([picture], (SIDE, SIDE))

    def answer(module: Any, args: Any, output: Any) -> Any:
        signal, noise = scales(pipeline.scheduler, int(args[1]))
        return ((args[0] - signal * (clean + off)) / noise,)

    handle = pipeline.unet.register_forward_hook(answer)
    record = denoised(segmenter, segmenter.backbone.session(), Captioned("0", root / "0.jpg", "cat, grass"), seed=2)
    handle.remove()
    assert record.errors == pytest.approx([off**2] * len(LEVELS), abs=1e-4)
    variance = clean.double().numpy().var((0, 2, 3))
    for level, baseline in zip(LEVELS, record.baselines, strict=True):
        signal, noise = scales(pipeline.scheduler, timestep_at(pipeline.scheduler, level))
        assert baseline == pytest.approx(np.mean(noise**2 * variance / (signal**2 * variance + noise**2)), rel=1e-4)
        assert noise / (signal + noise) == pytest.approx(level, abs=0.01)
    assert denoising_loss([record])[0] == pytest.approx(np.mean(off**2 / np.array(record.baselines)), abs=1e-3)


def test_the_loss_of_several_images_by_hand() -> None:
    records = [Denoised("a", (1.0,) * 5, (2.0,) * 5), Denoised("b", (0.5, 2.0, 2.0, 2.0, 2.0), (4.0,) * 5)]
    value, (low, high) = denoising_loss(records)
    assert value == pytest.approx((1.5 / 6 + 4 * 3 / 6) / 5)
    # Of two images drawn, both may be the first or the second.
    assert (low, high) == pytest.approx(sorted([0.5, (0.125 + 4 * 0.5) / 5]))


def test_asked_nouns_found_by_hand(root: Path) -> None:
    said = {"a": "grass", "b": "cat, cat, dog", "c": ""}
    judge = SimpleNamespace(name="judge", tag=lambda sample, dataset: said[sample.id])
    asked = {"a": "cat, grass", "b": "cat", "c": "grass"}
    paintings = [Captioned(name, root, caption) for name, caption in asked.items()]
    judgement = asked_nouns_found(paintings, open_dataset("folder", root), judge)
    assert (judgement.judge, judgement.asked, judgement.found) == ("judge", (2, 1, 1), (1, 1, 0))
    assert judgement.share[0] == pytest.approx(2 / 4)


# --- The claim


def study(values: dict[str, float], **mious: tuple[float, ...]) -> ScalingStudy:
    """Of models with these values of a measure, and a recipe's IoU of one class in each."""
    dataset = replace(open_dataset("scenes", None), samples=())
    reports = {}
    for recipe, each in mious.items():
        for label, value in zip(values, each, strict=True):
            hit = round(100 * value)
            counts = {"none": ((1, 1, hit), (1, 0, 100 - hit))}
            images = tuple(ImageRecord(str(index), counts=counts) for index in range(3))
            reports[label, recipe, 0] = Report(dataset.class_names, honest(dataset, "oracle"), images)
    return compared({label: label for label in values}, [Power("FID", False, values)], reports)


def test_slopes_ranks_and_gaps_by_hand() -> None:
    found = study({"weak": 30.0, "strong": 10.0, "middle": 20.0}, vanilla=(0.5, 0.4, 0.5), goca=(0.4, 0.8, 0.6))
    assert found.scores["strong"]["goca"].miou == pytest.approx(0.8)
    vanilla, goca = found.trends
    assert (vanilla.recipe, goca.recipe, goca.range) == ("vanilla", "goca", 20)
    assert goca.slope[0] == pytest.approx(0.02)
    assert goca.rank_correlation[0] == pytest.approx(1)
    assert vanilla.slope[0] == pytest.approx(-0.005)
    # Ranks 2.5, 1, 2.5 of the one and 1, 3, 2 of the other.
    assert vanilla.rank_correlation[0] == pytest.approx(-(3**0.5) / 2)
    (gap,) = found.gaps
    assert (gap.recipe, gap.base, gap.weakest, gap.strongest) == ("goca", "vanilla", "weak", "strong")
    assert [figure[0] for figure in (gap.at_weakest, gap.at_strongest, gap.change)] == pytest.approx([-0.1, 0.4, 0.5])
    # The images are alike, so no resample differs.
    assert gap.change[1] == pytest.approx((0.5, 0.5))


def test_models_that_are_all_alike_support_no_claim() -> None:
    assert study({"one": 3.0, "two": 3.0}, vanilla=(0.4, 0.5)).trends == ()
    flat = study({"one": 3.0, "two": 4.0}, vanilla=(0.5, 0.5)).to_json()
    assert flat["trends"][0]["slope"] == [0, [0, 0]]
    assert flat["trends"][0]["rank_correlation"] == [None, [None, None]]


def test_images_that_one_run_left_out_count_in_none() -> None:
    dataset = replace(open_dataset("scenes", None), samples=())
    whole, half = ({"none": ((1, 1, hit), (1, 0, 100 - hit))} for hit in (100, 50))
    images = (ImageRecord("a", counts=whole), ImageRecord("b", counts=half))
    first = Report(dataset.class_names, honest(dataset, "oracle"), images)
    second = replace(first, images=(images[0], ImageRecord("b", left_out="it is broken")))
    found = compared({"m": "m"}, [Power("FID", False, {"m": 1.0})], {("m", "x", 0): first, ("m", "y", 0): second})
    assert found.left_out == ("b",)
    assert found.scores["m"]["x"].miou == 1


@pytest.mark.parametrize("name", ["plot.png", "plot.svg"])
def test_a_plot_of_many_models_that_are_close(tmp_path: Path, name: str) -> None:
    values = {f"model number {index}": 20 + index / 100 for index in range(9)}
    found = study(values, vanilla=tuple(0.3 + index / 100 for index in range(9)))
    plot_scaling(found, tmp_path / name)
    if name.endswith("png"):
        with Image.open(tmp_path / name) as drawn:
            assert drawn.width > 600
    else:
        assert "<svg" in (tmp_path / name).read_text()


# --- A study


def command(root: Path, pipelines: Path, out: Path, *more: str | Path) -> list[str | Path]:
    models = ["scaling", pipelines / "small", f"big={pipelines / 'large'}"]
    data = ["--dataset", "folder", "--root", root, "--recipes", "vanilla,GOCA", "--seeds", "2", "--out", out]
    return [*models, *data, *more]


def config(root: Path, pipelines: Path) -> ScalingConfig:
    models = {"small": str(pipelines / "small"), "big": str(pipelines / "large")}
    evaluation = EvaluationConfig(dataset="folder", root=root, batch=1)
    return ScalingConfig(models=models, evaluation=evaluation, recipes=("vanilla", "goca"), seeds=2, power_images=2)


def test_a_study_of_two_models(goca: Goca, root: Path, pipelines: Path, tmp_path: Path) -> None:
    power = tmp_path / "fid.json"
    power.write_text(json.dumps({"name": "FID", "better": "lower", "values": {"small": 40, "big": 20.5}}))
    more = ("--judge", pipelines / "clip", "--steps", "2", "--power-images", "2", "--power", power)
    done = goca(*command(root, pipelines, tmp_path / "out", *more))
    assert (done.code, done.err) == (0, "")
    told = json.loads((tmp_path / "out" / "scaling.json").read_text())
    assert [measure["name"] for measure in told["powers"]] == ["denoising loss", "asked nouns found", "FID"]
    assert told["judge"].startswith("clip clip (")
    assert list(told["scores"]) == ["small", "big"]
    for scores in told["scores"].values():
        assert list(scores) == ["vanilla", "goca"]
        for score in scores.values():
            assert score["miou"] == pytest.approx(np.mean(score["seeds"]))
            assert len(set(score["seeds"])) == 2
    assert {trend["power"] for trend in told["trends"]} >= {"denoising loss", "FID"}
    for text in (
        "denoising loss",
        "20.500",
        "gain over vanilla with the weakest (small) and the strongest generator (big)",
    ):
        assert text in done.out
    with Image.open(tmp_path / "out" / "scaling.png") as drawn:
        assert drawn.width > 1500
    assert "<svg" in (tmp_path / "out" / "scaling.svg").read_text()
    assert len(list((tmp_path / "out" / "big" / "paintings" / "images").glob("*.png"))) == 2


def test_a_study_that_was_stopped_anywhere_goes_on(root: Path, pipelines: Path, tmp_path: Path) -> None:
    setting = replace(config(root, pipelines), recipes=("vanilla",), seeds=1)
    events = list(run(setting, tmp_path / "whole"))
    whole = (tmp_path / "whole" / "scaling.json").read_text()
    for stop in (len(events) // 3, len(events) - 3):  # in the loss of the first, in the run of the last
        events_again = run(setting, tmp_path / f"{stop}")
        for _ in range(stop):
            next(events_again)
        events_again.close()
        assert not (tmp_path / f"{stop}" / "scaling.json").exists()
        images = sum(event for event in run(setting, tmp_path / f"{stop}") if isinstance(event, int))
        assert (tmp_path / f"{stop}" / "scaling.json").read_text() == whole
        before = sum(event for event in events[:stop] if isinstance(event, int))
        assert images == sum(event for event in events if isinstance(event, int)) - before


def test_a_folder_of_another_study_is_refused(root: Path, pipelines: Path, tmp_path: Path) -> None:
    alone = replace(config(root, pipelines), models={"small": str(pipelines / "small")}, recipes=("vanilla",), seeds=1)
    list(run(alone, tmp_path))
    swapped = replace(alone, models={"small": str(pipelines / "large")})
    with pytest.raises(GocaError, match=r"differs in .*model"):
        list(run(swapped, tmp_path))


@pytest.fixture(scope="module")
def measured(root: Path, pipelines: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of one model, judged."""
    out = tmp_path_factory.mktemp("elsewhere")
    alone = replace(config(root, pipelines), models={"big": str(pipelines / "large")}, seeds=1, steps=2)
    judge = SimpleNamespace(name="judge", tag=lambda sample, dataset: "cat")
    list(run(alone, out, judge=judge))
    return out / "big"


def test_a_model_that_was_measured_elsewhere(root: Path, pipelines: Path, measured: Path, tmp_path: Path) -> None:
    """Measured apart and put together, figures are those of a study that measures both, without loading it again."""
    judge = SimpleNamespace(name="judge", tag=lambda sample, dataset: "cat")
    both = replace(config(root, pipelines), seeds=1, steps=2)
    *_, whole = run(both, tmp_path / "whole", judge=judge)
    joined = replace(both, models={**both.models, "big": str(measured)})
    events = list(run(joined, tmp_path / "joined", judge=judge))
    assert not [event for event in events if isinstance(event, Stage) and event.name.startswith("big")]
    assert isinstance(whole, ScalingStudy)
    assert replace(events[-1], models=whole.models) == whole


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"power_images": 1}, "use as many images as it has"),
        ({"seeds": 2}, "not measured with vanilla and seed 1"),
        ({"recipes": ("daam",)}, "not measured with daam"),
        ({"steps": 3, "judge": "judge"}, "other options"),
        ({"evaluation": "limit"}, "was measured differently"),
        ({"judge": "another"}, "has another judge"),
    ],
)
def test_figures_of_something_else_are_refused(
    root: Path, pipelines: Path, measured: Path, tmp_path: Path, asked: dict[str, Any], told: str
) -> None:
    asked = dict(asked)
    name = asked.pop("judge", None)
    judge = name and SimpleNamespace(name=name, tag=lambda sample, dataset: "cat")
    alone = replace(config(root, pipelines), models={"big": str(measured)}, seeds=1, steps=2)
    if asked.get("evaluation") == "limit":
        asked["evaluation"] = replace(alone.evaluation, limit=2)
    with pytest.raises(GocaError, match=told):
        list(run(replace(alone, **asked), tmp_path, judge=judge))


@pytest.mark.parametrize(
    "content", ["[]", '{"judge": "j", "images": "i", "asked": [1], "found": [], "steps": null, "scale": null}', None]
)
def test_a_judgement_that_cannot_be_read_is_one_line(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "judgement.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(GocaError, match="name the model"):
        read_judgement(path)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (("--dataset", "folder"), "--root"),
        (("--dataset", "folder", "--root", "nowhere"), "nowhere"),
        (("--power", "nowhere.json"), "nowhere.json"),
        (("--judge", "nowhere"), 'no model "nowhere"'),
        (("--protocol", "paper"), 'no "paper" protocol'),
        (("--recipes", ""), 'no recipe ""'),
        (("Bundled=bundled",), "two models have the label"),
        (("x/=bundled",), "cannot be a folder name"),
        (("x=study",), "study is a whole study: name a model's folder in it, big, small"),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    goca: Goca, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wrong: tuple[str, ...], told: str
) -> None:
    def load(*args: Any, **options: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(EvaluationConfig, "load_segmenter", load)
    for label in ("small", "big"):
        Path("study", label, "denoising").mkdir(parents=True)
    Path("study/scaling.json").write_text("{}")
    assert told in goca("scaling", "bundled", *wrong).mistake()


def test_a_machine_without_matplotlib_is_told_before_anything_is_measured(
    goca: Goca, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install matplotlib" in goca("scaling", "bundled", "--out", tmp_path / "out").mistake()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([1], "does not hold a measure"),
        ({"name": "FID", "better": "smaller", "values": {"m": 1}}, "does not hold a measure"),
        ({"name": "FID", "better": "lower", "values": {"n": 1}}, 'no number for "m"'),
        ({"name": "FID", "better": "lower", "values": {"m": "1"}}, 'no number for "m"'),
    ],
)
def test_a_file_that_is_no_measure(tmp_path: Path, content: Any, told: str) -> None:
    (tmp_path / "power.json").write_text(json.dumps(content))
    with pytest.raises(GocaError, match=told):
        read_power(tmp_path / "power.json", ["m"])

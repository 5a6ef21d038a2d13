"""Folders of images from prompts: what is read, how a run goes on, and what is measured of the images."""

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from itertools import count, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from commands import Outcome
from PIL import Image
from test_clip_tagger import tiny_clip
from test_runs import kill_at_every_step
from torch import Tensor, nn

from goca import GocaError, bundled
from goca.evaluation.generated_images import GenerationConfig, ImagesGenerated, ImagesMeasured, run
from goca.evaluation.generation_metrics import Meter, ModelFeatures, open_folder
from goca.evaluation.metrics import mean
from goca.evaluation.prompts import Prompt, read_prompts
from goca.generation import Generated, GenerationOptions, generate
from goca.guidance import guide_arguments
from goca.parallel import Executor
from goca.testing.tiny import BUILDERS
from training import namer

TEXTS = ("a cat", "a dog on the sand", "water, sky", "a bus", "snow")
needs_torchmetrics = pytest.mark.skipif(find_spec("torchmetrics") is None, reason="torchmetrics is not installed")


class FakePipeline:
    """Paints a colour that prompt and seed decide; who shares its batch shows, as it may in a real one."""

    device, dtype, components = torch.device("cpu"), torch.float32, {}
    scheduler = SimpleNamespace()

    def __call__(
        self, prompt: Sequence[str], generator: Sequence[torch.Generator], height: int = 16, width: int = 16
    ) -> Any:
        images = []
        for text, drawn in zip(prompt, generator, strict=True):
            colour = torch.randint(200, (3,), generator=drawn) + len(text)
            canvas = np.full((height, width, 3), colour, np.uint8)
            canvas[0, 0, 0] = len(prompt)
            images.append(Image.fromarray(canvas))
        return SimpleNamespace(images=images)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GenerationConfig, "load_pipeline", lambda config: FakePipeline())


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("\n\n".join(TEXTS))
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("models") / "clip")


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def painted(folder: Path, colours: Sequence[Sequence[int]], size: tuple[int, int] = (17, 19)) -> Path:
    """A folder of plain images, named by their order."""
    folder.mkdir(parents=True)
    for number, colour in enumerate(colours):
        Image.new("RGB", size, tuple(colour)).save(folder / f"{number}.png")
    return folder


def described(folder: Path, **columns: Sequence[Any]) -> Path:
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    lines = [json.dumps({"file_name": f"{number}.png", **row}) for number, row in enumerate(rows)]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


# ---- prompts


def coco(path: Path) -> Path:
    entries = [(7, 31, "Second of seven."), (7, 30, "First of\nseven. "), (2, 99, "Two.")]
    annotations = [{"image_id": image, "id": name, "caption": text} for image, name, text in entries]
    path.write_text(json.dumps({"images": [], "annotations": annotations}))
    return path


def test_prompts_of_each_kind_of_file(tmp_path: Path) -> None:
    expected = (Prompt("000000", "a cat", 5), Prompt("000001", "two dogs", 6))
    contents = {
        "a.txt": "a cat\n\n  two  dogs \n",
        "b.json": json.dumps(["a cat", {"prompt": "two dogs"}]),
        "c.jsonl": '{"text": "a cat", "tag": 1}\n{"caption": "two dogs"}\n',
    }
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
        assert read_prompts(tmp_path / name, seed=5) == expected
        assert read_prompts(tmp_path / name, limit=1, seed=5) == expected[:1]
    assert [prompt.seed for prompt in read_prompts(tmp_path / "a.txt", seed=42, same_seed=True)] == [42, 42]


def test_captions_of_coco_are_named_after_their_images(tmp_path: Path) -> None:
    """An image's first caption is the one with the least id, and images come in the order of theirs."""
    assert read_prompts(coco(tmp_path / "captions_val.json")) == (
        Prompt("000000000002", "Two.", 0),
        Prompt("000000000007", "First of seven.", 1),
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.txt", None, "no such file"),
        ("blank.txt", "\n \n", "has no prompt"),
        ("list.json", '["a cat", 3]', "entry 2 is not a prompt"),
        ("list.json", "7", "is not a list of prompts"),
        ("lines.jsonl", '"a cat"\n{"title": "x"}\n', "line 2 is not a prompt"),
        ("coco.json", '{"annotations": [{"image_id": 1}]}', "is not COCO's captions"),
        ("coco.json", '{"images": []}', "is not COCO's captions"),
    ],
)
def test_what_is_no_file_of_prompts(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(GocaError, match=message) as error:
        read_prompts(tmp_path / name)
    assert error.value.hint == "prompts"


# ---- runs


def test_what_a_run_leaves(fake: None, prompts: Path, tmp_path: Path) -> None:
    config = GenerationConfig(prompts=prompts, limit=3, batch=2, seed=40, size=32)
    *_, finished = run(config, tmp_path / "run", command=["evaluate-generation"])
    assert isinstance(finished, ImagesMeasured)
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {"images", "images.jsonl", "run.json"}
    written = files(tmp_path / "run/images")
    assert sorted(written) == ["000000.png", "000001.png", "000002.png", "metadata.jsonl"]
    assert [json.loads(line) for line in written["metadata.jsonl"].splitlines()] == [
        {"file_name": f"{index:06d}.png", "text": TEXTS[index], "seed": 40 + index, "effective_scale": None}
        for index in range(3)
    ]
    with Image.open(tmp_path / "run/images/000001.png") as image:
        colour = torch.randint(200, (3,), generator=torch.Generator().manual_seed(41)) + len(TEXTS[1])
        assert image.size == (32, 32)
        assert image.getpixel((5, 5)) == tuple(colour.tolist())
    records = [json.loads(line) for line in (tmp_path / "run/images.jsonl").read_text().splitlines()]
    assert [(row["id"], row["prompt"], row["seed"]) for row in records] == [
        (f"{index:06d}", TEXTS[index], 40 + index) for index in range(3)
    ]
    facts = json.loads((tmp_path / "run/run.json").read_text())
    assert facts["state"] == "finished"
    assert facts["metrics"] == {"images": 3, "notes": []}
    assert facts["settings"]["prompts"]["count"] == 3


def test_a_run_that_was_killed_anywhere_ends_like_another(fake: None, prompts: Path, tmp_path: Path) -> None:
    config = GenerationConfig(prompts=prompts, batch=2)
    list(run(config, tmp_path / "whole"))
    whole = files(tmp_path / "whole/images")
    folders = (tmp_path / "killed" / str(index) for index in count())
    killed = 0
    for folder in kill_at_every_step(lambda folder: list(run(config, folder)), folders):
        killed += 1
        list(run(config, folder))
        assert files(folder / "images") == whole
        assert json.loads((folder / "run.json").read_text())["state"] == "finished"
    # Five images, each written and renamed, at least.
    assert killed >= 10


def test_only_what_is_missing_is_generated(fake: None, prompts: Path, tmp_path: Path) -> None:
    config = GenerationConfig(prompts=prompts, batch=2)
    told = run(config, tmp_path / "run")
    while not isinstance(next(told), ImagesGenerated):
        pass
    told.close()
    with pytest.raises(GocaError, match="is not a finished run"):
        Meter()(tmp_path / "run")
    again = [event for event in run(config, tmp_path / "run") if isinstance(event, ImagesGenerated)]
    assert [[image.id for image in event.images] for event in again] == [["000002", "000003"], ["000004"]]
    before = files(tmp_path / "run/images")
    (tmp_path / "run/images/000003.png").unlink()
    again = [event for event in run(config, tmp_path / "run") if isinstance(event, ImagesGenerated)]
    assert [[image.id for image in event.images] for event in again] == [["000002", "000003"]]
    assert files(tmp_path / "run/images") == before
    assert not [event for event in run(config, tmp_path / "run") if isinstance(event, ImagesGenerated)]


@pytest.mark.parametrize(
    ("change", "difference"),
    [({"seed": 1}, "seed"), ({"limit": 2}, "count"), ({"batch": 3}, "batch"), ({"steps": 7}, "steps")],
)
def test_a_folder_of_other_images_is_refused(
    fake: None, prompts: Path, tmp_path: Path, change: dict[str, int], difference: str
) -> None:
    list(run(GenerationConfig(prompts=prompts), tmp_path / "run"))
    before = files(tmp_path / "run/images")
    with pytest.raises(GocaError, match=rf"holds a run that differs in .*{difference}"):
        list(run(GenerationConfig(prompts=prompts, **change), tmp_path / "run"))
    assert files(tmp_path / "run/images") == before


@pytest.mark.parametrize("name", ["sd15", "wan", "qwen_image"])
def test_an_image_is_that_of_its_prompt_and_seed_alone(
    monkeypatch: pytest.MonkeyPatch, prompts: Path, tmp_path: Path, name: str
) -> None:
    """One row a branch, frames of videos, and guidance in two calls."""
    pipeline = BUILDERS[name]()
    monkeypatch.setattr(GenerationConfig, "load_pipeline", lambda config: pipeline)
    config = GenerationConfig(prompts=prompts, limit=3, batch=3, steps=2, scale=3.0, seed=11, size=32)
    list(run(config, tmp_path / "run"))
    *_, alone = generate(pipeline, GenerationOptions(prompt=TEXTS[1], steps=2, scale=3.0, size=32), [12])
    assert isinstance(alone, Generated)
    with Image.open(tmp_path / "run/images/000001.png") as image:
        difference = np.abs(np.asarray(image, int) - np.asarray(alone.image, int))
    assert difference.max() <= 1


def test_what_the_pipeline_refuses_is_one_line(fake: None, prompts: Path, tmp_path: Path) -> None:
    config = GenerationConfig(prompts=prompts, steps=3)
    with pytest.raises(GocaError, match=r"the pipeline does not accept this: .*num_inference_steps"):
        list(run(config, tmp_path / "run"))


# ---- guidance


def test_names_of_guidance() -> None:
    assert guide_arguments("none") is None
    assert guide_arguments("goca") == {"recipe": "goca"}
    assert guide_arguments("Goca_Balanced") == {"recipe": "goca-balanced"}
    assert guide_arguments("energy") == {"recipe": None}
    assert guide_arguments("1.5") == {"rate": 1.5}
    for wrong in ("cat", "-1", "0", "nan", "inf"):
        with pytest.raises(GocaError, match=r"no guidance .*: give none, a recipe"):
            guide_arguments(wrong)


def test_a_name_of_guidance_in_another_spelling_resumes_the_run(fake: None, prompts: Path, tmp_path: Path) -> None:
    list(run(GenerationConfig(prompts=prompts, guide="none"), tmp_path / "run"))
    again = list(run(GenerationConfig(prompts=prompts, guide="NONE", every=2), tmp_path / "run"))
    assert not [event for event in again if isinstance(event, ImagesGenerated)]


def test_goca_compare_names_what_compares_generated_images(
    goca: Callable[..., Outcome], fake: None, prompts: Path, tmp_path: Path
) -> None:
    list(run(GenerationConfig(prompts=prompts), tmp_path / "run"))
    assert "with goca evaluate-generation" in goca("compare", tmp_path / "run", tmp_path / "run").mistake()


def guided(folder: Path, prompts: Path, guide: str, name: str = "sd15") -> dict[str, Any]:
    """What is measured of two images of a tiny pipeline, at scale 4."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GenerationConfig, "load_pipeline", lambda config: BUILDERS[name]())
        config = GenerationConfig(prompts=prompts, limit=3, batch=2, steps=2, scale=4.0, size=32, guide=guide)
        *_, finished = run(config, folder)
    return finished.measurement.per_image


def test_the_effective_scale_of_each_image_is_written(prompts: Path, tmp_path: Path) -> None:
    names = ["000000.png", "000001.png", "000002.png"]
    assert guided(tmp_path / "none", prompts, "none") == {}
    plain = guided(tmp_path / "1", prompts, "1")["effective_scale"]
    assert plain == pytest.approx(dict.fromkeys(names, 4.0), rel=1e-4)
    assert files(tmp_path / "1/images").items() >= {
        (name, content) for name, content in files(tmp_path / "none/images").items() if name in names
    }
    stronger = guided(tmp_path / "1.5", prompts, "1.5")["effective_scale"]
    assert stronger == pytest.approx(dict.fromkeys(names, 6.0), rel=1e-4)
    regions = guided(tmp_path / "goca", prompts, "goca")["effective_scale"]
    assert len(set(regions.values())) == 3
    assert json.loads((tmp_path / "goca/run.json").read_text())["metrics"]["effective_scale"]["mean"] == pytest.approx(
        sum(regions.values()) / 3
    )


@pytest.mark.parametrize(("name", "guide"), [("flux2", "1"), ("sd15", "concept-attention")])
def test_what_cannot_be_guided_leaves_nothing(prompts: Path, tmp_path: Path, name: str, guide: str) -> None:
    with pytest.raises(GocaError):
        guided(tmp_path / "run", prompts, guide, name)
    assert not (tmp_path / "run").exists()


# ---- metrics


class Corner(nn.Module):
    """Red and green of the first pixel."""

    def forward(self, images: Tensor) -> Tensor:
        assert images.dtype == torch.uint8
        return images[:, :2, 0, 0].float()


@needs_torchmetrics
def test_fid_is_that_of_two_gaussians(tmp_path: Path) -> None:
    """Diagonal covariances: squared distance of the means, plus that of the standard deviations."""
    real = painted(tmp_path / "real", [(100 + 3 * i, 50 + 5 * j, 0) for i, j in product((-1, 1), repeat=2)])
    fake = painted(tmp_path / "fake", [(110 + 6 * i, 57 + 5 * j, 9) for i, j in product((-1, 1), repeat=2)], (23, 29))
    measured = Meter(real, Corner())(fake)
    assert measured.fid is not None
    # Unbiased variances of four values at +-a: 4/3 a^2.
    assert measured.fid.value == pytest.approx(10**2 + 7**2 + 4 / 3 * 3**2, rel=1e-6)
    assert (measured.fid.reference_images, measured.fid.dimensions, measured.fid.features) == (4, 2, "Corner")
    assert measured.notes == []


@needs_torchmetrics
def test_images_of_several_sizes_each_keep_theirs(tmp_path: Path) -> None:
    mixed = painted(tmp_path / "mixed", [(1, 2, 3), (4, 5, 6), (7, 8, 9)])
    Image.new("RGB", (31, 37), (40, 50, 60)).save(mixed / "1.png")
    sizes = []

    class Seen(Corner):
        def forward(self, images: Tensor) -> Tensor:
            sizes.append(tuple(images.shape))
            return super().forward(images)

    assert Meter(mixed, Seen())(mixed).fid.value == pytest.approx(0, abs=1e-6)
    assert sizes[:3] == [(1, 3, 19, 17), (1, 3, 37, 31), (1, 3, 19, 17)]


@needs_torchmetrics
def test_too_few_images_for_an_fid_are_told(tmp_path: Path) -> None:
    folder = painted(tmp_path / "two", [(1, 2, 3), (4, 5, 6)])
    (note,) = Meter(folder, Corner())(folder).notes
    assert note.startswith("FID of 2 and 2 images in 2 dimensions")
    single = painted(tmp_path / "single", [(1, 2, 3)])
    with pytest.raises(GocaError, match="has a single image"):
        Meter(folder, Corner())(single)


@needs_torchmetrics
def test_an_extractor_makes_a_row_of_each_image(tmp_path: Path) -> None:
    folder = painted(tmp_path / "two", [(1, 2, 3), (4, 5, 6)])
    with pytest.raises(GocaError, match=r"returned \(2, 3, 19, 17\) for 2 images"):
        Meter(folder, nn.Identity())(folder)


@needs_torchmetrics
def test_clip_scores_are_cosines_of_image_and_prompt(clip: Path, tmp_path: Path) -> None:
    from transformers import CLIPModel, CLIPProcessor

    texts = ["cat", "grass", "cat " * 60]  # the last is longer than the model's 31 tokens
    folder = described(painted(tmp_path / "three", [(250, 9, 9), (9, 250, 9), (9, 9, 250)]), text=texts)
    measured = Meter(clip=str(clip))(folder)
    model, processor = CLIPModel.from_pretrained(clip).eval(), CLIPProcessor.from_pretrained(clip)
    expected = {}
    for number, text in enumerate(texts):
        with Image.open(folder / f"{number}.png") as image, torch.no_grad():
            inputs = processor(text=[text], images=[image], return_tensors="pt", truncation=True, max_length=31)
            cosine = float(model(**inputs).logits_per_image / model.logit_scale.exp())
        expected[f"{number}.png"] = max(100 * cosine, 0)
    assert measured.per_image["clip_score"] == pytest.approx(expected, abs=1e-3)
    assert max(expected.values()) > 0
    assert measured.means["clip_score"][0] == pytest.approx(sum(expected.values()) / 3, abs=1e-3)


def test_features_of_models_of_transformers(clip: Path, tmp_path: Path) -> None:
    from transformers import BitImageProcessorPil, CLIPModel, CLIPProcessor, Dinov2Config, Dinov2Model

    batch = torch.randint(256, (2, 3, 40, 37), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    loaded, processor = CLIPModel.from_pretrained(clip).eval(), CLIPProcessor.from_pretrained(clip)
    with torch.no_grad():
        embedded = loaded.get_image_features(**processor(images=list(batch), return_tensors="pt")).pooler_output
        torch.testing.assert_close(ModelFeatures(str(clip))(batch), embedded)
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    Dinov2Model(Dinov2Config(**small)).save_pretrained(tmp_path / "dino")
    side = {"height": 28, "width": 28}
    BitImageProcessorPil(size={"shortest_edge": 28}, crop_size=side).save_pretrained(tmp_path / "dino")
    with torch.no_grad():
        assert ModelFeatures(str(tmp_path / "dino"))(batch).shape == (2, 16)


def test_means_and_paired_gains(tmp_path: Path) -> None:
    colours, texts = [(9, 9, 9)] * 3, ["a", "b", "c"]
    first = described(painted(tmp_path / "first", colours), text=texts, effective_scale=[1.0, 2.0, 6.0])
    second = described(painted(tmp_path / "second", colours), text=texts, effective_scale=[1.5, 2.5, 6.5])
    meter = Meter()
    value, (low, high) = meter(first).means["effective_scale"]
    assert value == 3.0
    assert 1.0 <= low < 3.0 < high <= 6.0
    # Of images that all gain the same, every resample does.
    assert meter(second).gain_over(meter(first)) == {"effective_scale": (0.5, (0.5, 0.5))}
    described(second, text=["a", "b", "x"], effective_scale=[1.5, 2.5, 6.5])
    with pytest.raises(GocaError, match=r"have different prompts \(2\.png\)"):
        meter(second).gain_over(meter(first))


def test_an_interval_of_a_mean_covers_it_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        low, high = mean(rng.normal(2.0, 3.0, 50).tolist())[1]
        hits += low <= 2.0 <= high
    assert 0.88 <= hits / 200 <= 0.99


def test_folders_that_cannot_be_measured(tmp_path: Path) -> None:
    with pytest.raises(GocaError, match="is not a folder of images"):
        open_folder(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(GocaError, match="no images in"):
        open_folder(tmp_path / "empty")
    folder = painted(tmp_path / "two", [(1, 2, 3), (4, 5, 6)])
    with pytest.raises(GocaError, match=r"has no prompt for 0\.png"):
        _ = open_folder(folder).prompts
    described(folder, text=["a", "b"])
    (folder / "1.png").unlink()
    with pytest.raises(GocaError, match=r"lacks 1\.png"):
        open_folder(folder)
    (folder / "metadata.jsonl").write_text('{"file_name": "../1.png", "text": "a"}\n')
    with pytest.raises(GocaError, match="line 1 is not the metadata of an image"):
        open_folder(folder)


# ---- the command


def test_the_command_generates_and_measures(
    goca: Callable[..., Outcome], fake: None, prompts: Path, tmp_path: Path
) -> None:
    done = goca("evaluate-generation", "--prompts", prompts, "--out", tmp_path / "a", "--limit", "2")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"folder 1: {tmp_path / 'a'}, 2 images\n")
    goca("evaluate-generation", "--prompts", prompts, "--out", tmp_path / "b", "--limit", "2")
    done = goca("evaluate-generation", "--images", tmp_path / "a", "--images", tmp_path / "b", "--json")
    rows = json.loads(done.out)
    assert [(row["folder"], row["images"]) for row in rows] == [(str(tmp_path / name), 2) for name in ("a", "b")]


@needs_torchmetrics
def test_the_table_of_several_folders(goca: Callable[..., Outcome], clip: Path, tmp_path: Path) -> None:
    """FID is of the CLIP's features, of fewer images than those are."""
    for name, scale in (("a", 5.0), ("b", 5.25)):
        folder = painted(tmp_path / name, [(250, 9, 9), (9, 250, 9), (9, 9, 250)])
        described(folder, text=["cat", "grass", "sky"], effective_scale=[scale] * 3)
    words = ["--images", tmp_path / "a", "--images", tmp_path / "b", "--reference", tmp_path / "a"]
    done = goca("evaluate-generation", *words, "--features", clip, "--clip", clip)
    assert done.code == 0
    assert done.out.startswith(f"folder 1: {tmp_path / 'a'}, 3 images\nfolder 2: {tmp_path / 'b'}, 3 images\n")
    rows = [" ".join(line.split()) for line in done.out.splitlines()]
    assert {"fid 1 0.00", "fid 2 0.00", "effective scale 1 5.000 [5.000, 5.000]"} <= set(rows)
    assert "effective scale 2 5.250 [5.250, 5.250] +0.250 [+0.250, +0.250]" in rows
    (score,) = [row for row in rows if row.startswith("clip score 2 ")]
    assert score.endswith(" +0.000 [+0.000, +0.000]")  # the same images have the same CLIP scores
    assert "note: FID of 3 and 3 images in 12 dimensions" in done.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "give either --prompts FILE to generate images or --images DIR to measure"),
        (("--images", ".", "--out", "run"), "--out only applies to generating images"),
        (("--images", ".", "--guide", "goca"), "--guide only applies to generating images"),
        (("--images", ".", "--same-seed"), "--same-seed only applies to generating images"),
        (("--images", ".", "--steps", "20"), "--steps only applies to generating images"),
        (("--images", ".", "--batch", "8"), "--batch only applies to generating images"),
        (("--prompts", "prompts.txt", "--out", "run", "--every", "2"), "--every 2 needs --guide"),
        (("--prompts", "p.txt"), "name one with --out"),
        (("--prompts", "none.txt", "--out", "run"), "no such file: none.txt (--prompts)"),
        (("--prompts", "prompts.txt", "--out", "run", "--guide", "cat"), "(--guide)"),
        (("--prompts", "prompts.txt", "--out", "run", "--scale", "-1"), "(--scale)"),
        (("--images", "none"), "none is not a folder of images: name one (--images)"),
        (("--images", ".", "--reference", "."), "name both (--features)"),
    ],
)
def test_mistakes_are_one_line(
    goca: Callable[..., Outcome],
    fake: None,
    prompts: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(prompts.parent)
    assert message in goca("evaluate-generation", *words).mistake()
    assert not Path("run").exists()


def test_without_torchmetrics(goca: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, clip: Path) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    for name in [name for name in sys.modules if name.startswith("torchmetrics.")]:
        monkeypatch.delitem(sys.modules, name)
    assert "pip install torchmetrics" in goca("evaluate-generation", "--images", ".", "--clip", clip).mistake()


# ---- the real thing


class NamerFeatures(nn.Module):
    """What the namer's tower says of images of 64 px."""

    def __init__(self) -> None:
        super().__init__()
        self.namer = namer.load(Path("nowhere"))

    def forward(self, images: Tensor) -> Tensor:
        return self.namer.image(images.float() / 127.5 - 1)


@pytest.mark.slow
def test_processes_generate_the_same_bytes(prompts: Path, tmp_path: Path) -> None:
    config = GenerationConfig(prompts=prompts, batch=2, steps=2)
    list(run(config, tmp_path / "one"))
    list(run(config, tmp_path / "two", Executor(workers=2)))
    assert files(tmp_path / "one/images") == files(tmp_path / "two/images")


@pytest.mark.slow
@needs_torchmetrics
def test_the_bundled_pipeline_by_the_namers_features(tmp_path: Path) -> None:
    """Its images are nearer to real scenes than the same images in grey are; and FID falls with steps."""
    home = Path(bundled.__file__).parent / "scenes"
    entries = json.loads((home / "scenes.json").read_text())
    real = tmp_path / "real"
    real.mkdir()
    for entry in entries[30:]:
        shutil.copy(home / entry["image"], real)
    (tmp_path / "prompts.json").write_text(json.dumps([entry["captions"]["nouns"] for entry in entries[:20]]))
    meter = Meter(real, NamerFeatures())
    distances = []
    for steps in (1, 6):
        config = GenerationConfig(prompts=tmp_path / "prompts.json", batch=10, steps=steps)
        *_, finished = run(config, tmp_path / str(steps), meter=meter)
        distances.append(finished.measurement.fid.value)
    grey = tmp_path / "grey"
    grey.mkdir()
    for path in (tmp_path / "6/images").glob("*.png"):
        Image.open(path).convert("L").save(grey / path.name)
    rough, fine = distances
    assert fine < rough
    assert fine < meter(grey).fid.value

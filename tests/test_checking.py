"""goca.checking: the bundled checkpoint passes, and each way of reading a checkpoint wrongly is caught."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from goca import bundled
from goca.checking import CHECKS, Subject, Verdict, check, document
from goca.checking.painting import own_rank
from goca.checking.stability import region_rank
from goca.checking.subject import skill
from goca.diffusion import families
from goca.diffusion.denoiser_call import DenoiserCall
from goca.diffusion.loading import load
from goca.diffusion.model_facts import read_facts
from goca.testing.tiny import BUILDERS, sd15

UNTRAINED = (
    *("weights", "vocabularies", "hook changes nothing", "records rebuild outputs", "weights sum to 1"),
    *("token indices are right", "states change with words", "the prompt's branch is read"),
)
"""What holds for random weights too."""


def statuses(pipeline: Any, *names: str, size: int | None = None, images: int = 8) -> dict[str, str]:
    """The verdicts of some checks, none of which may break off. images: as many as are painted, if any are."""
    verdicts = list(check(Subject(pipeline, size, images), names))
    assert not [verdict.explanation for verdict in verdicts if "raised an error" in verdict.explanation]
    return {verdict.name: verdict.status for verdict in verdicts}


@pytest.fixture
def pipeline() -> Any:
    return load("bundled")


@pytest.fixture
def unet(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """unet(texts=...): the family of UNets with other facts."""

    def change(**facts: Any) -> None:
        first, *others = families.FAMILIES
        monkeypatch.setattr(families, "FAMILIES", (replace(first, **facts), *others))

    return change


@pytest.fixture
def stating(tmp_path: Path) -> Callable[..., Any]:
    """stating(timestep=...): the bundled checkpoint in a folder whose facts state other settings."""

    def change(**values: Any) -> Any:
        for part in bundled.pipeline().iterdir():
            (tmp_path / part.name).symlink_to(part)
        facts = json.loads((tmp_path / bundled.FACTS).read_text())
        facts["settings"] |= values
        (tmp_path / bundled.FACTS).unlink()
        (tmp_path / bundled.FACTS).write_text(json.dumps(facts))
        return load(tmp_path)

    return change


@pytest.mark.slow
@pytest.mark.parametrize("name", bundled.names())
def test_what_ships_passes(goca: Any, tmp_path: Path, name: str) -> None:
    done = goca("models", "--check", name, "--json", "--sheet", tmp_path / "sheet.png")
    told = json.loads(done.out)
    assert not [verdict for verdict in told["verdicts"] if verdict["status"] == "failed"]
    assert (done.code, done.err) == (0, "")
    assert [verdict["name"] for verdict in told["verdicts"]] == ["complete", *CHECKS]
    assert {verdict["status"] for verdict in told["verdicts"]} <= {"passed", "warned"}
    assert told["settings"]["reference"] == read_facts(bundled.pipeline(name)).settings["reference"]
    assert told["model"]["name"] == name
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.height > 8 * 224


# --- each sabotage, and the verdict that catches it


def test_shifted_token_indices(unet: Callable[..., None], pipeline: Any) -> None:
    texts = families.FAMILIES[0].texts
    assert statuses(pipeline, "token indices are right") == {"token indices are right": "passed"}
    unet(texts=tuple(replace(text, start=text.start + 1) for text in texts))
    assert statuses(pipeline, "token indices are right") == {"token indices are right": "failed"}


def test_the_wrong_branch_of_guidance(monkeypatch: pytest.MonkeyPatch, pipeline: Any) -> None:
    rows_of = DenoiserCall.rows_of
    exchanged = {"cond": "uncond", "uncond": "cond", "other": "other"}
    monkeypatch.setattr(DenoiserCall, "rows_of", lambda self, branch: rows_of(self, exchanged[branch]))
    assert statuses(pipeline, "the prompt's branch is read") == {"the prompt's branch is read": "failed"}


@pytest.mark.slow
def test_a_wrong_reference_block(stating: Callable[..., Any]) -> None:
    pipeline = stating(reference="up_blocks.1.attentions.1.transformer_blocks.0")
    name = "the reference block is a good one"
    assert statuses(pipeline, name, images=4) == {name: "failed"}


@pytest.mark.slow
def test_a_wrong_timestep(stating: Callable[..., Any]) -> None:
    pipeline = stating(timestep=900)
    names = ("same labels with other noise", "the timestep is a good one")
    assert statuses(pipeline, *names, images=4) == dict.fromkeys(names, "failed")


@pytest.mark.slow
def test_shuffled_embeddings_of_the_text_encoder(pipeline: Any) -> None:
    weight = pipeline.text_encoder.get_input_embeddings().weight.data
    weight.copy_(weight[torch.randperm(len(weight), generator=torch.Generator().manual_seed(0))])
    knows, paints = "the text encoder knows words", "paints what it is told"
    assert statuses(pipeline, knows) == {knows: "failed"}
    assert statuses(pipeline, paints, images=4) == {paints: "failed"}


@pytest.mark.slow
def test_shuffled_embeddings_beside_joint_attention() -> None:
    pipeline, paints = load(bundled.pipeline("bundled-joint")), "paints what it is told"
    for encoder in (pipeline.text_encoder, pipeline.text_encoder_2):
        weight = encoder.get_input_embeddings().weight.data
        weight.copy_(weight[torch.randperm(len(weight), generator=torch.Generator().manual_seed(0))])
    # It would still denoise its own images best under their captions.
    assert statuses(pipeline, paints, images=4) == {paints: "failed"}


@pytest.mark.parametrize("kind", ["three bits", "no scale"])
def test_a_quantisation_gone_wrong(pipeline: Any, kind: str) -> None:
    for module in pipeline.unet.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            weight = module.weight.data
            scale = weight.abs().amax() / (3 if kind == "three bits" else 127)
            weight.copy_((weight / scale).round() * (scale if kind == "three bits" else 1))
    assert statuses(pipeline, "denoises") == {"denoises": "failed"}


def test_a_quantisation_gone_wrong_where_latents_are_packed() -> None:
    pipeline = load(bundled.pipeline("bundled-joint"))
    assert statuses(pipeline, "denoises", images=2) == {"denoises": "passed"}
    for module in pipeline.transformer.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data /= module.weight.data.abs().amax() / 127
    assert statuses(pipeline, "denoises", images=2) == {"denoises": "failed"}


def test_the_weights_of_a_good_quantisation(pipeline: Any) -> None:
    for module in pipeline.unet.modules():
        if isinstance(module, torch.nn.Linear):
            scale = module.weight.data.abs().amax() / 127
            module.weight.data.div_(scale).round_().mul_(scale)
    assert statuses(pipeline, "denoises") == {"denoises": "passed"}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(pipeline: Any, value: float) -> None:
    pipeline.unet.conv_in.bias.data[0] = value
    (verdict,) = check(Subject(pipeline), ["weights"])
    assert verdict.status == "failed"
    assert "unet.conv_in.bias" in verdict.explanation


def test_a_text_encoder_of_another_tokenizer(pipeline: Any) -> None:
    pipeline.text_encoder.resize_token_embeddings(500)
    assert statuses(pipeline, "vocabularies") == {"vocabularies": "failed"}


# --- the rest


def test_random_weights_are_read_rightly_and_denoise_nothing() -> None:
    pipeline = sd15()
    assert statuses(pipeline, *UNTRAINED, size=64) == dict.fromkeys(UNTRAINED, "passed")
    assert statuses(pipeline, "denoises", size=64) == {"denoises": "failed"}


@pytest.mark.parametrize("name", ["flux", "flux2", "hidream", "z_image"])
def test_joint_attention_is_read_rightly(name: str) -> None:
    names = [each for each in UNTRAINED if each != "the prompt's branch is read"]
    assert statuses(BUILDERS[name](), *names, size=64) == dict.fromkeys(names, "passed")


def test_what_breaks_off_has_failed_and_the_others_go_on(pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(subject: Subject) -> Verdict:
        raise RuntimeError("no\nmore memory")

    monkeypatch.setitem(CHECKS, "hook changes nothing", breaks)
    broken, weights = check(Subject(pipeline), ["hook changes nothing", "weights"])
    assert (broken.status, weights.status) == ("failed", "passed")
    assert broken.explanation == "the check raised an error (RuntimeError: no more memory)"


def test_a_pipeline_that_does_not_paint_is_shown_scenes(pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise ValueError("not today")

    monkeypatch.setattr(type(pipeline), "check_inputs", refuses)
    subject = Subject(pipeline)
    (verdict,) = check(subject, ["sees what it meant to paint"])
    assert verdict.status == "skipped"
    assert "not today" in verdict.explanation
    assert subject.shown == subject.scenes


def test_a_folder_that_is_not_complete(goca: Any, tmp_path: Path) -> None:
    folder = tmp_path / "someone" / "model"
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text((bundled.pipeline() / "model_index.json").read_text())
    done = goca("models", "--check", folder, "--json")
    assert (done.code, done.err) == (1, "")
    told = json.loads(done.out)
    assert [(verdict["name"], verdict["status"]) for verdict in told["verdicts"]] == [("complete", "failed")]
    assert "someone" not in done.out
    shown = goca("models", "--check", folder)
    assert shown.code == 1
    assert re.search(r"complete +failed", shown.out)


def test_the_document_does_not_name_the_model_s_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "John Smith" / "unet"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder.parent)
    for name in (str(folder), "unet", "../John Smith/unet"):
        verdict = Verdict("a", "failed", {}, "", f"{name}/vae lacks unet.conv_in, and so does {folder}")
        (told,) = document([verdict], name, None)["verdicts"]
        assert told["explanation"] == "MODEL/vae lacks unet.conv_in, and so does MODEL"


def test_the_document_names_no_paths(pipeline: Any) -> None:
    verdict = Verdict("a", "failed", {}, "", "cannot read /home/zoe/models/x.bin or C:\\Users\\zoe\\x in up_blocks.1")
    told = json.dumps(document([verdict], "/home", Subject(pipeline)))
    assert "zoe" not in told
    assert "/home" not in told
    assert "up_blocks.1" in told
    assert json.loads(told)["model"]["fingerprint"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("bundled",), "needs --check"),
        (("--sheet", "sheet.png"), "need a model: goca models --check MODEL"),
        (("--check", "--size", "64"), "need a model: goca models --check MODEL"),
        (("--check", "no-such-model"), "no model"),
        (("--check", "bundled", "--all"), "cannot be combined"),
        (("--check", "bundled", "--sheet", "."), "is a folder"),
        (("--check", "bundled", "--sheet", "sheet.jpg"), "name it sheet.png"),
        (("--check", "bundled", "--sheet", "/proc/nowhere/sheet.png"), "cannot write to"),
    ],
)
def test_mistakes_are_one_line(goca: Any, arguments: tuple[str, ...], told: str) -> None:
    assert told in goca("models", *arguments).mistake()


def test_skill_is_one_for_the_same_and_nothing_for_chance() -> None:
    left, top = np.ones((4, 4), np.uint16), np.ones((4, 4), np.uint16)
    left[:, 2:], top[2:] = 2, 2
    assert skill([left, top], [left, top]) == pytest.approx((1.0, 1.0, 1 / 3))
    assert skill([left, left], [left, left])[0] == pytest.approx(0.0)  # the same in all images: a place, not a thing
    assert skill([left, top], [top, left])[0] < 0


def test_own_nouns_against_others() -> None:
    own = torch.eye(3, dtype=torch.bool)
    assert own_rank(torch.eye(3), own) == 1.0
    assert own_rank(torch.zeros(3, 3), own) == 0.5
    assert own_rank(1 - torch.eye(3), own) == 0.0


def test_likeness_within_regions() -> None:
    mask = torch.tensor([True, True, True, False, False])
    region = mask.float()[:, None] * 2 - 1
    assert region_rank(region @ region.T, mask) == 1.0
    assert region_rank(-region @ region.T, mask) == 0.0
    line = torch.tensor([[-2.0], [-1.0], [0.5], [1.0], [2.0]])
    # By hand: every own pixel is more like each but the third than every other one is, and none is more like that.
    assert region_rank(line @ line.T, mask) == pytest.approx(0.8)
    assert region_rank(line @ line.T, torch.ones(5, dtype=torch.bool)) is None

"""Models that cannot be asked: refused in one line that names the cause, before any image is segmented."""

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionImg2ImgPipeline
from PIL import Image

from goca import GocaError, Segmenter
from goca.diffusion.backbone import Backbone
from goca.testing.tiny import BUILDERS

Make = Callable[..., Image.Image]
ASK: dict[str, Any] = {"classes": ["cat", "grass"]}


@pytest.fixture
def folder(sd15: Any, tmp_path: Path) -> Path:
    sd15.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("broken", "content"),
    [
        ("tokenizer/tokenizer.json", None),
        ("tokenizer/tokenizer.json", "{}"),
        ("tokenizer/tokenizer_config.json", None),
        ("unet/config.json", None),
        ("unet/config.json", "{"),
        ("text_encoder/model.safetensors", None),
        ("text_encoder/model.safetensors", ""),
        ("unet/diffusion_pytorch_model.safetensors", "half"),
        ("vae/diffusion_pytorch_model.safetensors", None),
        ("model_index.json", None),
        ("model_index.json", "[]"),
    ],
)
def test_a_folder_with_a_part_missing_or_broken(broken: str, content: str | None, folder: Path) -> None:
    path = folder / broken
    if content == "half":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif content is None:
        path.unlink()
    else:
        path.write_text(content)
    with pytest.raises(GocaError) as caught:
        Segmenter.from_pretrained(folder)
    assert "\n" not in str(caught.value)


def test_pickled_weights_are_not_loaded(folder: Path) -> None:
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(GocaError, match="unet has no weights as safetensors: fetch them, or save it"):
        Segmenter.from_pretrained(folder)


def test_a_pipeline_that_wants_an_image_to_start_from(sd15: Any) -> None:
    with pytest.raises(GocaError, match="text-to-image"):
        Segmenter.from_pipeline(StableDiffusionImg2ImgPipeline(**sd15.components, requires_safety_checker=False))


@pytest.mark.parametrize("name", ["", "nothing/here/at/all", "./nowhere", "one-word"])
def test_a_name_of_nothing(name: str) -> None:
    with pytest.raises(GocaError, match=r"no model|not a diffusers pipeline"):
        Segmenter.from_pretrained(name)


@pytest.mark.parametrize("device", ["meta", "xpu", "cuda:99", "toaster"])
def test_a_device_that_is_not_there(device: str) -> None:
    with pytest.raises(GocaError, match="no device"):
        Segmenter.from_pretrained("bundled", device=device)


def test_an_offloaded_denoiser(sd15: Any, image: Make) -> None:
    plain = Segmenter.from_pipeline(sd15, size=64)(image(), **ASK)
    accelerate.cpu_offload(sd15.unet, torch.device("cpu"))
    offloaded = Segmenter.from_pipeline(sd15, size=64)(image(), **ASK)
    # The projection is asked for instead of read, which moves the last bits, and min-max enlarges them.
    np.testing.assert_allclose(offloaded.scores.grid, plain.scores.grid, atol=0.02)


@pytest.mark.parametrize(
    ("index", "kind"),
    [
        ({"_class_name": "PRXPipeline", "transformer": ["diffusers", "PRXTransformer2DModel"]}, "PRXPipeline"),
        ({"_class_name": "StableCascadePriorPipeline", "prior": ["diffusers", "Prior"]}, "StableCascadePriorPipeline"),
    ],
)
def test_a_family_that_is_not_supported_is_named_with_what_is(index: dict[str, Any], kind: str, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(GocaError, match=f"{kind} is not supported: goca reads .* UNet2DConditionModel"):
        Segmenter.from_pretrained(tmp_path)


def test_a_hub_id_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: Any, **options: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    # The hub client tries again, five times, longer each time.
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with pytest.raises(GocaError, match="cannot load nobody/has-this-one: check the id and the network") as caught:
        Segmenter.from_pretrained("nobody/has-this-one")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["bundled", "folder"])
def test_a_revision_of_what_has_none(name: str, folder: Path) -> None:
    where = str(folder) if name == "folder" else name
    with pytest.raises(GocaError, match='is a local folder, which has no revision "v2": leave revision out'):
        Segmenter.from_pretrained(where, revision="v2")


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"dual_cross_attention": True}, "dual_cross_attention = True.*two texts"),
        ({"only_cross_attention": True}, "only_cross_attention = True.*reads the text"),
        ({"only_cross_attention": (False, False, True)}, "only_cross_attention.*reads the text"),
        ({"mid_block_only_cross_attention": True}, "mid_block_only_cross_attention = True.*reads the text"),
        ({"num_class_embeds": 7}, "num_class_embeds = 7.*class label"),
        ({"class_embed_type": "timestep"}, "class_embed_type = 'timestep'.*class label"),
        ({"encoder_hid_dim_type": "image_proj", "encoder_hid_dim": 32}, "encoder_hid_dim_type.*image"),
    ],
)
def test_a_unet_that_wants_more_than_a_text(changes: dict[str, Any], cause: str, sd15: Any) -> None:
    config = {name: value for name, value in sd15.unet.config.items() if not name.startswith("_")}
    sd15.unet = type(sd15.unet).from_config({**config, **changes})
    with pytest.raises(GocaError, match=cause):
        Segmenter.from_pipeline(sd15)


def test_an_unet_that_projects_its_text_first(sd15: Any, image: Make) -> None:
    config = {name: value for name, value in sd15.unet.config.items() if not name.startswith("_")}
    sd15.unet = type(sd15.unet).from_config({**config, "encoder_hid_dim_type": "text_proj", "encoder_hid_dim": 32})
    assert np.isfinite(Segmenter.from_pipeline(sd15, size=64)(image(), **ASK).scores.grid).all()


@pytest.mark.parametrize(
    ("part", "told"),
    [("vae", "VAE's encoding is not finite"), ("text_encoder", "not finite"), ("unet", "attention is not finite")],
)
def test_weights_that_are_no_numbers(part: str, told: str, sd15: Any, image: Make) -> None:
    with torch.no_grad():
        next(getattr(sd15, part).parameters()).fill_(torch.nan)
    with pytest.raises(GocaError, match=told):
        Segmenter.from_pipeline(sd15, size=64)(image(), **ASK)


@pytest.mark.parametrize(("name", "fill"), [*((name, 0.0) for name in BUILDERS), ("sd15", 0.02), ("flux", 0.02)])
def test_weights_that_are_all_the_same_are_not_a_class(name: str, fill: float, image: Make) -> None:
    pipeline = BUILDERS[name]()
    with torch.no_grad():
        for weight in Backbone(pipeline).denoiser.parameters():
            weight.fill_(fill)
    with pytest.raises(
        GocaError, match=r"attention is the same (for every word|everywhere).*: check that its weights are complete"
    ):
        Segmenter.from_pipeline(pipeline, size=64)(image(), **ASK)


@pytest.mark.parametrize(
    ("part", "told"), [("vae", "VAE's encoding of an image is the same"), ("text_encoder", "gives every word the same")]
)
def test_other_parts_whose_weights_are_zero(part: str, told: str, sd15: Any, image: Make) -> None:
    with torch.no_grad():
        for weight in getattr(sd15, part).parameters():
            weight.zero_()
    with pytest.raises(GocaError, match=rf"{told}.*: check that its weights are complete"):
        Segmenter.from_pipeline(sd15, size=64)(image(), **ASK)


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (90, 30, 200)])
def test_an_image_of_one_colour_is_no_broken_model(colour: tuple[int, int, int], bundled: Segmenter) -> None:
    flat = Image.new("RGB", (64, 48), colour)
    assert np.isfinite(bundled(flat, **ASK).scores.grid).all()
    assert np.isfinite(bundled(flat, ["cat"]).scores.grid).all()


def test_a_denoiser_that_overflows_in_half_precision(sd15: Any, image: Make) -> None:
    with torch.no_grad():
        # float16 holds the weights, not the products; the norms that follow bring float32 back.
        weight = sd15.unet.conv_in.weight
        weight *= 6e4 / weight.abs().max()
    assert np.isfinite(Segmenter.from_pipeline(sd15, size=64)(image(), **ASK).scores.grid).all()
    with pytest.raises(GocaError, match=r"not finite.*float32 or bfloat16"):
        Segmenter.from_pipeline(sd15.to(torch.float16), size=64)(image(), **ASK)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried ..."),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("part", ["vae", "unet"])
def test_out_of_memory_names_the_knobs(part: str, error: Exception, sd15: Any, image: Make) -> None:
    def exhausted(*args: Any) -> None:
        raise error

    (sd15.vae.encoder if part == "vae" else sd15.unet).register_forward_pre_hook(exhausted)
    with pytest.raises(GocaError, match=r'batch 3 and size 64: lower one of them, or load .* "float16"') as caught:
        Segmenter.from_pipeline(sd15, size=64, batch=3)(image(), **ASK)
    assert caught.value.hint == "dtype"


def test_a_model_that_does_not_fit_its_device(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*args: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(DiffusionPipeline, "to", exhausted)
    with pytest.raises(GocaError, match='does not fit on cpu: load it with dtype "float16"') as caught:
        Segmenter.from_pretrained(folder, device="cpu")
    assert caught.value.hint == "dtype"


def test_a_whole_pipeline_of_no_listed_family_is_refused_before_its_weights_are_read(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    index["unet"][1] = "FutureUNet"
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(GocaError, match="StableDiffusionPipeline is not supported") as caught:
        Segmenter.from_pretrained(folder)
    assert caught.value.hint == "probe"


def test_a_size_far_beyond_what_it_was_trained_at(sd15: Any) -> None:
    assert Segmenter.from_pipeline(sd15, size=256).plan.size == 256
    with pytest.raises(
        GocaError, match=r"size 257 is too large: .* trained at 64 px per side, so give 256 or less"
    ) as caught:
        Segmenter.from_pipeline(sd15, size=257)
    assert caught.value.hint == "window"

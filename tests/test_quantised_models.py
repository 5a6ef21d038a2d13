"""Quantised denoisers: what the hook hands on is what ran, and masks are close to those of the exact weights."""

import json
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import Outcome
from diffusers import GGUFQuantizationConfig, TorchAoConfig
from PIL import Image
from recording import NAMES, RecordedPass, check, distance, score_maps, state
from torch import nn

from goca.diffusion.attention_modules import attention_modules
from goca.diffusion.backbone import Backbone
from goca.diffusion.fingerprint import fingerprint
from goca.diffusion.loading import load
from goca.errors import GocaError
from goca.segmenter import Segmenter
from goca.testing.tiny import BUILDERS

Make = Callable[..., Image.Image]


def linears(denoiser: nn.Module, multiple: int = 1) -> list[tuple[str, nn.Linear]]:
    """Its linear layers whose rows are whole blocks of a format."""
    layers = [(name, m) for name, m in denoiser.named_modules() if type(m) is nn.Linear]
    return [(name, layer) for name, layer in layers if layer.in_features % multiple == 0]


def torchao(pipeline: Any, folder: Path, config: str, **options: Any) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    quantization.quantize_(Backbone(pipeline).denoiser, getattr(quantization, config)(**options))


def torchao_int8(pipeline: Any, folder: Path) -> None:
    torchao(pipeline, folder, "Int8WeightOnlyConfig")


def torchao_int8_dynamic(pipeline: Any, folder: Path) -> None:
    torchao(pipeline, folder, "Int8DynamicActivationInt8WeightConfig")


def torchao_float8(pipeline: Any, folder: Path) -> None:
    torchao(pipeline, folder, "Float8WeightOnlyConfig")


def torchao_int4(pipeline: Any, folder: Path) -> None:
    """Groups of 8 weights. Int4WeightOnlyConfig packs for CUDA's kernels; this one is the portable int4."""
    granularity = pytest.importorskip("torchao.quantization.granularity").PerGroup(8)
    torchao(pipeline, folder, "IntxWeightOnlyConfig", weight_dtype=torch.int4, granularity=granularity)


def gguf(pipeline: Any, folder: Path, kind: str) -> None:
    """Written with the gguf package and read by diffusers; PixArt, which no single file holds, layer by layer."""
    library = pytest.importorskip("gguf")
    backbone = Backbone(pipeline)
    denoiser, part, type_ = backbone.denoiser, backbone.family.component, library.GGMLQuantizationType[kind]
    packed = {name: library.quantize(m.weight.detach().numpy(), type_) for name, m in linears(denoiser, 32)}
    if not hasattr(denoiser, "from_single_file"):
        from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter

        for name, data in packed.items():
            old = denoiser.get_submodule(name)
            new = GGUFLinear(old.in_features, old.out_features, old.bias is not None, torch.float32)
            new.weight, new.bias = GGUFParameter(torch.from_numpy(data), quant_type=type_), old.bias
            denoiser.set_submodule(name, new)
        return
    writer = library.GGUFWriter(str(folder / "denoiser.gguf"), "tiny")
    for name, tensor in denoiser.state_dict().items():
        data = packed.get(name.removesuffix(".weight"))
        if data is None or name.endswith(".bias"):
            writer.add_tensor(name, tensor.numpy())
        else:
            writer.add_tensor(name, data, raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    denoiser.save_config(folder / part)
    read = type(denoiser).from_single_file(
        str(folder / "denoiser.gguf"),
        config=str(folder),
        subfolder=part,
        quantization_config=GGUFQuantizationConfig(compute_dtype=torch.float32),
        torch_dtype=torch.float32,
    )
    setattr(pipeline, part, read)


def gguf_q8_0(pipeline: Any, folder: Path) -> None:
    gguf(pipeline, folder, "Q8_0")


def gguf_q4_0(pipeline: Any, folder: Path) -> None:
    gguf(pipeline, folder, "Q4_0")


def bitsandbytes_int8(pipeline: Any, folder: Path) -> None:
    """As diffusers replaces the layers: its loader refuses to without an accelerator."""
    library = pytest.importorskip("bitsandbytes")
    denoiser = Backbone(pipeline).denoiser
    for name, old in linears(denoiser):
        new = library.nn.Linear8bitLt(
            old.in_features, old.out_features, old.bias is not None, has_fp16_weights=False, threshold=6.0
        )
        new.load_state_dict(old.state_dict())
        denoiser.set_submodule(name, new.to("cpu"))


def bitsandbytes_nf4(pipeline: Any, folder: Path) -> None:
    library = pytest.importorskip("bitsandbytes")
    denoiser = Backbone(pipeline).denoiser
    for name, old in linears(denoiser):
        new = library.nn.Linear4bit(old.in_features, old.out_features, old.bias is not None, quant_type="nf4")
        new.weight = library.nn.Params4bit(old.weight.data, requires_grad=False, quant_type="nf4")
        new.bias = old.bias
        denoiser.set_submodule(name, new.to("cpu"))


def layerwise_casting(pipeline: Any, folder: Path) -> None:
    """Kept as 8-bit floats, cast when they are needed."""
    Backbone(pipeline).denoiser.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)


# How far attention to the text, in [0, 1], may be from the exact weights', and how alike the scores must be. A weight
# in 8 bits is off by 1/250 of its row's largest, in 4 bits by 1/14 and in an 8-bit float by 1/16 of itself; what was
# seen is half of each bound or less. Scores are compared by their correlation: maps of random weights are almost flat,
# and min-max enlarges what differs.
EIGHT, FOUR = (2e-3, 0.999), (2e-2, 0.9)
WAYS: dict[Callable[[Any, Path], None], tuple[float, float]] = {
    torchao_int8: EIGHT,
    torchao_int8_dynamic: EIGHT,
    torchao_float8: FOUR,
    torchao_int4: FOUR,
    gguf_q8_0: EIGHT,
    gguf_q4_0: FOUR,
    bitsandbytes_int8: EIGHT,
    bitsandbytes_nf4: FOUR,
    layerwise_casting: FOUR,
}


@cache
def exact(name: str, image: Make) -> tuple[RecordedPass, np.ndarray]:
    pipeline = BUILDERS[name]()
    recorded = RecordedPass(pipeline)
    check(recorded)
    return recorded, score_maps(pipeline, image)


# The rest on one that has both kinds of blocks with joint attention.
EVERYWHERE = (torchao_int8, torchao_int4, gguf_q8_0, bitsandbytes_int8, bitsandbytes_nf4)
CASES = [(name, way) for name in NAMES for way in WAYS if name == "flux" or way in EVERYWHERE]


@pytest.mark.parametrize(("name", "way"), CASES, ids=lambda part: getattr(part, "__name__", part))
def test_a_quantised_denoiser(name: str, way: Callable[[Any, Path], None], image: Make, tmp_path: Path) -> None:
    expected, scores = exact(name, image)
    pipeline = BUILDERS[name]()
    way(pipeline, tmp_path)
    recorded = RecordedPass(pipeline)
    # With 8-bit activations a layer rounds what it is given, by 1/254 of a row's largest, and is no linear map.
    rounds = way is torchao_int8_dynamic
    largest = max(float(part.abs().max()) for part in recorded.projected.values())
    check(recorded, atol=0.02 * largest if rounds else 1e-5)
    backbone = Backbone(pipeline)
    assert (backbone.dtype, backbone.device) == ("float32", "cpu")
    assert fingerprint(pipeline) != fingerprint(BUILDERS[name]())
    before = state(pipeline)
    found = score_maps(pipeline, image)
    assert state(pipeline) == before
    furthest, likeness = WAYS[way]
    assert 0 < distance(recorded, expected) < furthest
    assert np.corrcoef(found.ravel(), scores.ravel())[0, 1] > likeness


@pytest.mark.parametrize("name", ["sd15", "flux"])
def test_a_folder_with_a_quantised_denoiser(
    name: str, image: Make, tmp_path: Path, goca: Callable[..., Outcome]
) -> None:
    folder = tmp_path / "model"
    save_quantised(name, folder)
    image().save(tmp_path / "image.png")
    _, scores = exact(name, image)
    for asked, dtype in ((None, "float32"), ("bfloat16", "bfloat16")):
        pipeline = load(folder, None, asked, None, None)
        denoiser = Backbone(pipeline).denoiser
        assert {type(m.weight.data).__name__ for _, m in linears(denoiser)} == {"Int8Tensor"}
        recorded = RecordedPass(pipeline)
        # bfloat16 keeps 8 bits of what the projection gives.
        tolerance = {"rtol": 0.05, "atol": 0.01} if asked else {}
        check(recorded, **tolerance)
        # The weights were quantised from bfloat16 and still say so; what is computed with them is what was asked for.
        assert {str(call.q.dtype).removeprefix("torch.") for call in recorded.calls} == {dtype}
        assert Segmenter.from_pipeline(pipeline).plan.dtype == dtype
        found = score_maps(pipeline, image)
        assert np.corrcoef(found.ravel(), scores.ravel())[0, 1] > 0.99
    asked_for = ["--classes", "cat, grass", "--size", 64, "--out", tmp_path]
    said = goca("segment", tmp_path / "image.png", "--model", folder, *asked_for)
    assert (said.code, said.err) == (0, "")
    assert (tmp_path / "image.labels.png").exists()


def save_quantised(name: str, folder: Path) -> None:
    """A pipeline's folder, its denoiser in torchao's int8, made as diffusers says: quantised while it is loaded."""
    quantization = pytest.importorskip("torchao.quantization")
    pipeline = BUILDERS[name]().to(torch.bfloat16)
    backbone = Backbone(pipeline)
    backbone.denoiser.save_pretrained(folder / "whole")
    quantised = type(backbone.denoiser).from_pretrained(
        folder / "whole",
        quantization_config=TorchAoConfig(quantization.Int8WeightOnlyConfig()),
        torch_dtype=torch.bfloat16,
    )
    setattr(pipeline, backbone.family.component, quantised)
    pipeline.save_pretrained(folder)


def test_a_quantised_folder_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_quantised("sd15", tmp_path)
    monkeypatch.setattr("diffusers.quantizers.torchao.torchao_quantizer.is_torchao_available", lambda: False)
    with pytest.raises(GocaError, match="pip install torchao") as caught:
        Segmenter.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="with an accelerator it is loaded")
def test_bitsandbytes_has_to_be_there_and_needs_an_accelerator_to_load(sd15: Any, tmp_path: Path) -> None:
    sd15.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "unet/config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    (tmp_path / "unet/config.json").write_text(json.dumps(config))
    needed = "No GPU found" if find_spec("bitsandbytes") else "install what it needs .*bitsandbytes"
    with pytest.raises(GocaError, match=needed) as caught:
        Segmenter.from_pretrained(tmp_path, device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="bitsandbytes quantises while it loads on CUDA alone")
@pytest.mark.parametrize("options", [{"load_in_8bit": True}, {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}])
@pytest.mark.parametrize("name", NAMES)
def test_a_denoiser_that_bitsandbytes_quantised_as_it_was_loaded(
    name: str, options: dict[str, Any], image: Make, tmp_path: Path
) -> None:
    from diffusers import BitsAndBytesConfig

    pytest.importorskip("bitsandbytes")
    pipeline = BUILDERS[name]().to(torch.float16)
    backbone = Backbone(pipeline)
    backbone.denoiser.save_pretrained(tmp_path)
    loaded = type(backbone.denoiser).from_pretrained(
        tmp_path, quantization_config=BitsAndBytesConfig(**options), torch_dtype=torch.float16
    )
    setattr(pipeline, backbone.family.component, loaded)
    pipeline.to("cuda")
    recorded = RecordedPass(pipeline)
    check(recorded, rtol=0.05, atol=0.02 * max(float(part.abs().max()) for part in recorded.projected.values()))
    assert distance(recorded, exact(name, image)[0]) < FOUR[0]


def test_a_bias_does_not_drown_the_weights_that_are_asked_for() -> None:
    """In bfloat16, a bias of 5 is known to 1/64: weights of a tenth of that would be lost beside it."""
    pipeline = BUILDERS["sd15"]().to(torch.bfloat16)
    module = next(
        attention.module for attention in attention_modules(pipeline.unet) if attention.module.is_cross_attention
    )
    weight = module.to_out[0].weight.detach().clone()
    torch.nn.init.constant_(module.to_out[0].bias, 5.0)
    module.to_out[0].__class__ = type("Adapted", (nn.Linear,), {})
    call = next(call for call in RecordedPass(pipeline).reads)
    assert call.projection is not None
    torch.testing.assert_close(call.projection.flatten(0, 1), weight.T, rtol=0.03, atol=0.001)

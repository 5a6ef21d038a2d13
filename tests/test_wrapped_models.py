"""Offloaded, dispatched and adapted denoisers: what the hook hands on is what ran, wherever weights lie."""

from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import pytest
import torch
from diffusers.hooks import apply_group_offloading
from PIL import Image
from recording import NAMES, RecordedPass, check, distance, score_maps, state
from torch import nn

from goca.diffusion.backbone import Backbone
from goca.errors import GocaError
from goca.testing.tiny import BUILDERS

Make = Callable[..., Image.Image]
Way = Callable[[Any, Path], None]
CPU = torch.device("cpu")


def cpu_offload(pipeline: Any, folder: Path) -> None:
    accelerate.cpu_offload(Backbone(pipeline).denoiser, CPU)


def disk_offload(pipeline: Any, folder: Path) -> None:
    accelerate.disk_offload(Backbone(pipeline).denoiser, folder, CPU)


def every_part_offloaded(pipeline: Any, folder: Path) -> None:
    """What enable_sequential_cpu_offload does, which asks for an accelerator: the VAE and the text encoder as well."""
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            accelerate.cpu_offload(part, CPU, offload_buffers=len(part._parameters) > 0)


def model_offload(pipeline: Any, folder: Path) -> None:
    pipeline.enable_model_cpu_offload(device="cpu")


def device_map(pipeline: Any, folder: Path) -> None:
    """Every other part on disk, and so on the meta device until it runs."""
    backbone = Backbone(pipeline)
    denoiser = backbone.denoiser
    denoiser.save_pretrained(folder / "weights")
    names = [name for name, _ in denoiser.named_children()] + [name for name, _ in denoiser.named_parameters("", False)]
    places = {name: "disk" if index % 2 else "cpu" for index, name in enumerate(names)}
    loaded = type(denoiser).from_pretrained(folder / "weights", device_map=places, offload_folder=str(folder / "disk"))
    setattr(pipeline, backbone.family.component, loaded)


def group_offload(pipeline: Any, **options: Any) -> None:
    apply_group_offloading(
        Backbone(pipeline).denoiser, onload_device=CPU, offload_device=CPU, num_blocks_per_group=1, **options
    )


def groups_of_blocks(pipeline: Any, folder: Path) -> None:
    group_offload(pipeline, offload_type="block_level")


def groups_of_leaves(pipeline: Any, folder: Path) -> None:
    group_offload(pipeline, offload_type="leaf_level")


def groups_of_blocks_on_disk(pipeline: Any, folder: Path) -> None:
    group_offload(pipeline, offload_type="block_level", offload_to_disk_path=str(folder))


def groups_of_leaves_on_disk(pipeline: Any, folder: Path) -> None:
    """Between calls a weight is there, on the right device, and is nothing but memory that nobody wrote to."""
    group_offload(pipeline, offload_type="leaf_level", offload_to_disk_path=str(folder))


def whole_pipeline_in_groups(pipeline: Any, folder: Path) -> None:
    pipeline.enable_group_offload(onload_device=CPU, offload_device=CPU, offload_type="leaf_level")


# What hides a weight in ways of its own is tried on every kind of model, the rest on one that has both kinds of blocks.
EVERYWHERE: list[Way] = [cpu_offload, device_map, groups_of_leaves_on_disk]
ONCE: list[Way] = [
    disk_offload,
    every_part_offloaded,
    model_offload,
    groups_of_blocks,
    groups_of_leaves,
    groups_of_blocks_on_disk,
    whole_pipeline_in_groups,
]
WAYS = [*product(NAMES, EVERYWHERE), *product(["flux"], ONCE)]


@cache
def exact(name: str, image: Make) -> tuple[RecordedPass, np.ndarray]:
    pipeline = BUILDERS[name]()
    return RecordedPass(pipeline), score_maps(pipeline, image)


@pytest.mark.parametrize(("name", "way"), WAYS, ids=lambda part: getattr(part, "__name__", part))
def test_an_offloaded_denoiser(name: str, way: Way, image: Make, tmp_path: Path) -> None:
    expected, scores = exact(name, image)
    pipeline = BUILDERS[name]()
    way(pipeline, tmp_path)
    recorded = RecordedPass(pipeline)
    check(recorded)
    backbone = Backbone(pipeline)
    assert (backbone.dtype, torch.device(backbone.device).type) == ("float32", "cpu")
    # The same weights: only their memory's alignment may move a last bit.
    torch.testing.assert_close(recorded.output, expected.output, rtol=1e-4, atol=1e-5)
    before = state(pipeline)
    found = score_maps(pipeline, image)
    assert state(pipeline) == before
    # A projection that is asked for instead of read moves last bits, and min-max enlarges them.
    np.testing.assert_allclose(found, scores, atol=0.02)


ON_CUDA: dict[str, Callable[[Any], None]] = {
    "sequential": lambda pipeline: pipeline.enable_sequential_cpu_offload(),
    "model": lambda pipeline: pipeline.enable_model_cpu_offload(),
    "leaves, streamed": lambda pipeline: pipeline.enable_group_offload(
        torch.device("cuda"), offload_type="leaf_level", use_stream=True
    ),
    "blocks, streamed": lambda pipeline: pipeline.enable_group_offload(
        torch.device("cuda"), offload_type="block_level", num_blocks_per_group=1, use_stream=True
    ),
}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="diffusers offloads to and streams from CUDA alone")
@pytest.mark.parametrize("way", ON_CUDA)
@pytest.mark.parametrize("name", NAMES)
def test_a_pipeline_offloaded_from_cuda(name: str, way: str, image: Make) -> None:
    expected, _ = exact(name, image)
    pipeline = BUILDERS[name]()
    ON_CUDA[way](pipeline)
    for _ in range(2):  # streams learn the order of layers in the first pass, and fetch ahead in the second
        recorded = RecordedPass(pipeline)
        check(recorded)
        assert distance(recorded, expected) < 1e-3
    assert Backbone(pipeline).device.startswith("cuda")
    score_maps(pipeline, image)


ADAPTED = ("to_q", "to_k", "to_v", "to_out", "to_out.0", "to_qkv_mlp_proj", "proj_out")


def adapt(denoiser: Any, adapter: str, seed: int) -> None:
    """Add a LoRA of rank 3 to every layer around attention, neither of its halves zero."""
    peft = pytest.importorskip("peft")
    # Of a layer that is adapted already peft wants the name that it had.
    layers = [n.removesuffix(".base_layer") for n, m in denoiser.named_modules() if isinstance(m, nn.Linear)]
    names = sorted(name for name in layers if name.endswith(tuple(f".{end}" for end in ADAPTED)))
    torch.manual_seed(seed)
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=names, init_lora_weights=False)
    if hasattr(denoiser, "add_adapter"):
        denoiser.add_adapter(config, adapter)
    else:
        peft.inject_adapter_in_model(config, denoiser, adapter)


def merged(name: str, adapted: Any, weights: dict[str, float]) -> Any:
    """A plain pipeline whose weights are W + sum weight * alpha / rank * B A, by hand."""
    pipeline = BUILDERS[name]()
    plain = dict(Backbone(pipeline).denoiser.named_modules())
    for path, layer in adapted.named_modules():
        for adapter, weight in weights.items():
            if adapter in getattr(layer, "lora_A", {}):
                down, up = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
                plain[path].weight.data += weight * 5 / 3 * (up @ down).detach()
    return pipeline


def compare(pipeline: Any, expected: Any, image: Make) -> None:
    """The same as a pipeline with plain layers, maps and projections and masks."""
    recorded, wanted = RecordedPass(pipeline), RecordedPass(expected)
    check(recorded)
    assert distance(recorded, wanted) < 1e-5
    for one, other in zip(recorded.reads, wanted.reads, strict=True):
        torch.testing.assert_close(one.projection, other.projection, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(score_maps(pipeline, image), score_maps(expected, image), atol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name != "pixart_sigma"])
def test_loras_active_weighted_fused_and_gone(name: str, image: Make) -> None:
    pipeline = BUILDERS[name]()
    denoiser = Backbone(pipeline).denoiser
    adapt(denoiser, "first", 1)
    compare(pipeline, merged(name, denoiser, {"first": 1.0}), image)
    adapt(denoiser, "second", 2)
    denoiser.set_adapters(["first", "second"], [0.7, -0.3])
    both = merged(name, denoiser, {"first": 0.7, "second": -0.3})
    assert distance(RecordedPass(both), RecordedPass(BUILDERS[name]())) > 1e-3
    compare(pipeline, both, image)
    denoiser.fuse_lora()
    compare(pipeline, both, image)
    denoiser.unfuse_lora()
    denoiser.disable_lora()
    compare(pipeline, BUILDERS[name](), image)
    denoiser.enable_lora()
    denoiser.set_adapters("second")
    compare(pipeline, merged(name, denoiser, {"second": 1.0}), image)
    denoiser.unload_lora()
    compare(pipeline, BUILDERS[name](), image)


@pytest.mark.parametrize("around", ["layers", "model"])
def test_a_lora_of_peft_s_own(around: str, image: Make) -> None:
    """PixArt has no loader of its own for them: peft puts them into the layers, or is a model around the denoiser."""
    peft = pytest.importorskip("peft")
    pipeline = BUILDERS["pixart_sigma"]()
    denoiser = pipeline.transformer
    if around == "layers":
        adapt(denoiser, "default", 1)
    else:
        names = [n for n, m in denoiser.named_modules() if n.endswith((".to_q", ".to_out.0"))]
        config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=names, init_lora_weights=False)
        pipeline.transformer = peft.get_peft_model(denoiser, config)
    wanted = merged("pixart_sigma", Backbone(pipeline).denoiser, {"default": 1.0})
    assert distance(RecordedPass(wanted), RecordedPass(BUILDERS["pixart_sigma"]())) > 1e-4
    compare(pipeline, wanted, image)
    assert isinstance(pipeline.transformer, peft.PeftModel) == (around == "model")


def test_a_lora_file_through_the_pipeline(sd15: Any, image: Make, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    adapt(sd15.unet, "default", 1)
    layers = peft.get_peft_model_state_dict(sd15.unet)
    type(sd15).save_lora_weights(tmp_path, unet_lora_layers=layers)
    fresh = BUILDERS["sd15"]()
    fresh.load_lora_weights(tmp_path)
    # A file without its alpha is read as if alpha were the rank.
    fresh.set_adapters("default_0", 5 / 3)
    compare(fresh, merged("sd15", sd15.unet, {"default": 1.0}), image)
    fresh.fuse_lora()
    fresh.unload_lora_weights()
    assert not any(hasattr(module, "lora_A") for module in fresh.unet.modules())


def test_a_lora_on_an_offloaded_and_one_on_a_quantised_denoiser(image: Make) -> None:
    pipeline = BUILDERS["flux"]()
    adapt(pipeline.transformer, "default", 1)
    wanted = merged("flux", pipeline.transformer, {"default": 1.0})
    accelerate.cpu_offload(pipeline.transformer, CPU)
    compare(pipeline, wanted, image)
    quantization = pytest.importorskip("torchao.quantization")
    pipeline = BUILDERS["flux"]()
    quantization.quantize_(pipeline.transformer, quantization.Int8WeightOnlyConfig())
    adapt(pipeline.transformer, "default", 1)
    recorded = RecordedPass(pipeline)
    check(recorded)
    assert 0 < distance(recorded, RecordedPass(wanted)) < 2e-3


def test_an_unsupported_model_inside_peft_s_is_named(sd15: Any) -> None:
    peft = pytest.importorskip("peft")
    inner = nn.Sequential(nn.Linear(3, 5))
    sd15.unet = peft.get_peft_model(inner, peft.LoraConfig(target_modules=["0"]))
    with pytest.raises(GocaError, match="is not supported"):
        Backbone(sd15)

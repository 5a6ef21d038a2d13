"""Folders of models: complete or refused by name, and nothing in them runs, is fetched or takes memory unjudged."""

import json
import os
import random
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from damage import damaged, places, rewrite
from safetensors.torch import load_file, save_file

from goca import GocaError, Segmenter
from goca.diffusion.loading import load, load_part, quiet
from goca.diffusion.model_files import check_numbers, check_settings, check_types, check_weights, read_settings
from goca.diffusion.model_index import model_index
from goca.storage.reading import read_json
from goca.testing.tiny import BUILDERS

Saved = Callable[[str], Path]
# The pipeline of Cosmos does not run without a package that few have.
LOADABLE = sorted(set(BUILDERS) - {"cosmos2"})


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """The folder of a tiny pipeline, not to be changed."""
    root = tmp_path_factory.mktemp("models")

    def save(name: str) -> Path:
        if not (root / name).exists():
            with quiet():
                BUILDERS[name]().save_pretrained(root / name)
        return root / name

    return save


@pytest.fixture
def folder(saved: Saved, tmp_path: Path) -> Path:
    """A folder of SD 1.5 to be broken."""
    return Path(shutil.copytree(saved("sd15"), tmp_path / "model"))


def weights_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.safetensors"))


def refused(folder: Path, *reasons: str) -> None:
    with pytest.raises(GocaError) as caught:
        load(folder)
    message = str(caught.value)
    assert "\n" not in message
    for reason in reasons:
        assert reason in message


def change(path: Path, **settings: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


# Complete or refused.


@pytest.mark.parametrize("name", LOADABLE)
def test_every_pipeline_is_loaded_as_it_was_saved(name: str, saved: Saved) -> None:
    pipeline = load(saved(name))
    stored = BUILDERS[name]()
    assert type(pipeline) is type(stored)
    assert {name for name, part in pipeline.components.items() if part is not None} == {
        name for name, part in stored.components.items() if part is not None
    }
    for name, part in stored.components.items():
        if isinstance(part, torch.nn.Module):
            loaded = getattr(pipeline, name).state_dict()
            assert loaded.keys() == part.state_dict().keys()
            for key, tensor in part.state_dict().items():
                torch.testing.assert_close(loaded[key], tensor, rtol=0, atol=0)


@pytest.mark.parametrize("fault", ["missing", "unknown", "misshapen"])
@pytest.mark.parametrize("name", LOADABLE)
def test_a_tensor_of_any_part_that_is_not_as_it_should_be(name: str, fault: str, saved: Saved, tmp_path: Path) -> None:
    index = model_index(read_json(saved(name) / "model_index.json"), "index")
    for path in weights_in(saved(name)):
        part = path.parent.name
        chance = random.Random(f"{name} {part}")
        if fault != "missing" and chance.random() < 0.7:
            continue  # the same code for every part: some are enough
        broken = Path(shutil.copytree(path.parent, tmp_path / part))
        tensors = load_file(path)
        tensor = chance.choice(sorted(tensors))
        if fault == "missing":
            del tensors[tensor]
        elif fault == "unknown":
            tensor = "stray.weight"
            tensors[tensor] = torch.zeros(3)
        else:
            tensors[tensor] = torch.zeros([side + 1 for side in tensors[tensor].shape] or [2])
        save_file(tensors, broken / path.name, metadata={"format": "pt"})
        with quiet(), pytest.raises(GocaError) as caught:
            load_part(index.parts[part], broken, torch.float32)
        # transformers calls some tensors otherwise than their files do, in front.
        assert ".".join(tensor.split(".")[-3:]) in str(caught.value)
        assert str(broken) in str(caught.value)


def test_how_many_tensors_are_missing_is_told(folder: Path) -> None:
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(("conv_in", "conv_out"))}
    save_file(kept, path)
    assert len(tensors) - len(kept) == 4
    refused(folder, "unet lack conv_in.bias, conv_in.weight and 2 more")


@pytest.mark.parametrize("part", ["text_encoder", "unet", "vae"])
@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 7, b"\0" * 8, (1 << 62).to_bytes(8, "little") + b"{}", b"\x02\0\0\0\0\0\0\0[]", "half", "longer"],
    ids=["empty", "short", "no header", "header of 4 EB", "list", "half", "longer"],
)
def test_weights_that_are_not_safetensors(content: bytes | str, part: str, folder: Path) -> None:
    (path,) = (folder / part).glob("*.safetensors")
    whole = path.read_bytes()
    if isinstance(content, str):
        content = whole[: len(whole) // 2] if content == "half" else whole + b"\0" * 8
    path.write_bytes(content)
    refused(folder, str(path), "not complete safetensors")


def test_a_pipe_in_place_of_a_file(folder: Path) -> None:
    (folder / "tokenizer/tokenizer.json").unlink()
    os.mkfifo(folder / "tokenizer/tokenizer.json")
    refused(folder, "tokenizer.json is not a regular file")


def test_a_folder_saved_as_a_language_model_serves_as_its_body(saved: Saved, tmp_path: Path) -> None:
    path = Path(shutil.copytree(saved("sana") / "text_encoder", tmp_path / "encoder"))
    tensors = load_file(path / "model.safetensors")
    save_file({**tensors, "lm_head.weight": torch.zeros(3)}, path / "model.safetensors", metadata={"format": "pt"})
    index = model_index(read_json(saved("sana") / "model_index.json"), "index")
    with quiet(), pytest.raises(GocaError, match=r"unknown lm_head\.weight"):
        load_part(index.parts["text_encoder"], path, torch.float32)
    change(path / "config.json", architectures=["Gemma2ForCausalLM"])
    with quiet():
        load_part(index.parts["text_encoder"], path, torch.float32)
        # A configuration with fewer layers than the file has is not a head.
        change(path / "config.json", num_hidden_layers=1, layer_types=None)
        with pytest.raises(GocaError, match=r"unknown .*layers\.1\."):
            load_part(index.parts["text_encoder"], path, torch.float32)


@pytest.mark.parametrize(
    ("name", "stored", "left_out"),
    [
        ("sd15", {"text_projection.weight": torch.zeros(3, 3), "logit_scale": torch.zeros(())}, ""),
        ("sd15", {"text_model.embeddings.position_ids": torch.arange(3)[None]}, ""),
        ("hunyuan_dit", {"embeddings.position_ids": torch.arange(3)[None]}, "pooler."),
    ],
)
def test_text_encoders_as_they_are_often_stored(
    name: str, stored: dict[str, torch.Tensor], left_out: str, saved: Saved, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(saved(name) / "text_encoder", tmp_path / "encoder"))
    kept = {
        key: tensor
        for key, tensor in load_file(folder / "model.safetensors").items()
        if not (left_out and key.startswith(left_out))
    }
    save_file({**kept, **stored}, folder / "model.safetensors", metadata={"format": "pt"})
    kind = model_index(read_json(saved(name) / "model_index.json"), "index").parts["text_encoder"]
    with quiet():
        weights = load_part(kind, folder, torch.float32).state_dict()
    for key, tensor in kept.items():
        torch.testing.assert_close(weights[key], tensor, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "tensors"),
    [
        # Of SD 1.5, of Sana's autoencoder, of Z-Image, and of Gemma 3n.
        ({"block_out_channels": [320, 640, 1280, 1280], "layers_per_block": 2, "cross_attention_dim": 768}, 686),
        ({"decoder_block_out_channels": [128, 256, 512, 512, 1024, 2048], "decoder_layers_per_block": [3] * 6}, 375),
        ({"axes_dims": [32, 48, 48], "axes_lens": [1536, 512, 512], "n_layers": 30, "rope_theta": 256.0}, 521),
        ({"text_config": {"vocab_size_per_layer_input": 262144, "num_hidden_layers": 30}}, 1300),
        ({"moe_shared_expert_intermediate_size": 7688, "num_experts": 128}, 500),
    ],
)
def test_widths_are_not_counted_against_tensors(settings: dict[str, Any], tensors: int) -> None:
    check_numbers(Path("config.json"), settings, tensors)


@pytest.mark.parametrize("key", ["layers_per_block", "num_hidden_layers", "depth", "n_routed_experts", "num_blocks"])
def test_counts_beyond_the_tensors(key: str) -> None:
    with pytest.raises(GocaError, match=f"{key} = 5000"):
        check_numbers(Path("config.json"), {"text_config": {key: 5000}}, 686)


def test_a_folder_that_its_index_names_and_is_not_there(saved: Saved, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved("sd3"), tmp_path / "model"))
    shutil.rmtree(folder / "text_encoder_3")
    refused(folder, "has no folder text_encoder_3, which its model_index.json names")
    change(folder / "model_index.json", text_encoder_3=[None, None], tokenizer_3=[None, None])
    assert load(folder).text_encoder_3 is None


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """SD 1.5 with its weights in many files."""
    with quiet():
        BUILDERS["sd15"]().save_pretrained(tmp_path / "model", max_shard_size="60KB")
    assert len(list(tmp_path.glob("model/text_encoder/*.safetensors"))) > 1 < len(list(tmp_path.glob("model/unet/*")))
    return tmp_path / "model"


def test_shards_are_joined(sharded: Path, saved: Saved) -> None:
    for shard in sharded.glob("*/*-00001-of-*.safetensors"):
        shutil.copy(shard, shard.with_name(f"{shard.name.split('-')[0]}-00001-of-00099.safetensors"))
    whole = load(saved("sd15"))
    for name, tensor in load(sharded).unet.state_dict().items():
        assert torch.equal(tensor, whole.unet.state_dict()[name])


@pytest.mark.parametrize("part", ["text_encoder", "unet"])
def test_an_index_that_lists_what_its_files_lack(part: str, sharded: Path) -> None:
    (path,) = (sharded / part).glob("*.index.json")
    shard = sorted((sharded / part).glob("*.safetensors"))[0]
    tensors = load_file(shard)
    lost = sorted(tensors)[0]
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, shard, metadata={"format": "pt"})
    refused(sharded, str(shard), f"lacks {lost}, which its index lists")
    shard.unlink()
    refused(sharded, str(path), f"names {shard.name}, which is missing")


@pytest.mark.parametrize("part", ["text_encoder", "unet"])
@pytest.mark.parametrize(
    "name",
    [
        *("model.bin", "../secret.safetensors", "/etc/secret.safetensors", "sub/model.safetensors", ".safetensors"),
        *("C:\\model.safetensors", "..\\x.safetensors", "model.safetensors\n", "model.pt", "", 7, None, ["a"], {}),
    ],
)
def test_an_index_that_names_other_files(name: Any, part: str, sharded: Path) -> None:
    (path,) = (sharded / part).glob("*.index.json")
    content = json.loads(path.read_text())
    content["weight_map"][sorted(content["weight_map"])[-1]] = name
    path.write_text(json.dumps(content))
    refused(sharded, str(path), "only safetensors files beside it are read")


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', "{", ""])
def test_an_index_that_is_none(content: str, sharded: Path) -> None:
    (path,) = (sharded / "text_encoder").glob("*.index.json")
    path.write_text(content)
    refused(sharded, str(path))


def test_a_variant_is_judged_in_place_of_the_weights_without(tmp_path: Path, saved: Saved) -> None:
    shutil.copytree(saved("sd15"), tmp_path / "model")
    for path in weights_in(tmp_path / "model"):
        shutil.copy(path, path.with_suffix(".fp16.safetensors"))
        path.write_bytes(b"")
    assert torch.isfinite(load(tmp_path / "model", variant="fp16", dtype="float16").unet.conv_in.weight).all()
    refused(tmp_path / "model", "not complete safetensors")
    with pytest.raises(GocaError, match='no weights of variant "bf16": leave variant out') as caught:
        load(tmp_path / "model", variant="bf16")
    assert caught.value.hint == "variant"
    for path in weights_in(tmp_path / "model"):
        if ".fp16." not in path.name:
            path.unlink()
        else:
            path.with_name(f"{path.name}.part").write_bytes(b"of a download that was given up")
    assert load(tmp_path / "model", variant="fp16").unet is not None
    refused(tmp_path / "model", "only has weights of a variant", ".fp16.safetensors: give the variant")


def test_a_pipeline_in_the_cache_of_the_hub_is_loaded_without_a_network(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "models--someone--model"
    snapshot = repository / "snapshots" / ("0" * 40)
    for path in filter(Path.is_file, saved("sd15").rglob("*")):
        blob = repository / "blobs" / str(path.relative_to(saved("sd15"))).replace("/", "-")
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, blob)
        link = snapshot / path.relative_to(saved("sd15"))
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("0" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    no_network(monkeypatch)
    assert Segmenter.from_pretrained("someone/model").plan.size == 64


# Nothing runs, nothing is fetched, nothing outside is read.


def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: Any, **options: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({}, ""),  # a sound index, with the same files around it
        ({"_class_name": ["pipeline", "Mine"]}, "is not a pipeline of diffusers"),
        ({"_class_name": "Mine"}, '"Mine", which is not a pipeline of diffusers'),
        ({"_class_name": "UNet2DConditionModel"}, "is not a pipeline of diffusers"),
        ({"_class_name": None}, "is not a pipeline of diffusers"),
        ({"unet": ["model", "UNet2DConditionModel"]}, 'wants "model" for unet'),
        ({"vae": ["os", "system"]}, 'wants "os" for vae'),
        ({"vae": ["diffusers.models", "AutoencoderKL"]}, 'wants "diffusers.models" for vae'),
        ({"vae": ["pipeline_utils", "os"]}, "for vae"),
        ({"vae": ["stable_diffusion", "StableDiffusionPipeline"]}, "not a vae of stable_diffusion"),
        ({"vae": ["diffusers", "DiffusionPipeline"]}, "not a vae of diffusers"),
        ({"vae": ["diffusers", "AutoModel"]}, "not a vae of diffusers"),
        ({"vae": ["diffusers", "OnnxRuntimeModel"]}, "not a vae of diffusers"),
        ({"vae": ["diffusers", "loaders"]}, "not a vae of diffusers"),
        ({"text_encoder": ["transformers", "AutoModel"]}, "not a text_encoder of transformers"),
        ({"text_encoder": ["transformers", "pipeline"]}, "not a text_encoder of transformers"),
        ({"tokenizer": ["transformers", "AutoTokenizer"]}, "not a tokenizer of transformers"),
        ({"text_encoder": ["transformers", "__name__"]}, "not a text_encoder of transformers"),
        ({"text_encoder": ["peft", "PeftModel"]}, 'wants "peft" for text_encoder'),
        ({"scheduler": ["diffusers"]}, "a library and a class for scheduler"),
        ({"scheduler": "diffusers"}, "a library and a class for scheduler"),
        ({"scheduler": ["diffusers", ["module", "Class"]]}, "a library and a class for scheduler"),
        ({"scheduler": [None, None]}, "has no scheduler"),
        ({"vae": ["diffusers", "DDIMScheduler"]}, "not a vae of diffusers"),
        ({"text_encoder": ["transformers", "CLIPTokenizer"]}, "not a text_encoder of transformers"),
    ],
    ids=str,
)
def test_a_model_index_that_names_other_code(entry: dict[str, Any], reason: str, folder: Path) -> None:
    marker = folder.parent / "ran"
    program = f"open({str(marker)!r}, 'w')\nclass Mine: pass\n"
    for module in ("pipeline", "model", "None", "diffusers", "transformers", "Mine", "os"):
        for part in ("", "unet", "vae", "text_encoder", "tokenizer", "scheduler"):
            (folder / part / f"{module}.py").write_text(program)
    change(folder / "model_index.json", **entry)
    if reason:
        refused(folder, reason)
    else:
        assert load(folder).unet is not None
    assert not marker.exists()


@pytest.mark.parametrize(
    ("file", "settings", "reason"),
    [
        ("text_encoder/adapter_config.json", {"base_model_name_or_path": "someone/else"}, "would load another model"),
        ("unet/adapter_config.json", {}, "would load another model"),
        ("text_encoder/config.json", {"transformers_weights": "../x.safetensors"}, "only a safetensors file beside it"),
        (
            "text_encoder/config.json",
            {"transformers_weights": "adapter_model.bin"},
            "only a safetensors file beside it",
        ),
        ("text_encoder/config.json", {"attn_implementation": "someone/kernel"}, "code or a model to download"),
        ("text_encoder/config.json", {"_attn_implementation": {"": "someone/kernel:f"}}, "code or a model to download"),
        ("text_encoder/config.json", {"quantization_config": {"quant_method": "mxfp4"}}, "quantised by 'mxfp4'"),
        ("unet/config.json", {"quantization_config": {"quant_method": ["a"]}}, "quantised by"),
        ("tokenizer/tokenizer_config.json", {"fast_tokenizer_files": ["../tokenizer.4.json"]}, "outside its folder"),
        ("tokenizer/tokenizer_config.json", {"extra_ids": 10**9}, "extra_ids = 1000000000"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 10**9}, "num_train_timesteps = 1000000000"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": "1000"}, "num_train_timesteps = '1000'"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": None}, "num_train_timesteps = None"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 0}, "num_train_timesteps = 0"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 1000.5}, "num_train_timesteps = 1000.5"),
        ("scheduler/scheduler_config.json", {"beta_start": "low"}, "scheduler"),
        ("unet/config.json", {"sample_size": "64"}, "sample_size = '64'"),
        ("unet/config.json", {"sample_size": -64}, "sample_size = -64"),
        ("unet/config.json", {"cross_attention_dim": 10**8}, "unet/config.json describes a model"),
        ("unet/config.json", {"cross_attention_dim": 10**10}, "cross_attention_dim = 10000000000"),
        ("unet/config.json", {"layers_per_block": 10**6}, "layers_per_block = 1000000"),
        ("unet/config.json", {"block_out_channels": ["a", "b"]}, "block_out_channels = 'a'"),
        ("unet/config.json", {"down_block_types": 3}, "unet"),
        ("vae/config.json", {"latent_channels": None}, "vae"),
        ("vae/config.json", {"scaling_factor": "big"}, "scaling_factor = 'big'"),
        ("text_encoder/config.json", {"num_hidden_layers": 10**7}, "num_hidden_layers = 10000000"),
        ("text_encoder/config.json", {"vocab_size": 10**9}, "text_encoder/config.json describes a model"),
        ("text_encoder/config.json", {"max_position_embeddings": 10**9}, "text_encoder/config.json describes a model"),
        ("text_encoder/config.json", {"hidden_size": "32"}, "text_encoder"),
    ],
)
def test_settings_that_lead_elsewhere_or_cannot_be(
    file: str, settings: dict[str, Any], reason: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / file
    if not path.exists():
        path.write_text("{}")
    change(path, **settings)
    no_network(monkeypatch)
    refused(folder, reason, str(path.parent))


@pytest.mark.parametrize("size", [None, 0, [], [64, 0]], ids=str)
def test_a_denoiser_that_does_not_say_what_size_it_was_trained_at(size: Any, folder: Path) -> None:
    change(folder / "unet/config.json", sample_size=size)
    with pytest.raises(GocaError, match=r"has sample_size = .* in its configuration"):
        Segmenter.from_pretrained(folder)


@pytest.mark.parametrize("file", ["unet/config.json", "scheduler/scheduler_config.json", "text_encoder/config.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", "3", "null", '{"a": NaN}', "[" * 10**5, b"\xff\xfe\x00"])
def test_a_file_of_settings_that_is_none(content: str | bytes, file: str, folder: Path) -> None:
    (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(folder, str(folder / file))


@pytest.mark.parametrize(
    ("file", "settings"),
    [
        ("text_encoder/config.json", {"auto_map": {"AutoModel": "model.Mine"}, "_name_or_path": "/somewhere/else"}),
        ("tokenizer/tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["tokens.Mine", None]}}),
        ("tokenizer/tokenizer_config.json", {"unknown_setting": 10**30, "tokenizer_file": "/gone/tokenizer.json"}),
        ("unet/config.json", {"_name_or_path": "someone/else", "sample_size": [32, 32], "unknown_setting": "x"}),
        ("scheduler/scheduler_config.json", {"lambda_min_clipped": -float("inf")}),
        ("text_encoder/config.json", {"attn_implementation": "eager"}),
    ],
)
def test_settings_that_stock_folders_have(
    file: str, settings: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "text_encoder/model.py").write_text("raise SystemExit\n")
    change(folder / file, **settings)
    no_network(monkeypatch)
    assert Segmenter.from_pretrained(folder).plan.size == 64


def test_the_older_name_of_a_transformer(saved: Saved, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved("pixart_alpha"), tmp_path / "model"))
    change(folder / "model_index.json", transformer=["diffusers", "Transformer2DModel"])
    assert type(load(folder).transformer).__name__ == "PixArtTransformer2DModel"


# Any content.


def text_of(value: Any, chance: random.Random) -> bytes:
    """As JSON, sometimes with a byte that is not its own."""
    content = bytearray(json.dumps(value).encode())
    if content and chance.random() < 0.3:
        content[chance.randrange(len(content))] = chance.randrange(256)
    return bytes(content)


@pytest.mark.parametrize("reader", ["model_index", "settings", "weights"])
def test_any_content_is_judged_or_refused(reader: str, folder: Path) -> None:
    kind = model_index(read_json(folder / "model_index.json"), "index").parts["unet"]
    assert kind is not None
    shards = {f"model-{n}.safetensors": {f"{n}.weight": torch.zeros(n)} for n in (1, 2)}
    for name, tensors in shards.items():
        save_file(tensors, folder / name)
    index = {"metadata": {"total_size": 12}, "weight_map": {f"{n}.weight": f"model-{n}.safetensors" for n in (1, 2)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    files = {
        "model_index": "model_index.json",
        "settings": "unet/config.json",
        "weights": "model.safetensors.index.json",
    }
    path = folder / files[reader]
    stored = json.loads(path.read_text())
    chance, everywhere = random.Random(reader), list(places(stored))
    outcomes = []
    for _ in range(2000):
        rewrite(path, text_of(damaged(stored, chance.choice(everywhere), chance), chance))
        try:
            if reader == "model_index":
                model_index(read_json(path), str(path))
            elif reader == "settings":
                check_settings(path.parent)
                check_numbers(path, read_settings(path), tensors=200)
                check_types(path, read_settings(path), kind)
            else:
                check_weights(folder)
            outcomes.append("accepted")
        except GocaError:
            outcomes.append("refused")
    assert min(outcomes.count("accepted"), outcomes.count("refused")) > 100

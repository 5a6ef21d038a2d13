"""goca inside ComfyUI: a host that calls as ComfyUI does, around tiny pipelines of diffusers."""

import asyncio
import importlib.util
import inspect
import sys
import tomllib
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from PIL import Image
from torch import Tensor, nn

from goca import GocaError, Segmenter, guide, trace
from goca.integrations import comfyui
from goca.testing.tiny import UNET_BUILDERS
from goca.text.token_spans import prompt_words

PACK = Path(__file__).parent.parent / "integrations" / "comfyui"
CAT = Path(__file__).parent.parent / "examples" / "cat.png"
PROMPT = "a cat, on grass, a cat"
SIZE = {"height": 32, "width": 48, "num_inference_steps": 3}
ALL_STEPS = range(10_000)


# --- ComfyUI, as far as it is called: comfy_api.latest


class Typed:
    """A type of inputs and outputs."""

    def __init__(self, kind: str, name: str = "", **facts: Any) -> None:
        self.kind, self.id, self.facts = kind, name, facts

    @property
    def Input(self) -> Callable[..., "Typed"]:  # noqa: N802 - as ComfyUI names it
        return lambda name, **facts: Typed(self.kind, name, **facts)

    Output = Input


class NodeOutput:
    def __init__(self, *results: Any) -> None:
        self.result = results


@pytest.fixture(scope="module")
def pack() -> Iterator[ModuleType]:
    """The node pack, loaded as ComfyUI loads a folder in custom_nodes."""
    api: Any = ModuleType("comfy_api.latest")
    kinds = {name: Typed(name.upper()) for name in ("Image", "Mask", "String", "Int", "Combo", "Model", "Clip")}
    schema: Any = lambda **facts: SimpleNamespace(**facts)  # noqa: E731
    api.io = SimpleNamespace(
        **kinds,
        Conditioning=Typed("CONDITIONING"),
        Custom=Typed,
        Schema=schema,
        ComfyNode=object,
        NodeOutput=NodeOutput,
    )
    api.ComfyExtension = object
    spec = importlib.util.spec_from_file_location("goca_pack", PACK / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "comfy_api", ModuleType("comfy_api"))
        patch.setitem(sys.modules, "comfy_api.latest", api)
        spec.loader.exec_module(module)
        yield module


@pytest.fixture(scope="module")
def nodes(pack: ModuleType) -> dict[str, Any]:
    listed = asyncio.run(asyncio.run(pack.comfy_entrypoint()).get_node_list())
    return {node.define_schema().node_id: node for node in listed}


# --- ComfyUI, as far as it calls: a model, a CLIP, and a sampler


def comfy_place(path: str, layers: int) -> tuple[str, int, int]:
    """Where ComfyUI has a transformer block of diffusers."""
    parts = path.split(".")
    depth = int(parts[-1])
    if parts[0] == "mid_block":
        return "middle", 0, depth
    number = int(parts[1]) * (layers + 1) + int(parts[3])
    return ("output", number, depth) if parts[0] == "up_blocks" else ("input", number + 1, depth)


class UNetModel(nn.Module):
    """The transformer blocks of a UNet of diffusers where ComfyUI's has them."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        layers = unet.config.layers_per_block
        self.places: dict[nn.Module, tuple[str, int, int]] = {}
        for path, block in unet.named_modules():
            if ".transformer_blocks." in path and path.rsplit(".", 2)[1] == "transformer_blocks":
                part, number, depth = self.places[block] = comfy_place(path, layers)
                home = f"middle_block.1.transformer_blocks.{depth}"
                if part != "middle":
                    home = f"{part}_blocks.{number}.1.transformer_blocks.{depth}"
                self._put(home, block)

    def _put(self, path: str, block: nn.Module) -> None:
        parent: nn.Module = self
        *folders, name = path.split(".")
        for folder in folders:
            if folder not in parent._modules:
                parent.add_module(folder, nn.Module())
            parent = parent._modules[folder]  # type: ignore[assignment]
        parent.add_module(name, block)


def attention_pytorch(
    q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None, **options: Any
) -> Tensor:
    """As ComfyUI's: (row, position, head * dim) in and out."""
    parts = [part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v)]
    return F.scaled_dot_product_attention(*parts, attn_mask=mask).transpose(1, 2).flatten(2)


class Attending:
    """A processor of diffusers that attends as ComfyUI's CrossAttention does."""

    def __init__(self, host: "Host", place: tuple[str, int, int]) -> None:
        self.host, self.place = host, place

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any) -> Any:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        options = {**self.host.options, "block": self.place[:2], "block_index": self.place[2]}
        override = options.get("optimized_attention_override")
        given = {"attn_precision": None, "transformer_options": options, "_inside_attn_wrapper": True}
        if override is None:
            return attn.to_out[0](attention_pytorch(q, k, v, attn.heads, **given))
        return attn.to_out[0](override(attention_pytorch, q, k, v, attn.heads, **given))


class Patcher:
    """ComfyUI's ModelPatcher, as far as nodes change it."""

    def __init__(self, model: Any) -> None:
        self.model, self.model_options, self.wrappers = model, {"transformer_options": {}}, {}

    def clone(self) -> "Patcher":
        other = Patcher(self.model)
        other.model_options = deepcopy(self.model_options)
        other.wrappers = {kind: list(functions) for kind, functions in self.wrappers.items()}
        return other

    def add_wrapper_with_key(self, kind: str, key: str, function: Callable[..., Any]) -> None:
        self.wrappers.setdefault(kind, []).append(function)

    def set_model_sampler_pre_cfg_function(self, function: Callable[..., Any]) -> None:
        self.model_options.setdefault("sampler_pre_cfg_function", []).append(function)


class Executor:
    """Calls a function within its wrappers."""

    def __init__(self, wrappers: list[Any], function: Callable[..., Any], class_obj: Any) -> None:
        self.wrappers, self.function, self.class_obj = wrappers, function, class_obj

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.wrappers:
            return self.function(*args, **kwargs)
        return self.wrappers[0](Executor(self.wrappers[1:], self.function, self.class_obj), *args, **kwargs)


class Host:
    """A pipeline of diffusers whose UNet is run by ComfyUI's sampler: batched, or one conditioning after the other.

    repeat: the uncond's text is so many times as long, and the positive one is repeated to its length.
    """

    def __init__(self, name: str = "sd15", apart: bool = False, repeat: int = 1) -> None:
        self.pipeline = UNET_BUILDERS[name]()
        self.pipeline.set_progress_bar_config(disable=True)
        self.apart, self.repeat = apart, repeat
        unet = self.unet = self.pipeline.unet
        self.options: dict[str, Any] = {}
        self.forward = unet.forward
        widths = unet.config.block_out_channels
        facts = {
            "num_res_blocks": [unet.config.layers_per_block] * len(widths),
            "model_channels": widths[0],
            "channel_mult": [width // widths[0] for width in widths],
            "context_dim": unet.config.cross_attention_dim,
        }
        diffusion_model = UNetModel(unet)
        model = SimpleNamespace(diffusion_model=diffusion_model, model_config=SimpleNamespace(unet_config=facts))
        self.patcher = Patcher(model)
        for block, place in diffusion_model.places.items():
            for attention in (block.attn1, block.attn2):
                attention.set_processor(Attending(self, place))

    @property
    def clip(self) -> Any:
        """Tokens in one chunk of 77, padded as the tokenizer does."""
        tokenizer = self.pipeline.tokenizer

        def tokenize(text: str) -> dict[str, Any]:
            ids = tokenizer(
                text, padding="max_length", max_length=tokenizer.model_max_length, truncation=True
            ).input_ids
            return {"l": [[(number, 1.0) for number in ids]]}

        named = SimpleNamespace(clip_l=SimpleNamespace(tokenizer=tokenizer))
        return SimpleNamespace(tokenizer=named, tokenize=tokenize, encode_from_tokens_scheduled=lambda tokens: tokens)

    def sample(self, patcher: Patcher, images: int = 1, scale: float = 4.0, size: Any = SIZE) -> Tensor:
        """What the pipeline makes with a patched model, as stock makes it without."""

        def denoise(x: Tensor, timestep: Any, encoder_hidden_states: Tensor, **kwargs: Any) -> Any:
            kwargs.pop("return_dict", None)
            kwargs = {key: value for key, value in kwargs.items() if key != "cross_attention_kwargs"}
            context = encoder_hidden_states
            if self.repeat > 1:
                context = context.repeat(1, self.repeat, 1)
            guided, sigma = scale > 1, 1 + float(timestep) / 100
            every = torch.arange(len(x))
            chunks = [([1, 0], every)] if guided else [([0], every)]
            if guided and self.apart:
                chunks = [([1], every[:images]), ([0], every[images:])]
            out = torch.empty_like(x)
            for cond_or_uncond, rows in chunks:
                added = kwargs.get("added_cond_kwargs")
                more = {} if added is None else {"added_cond_kwargs": {k: v[rows] for k, v in added.items()}}
                self.options = {
                    **patcher.model_options["transformer_options"],
                    "cond_or_uncond": cond_or_uncond,
                    "uuids": [f"uuid of {branch}" for branch in cond_or_uncond],
                    "sigmas": torch.full((images,), sigma),
                    "sample_sigmas": 1 + torch.tensor([*map(float, self.pipeline.scheduler.timesteps), -100]) / 100,
                }

                def call(x: Tensor, t: Tensor, context: Tensor, y: Any, control: Any, options: Any) -> Tensor:
                    return self.forward(x, timestep, context, return_dict=False, **more)[0]  # noqa: B023

                executor = Executor(patcher.wrappers.get("diffusion_model", []), call, self.unet)
                times = torch.full((len(rows),), float(timestep))
                out[rows] = executor(x[rows], times, context[rows], None, None, self.options)
            if guided:  # ComfyUI has denoised predictions, x - sigma eps
                uncond, cond = (x[:images] - sigma * part for part in out.chunk(2))
                predictions = [cond, uncond]
                for function in patcher.model_options.get("sampler_pre_cfg_function", []):
                    given = {"conds": [[{}], [{}]], "conds_out": predictions, "cond_scale": scale}
                    predictions = function(given)
                cond, uncond = predictions
                out = torch.cat([(x[:images] - uncond) / sigma, (x[:images] - cond) / sigma])
            return (out,)

        def run(noise: Tensor) -> Tensor:
            return make(self.pipeline, images, scale, size)

        guider = SimpleNamespace(cfg=scale)
        self.unet.forward = denoise
        try:
            factor = self.pipeline.vae_scale_factor
            noise = torch.zeros(images, 4, size["height"] // factor, size["width"] // factor)
            return Executor(patcher.wrappers.get("outer_sample", []), run, guider)(noise)
        finally:
            self.unet.forward = self.forward


def make(pipeline: Any, images: int = 1, scale: float = 4.0, size: Any = SIZE) -> Tensor:
    generators = [torch.Generator().manual_seed(seed) for seed in range(images)]
    out = pipeline(
        PROMPT, num_images_per_prompt=images, generator=generators, guidance_scale=scale, output_type="np", **size
    )
    return torch.as_tensor(out[0])


def traced_sampler(host: Host, recipe: str = "goca", steps: range = ALL_STEPS) -> tuple[Patcher, comfyui.SamplerTrace]:
    patcher, conditioning, attention = comfyui.trace_sampler(host.patcher, host.clip, PROMPT, recipe, steps)
    assert conditioning == host.clip.tokenize(PROMPT)
    return patcher, attention


# --- same attention in, same maps out


@pytest.mark.parametrize(
    ("name", "options"),
    [("sd15", {}), ("sd15", {"apart": True}), ("sd15", {"repeat": 2}), ("sd2", {}), ("sdxl", {})],
    ids=["batched", "apart", "padded by repeating", "sd2", "sdxl"],
)
def test_words_attend_to_what_a_trace_says(name: str, options: dict[str, Any]) -> None:
    host, stock = Host(name, **options), UNET_BUILDERS[name]()
    stock.set_progress_bar_config(disable=True)
    with trace(stock) as traced:
        expected = make(stock, images=2)
    patcher, attention = traced_sampler(host)
    made = host.sample(patcher, images=2)
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-4)
    ours_of = attention.images(comfyui.as_images(made))
    assert len(ours_of) == len(traced) == 2
    for ours, theirs in zip(ours_of, traced, strict=True):
        assert ours.words() == theirs.words()
        for word in ours.words():
            np.testing.assert_allclose(ours.map(word), theirs.map(word), atol=2e-3)
        for ours_step, theirs_step in zip(ours.steps, theirs.steps, strict=True):
            assert (ours_step.step, ours_step.timestep) == (theirs_step.step, theirs_step.timestep)
            assert ours_step.layers == pytest.approx(theirs_step.layers, abs=1e-4)
            for block, weights in theirs_step.heads.items():
                assert ours_step.heads[block] == pytest.approx(weights, abs=1e-4)
        labels = [image.segment(["cat", "grass"], background=0.5).labels for image in (ours, theirs)]
        assert (labels[0] != labels[1]).mean() < 0.01


def test_tracing_changes_no_image() -> None:
    host = Host()
    patcher, _ = traced_sampler(host)
    torch.testing.assert_close(host.sample(patcher), host.sample(host.patcher), rtol=0, atol=0)


def test_steps_and_a_second_sampling() -> None:
    host = Host()
    patcher, attention = traced_sampler(host, steps=range(1, 3))
    for _ in range(2):
        made = host.sample(patcher)
        (image,) = attention.images(comfyui.as_images(made))
        assert [step.step for step in image.steps] == [1, 2]


@pytest.mark.parametrize(("by", "share"), [("energy", 1e-3), ("goca", 0.05)])
@pytest.mark.parametrize("apart", [False, True], ids=["batched", "apart"])
def test_guidance_is_that_of_goca(by: str, share: float, apart: bool) -> None:
    """share: of the effect, by which results may differ on average; random weights tie, and rounding decides there."""
    stock = UNET_BUILDERS["sd15"]()
    stock.set_progress_bar_config(disable=True)
    plain = make(stock, images=2)
    with guide(stock, None if by == "energy" else by, steps=range(1, 3)):
        expected = make(stock, images=2)
    host = Host(apart=apart)
    patcher, _ = comfyui.guide(host.patcher, host.clip, PROMPT, by, range(1, 3), every=1)
    made = host.sample(patcher, images=2)
    assert (made - expected).abs().mean() < share * (expected - plain).abs().mean()


def test_a_guided_model_is_traced() -> None:
    """Nodes in a row, with a clone behind them as a LoRA's node makes it."""
    host = Host()
    guided, _ = comfyui.guide(host.patcher, host.clip, PROMPT, "goca", ALL_STEPS, every=1)
    both, _, attention = comfyui.trace_sampler(guided, host.clip, PROMPT, "goca", ALL_STEPS)
    made = host.sample(both.clone())
    torch.testing.assert_close(made, host.sample(guided), rtol=0, atol=0)
    (image,) = attention.images(comfyui.as_images(made))
    assert len(image.steps) == SIZE["num_inference_steps"]


# --- layouts and prompts


@pytest.mark.parametrize(
    ("name", "widths", "depths", "context", "inputs", "outputs"),
    [
        ("Stable Diffusion 1.5", (320, 640, 1280, 1280), (1, 1, 1, 0), 768, (1, 2, 4, 5, 7, 8), range(3, 12)),
        ("Stable Diffusion XL", (320, 640, 1280), (0, 2, 10), 2048, (4, 5, 7, 8), range(6)),
    ],
)
def test_published_settings_are_known_by_the_layout(
    name: str, widths: Any, depths: Any, context: int, inputs: Any, outputs: Any
) -> None:
    """inputs, outputs: the numbers of the blocks with attention, as these checkpoints' files have them."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=widths,
            cross_attention_dim=context,
            down_block_types=["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths],
            up_block_types=["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(depths)],
            transformer_layers_per_block=[depth or 1 for depth in depths],
        )
    diffusion_model = UNetModel(unet)
    facts = {
        "num_res_blocks": 2,
        "model_channels": widths[0],
        "channel_mult": [width // widths[0] for width in widths],
        "context_dim": context,
    }
    host = SimpleNamespace(diffusion_model=diffusion_model, model_config=SimpleNamespace(unet_config=facts))
    read = comfyui.HostUNet.of(host)
    assert read.settings.name == name
    assert {number for part, number, _ in read.cross if part == "input"} == set(inputs)
    assert {number for part, number, _ in read.cross if part == "output"} == set(outputs)
    for module in read.cross.values():
        assert unet.get_submodule(module.block) is module.owner


def test_prompts_of_several_chunks() -> None:
    """Weights are not words, nor are embeddings, nor the "!" that some encoders pad with."""
    clip = Host().clip
    tokenizer = clip.tokenizer.clip_l.tokenizer
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    words = tokenizer("a cat on", add_special_tokens=False).input_ids
    more = tokenizer("grass", add_special_tokens=False).input_ids
    pad = tokenizer("!", add_special_tokens=False).input_ids
    chunks = [
        [(number, 1.3) for number in [start, *words]] + [(torch.zeros(8), 1.0), (end, 1.0), *[(pad[0], 1.0)] * 3],
        [(number, 1.0) for number in [start, *more, end, *pad * 2]],
    ]
    prompt = comfyui.HostPrompt.of(clip, "(a cat on:1.3) embedding:style grass", {"l": chunks})
    first, second = len(chunks[0]), len(chunks[1])
    assert prompt.length == first + second
    found = {word.name: indices for word, indices in prompt_words(prompt.tokens.texts).items()}
    a_token = len(tokenizer("a", add_special_tokens=False).input_ids)
    cat = len(tokenizer("cat", add_special_tokens=False).input_ids)
    assert found == {
        "cat": tuple(range(1 + a_token, 1 + a_token + cat)),
        "on": tuple(range(1 + a_token + cat, 1 + len(words))),
        "grass": tuple(range(first + 1, first + 1 + len(more))),
    }


# --- what cannot be read, in one line


def refused(message: str, call: Callable[[], Any]) -> None:
    with pytest.raises(GocaError, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)


def test_other_models_are_refused() -> None:
    host = Host()
    flux = Patcher(SimpleNamespace(diffusion_model=type("Flux", (nn.Module,), {})(), model_config=SimpleNamespace()))
    refused(
        "the attention of Flux is not supported",
        lambda: comfyui.trace_sampler(flux, host.clip, PROMPT, "goca", ALL_STEPS),
    )
    t5 = SimpleNamespace(tokenize=lambda text: {"l": [], "t5xxl": []})
    refused("l, t5xxl", lambda: comfyui.trace_sampler(host.patcher, t5, PROMPT, "goca", ALL_STEPS))


def test_attention_that_other_nodes_change_is_refused() -> None:
    host = Host()
    patcher, _ = traced_sampler(host)
    block, place = next(iter(host.patcher.model.diffusion_model.places.items()))
    block.attn2.set_processor(AttnProcessor2_0())  # passes ComfyUI's attention by
    refused("another node changes the attention", lambda: host.sample(patcher))
    block.attn2.set_processor(Attending(host, place))

    def halves(attend: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Attention in tiles, as HyperTile has it."""
        q, k, v, heads = args
        parts = (
            attend(q[:, rows], k, v, heads, **kwargs)
            for rows in (slice(0, len(q[0]) // 2), slice(len(q[0]) // 2, None))
        )
        return torch.cat(list(parts), 1)

    tiled = patcher.clone()
    inner = tiled.model_options["transformer_options"]["optimized_attention_override"]
    tiled.model_options["transformer_options"]["optimized_attention_override"] = lambda attend, *args, **kwargs: halves(
        lambda *given, **more: inner(attend, *given, **more), *args, **kwargs
    )
    refused("another node changes the attention", lambda: host.sample(tiled))


def test_other_conditioning_is_refused() -> None:
    host = Host()
    patcher, _ = traced_sampler(host)
    short = host.clip
    short.tokenize = lambda text: {"l": [chunk[:-7] for chunk in host.clip.tokenize(text)["l"]]}
    other, _, _ = comfyui.trace_sampler(host.patcher, short, PROMPT, "goca", ALL_STEPS)
    refused("positive prompt has", lambda: host.sample(other))
    options = {"cond_or_uncond": [0, 0], "sigmas": torch.ones(1), "sample_sigmas": torch.tensor([1.0, 0.0])}
    (denoising,), (sampling,) = patcher.wrappers["diffusion_model"], patcher.wrappers["outer_sample"]
    sampling(Executor([], lambda noise: noise, SimpleNamespace(cfg=4.0)), torch.zeros(1, 4, 4, 4))
    call = Executor([], lambda x, *args: x, None)
    for x, branches in ((torch.zeros(2, 4, 4, 4), [0, 0]), (torch.zeros(1, 4, 4, 2), [0])):
        given = {**options, "cond_or_uncond": branches}
        refused(
            "connect one prompt for the whole image",
            lambda x=x, given=given: denoising(call, x, torch.ones(1), None, None, None, given),
        )


def test_nothing_was_traced() -> None:
    host = Host()
    patcher, attention = traced_sampler(host, steps=range(5, 9))
    shown = [Image.new("RGB", (48, 32))]
    refused("no sampling was traced", lambda: attention.images(shown))
    host.sample(patcher)
    refused("did not reach any of the chosen steps", lambda: attention.images(shown))
    patcher, attention = traced_sampler(host)
    host.sample(patcher)
    refused("1 images were traced but 2 are connected", lambda: attention.images(shown * 2))
    guided, _ = comfyui.guide(host.patcher, host.clip, PROMPT, "goca", ALL_STEPS, every=1)
    refused("does not use guidance", lambda: host.sample(guided, scale=1.0))


# --- the nodes


def test_nodes_are_as_comfyui_wants_them(nodes: dict[str, Any]) -> None:
    assert len(nodes) == 4
    for node in nodes.values():
        schema = node.define_schema()
        inputs = [each.id for each in schema.inputs]
        parameters = list(inspect.signature(node.execute).parameters)
        assert inputs == parameters
        ids = [*inputs, *(each.id for each in schema.outputs)]
        assert len(set(ids)) == len(ids)  # ComfyUI refuses a schema in which an id stands twice


def test_the_registry_takes_the_pack() -> None:
    facts = tomllib.loads((PACK / "pyproject.toml").read_text())
    assert "comfyui" not in facts["project"]["name"].lower()
    assert facts["project"]["version"].count(".") == 2
    assert facts["project"]["license"].keys() <= {"file", "text"}
    assert "Repository" in facts["project"]["urls"]
    assert {"PublisherId", "DisplayName", "Icon"} <= facts["tool"]["comfy"].keys()
    assert facts["project"]["dependencies"] == (PACK / "requirements.txt").read_text().split()


def test_segment_by_words(nodes: dict[str, Any]) -> None:
    with Image.open(CAT) as file:
        cat = np.asarray(file.convert("RGB"))
    image = torch.from_numpy(np.stack([cat, cat[:, ::-1]])).float() / 255
    with torch.inference_mode():  # as ComfyUI runs nodes
        output = nodes["GocaSegmentByWords"].execute(
            image, "cat: kitty\nsky\nwater", "bundled", "goca-open", -1, "auto", "cpu"
        )
    masks, scores, labels, overlay, names = output.result
    expected = Segmenter.from_pretrained("bundled")([cat, cat[:, ::-1].copy()], ["cat", "sky", "water"])
    assert names == "cat\nsky\nwater"
    assert masks.shape == (6, *cat.shape[:2])
    for index, (result, name) in enumerate((each, name) for each in expected for name in each):
        np.testing.assert_array_equal(masks[index].numpy() == 1, result[name])
    assert scores.shape == (6, *cat.shape)
    assert labels.shape == overlay.shape == image.shape
    assert all(float(drawn.min()) >= 0 and float(drawn.max()) <= 1 for drawn in (masks, scores, labels, overlay))


def test_an_empty_batch_is_refused(nodes: dict[str, Any]) -> None:
    empty = torch.zeros(0, 32, 48, 3)
    node = nodes["GocaSegmentByWords"]
    refused("no images", lambda: node.execute(empty, "cat, sky", "bundled", "goca-open", -1, "auto", "cpu"))
    host = Host()
    _, attention = traced_sampler(host)
    refused("no images", lambda: nodes["GocaMasksOfWords"].execute(attention, empty, "cat", "auto"))


def test_listen_sample_and_read(nodes: dict[str, Any]) -> None:
    host = Host()
    patcher, _, attention = (
        nodes["GocaListenToTheSampler"].execute(host.patcher, host.clip, PROMPT, "goca", 0, 10).result
    )
    made = host.sample(patcher, images=2)
    node = nodes["GocaMasksOfWords"]
    masks, scores, _, overlay, names = node.execute(attention, made, "grass\ncat", "none").result
    assert names == "grass\ncat"
    assert masks.shape == (4, 32, 48)
    torch.testing.assert_close(masks[0::2] + masks[1::2], torch.ones(2, 32, 48))
    assert scores.shape == (4, 32, 48, 3)
    assert overlay.shape == (2, 32, 48, 3)
    assert node.execute(attention, made, " ", "0.5").result[-1] == "cat\non\ngrass"
    refused("dog", lambda: node.execute(attention, made, "dog", "auto"))


def test_the_guide_node(nodes: dict[str, Any]) -> None:
    host = Host()
    patcher, positive = nodes["GocaGuide"].execute(host.patcher, host.clip, PROMPT, "goca", 0, 10, 2).result
    assert positive == host.clip.tokenize(PROMPT)
    assert not torch.equal(host.sample(patcher), host.sample(host.patcher))

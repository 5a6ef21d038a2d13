"""The work of a segmentation on a GPU beyond the denoiser pass that it needs anyway: counted without a GPU.

    python benchmarks/launches.py [sd15|sdxl|flux|bundled ...] [--dtype float16] [--by-place] [--markdown] [--json]

Real widths and depths. The meta device stands in for the GPU: PyTorch computes shapes there and no values, and whatever
goca does differently on a GPU, such as larger blocks of rows, it does there too. Values that do not come from the
denoiser (indices, encoded prompts, the encoded image) are known all the same, see `Counter`.

Counted is the second image of a stream, from the request to its labels, so that prompts are encoded and what is kept
for images of one size is there; and the same denoiser call by itself, which is the plain pass. The VAE's encoder is
left out. In what follows from that:

- operations: calls of PyTorch's operators that put work on the device's queue: all but views (every output is an input,
  not written to) and bare allocations. An attention is one, as in the fused kernels.
- syncs: the host waits for the device: a value or a tensor is copied to the host; a tensor is copied from the host's
  ordinary memory; or a shape depends on values (`nonzero`, `unique`, boolean masks).
- bytes: those that operations write.
- FLOPs: of products, convolutions and attention, by `torch.utils.flop_counter`.
"""

import argparse
import json
import sys
from collections import Counter as Tally
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import memory
import numpy as np
import overhead
import torch
import torch.nn.functional as F
from PIL import Image
from tables import markdown
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

import goca
from goca import GOCA, Segmenter
from goca.bundled import scenes
from goca.diffusion.families import bare
from goca.request import SegmentationRequest

HOME = str(Path(goca.__file__).parent)
DEVICE = torch.device("meta")
CLASSES, BACKGROUND = ("cat", "grass", "tree"), ("sky",)
ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
VIEWS = {"lift_fresh", "detach", "_unsafe_view", "_reshape_alias"}
"""Views whose signature does not show that they are."""
MODEL, VAE = "the denoiser itself", "the VAE's encoder"


@dataclass
class Cost:
    """The work on the device, by place: a line of goca, or `MODEL` or `VAE`."""

    operations: Tally[str] = field(default_factory=Tally)
    syncs: Tally[str] = field(default_factory=Tally)
    written: Tally[str] = field(default_factory=Tally)
    flops: Tally[str] = field(default_factory=Tally)

    def total(self, what: str) -> int:
        """The total without the VAE."""
        return sum(count for place, count in getattr(self, what).items() if place != VAE)


class Counter(TorchDispatchMode):
    """Counts the work on the meta device, and tracks the values of tensors that do not depend on unknown ones.

    A tensor copied there keeps its value as an attribute, and so does everything computed only from such tensors.
    Values read from other tensors are random, in [0, 1).
    """

    def __init__(self) -> None:
        super().__init__()
        self.cost = Cost()
        self.fused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
        there = [tensor for tensor in inputs if tensor.device == DEVICE]
        if not there and kwargs.get("device") != DEVICE:
            return func(*args, **kwargs)
        values = None
        known = all(tensor.device != DEVICE or hasattr(tensor, "known") for tensor in inputs)
        if known and func.overloadpacket.__name__ not in ALLOCATIONS:
            at_home = {**kwargs, "device": torch.device("cpu")} if kwargs.get("device") == DEVICE else kwargs
            values = func(*tree_map(value_of, args), **tree_map(value_of, at_home))
        if torch.Tag.data_dependent_output in func.tags:
            self._count(func, args, kwargs, (), sync=True)
            return torch.rand(()).item() if values is None else values
        if kwargs.get("device", DEVICE) != DEVICE:  # to the host
            output = (
                values if values is not None else torch.rand(there[0].shape).to(kwargs.get("dtype") or there[0].dtype)
            )
            self._count(func, args, kwargs, (), sync=True)
            return output
        masks = any(tensor.dtype in (torch.bool, torch.uint8) for tensor in inputs[1:])
        dynamic = torch.Tag.dynamic_output_shape in func.tags and (masks or "index" not in func.overloadpacket.__name__)
        assert values is not None or not dynamic, f"the shape of {func} depends on activations"
        writes = any(
            argument.alias_info is not None and argument.alias_info.is_write for argument in func._schema.arguments
        )
        # With the strides of the values: some operators require certain strides.
        output = func(*args, **kwargs) if values is None or writes else tree_map(unvalued, values)
        outputs = [value for value in tree_flatten(output)[0] if isinstance(value, Tensor)]
        for tensor, value in zip(outputs, tree_flatten(values)[0], strict=False):
            tensor.known = value
        for tensor in outputs if values is None else ():
            vars(tensor).pop("known", None)
        copied = len(there) < len(inputs) and func.overloadpacket.__name__ in ("_to_copy", "copy_")
        from_host = copied and not kwargs.get("non_blocking")
        self._count(func, args, kwargs, outputs, sync=dynamic or from_host)
        return output

    def _count(self, func: Any, args: Any, kwargs: Any, outputs: Sequence[Tensor], sync: bool) -> None:
        if self.fused or (not sync and is_free(func)):
            return
        place = where()
        flops = flop_registry.get(func.overloadpacket)
        self.add(place, outputs, 0 if flops is None else flops(*args, **kwargs, out_val=outputs[0]), sync)

    def add(self, place: str, outputs: Sequence[Tensor], flops: int, sync: bool = False) -> None:
        self.cost.operations[place] += 1
        self.cost.syncs[place] += sync
        self.cost.written[place] += sum(tensor.nbytes for tensor in outputs)
        self.cost.flops[place] += flops


class FusedAttention(TorchFunctionMode):
    """Has an attention counted as one operation."""

    def __init__(self, counter: Counter) -> None:
        super().__init__()
        self.counter = counter

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        self.counter.fused = True
        try:
            output = func(*args, **kwargs)
        finally:
            self.counter.fused = False
        if output.device == DEVICE:
            parts = (*args, *(kwargs[name] for name in ("query", "key", "value") if name in kwargs))
            self.counter.add(where(), [output], sdpa_flop_count(*(part.shape for part in parts[:3])))
        return output


def is_free(func: Any) -> bool:
    """Whether an operator puts no work on the device's queue."""
    if func.overloadpacket.__name__ in ALLOCATIONS | VIEWS or torch.Tag.inplace_view in func.tags:
        return True
    aliases = [result.alias_info for result in func._schema.returns]
    return bool(aliases) and all(alias is not None and not alias.is_write for alias in aliases)


def unvalued(value: Any) -> Any:
    """A tensor of the device that has nothing but the layout of one that is on the host."""
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=DEVICE)


def value_of(argument: Any) -> Any:
    return getattr(argument, "known", argument)


def where() -> str:
    """The innermost line of goca that is running, or the model that it runs."""
    frame = sys._getframe(2)
    while frame is not None and not frame.f_code.co_filename.startswith(HOME):
        frame = frame.f_back
    if frame is None:
        return MODEL
    code = frame.f_code
    if code.co_name == "_encoded":
        return VAE
    # The hook on attention is around every function that the denoiser calls.
    if code.co_name == "__torch_function__" or (code.co_name == "forward" and "backbone" in code.co_filename):
        return MODEL
    return f"{code.co_filename.removeprefix(HOME + '/')}:{frame.f_lineno} {code.co_name}"


def move(module: nn.Module, with_values: bool) -> None:
    """Put a module on the device, in place."""
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                moved = tensor.detach().to(DEVICE)
                if tensors is part._parameters:
                    moved = nn.Parameter(moved, requires_grad=False)
                if with_values:
                    moved.known = tensor.detach()
                tensors[name] = moved


@contextmanager
def counted() -> Iterator[Callable[[], Cost]]:
    """Gives a function that returns what was asked of the device since it was last called."""
    counter = Counter()

    def take() -> Cost:
        cost, counter.cost = counter.cost, Cost()
        return cost

    # There is no autocast for this device, nor any to leave.
    with mock.patch.object(torch, "autocast", return_value=nullcontext()), FusedAttention(counter), counter:
        yield take


@torch.no_grad()
def measure(
    pipeline: Any, image: Image.Image, dtype: torch.dtype, recipe: Any = GOCA, **options: Any
) -> tuple[Cost, Cost]:
    """(a plain denoiser pass, a segmentation) with a pipeline, which is moved to the device for good."""
    denoiser = next(getattr(pipeline, name) for name in ("unet", "transformer") if hasattr(pipeline, name))
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            # The VAE is not counted, and may overflow in half precision.
            kind = torch.float32 if part is pipeline.vae else dtype
            move(nn.Module.to(part, kind), with_values=part is not denoiser)
    with counted() as take:
        segmenter = Segmenter.from_pipeline(pipeline, recipe, **options)
        session, request = segmenter.backbone.session(), SegmentationRequest(image, CLASSES, BACKGROUND)
        for _ in range(2):
            take()
            with calls_of(bare(denoiser)) as calls:
                ((_, outcome),) = segmenter.stream([request], session)
            if isinstance(outcome, Exception):
                raise outcome
        segmented = take()
        args, kwargs = calls[0]
        denoiser(*args, **kwargs)
        return take(), segmented


@contextmanager
def calls_of(module: nn.Module) -> Iterator[list[Any]]:
    """The (positional, named) arguments of the calls of a module meanwhile."""
    calls: list[Any] = []
    handle = module.register_forward_pre_hook(lambda _, *call: calls.append(call), with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


def noise(size: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8))


def sd15(dtype: torch.dtype) -> tuple[Cost, Cost]:
    return measure(overhead.build(DEVICE), noise(512), dtype)


def large(build: Callable[..., memory.Slice], dtype: torch.dtype) -> tuple[Cost, Cost]:
    built = build(1, dtype, whole=True, device=DEVICE)
    recipe = replace(GOCA, reference=built.reference, refine=built.refine)
    return measure(built.pipeline, noise(memory.SIZE), dtype, recipe, size=memory.SIZE)


def bundled(dtype: torch.dtype) -> tuple[Cost, Cost]:
    pipeline = Segmenter.from_pretrained("bundled", recipe=GOCA).backbone.pipeline
    return measure(pipeline, next(scenes()).image, dtype)


MODELS: dict[str, Callable[[torch.dtype], tuple[Cost, Cost]]] = {
    "sd15": sd15,
    "sdxl": lambda dtype: large(memory.sdxl, dtype),
    "flux": lambda dtype: large(memory.flux, dtype),
    "bundled": bundled,
}


def by_place(cost: Cost) -> list[tuple[str, int, int, int, int]]:
    """(place, operations, syncs, bytes, FLOPs), those with most operations first."""
    rows = [
        (place, count, cost.syncs[place], cost.written[place], cost.flops[place])
        for place, count in cost.operations.items()
    ]
    return sorted(rows, key=lambda row: -row[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", help=f"{', '.join(MODELS)}; all by default")
    parser.add_argument("--dtype", default="float16", choices=("float16", "bfloat16", "float32"))
    parser.add_argument(
        "--by-place", action="store_true", help="print the lines of goca that cause operations and syncs"
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON per model")
    options = parser.parse_args()
    names = ("operations", "syncs", "written", "flops")
    rows = []
    for model in options.models or MODELS:
        plain, segmented = MODELS[model](getattr(torch, options.dtype))
        counts = {name: (plain.total(name), segmented.total(name)) for name in names}
        if options.json:
            print(json.dumps({"model": model, **counts}), flush=True)
            continue
        if options.by_place:
            print(f"{model}:")
            for place, *figures in by_place(segmented):
                print(
                    "{:6} {:4} {:10.1f} MB {:10.2f} GFLOP  {}".format(
                        *figures[:2], figures[2] / 1e6, figures[3] / 1e9, place
                    )
                )
        (ops, all_ops), (syncs, all_syncs), (written, all_written), (flops, all_flops) = counts.values()
        rows.append(
            (
                model,
                f"{ops} / {all_ops}",
                f"{all_ops / ops:.2f}",
                f"{syncs} / {all_syncs}",
                f"{written / 1e9:.2f} / {all_written / 1e9:.2f}",
                f"{all_written / written:.2f}",
                f"{all_flops / flops:.3f}",
            )
        )
    if rows:
        header = ("model", "operations, plain / segmented", "ratio", "syncs", "GB written", "ratio", "FLOPs, ratio")
        print(markdown(header, rows))


if __name__ == "__main__":
    main()

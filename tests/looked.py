"""What a module attends with, recorded without goca, for tests to hold maps against."""

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode


class Looked(TorchFunctionMode):
    """The queries and keys of every attention of a module."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.calls: list[tuple[Tensor, Tensor]] = []
        self.running = False
        module.register_forward_pre_hook(lambda module, args: setattr(self, "running", True))
        module.register_forward_hook(lambda module, args, output: setattr(self, "running", False))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is scaled_dot_product_attention and self.running:
            query, key = args[:2] if args else (kwargs["query"], kwargs["key"])
            self.calls.append((query[-1], key[-1]))
        return func(*args, **(kwargs or {}))

"""The context of goca's own computations with a denoiser."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from goca.errors import GocaError

DEVICES = ("cpu", "cuda", "mps", "xpu")


@contextmanager
def inference(batch: int, size: int) -> Iterator[None]:
    """Without gradients and without the caller's autocast; running out of memory raises an error that says what to do.

    Args:
        batch: Images per pass, for the message.
        size: Pixels per side, for the message.
    """
    try:
        with torch.no_grad(), ExitStack() as stack:
            # Checks the devices that exist, because the pipeline's own device takes a walk through all its modules.
            for kind in filter(torch.is_autocast_enabled, DEVICES):
                stack.enter_context(torch.autocast(kind, enabled=False))
            yield
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise GocaError(
                f"out of memory with batch {batch} and size {size}: lower one of them, or load the model with dtype "
                '"float16"',
                hint="dtype",
            ) from None
        raise


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error means that memory ran out: on a CPU torch raises a plain RuntimeError."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)

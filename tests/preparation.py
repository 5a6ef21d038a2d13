"""What every process that runs tests does before it imports them; `conftest.py` says when."""

import hypothesis
import torch
from diffusers.models.transformers import transformer_cosmos

# Two workers share two cores.
torch.set_num_threads(1)
# The same examples in every run, so that a failure is the change's and not the day's.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.load_profile("repeatable")


class Transforms:
    """The one function of torchvision that Cosmos calls, on machines for whose torch there is no torchvision."""

    class InterpolationMode:
        NEAREST = "nearest"

    class functional:  # noqa: N801 - as torchvision names it
        @staticmethod
        def resize(image: torch.Tensor, size: list[int], interpolation: str) -> torch.Tensor:
            return torch.nn.functional.interpolate(image, size, mode=interpolation)


if not hasattr(transformer_cosmos, "transforms"):
    transformer_cosmos.transforms = Transforms

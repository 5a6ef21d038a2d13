"""Generate a training set on two processes: images, indexed masks and prompts, for `goca evaluate folder` and training.

It also writes the same images as COCO and as a Hugging Face imagefolder, beside the set.
"""

import torch
from diffusers import DiffusionPipeline

from goca import Segmentation, TrainingSet, bundled, trace
from goca.parallel import Executor, run_units

PROMPTS = (["cat", "grass", "sky"], ["bus", "grass", "sky"])


class Painter:
    """A pipeline in a process of its own."""

    def __init__(self) -> None:
        self.pipe = DiffusionPipeline.from_pretrained(bundled.pipeline(), torch_dtype=torch.float32)

    def __call__(self, number: int) -> tuple[Segmentation, str]:
        nouns = PROMPTS[number]
        with trace(self.pipe) as tr:
            self.pipe(", ".join(nouns), num_inference_steps=20, generator=torch.Generator().manual_seed(number))
        return tr.segment(nouns, background=None), ", ".join(nouns)


if __name__ == "__main__":
    painted = TrainingSet("painted", ["cat", "bus", "grass", "sky"])
    for segmentation, prompt in run_units(Painter, range(len(PROMPTS)), Executor(workers=2)):
        painted.add(segmentation, prompt)
    painted.export("coco", "painted.coco.json")
    painted.export("hf", "painted.hf")

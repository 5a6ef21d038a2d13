"""Is attention read from the branch of guidance that has the prompt?"""

import torch
from torch import Tensor

from goca.checking.subject import Subject
from goca.checking.verdict import Verdict, judged, skipped
from goca.diffusion.attention_call import AttentionCall, Sink
from goca.diffusion.backbone import Backbone
from goca.diffusion.denoiser_call import Branch, DenoiserCall
from goca.diffusion.session import GenerationSession, check_generation

PROMPTS = ("cat, grass", "boat, water")
BRANCHES: tuple[Branch, ...] = ("cond", "uncond")
LEAST_CHANGE, MOST_CHANGE = 1e-2, 1e-6


class _TextKeys:
    """An observer that keeps each branch's text keys from the first attention to the text in the first step."""

    def __init__(self) -> None:
        self.keys: dict[str, Tensor] = {}

    def begin(self, call: DenoiserCall) -> Sink | None:
        """Take attention in the first evaluation."""
        branches = {row: branch for branch in BRANCHES for row in call.rows_of(branch)}

        def take(row: int, attention: AttentionCall) -> None:
            branch = branches.get(row)
            if branch is not None and branch not in self.keys and attention.text is not None:
                self.keys[branch] = attention.k[:, attention.text].float().cpu()

        return take if call.evaluation == 0 else None

    def end(self, call: DenoiserCall, noise_pred: Tensor) -> None:
        """Leave the prediction as it is."""


def branch(subject: Subject) -> Verdict:
    """The rows that are read change with the prompt; the unguided ones do not."""
    name = "the prompt's branch is read"
    if subject.refusal is not None:
        return skipped(name, f"the pipeline cannot generate images: {subject.refusal}")
    first, second = (_keys(subject, prompt) for prompt in PROMPTS)
    change = {each: _change(first[each], second[each]) for each in BRANCHES if each in first and each in second}
    conditional, unconditional = change.get("cond", 0.0), change.get("uncond", 0.0)
    return judged(
        name,
        conditional >= LEAST_CHANGE and unconditional <= MOST_CHANGE,
        {f"{each} changes by": value for each, value in change.items()},
        f">= {LEAST_CHANGE:g}; uncond <= {MOST_CHANGE:g}",
        "the attention that is read changes with the prompt"
        + ("" if "uncond" in change else "; this pipeline has no other branch"),
        "the attention that is read does not follow the prompt, or the other branch does: the pipeline orders its "
        "batch differently; please report it",
    )


def _keys(subject: Subject, prompt: str) -> dict[str, Tensor]:
    observer = _TextKeys()
    backbone = Backbone(subject.pipeline, check=check_generation)
    with GenerationSession(backbone, [observer]):
        subject.paint([prompt], [0], steps=2)
    return observer.keys


def _change(first: Tensor, second: Tensor) -> float:
    if first.shape != second.shape:
        return 1.0
    return float((first - second).norm() / torch.maximum(first.norm(), second.norm()).clamp(min=1e-12))

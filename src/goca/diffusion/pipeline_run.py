"""One call of a pipeline: which step, image and branch each row of its denoiser calls belongs to.

What `encode_prompt` returned is remembered, and a row of a denoiser call is assigned to an image and a branch by the
embedding in its input. All pipelines of the families encode the prompt before the negative one, return it first, and
call with it first. The first pass with the prompt in each of the scheduler's evaluations is the prompt's own; those of
skip-layer or self-attention guidance come after it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from goca.diffusion.backbone import Backbone
from goca.diffusion.denoiser_call import Branch, DenoiserCall, DenoiserRow, PromptTokens
from goca.diffusion.encoded_texts import EncodedTexts
from goca.diffusion.guidance_scale import guidance_scale
from goca.diffusion.latent_layout import layout_of, plain_remedy
from goca.diffusion.latents import sample_of
from goca.diffusion.own_calls import step_number
from goca.diffusion.timesteps import is_flow
from goca.errors import GocaError
from goca.maths import Grid


@dataclass
class PipelineRun:
    """One call of a pipeline, as its denoiser calls and its scheduler's steps tell it.

    Attributes:
        backbone: The pipeline and its facts.
        index: The call's number, from 0.
        frame: Frame of the call.
        arguments: Arguments of the call, including defaults.
        processors: Each denoiser's attention processors at the start.
        encoded: The texts that it encoded.
        texts: Those to which its generation attends, the prompts first; empty before the first such denoiser call.
        count: Number of latents that it prepared, 0 if unknown.
        size: Their (height, width) in pixels, if known.
        cells: Their (height, width) in cells, if they are not packed.
        frames: Number of frames of each.
        first: Index of its first timestep among the scheduler's; None before its first denoiser call.
        evaluation: Number of steps that the scheduler has made.
        timestep: The denoiser's timestep after the last of them; None before it ran.
        branches: The branches whose rows this evaluation has had.
        foreign: Number of evaluations that attended to other texts than its prompts.
        inputs: The denoiser's latents for the prompt, and the names of its other inputs.
    """

    backbone: Backbone
    index: int
    frame: FrameType
    arguments: Mapping[str, Any]
    processors: list[tuple[nn.Module, Any]]
    encoded: list[EncodedTexts] = field(default_factory=list)
    texts: list[EncodedTexts] = field(default_factory=list)
    count: int = 0
    size: Grid | None = None
    cells: Grid | None = None
    frames: int = 1
    first: int | None = None
    evaluation: int = 0
    timestep: Tensor | None = None
    branches: set[Branch] = field(default_factory=set)
    foreign: int = 0
    inputs: tuple[Tensor, frozenset[str]] | None = None

    def stepped(self) -> None:
        """The scheduler has made a step; a step without a denoiser pass is another pipeline's."""
        if self.timestep is not None:
            self.evaluation += 1
            self.foreign += bool(self.texts) and "cond" not in self.branches
            self.timestep, self.branches, self.inputs = None, set(), None

    def _passes(self, scheduler: Any, timestep: Tensor) -> None:
        """The pipeline calls the denoiser."""
        if self.first is None:
            indices = (getattr(scheduler, name, None) for name in ("step_index", "begin_index"))
            index = next((index for index in indices if index is not None), None)
            # Schedulers without a step counter get the timestep. A pipeline may skip the first steps.
            self.first = (_position(scheduler, timestep) or 0) if index is None else int(index)
        if self.timestep is not None and not torch.equal(self.timestep, timestep):
            self.stepped()  # the pipeline made the step itself, without its scheduler
        self.timestep = timestep

    def _moment(self, scheduler: Any, timestep: Tensor) -> tuple[int, float]:
        """The step, from 0, and the scheduler's timestep."""
        first = self.first or 0
        index = min(first + self.evaluation, len(scheduler.timesteps) - 1)
        position = _position(scheduler, timestep)
        if position is not None and float(scheduler.timesteps[index]) != float(timestep):
            index = max(first, position)  # the pipeline went back to a higher noise level
        return step_number(scheduler, index - first), float(scheduler.timesteps[index])

    def _repeats(self, latent: Tensor, inputs: frozenset[str]) -> bool:
        """Whether a denoiser call differs from the prompt's own in this evaluation only in its text."""
        if self.inputs is None:
            self.inputs = latent, inputs
            return False
        before, its_inputs = self.inputs
        return before.dtype == latent.dtype and torch.equal(before, latent) and its_inputs == inputs

    def check_processors(self) -> None:
        """Raise GocaError if the pipeline itself set unreadable attention processors, and restore the old ones."""
        changed = [(module, old) for module, old in self.processors if getattr(module, "processor", None) is not old]
        names = sorted({type(module.processor).__name__ for module, _ in changed})
        for module, processor in changed:
            module.processor = processor
        if changed:
            raise GocaError(
                f"{type(self.backbone.pipeline).__name__} cannot be traced: it sets its own attention processors "
                f"in each call ({', '.join(names)}), which goca cannot read; {plain_remedy(self.backbone)}"
            ) from None

    def denoiser_call(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], encoded: Sequence[EncodedTexts]
    ) -> DenoiserCall | None:
        """A `DenoiserCall` for a call of a denoiser; None for one that attends to no text that is known.

        Args:
            module: The denoiser.
            args, kwargs: Its arguments.
            encoded: Texts that were encoded before the pipeline was called.
        """
        scheduler = self.backbone.pipeline.scheduler
        timestep = torch.as_tensor(kwargs.get("timestep", args[1] if len(args) > 1 else 0)).cpu().double()
        moment = timestep.flatten()[:1]
        self._passes(scheduler, moment)
        inputs, (_, sample) = [*args[1:], *kwargs.values()], sample_of(args, kwargs)
        if not self.texts:
            self.texts = self._texts(encoded, inputs)
            if not self.texts:
                return None
        blocks = self._blocks(self.texts, inputs)
        if not blocks or max(block.stop for _, block in blocks) > len(sample):
            return None  # with more texts than images, the denoiser itself raises
        prompts = self.texts[0]
        # In one batch, pipelines put the negative prompts first, which decides if both are equal.
        block = next((block for texts, block in reversed(blocks) if texts is prompts), blocks[0][1])
        latent = torch.stack([sample[row] for row in block])
        layout = layout_of(self.backbone, self.size, self.cells, latent, timestep, kwargs)
        rows = self._rows(len(sample), blocks, self._repeats(latent, frozenset(kwargs)))
        self.branches |= {row.branch for row in rows}
        step, noise = self._moment(scheduler, moment)
        second = module is not self.backbone.denoiser
        scale = guidance_scale(self.backbone.pipeline, self.backbone.family, self.arguments, second)
        self.frames = layout.frames
        grid = self.backbone.family.grids(module, layout.size)[0] if layout.frames > 1 else None
        images = layout.size, rows, scale, layout.references, layout.frames, grid
        return DenoiserCall(self.index, step, self.evaluation, noise, *images)

    def _blocks(self, texts: Sequence[EncodedTexts], inputs: Sequence[Any]) -> list[tuple[EncodedTexts, range]]:
        return [(encoded, block) for encoded in texts for block in encoded.blocks(inputs, self.count)]

    def _texts(self, before: Sequence[EncodedTexts], inputs: Sequence[Any]) -> list[EncodedTexts]:
        """The texts to which a generation attends, by its first denoiser call: the prompts first, then all others.

        Of several texts in its input, the prompts are those of the last rows, then those encoded last.
        """
        # Embeddings that were made in the session have words, even if the pipeline gets nothing else.
        latest_first = [*reversed(self.encoded), *reversed(before)]
        encoded = sorted(latest_first, key=lambda texts: texts.texts is None)
        blocks = self._blocks(encoded, inputs)
        if not blocks:
            return []
        prompts, _ = max(blocks, key=lambda pair: pair[1].stop)
        others = [texts for texts in encoded if texts is not prompts]
        return [prompts, *(texts.negative for texts in (prompts, *others) if texts.negative is not None), *others]

    def _rows(self, count: int, blocks: list[tuple[EncodedTexts, range]], repeats: bool) -> tuple[DenoiserRow, ...]:
        """The rows of a batch of `count`; a branch that this evaluation already had does not occur again.

        If the prompt's own pass is merely repeated, the pipeline guides away from the prompt itself.
        """
        rows = [DenoiserRow("other")] * count
        prompts = self.texts[0]
        prompt_blocks = [block for texts, block in blocks if texts is prompts]
        labelled: list[tuple[Branch, EncodedTexts, range]] = [
            ("uncond", texts, block) for texts, block in blocks if texts is not prompts
        ]
        if "cond" not in self.branches:
            labelled = [*(("cond", prompts, block) for block in prompt_blocks[-1:]), *labelled]
        elif repeats and not labelled:
            labelled = [("uncond", prompts, block) for block in prompt_blocks]
        for branch, texts, block in labelled:
            if branch not in self.branches and all(rows[row].branch == "other" for row in block):
                for image, row in enumerate(block):
                    rows[row] = DenoiserRow(branch, image, self._prompt_tokens(branch, texts, image, len(block)))
        if "cond" not in self.branches and any(rows[row].branch == "other" for block in prompt_blocks for row in block):
            raise GocaError(
                f"{type(self.backbone.pipeline).__name__} cannot be traced: in one pass its denoiser gets several "
                f"rows of the same prompt for each image, as a video's frames; {plain_remedy(self.backbone)}"
            )
        return tuple(rows)

    def _prompt_tokens(self, branch: Branch, encoded: EncodedTexts, image: int, images: int) -> PromptTokens:
        """The tokens of an image's text. Raises GocaError for a prompt that was not given as text."""
        if encoded.texts is None:
            if branch == "cond":
                raise GocaError(
                    "the words of prompt_embeds are unknown: pass the prompt itself, as text, or make them with "
                    "pipe.encode_prompt inside the `with` block"
                )
            return PromptTokens("", ())
        number = image * len(encoded.texts) // images
        unread = encoded.captions_at(number, {text.tokenizer for text in self.backbone.family.texts})
        if branch == "cond":
            negative = (texts for texts in self.texts[1:] if texts is encoded.negative or texts in self.encoded)
            if (texts := next((made.texts for made in negative if made.texts), None)) is not None:
                unread["negative_prompt"] = texts[image * len(texts) // images]
        return PromptTokens(encoded.texts[number], encoded.attended(number, self.backbone), unread)


def _position(scheduler: Any, timestep: Tensor) -> int | None:
    """The index of a denoiser's timestep among the scheduler's; None if the two may be on different scales."""
    if is_flow(scheduler):
        return None
    matching = (scheduler.timesteps.cpu() == timestep).nonzero()
    return int(matching[0]) if len(matching) else None

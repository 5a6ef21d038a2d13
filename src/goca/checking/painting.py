"""Does the model generate what the prompt says, see what it meant to generate, and denoise other images?"""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from goca.checking.stability import agreement
from goca.checking.subject import Subject
from goca.checking.verdict import Verdict, judged, skipped
from goca.diffusion.timesteps import target
from goca.errors import GocaError
from goca.recipe import GOCA_OPEN
from goca.request import PreparedImage, SegmentationRequest
from goca.segmenter import Segmenter
from goca.self_tagging import squared_errors

LEAST_RANK = 0.75
MOST_NOISE_LEFT = 0.5
NOISY = 500
"""The timestep at which denoising is judged: about half of the latent is noise."""
CAPTIONED = (500, 700)
"""The timesteps at which captions are compared: much of what an image shows has to come from its caption."""


def meant_and_seen(subject: Subject) -> Verdict:
    """The masks in the trace of a generation agree with a segmentation of the finished image."""
    name = "sees what it meant to paint"
    if subject.refusal is not None:
        return skipped(name, f"the pipeline cannot generate images: {subject.refusal}")
    meant = [each.meant for each in subject.painted if each.meant is not None]
    return agreement(
        name,
        meant,
        subject.seen,
        "masks of finished images are where the words were generated",
        "masks of finished images are not where the words were generated: look at the sheet; weights, timestep or "
        "blocks are wrong",
    )


@torch.no_grad()
def evidence(subject: Subject) -> Verdict:
    """A generated image shows its own nouns more than those of the other images.

    That is a matter of the evidence for each noun. In joint attention, where a caption of all these nouns disturbs the
    image itself, it is instead whether drawings are denoised best under captions of their own nouns.
    """
    name = "paints what it is told"
    if subject.backbone.family.joint is None:
        if subject.refusal is not None:
            return skipped(name, f"the pipeline cannot generate images: {subject.refusal}")
        of, rank = "nouns", _rank_of_nouns(subject)
        good = "generated images show their own nouns more than others"
        bad = "generated images do not show their own nouns"
    else:
        try:
            of, rank = "captions", _rank_of_captions(subject)
        except GocaError as unknown:
            return skipped(name, str(unknown))
        good = "drawings are denoised better under their own caption than under others"
        bad = "drawings are denoised no better under their own caption than under others"
    return judged(
        name,
        rank >= LEAST_RANK,
        {f"rank of own {of}": rank, "by chance": 0.5},
        f">= {LEAST_RANK}",
        good,
        f"{bad}: the text encoder or the denoiser is damaged, or they do not belong together",
    )


def _rank_of_nouns(subject: Subject) -> float:
    # Prototypes would not notice that the words mean something else.
    looker = Segmenter.from_pipeline(
        subject.pipeline, replace(GOCA_OPEN, evidence="attention"), size=subject.plan.size, batch=subject.model.batch
    )
    nouns = [noun for pair in subject.pairs for noun in pair]
    session = looker.backbone.session()
    prepared = [looker.prepare(SegmentationRequest(each.image, nouns, (), None), session) for each in subject.painted]
    for image in prepared:
        if isinstance(image, GocaError):
            raise image
    looks = looker.looks([image for image in prepared if isinstance(image, PreparedImage)], session)
    values = torch.stack([look.evidence for look in looks]).cpu()
    return own_rank(values, torch.tensor([[noun in each.nouns for noun in nouns] for each in subject.painted]))


def _rank_of_captions(subject: Subject) -> float:
    # Not of generated images: a model whose words mean something else denoises those well, too.
    backbone, captions = subject.backbone, [", ".join(each.nouns) for each in subject.scenes]
    session, errors = backbone.session(), torch.zeros(len(captions), len(captions), dtype=torch.float64)
    for image, latent in enumerate(subject.scene_latents.split(1)):
        for timestep in CAPTIONED:
            squares = squared_errors(session, latent, captions, timestep, subject.model.batch)
            errors[image] += squares.flatten(1).double().mean(1).cpu()
    # Some images are harder to denoise than others, whatever the caption.
    return own_rank(errors.mean(1, keepdim=True) - errors, torch.eye(len(captions), dtype=torch.bool))


def own_rank(evidence: Float[Tensor, "image noun"], own: Bool[Tensor, "image noun"]) -> float:
    """How often an image's own noun has more evidence than another noun in it, or than that noun in another image."""
    above = []
    for values, mask in ((evidence, own), (evidence.T, own.T)):
        for row, chosen in zip(values, mask, strict=True):
            margins = row[chosen][:, None] - row[~chosen]
            above.append((margins.sign() + 1).flatten() / 2)
    return float(torch.cat(above).mean())


@torch.no_grad()
def denoising(subject: Subject) -> Verdict:
    """The denoiser predicts the noise in drawings that it has not generated."""
    name, backbone = "denoises", subject.backbone
    session, errors = backbone.session(), []
    for each, latent in zip(subject.scenes, subject.scene_latents.split(1), strict=True):
        try:
            squares = squared_errors(session, latent, [", ".join(each.nouns)], NOISY, 1)
        except GocaError as unknown:
            return skipped(name, str(unknown))
        wanted = target(backbone.pipeline.scheduler, latent, NOISY, 0)
        errors.append(float(squares.double().mean() / wanted.double().square().mean()))
    error = float(np.mean(errors))
    return judged(
        name,
        error <= MOST_NOISE_LEFT,
        {"squared error": error, "of predicting nothing": 1.0},
        f"<= {MOST_NOISE_LEFT} (timestep {NOISY})",
        "the denoiser removes most of the noise",
        "the denoiser hardly removes noise: weights are damaged or badly quantised, or the scheduler's configuration "
        "is not the checkpoint's",
    )

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

LEAST_RANK = 0.75
MOST_NOISE_LEFT = 0.5
NOISY = 500
"""The timestep at which denoising is judged: about half of the latent is noise."""


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
    """In a generated image there is more evidence for its own nouns than for those of the other images."""
    name = "paints what it is told"
    if subject.refusal is not None:
        return skipped(name, f"the pipeline cannot generate images: {subject.refusal}")
    painted = subject.painted
    # Prototypes would not notice that the words mean something else.
    looker = Segmenter.from_pipeline(
        subject.pipeline, replace(GOCA_OPEN, evidence="attention"), size=subject.plan.size, batch=subject.model.batch
    )
    nouns = [noun for pair in subject.pairs for noun in pair]
    session = looker.backbone.session()
    prepared = [looker.prepare(SegmentationRequest(each.image, nouns, (), None), session) for each in painted]
    for image in prepared:
        if isinstance(image, GocaError):
            raise image
    looks = looker.looks([image for image in prepared if isinstance(image, PreparedImage)], session)
    values = torch.stack([look.evidence for look in looks]).cpu()
    is_own = torch.tensor([[noun in each.nouns for noun in nouns] for each in painted])
    rank = own_rank(values, is_own)
    return judged(
        name,
        rank >= LEAST_RANK,
        {"rank of own nouns": rank, "by chance": 0.5},
        f">= {LEAST_RANK}",
        "generated images show their own nouns more than others",
        "generated images do not show their own nouns: the text encoder or the denoiser is damaged, or they do not "
        "belong together",
    )


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
    images = [each.image for each in subject.scenes]
    latents = backbone.latents(images, (subject.side, subject.side), subject.model.batch)
    session, errors = backbone.session(), []
    for each, latent in zip(subject.scenes, latents.split(1), strict=True):
        prediction = session.forward(latent, [", ".join(each.nouns)], NOISY, 0, lambda *_: None)
        if isinstance(prediction, Tensor) and prediction.ndim == 4 and prediction.shape[1] == 2 * latent.shape[1]:
            prediction = prediction[:, : latent.shape[1]]  # the rest is variance
        if not isinstance(prediction, Tensor) or prediction.shape != latent.shape:
            return skipped(name, "the denoiser's output is packed and cannot be compared with the noise")
        wanted = target(backbone.pipeline.scheduler, latent, NOISY, 0)
        # Some flow models predict the opposite direction, from noise to image.
        losses = [
            float((sign * prediction.float() - wanted).square().sum() / wanted.square().sum()) for sign in (1, -1)
        ]
        errors.append(min(losses))
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

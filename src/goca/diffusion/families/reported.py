"""The sources of the known checkpoints' scores.

None of them could be measured again with real weights when this was written: they are printed as reported,
"not verified here".
"""

from goca.diffusion.families.spec import ReportedScore

PAPER = (
    "Meng et al., CVPR 2026 (arXiv 2603.06178), as reported; tags from the ground truth, threshold picked on the split"
)
RERUN = "a later third-party rerun of the released code"


def paper_scores(
    *, voc: float, context: float, coco_object: float, cityscapes: float, ade20k: float
) -> tuple[ReportedScore, ...]:
    """The paper's mIoU in per cent of one checkpoint on its five data sets."""
    figures = {
        "VOC": voc,
        "Context": context,
        "COCO-Object": coco_object,
        "Cityscapes": cityscapes,
        "ADE20K": ade20k,
    }
    return tuple(ReportedScore(dataset=name, miou=miou, source=PAPER) for name, miou in figures.items())

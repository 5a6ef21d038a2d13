"""The rules by name, for recipes, the command line and provenance."""

from collections.abc import Mapping
from typing import Any

from goca.errors import GocaError
from goca.maths import background, concepts, heads, layers, refine, refit, rescale

HEADS: dict[str, heads.HeadRule] = {
    "mean": heads.mean_heads,
    "output-share": heads.output_share,
    "output-share-clamped": heads.output_share_clamped,
    "l2-norm": heads.l2_norm,
    "cosine": heads.cosine,
    "varying-share": heads.varying_share,
}
LAYERS: dict[str, layers.LayerRule] = {
    "mean": layers.mean_layers,
    "agreement": layers.agreement,
    "balanced-agreement": layers.balanced_agreement,
    "iou-like": layers.iou_like,
    "inverse-distance": layers.inverse_distance,
    "plain-mean": layers.plain_mean,
    "by-resolution": layers.by_resolution,
}
CHANNELS: dict[str, layers.ChannelRule] = {
    "all": layers.all_channels,
    "first": layers.first_channel,
}
MAPS: dict[str, concepts.MapRule] = {
    "attention": concepts.attention,
    "output-space": concepts.concept_shares,
}
AFFINITIES: dict[str, refine.AffinityRule] = {
    "plain": refine.plain,
    "distinct": refine.distinct,
}
REFITS: dict[str, refit.RefitRule] = {
    "never": refit.never,
    "gaussians": refit.gaussians,
}
STEPS: dict[str, rescale.Step] = {
    "share": rescale.share,
    "share-of-prompt": rescale.share_of_prompt,
    "blur": rescale.blur,
    "minmax": rescale.minmax,
    "peak": rescale.peak,
    "times-raw": rescale.times_raw,
}
BACKGROUNDS: dict[str, background.BackgroundRule] = {
    "offset": background.offset,
    "max": background.maximum,
    "constant": background.constant,
    "none": background.none,
}


def named(value: Any, rules: Mapping[str, Any], what: str) -> Any:
    """The rule of a name; a rule is returned as it is. Raises GocaError, listing the names, for an unknown one."""
    if not isinstance(value, str):
        return value
    if value not in rules:
        raise GocaError(f'no {what} "{value}": choose from {", ".join(rules)}')
    return rules[value]


def name_of(value: Any, rules: Mapping[str, Any]) -> str:
    """The name of a known rule, the function's own name of another, or "custom"."""
    return next((name for name, rule in rules.items() if rule == value), getattr(value, "__name__", "custom"))

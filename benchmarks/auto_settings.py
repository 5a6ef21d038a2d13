"""Settings chosen without labels: each criterion's choice, and its loss against the best hand-picked settings.

    python benchmarks/auto_settings.py [--models bundled,DIR] [--images 24] [--scenes 60] [--json FILE]

Criteria get unlabelled tuning scenes, and images that the model generates. Every combination of the candidates
(timestep, reference, refinement, order) is scored with labels: on tuning scenes, to find the best hand-picked one and
to choose a criterion; and on shipped scenes, which are reported. Every pixel gets a class; mIoU in per cent. Regret is
the mIoU of the best combination on tuning scenes minus the picked one's, with a paired bootstrap over scenes.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from presence import scenes_of
from tables import markdown
from torch import Tensor

from goca import GOCA, GOCA_BALANCED, Segmenter, bundled
from goca.aggregation import AttentionAggregator
from goca.bundled import Scene
from goca.class_maps import rescaled
from goca.diffusion.attention_call import AttentionCall
from goca.diffusion.backbone import Backbone, BackboneSession, BatchItem
from goca.diffusion.checkpoints import settings_for
from goca.errors import GocaError
from goca.evaluation.metrics import Tally, gain, miou
from goca.maths.refine import Affinity
from goca.maths.rescale import minmax
from goca.maths.resize import resize
from goca.request import PreparedImage, SegmentationRequest
from goca.settings_choice import CRITERIA, measure, painted

NOUNS = bundled.vocabulary()
"""Nouns of every model that is studied here: all were trained on them."""
RECIPES = {"goca": GOCA, "goca-balanced": GOCA_BALANCED}
GRID = 32
"""Cells per side of the common grid, as in the bundled model's settings."""
ORDERS = (1, 2, 4)
"""Orders that are searched with labels, besides the family's own."""
Choice = tuple[int, str, tuple[str, ...], int]
"""(timestep, reference, refine, order)."""


@dataclass(frozen=True)
class Table:
    """Pixel counts of every combination of the candidates on some scenes, for each recipe."""

    timesteps: tuple[int, ...]
    references: tuple[str, ...]
    refines: tuple[tuple[str, ...], ...]
    orders: tuple[int, ...]
    counts: dict[str, Int[Tensor, "timestep reference refine order scene part label"]]

    def tally(self, recipe: str, choice: Choice) -> Tally:
        """The tally of one combination."""
        timestep, reference, refine, order = choice
        index = (
            self.timesteps.index(timestep),
            self.references.index(reference),
            self.refines.index(refine),
            self.orders.index(order),
        )
        return Tally(*self.counts[recipe][index].unbind(1))

    def best(self, recipe: str) -> Choice:
        """The combination with the greatest mIoU."""
        hit, truth, predicted = self.counts[recipe].sum(4).double().unbind(4)
        scores = torch.where(truth > 0, hit / (truth + predicted - hit), torch.nan).nanmean(-1)
        index = torch.unravel_index(scores.argmax(), scores.shape)
        timestep, reference, refine, order = map(int, index)
        return self.timesteps[timestep], self.references[reference], self.refines[refine], self.orders[order]


def table(
    segmenter: Segmenter,
    scenes: Sequence[Scene],
    timesteps: Sequence[int],
    references: Sequence[str],
    refines: Sequence[tuple[str, ...]],
    orders: Sequence[int],
) -> Table:
    """Every combination on every scene; one pass per scene and timestep."""
    session = segmenter.backbone.session()
    counts: dict[str, list[list[Tensor]]] = {name: [[] for _ in timesteps] for name in RECIPES}
    with segmenter.inference():
        for scene in scenes:
            prepared = segmenter.prepare(SegmentationRequest(scene.image, scene.classes, background=None), session)
            if isinstance(prepared, GocaError):
                raise prepared
            for number, timestep in enumerate(timesteps):
                calls = attention(segmenter, session, prepared, timestep)
                for name in RECIPES:
                    every = maps_of(segmenter, name, calls, prepared, references)
                    counts[name][number].append(labelled(every, calls, scene, refines, orders))
    stacked = {name: torch.stack([torch.stack(each, 3) for each in parts]) for name, parts in counts.items()}
    return Table(tuple(timesteps), tuple(references), tuple(refines), tuple(orders), stacked)


def attention(
    segmenter: Segmenter, session: BackboneSession, image: PreparedImage, timestep: int
) -> list[AttentionCall]:
    """All attention of one pass."""
    calls: list[AttentionCall] = []
    latent = segmenter.backbone.latents(image.tiles, image.size)
    session.run([BatchItem(latent, image.size, image.prompts[0].caption, timestep, 0, calls.append)], 1)
    return calls


def maps_of(
    segmenter: Segmenter,
    recipe: str,
    calls: Sequence[AttentionCall],
    image: PreparedImage,
    references: Sequence[str],
) -> Float[Tensor, "reference class height width"]:
    """Class maps before refinement, under every reference."""
    tokens, box = image.prompts[0], image.windows.boxes[0]
    maps = []
    for reference in references:
        plan = replace(segmenter.plan, layers=RECIPES[recipe].layers, reference=reference, refine=(), order=0)
        aggregator = AttentionAggregator(plan, tokens, (box.height, box.width))
        for call in calls:
            aggregator.add(call)
        maps.append(rescaled(plan, aggregator.token_mass(), tokens))
    return torch.stack(maps)


def labelled(
    maps: Float[Tensor, "reference class height width"],
    calls: Sequence[AttentionCall],
    scene: Scene,
    refines: Sequence[tuple[str, ...]],
    orders: Sequence[int],
) -> Int[Tensor, "reference refine order part label"]:
    """Pixels hit, true and predicted of each noun, under every reference, refinement and order."""
    selves = {call.block: call for call in calls if call.image is not None}
    flat = rearrange(maps, "reference noun height width -> (reference noun) height width")
    counts = []
    for refine in refines:
        affinity = Affinity((maps.shape[-2], maps.shape[-1]))
        for block in refine:
            call = selves[block]
            affinity.add(call.q, call.k, call.scale, call.grid, image=call.image, mask=call.mask)
        refined, of_orders = flat, []
        for order in range(max(orders) + 1):
            if order in orders:
                scores = minmax(refined) if order else refined
                of_orders.append(counted(scores.view_as(maps), scene))
            refined = affinity.apply(refined)
        counts.append(torch.stack(of_orders, 1))
    return torch.stack(counts, 1)


def counted(scores: Float[Tensor, "reference class height width"], scene: Scene) -> Int[Tensor, "reference part label"]:
    """Pixels hit, true and predicted of each noun."""
    places = torch.tensor([0, *(NOUNS.index(name) + 1 for name in scene.classes)])
    truth = places[torch.tensor(scene.labels.tolist())]
    first_class, *others = resize(scores, (truth.shape[0], truth.shape[1])).unbind(1)
    best, predicted = first_class, torch.full(first_class.shape, int(places[1]))
    for place, each in zip(places[2:].tolist(), others, strict=True):  # much faster here than argmax
        predicted = torch.where(each > best, place, predicted)
        best = torch.maximum(best, each)
    labels = len(NOUNS) + 1
    first = labels * torch.arange(len(predicted))[:, None]

    def pixels(each: Int[Tensor, "reference height width"]) -> Int[Tensor, "reference label"]:
        return torch.bincount((first + each.flatten(1)).flatten(), minlength=labels * len(each)).view(-1, labels)

    hit = torch.where(predicted == truth, predicted, 0)
    out = torch.stack([pixels(each) for each in (hit, truth.expand_as(predicted), predicted)], 1).int()
    out[..., 0] = 0  # no pixel is without a class
    return out


def as_choice(settings: dict[str, Any]) -> Choice:
    return settings["timestep"], settings["reference"], settings["refine"], settings["order"]


def rule_of(backbone: Backbone) -> Choice:
    """The choice of the family's rule, as for an unlisted checkpoint."""
    unlisted = replace(backbone.family, checkpoints=())
    settings = settings_for(backbone.denoiser, unlisted, backbone.vae_scale_factor, backbone.blocks)
    return settings.timestep, settings.reference, settings.refine, settings.order


def study(model: str, images: int, count: int) -> dict[str, Any]:
    """All figures of a model."""
    segmenter = Segmenter.from_pretrained(model, GOCA_BALANCED, device="cpu", batch=8)
    segmenter.plan = replace(segmenter.plan, grid=GRID)
    tuning, shipped = scenes_of("tuning", 1)[:count], scenes_of("shipped", max(1, 240 // count))[:count]
    rule, listed = rule_of(segmenter.backbone), as_choice(vars(segmenter.backbone.settings))
    on_scenes = measure(segmenter, [scene.image for scene in tuning[:images]], NOUNS, tuple(CRITERIA))
    print(model, "criteria on scenes", flush=True)
    on_painted = measure(segmenter, painted(segmenter, NOUNS, images), NOUNS, tuple(CRITERIA))
    print(model, "criteria on painted images", flush=True)
    picked = {name: as_choice({**on_scenes.best(name), "order": rule[3]}) for name in CRITERIA}
    by_painting = {name: as_choice({**on_painted.best(name), "order": rule[3]}) for name in CRITERIA}
    fixed = {"family's rule": rule} | ({"listed": listed} if listed != rule else {})
    everything = fixed | picked | {f"{name} (painted)": choice for name, choice in by_painting.items()}
    refines = dict.fromkeys([*((block,) for block in on_scenes.refinements), *(c[2] for c in everything.values())])
    orders = sorted({*ORDERS, *(choice[3] for choice in fixed.values())})
    tables = {}
    for name, scenes in (("tuning", tuning), ("shipped", shipped)):
        tables[name] = table(segmenter, scenes, on_scenes.timesteps, on_scenes.references, tuple(refines), orders)
        print(model, name, "scenes", flush=True)
    lines: list[dict[str, Any]] = []
    for recipe in RECIPES:
        best = tables["tuning"].best(recipe)
        theirs = {name: each.tally(recipe, best) for name, each in tables.items()}
        by_rule = {name: each.tally(recipe, rule) for name, each in tables.items()}
        for title, choice in ({"best on tuning scenes": best} | everything).items():
            tallies = {name: each.tally(recipe, choice) for name, each in tables.items()}
            regret = {name: gain(theirs[name], tallies[name]) for name in tables}
            scores = {name: miou(tallies[name]) for name in tables}
            gained = {name: gain(tallies[name], by_rule[name]) for name in tables}
            line = {"recipe": recipe, "settings": title, "choice": choice}
            lines.append({**line, "miou": scores, "regret": regret, "over_rule": gained})
    return {"model": model, "scenes": count, "images": images, "lines": lines}


def shown(result: dict[str, Any], recipe: str) -> str:
    """A line for each way of choosing."""
    header = ["settings", "tuning: mIoU", "regret", "over the rule", "shipped: mIoU", "regret", "over the rule"]
    rows = []
    for line in (line for line in result["lines"] if line["recipe"] == recipe):
        cells = [line["settings"]]
        for name, score in line["miou"].items():
            cells += [f"{100 * score:.1f}", percent(line["regret"][name]), percent(line["over_rule"][name])]
        rows.append(cells)
    return markdown(header, rows)


def percent(difference: tuple[float, tuple[float, float]]) -> str:
    value, (low, high) = difference
    return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def picks(result: dict[str, Any]) -> Iterator[str]:
    """What was chosen, in words."""
    for line in result["lines"]:
        timestep, reference, refine, order = line["choice"]
        if line["recipe"] == "goca" or line["settings"].startswith("best"):
            blocks = ", ".join(map(short, refine))
            yield f"{line['settings']}: timestep {timestep}, reference {short(reference)}, refine {blocks} x {order}"


def short(block: str) -> str:
    """A block's path without the part that all share."""
    return block.replace(".transformer_blocks.0", "").replace("transformer_blocks.", "").replace("attentions.", "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="bundled", help="bundled and folders, comma-separated (%(default)s)")
    parser.add_argument("--images", type=int, default=24, help="number of images for the criteria (%(default)s)")
    parser.add_argument("--scenes", type=int, default=60, help="number of labelled scenes of each kind (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    for model in options.models.split(","):
        results.append(study(model, options.images, options.scenes))
        print("\n".join(picks(results[-1])), flush=True)
        for recipe in RECIPES:
            print(f"\n{recipe}:\n\n{shown(results[-1], recipe)}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()

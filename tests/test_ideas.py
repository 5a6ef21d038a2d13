"""benchmarks/ideas.py and its rules: by slow loops, and as parts of a segmentation."""

import math
from collections.abc import Callable

import idea_rules as rules
import pytest
import torch
from ideas import CANDIDATES, ErrorPower, HeardAttention, Idea, IdeaSegmenter, JointMaps, LogMean, Variation
from shared_passes import JointCall, SharedBackbone
from torch import Tensor

from goca import GOCA_BALANCED, GOCA_QUALITY, GOCA_REFINED, Recipe, Segmentation, SegmentationRequest, Segmenter
from goca.aggregation import JoinedAffinity
from goca.bundled import Scene
from goca.bundled import scenes as bundled_scenes
from goca.class_maps import ClassMaps
from goca.diffusion.attention_call import AttentionCall
from goca.maths.layers import LayerRule, Reference, balanced_agreement, layer_weight
from goca.request import PreparedImage
from goca.self_tagging import SelfRule, squared_errors


def affinity(pixels: int, seed: int = 0) -> Tensor:
    """Random rows that sum to 1."""
    return torch.softmax(2 * torch.randn(pixels, pixels, generator=torch.Generator().manual_seed(seed)), 1)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_entropy_is_1_for_equal_parts_and_0_for_one() -> None:
    rows = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.5, 0.0, 0.5, 0.0], [0.0, 0.0, 1.0, 0.0]])
    torch.testing.assert_close(rules.entropy(rows), torch.tensor([1.0, 0.5, 0.0]))


def sharpened_by(matrix: list[list[float]], step: float) -> tuple[list[list[float]], float]:
    """(the rows after a step, their mean entropy), entry by entry."""
    largest = [max(row[j] for row in matrix) for j in range(len(matrix))]
    out, entropies = [], []
    for row in matrix:
        scaled = [value / top for value, top in zip(row, largest, strict=True)]
        shares = [value / sum(scaled) for value in scaled]
        moved = [max(0.0, value + step * math.log(value / max(shares))) for value in shares]
        out.append([value / sum(moved) for value in moved])
        entropies.append(-sum(value * math.log(value) for value in out[-1] if value > 0) / math.log(len(row)))
    return out, sum(entropies) / len(entropies)


def test_sharpening_takes_the_step_that_reaches_the_entropy() -> None:
    matrix = affinity(7)
    expected, entropy = sharpened_by(matrix.double().tolist(), 0.03)
    assert entropy < sharpened_by(matrix.double().tolist(), 0.0)[1] - 0.05
    torch.testing.assert_close(rules.sharpened(matrix, entropy), torch.tensor(expected), atol=1e-5, rtol=1e-4)
    # Rows that have less entropy already keep it; only their columns are divided.
    expected, _ = sharpened_by(matrix.double().tolist(), 0.0)
    torch.testing.assert_close(rules.sharpened(matrix, 1.0), torch.tensor(expected))


def test_similarity_of_outputs_pixel_by_pixel() -> None:
    outputs = [normal(5, 3), normal(5, 7, seed=1) + 2]
    expected = torch.zeros(5, 5)
    for output in outputs:
        own = output - sum(output) / 5
        for i in range(5):
            cosines = [own[i] @ own[j] / (own[i].norm() * own[j].norm()) for j in range(5)]
            powers = [math.exp(float(cosine) / 0.3) for cosine in cosines]
            expected[i] += torch.tensor([power / sum(powers) for power in powers]) / 2
    torch.testing.assert_close(rules.similarity(outputs, 0.3), expected)


def test_joint_attention_in_both_directions_and_in_two_steps() -> None:
    text, image = slice(0, 3), slice(3, 8)
    q, k = normal(2, 8, 5), normal(2, 8, 5, seed=1)
    every = [[0.0] * 8 for _ in range(8)]
    for head in range(2):
        for i in range(8):
            powers = [math.exp(0.7 * float(q[head, i] @ k[head, j])) for j in range(8)]
            for j in range(8):
                every[i][j] += powers[j] / sum(powers) / 2
    attention = rules.joint_attention(q, k, 0.7)
    torch.testing.assert_close(attention, torch.tensor(every))
    seen = [[every[token][pixel] for token in range(3)] for pixel in range(3, 8)]
    torch.testing.assert_close(rules.looked_at(attention, text, image), torch.tensor(seen))
    twice = [[sum(every[pixel][m] * every[m][token] for m in range(8)) for token in range(3)] for pixel in range(3, 8)]
    torch.testing.assert_close(rules.two_bounces(attention, text, image), torch.tensor(twice))


def test_the_other_direction_counts_by_a_power_of_its_share_of_the_largest() -> None:
    there, back = torch.rand(2, 3, 5), torch.rand(2, 3, 5)
    both = rules.both_directions(there, back, 0.5)
    for noun in range(2):
        for y in range(3):
            for x in range(5):
                share = math.sqrt(back[noun, y, x] / back[noun].max())
                assert both[noun, y, x] == pytest.approx(float(there[noun, y, x]) * share, rel=1e-5)


def test_clusters_are_groups_of_directions_and_vote_with_their_mean() -> None:
    directions = torch.tensor([[5.0, 0.0, 0.0], [0.0, 5.0, 0.0], [0.0, 0.0, 5.0]])
    groups = [0, 1, 2, 1, 0, 2, 2, 1, 0, 0, 1, 2, 2, 2, 1]
    labels = rules.clusters(directions[groups] + 0.1 * normal(15, 3), 3)
    pairs = set(zip(groups, labels.tolist(), strict=True))
    assert len(pairs) == len({label for _, label in pairs}) == 3
    maps = torch.rand(2, 3, 5)
    voted = rules.voted(maps, labels, (3, 5))
    for each, votes in zip(maps.flatten(1).tolist(), voted.flatten(1).tolist(), strict=True):
        for group, vote in zip(groups, votes, strict=True):
            members = [value for value, other in zip(each, groups, strict=True) if other == group]
            assert vote == pytest.approx(sum(members) / len(members), rel=1e-5)
    # On another grid than the clusters', every cell is a mean of four, and comes back as the grid is interpolated.
    assert rules.voted(torch.rand(2, 6, 10), labels, (3, 5)).shape == (2, 6, 10)


def test_the_drop_of_the_error_counts_where_the_class_is() -> None:
    named = torch.tensor([[1.0, 3.0]])
    unnamed = torch.tensor([[[2.0, 3.0]], [[2.0, 7.0]]])
    maps = torch.tensor([[[0.75, 0.25]], [[0.0, 0.5]]])
    drops = rules.error_drops(named, unnamed, maps)
    torch.testing.assert_close(drops, torch.tensor([(1 * 0.75) / 1 / 2, 4 / 2]))
    # Standardised, two values are -1 and 1.
    raised = rules.raised(maps, drops, 0.2)
    expected = torch.tensor([[[0.75 ** math.exp(0.2), 0.25 ** math.exp(0.2)]], [[0.0, 0.5 ** math.exp(-0.2)]]])
    torch.testing.assert_close(raised, expected)
    torch.testing.assert_close(rules.raised(maps[:1], drops[:1], 0.2), maps[:1])


def test_logarithms_are_averaged_above_the_least() -> None:
    maps = [torch.tensor([0.5, 0.0]), torch.tensor([0.125, 0.9])]
    torch.testing.assert_close(rules.geometric_mean(maps), torch.tensor([0.25, math.sqrt(0.0009)]))


def spread(rows: list[list[float]]) -> float:
    mean = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    squares = sum(value**2 for row in rows for value in row) / len(rows)
    return 1 - sum(value**2 for value in mean) / squares


def certainty(rows: list[list[float]]) -> float:
    entropies = [-sum(value * math.log(value) for value in row) / math.log(len(row)) for row in rows]
    return 1 - sum(entropies) / len(entropies)


def second(rows: list[list[float]]) -> float:
    mean = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    own = [[value - other for value, other in zip(row, mean, strict=True)] for row in rows]
    vector = [1.0, *([0.3] * (len(rows) - 1))]
    for _ in range(2000):  # power iteration of own^T own
        there = [sum(a * b for a, b in zip(row, vector, strict=True)) for row in own]
        back = [sum(row[j] * value for row, value in zip(own, there, strict=True)) for j in range(len(rows))]
        length = math.sqrt(sum(value**2 for value in back))
        vector = [value / length for value in back]
    return math.sqrt(length)


@pytest.mark.parametrize(
    ("rule", "factor"),
    [
        (rules.LAYERS_BY_SPREAD, spread),
        (rules.LAYERS_BY_ENTROPY, certainty),
        (rules.LAYERS_BY_SECOND_VALUE, second),
    ],
)
def test_layers_weigh_by_agreement_times_how_their_rows_differ(
    rule: LayerRule, factor: Callable[[list[list[float]]], float]
) -> None:
    grid = (3, 5)
    reference, rows = Reference(normal(15, 7), grid), affinity(15, seed=2)
    blocks = [(slice(0, 4), rows[:4]), (slice(4, 15), rows[4:])]
    agreement = layer_weight(balanced_agreement, reference, grid, blocks)
    expected = float(agreement) * factor(rows.double().tolist())
    assert float(layer_weight(rule, reference, grid, blocks)) == pytest.approx(expected, rel=1e-4)


class Same(Idea):
    """What the library has, by way of everything that an idea may change."""

    def affinity(self, attention: HeardAttention) -> JoinedAffinity:
        return attention.refined_by(*attention.matrix())


@pytest.fixture(scope="module")
def scene() -> Scene:
    return next(iter(bundled_scenes()))


@pytest.fixture(scope="module")
def backbone() -> SharedBackbone:
    return SharedBackbone("bundled")


def scores(segmenter: Segmenter, scene: Scene) -> Tensor:
    result = segmenter(scene.image, scene.classes, background=None)
    assert isinstance(result, Segmentation)
    return torch.from_numpy(result.scores.grid)


@pytest.mark.parametrize("recipe", [GOCA_BALANCED, GOCA_QUALITY], ids=["goca-balanced", "goca-quality"])
def test_an_idea_that_changes_nothing_gives_the_library_s_scores(
    backbone: SharedBackbone, scene: Scene, recipe: Recipe
) -> None:
    expected = scores(Segmenter(backbone, recipe), scene)
    for idea in (Idea(), Same()):
        found = scores(IdeaSegmenter(backbone, Variation(recipe, idea)), scene)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", CANDIDATES)
def test_each_idea_changes_the_scores_a_little(name: str, backbone: SharedBackbone, scene: Scene) -> None:
    change = next(iter(CANDIDATES[name].values()))
    if change.joint:
        return  # below
    expected = scores(Segmenter(backbone, GOCA_REFINED), scene)
    found = scores(IdeaSegmenter(backbone, change.of(GOCA_REFINED)), scene)
    assert 1e-3 < float((found - expected).abs().mean()) < 0.3


def test_logarithms_of_passes_are_averaged(backbone: SharedBackbone, scene: Scene) -> None:
    segmenter = IdeaSegmenter(backbone, Variation(GOCA_QUALITY, LogMean()))
    image = segmenter.prepare(SegmentationRequest(scene.image, scene.classes, background=None), backbone.session())
    assert isinstance(image, PreparedImage)
    (passes,) = segmenter.passes([image], backbone.session())
    assert len(passes) == 2
    expected = (passes[0].classes.clamp(min=1e-3) * passes[1].classes.clamp(min=1e-3)).sqrt()
    torch.testing.assert_close(scores(segmenter, scene), expected, atol=1e-5, rtol=1e-4)


def test_further_timesteps_are_relative_to_the_settings(backbone: SharedBackbone) -> None:
    segmenter = IdeaSegmenter(backbone, Variation(GOCA_QUALITY, offsets=(0, -100, 7)))
    settings = backbone.settings.timestep
    assert segmenter.plan.timestep == (settings, settings - 100, settings + 7)
    assert Variation(GOCA_QUALITY, offsets=(0, -100, 7)).passes == "6"


def test_the_power_is_by_the_error_under_captions_without_a_class(backbone: SharedBackbone, scene: Scene) -> None:
    assert len(scene.classes) > 1
    before = scores(Segmenter(backbone, GOCA_BALANCED), scene)
    captions = [", ".join(name for name in scene.classes if name != left_out) for left_out in ("", *scene.classes)]
    latents = backbone.latents([scene.image], (64, 64))
    with torch.inference_mode():
        named, *unnamed = squared_errors(backbone.session(), latents, captions, SelfRule().timestep, 8)
    drops = rules.error_drops(named, torch.stack(unnamed), before)
    found = scores(IdeaSegmenter(backbone, Variation(GOCA_BALANCED, ErrorPower(0.3))), scene)
    torch.testing.assert_close(found, rules.raised(before, drops, 0.3), atol=1e-4, rtol=1e-3)


@pytest.fixture(scope="module")
def joint() -> SharedBackbone:
    return SharedBackbone("bundled-joint")


class Heard(Idea):
    """Keeps what an aggregator was given."""

    def __init__(self) -> None:
        self.calls: list[AttentionCall] = []

    def maps(self, attention: HeardAttention, maps: ClassMaps) -> ClassMaps:
        self.calls += attention.calls
        return maps


def test_the_queries_of_the_text_give_the_text_s_own_outputs(joint: SharedBackbone, scene: Scene) -> None:
    heard = Heard()
    scores(IdeaSegmenter(joint, Variation(GOCA_BALANCED, heard)), scene)
    assert len(heard.calls) >= len(joint.blocks)
    for call in heard.calls:
        assert isinstance(call, JointCall)
        assert call.text_output is not None
        weights = torch.softmax(call.text_q @ call.k.transpose(1, 2) * call.scale, -1)
        torch.testing.assert_close(weights @ call.v, call.text_output, atol=1e-4, rtol=1e-3)


def test_maps_of_whole_joint_attention_meet_as_the_library_s_do(joint: SharedBackbone, scene: Scene) -> None:
    # The direction that the library reads, where heads weigh the same.
    there = JointMaps(lambda attention, text, image: attention[image, text])
    expected = scores(Segmenter(joint, GOCA_BALANCED), scene)
    found = scores(IdeaSegmenter(joint, Variation(GOCA_BALANCED, there)), scene)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
    for idea in (JointMaps(rules.looked_at, 0.5), JointMaps(rules.two_bounces)):
        other = scores(IdeaSegmenter(joint, Variation(GOCA_BALANCED, idea)), scene)
        assert float((other - expected).abs().mean()) > 1e-3

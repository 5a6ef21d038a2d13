"""What `training.tune` tries follows from the kind of model."""

import pytest

from goca import bundled
from goca.diffusion.backbone import Backbone
from goca.diffusion.loading import load
from goca.testing.tiny import BUILDERS
from training.tune import FLOW_NOISE, NOISE, ORDERS, candidates


def test_of_a_unet_the_finest_level_refines_and_the_way_down_is_no_reference() -> None:
    tried = candidates(Backbone(load(bundled.DEFAULT)))
    finest = [f"up_blocks.2.attentions.{index}.transformer_blocks.0" for index in range(3)]
    assert tried.refine == (tuple(finest), *((block,) for block in finest))
    assert (tried.noise, tried.orders) == (NOISE, ORDERS)
    assert [block for block in tried.reference if block.startswith("down_blocks")] == []
    assert set(finest) < set(tried.reference)


@pytest.mark.parametrize(("name", "noise"), [("pixart_sigma", NOISE), ("flux", FLOW_NOISE), ("sd3", FLOW_NOISE)])
def test_of_a_transformer_few_spans_and_single_blocks_refine(name: str, noise: tuple[int, ...]) -> None:
    backbone = Backbone(BUILDERS[name]())
    tried = candidates(backbone)
    assert tried.refine[0] == backbone.settings.refine
    assert len(set(tried.refine)) == len(tried.refine) <= 8
    for refine in tried.refine[1:]:
        first = backbone.blocks.index(refine[0])
        assert refine == backbone.blocks[first : first + len(refine)]
    assert set(tried.reference) <= set(backbone.blocks)
    assert tried.noise == noise
    assert {*ORDERS, backbone.settings.order} == set(tried.orders)

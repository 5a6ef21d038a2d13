"""The choice of a rule, by hand."""

from dataclasses import replace

import torch

from goca.self_tagging import Seen, SelfRule
from goca.tagging.multilabel import MultilabelScores
from training.nouns import NAMES
from training.tune_tagger import best, kept


def test_the_best_rule() -> None:
    """Evidence that is wrong about the first two nouns, and errors that are right."""
    evidence = torch.full((len(NAMES),), 0.01)
    evidence[:2] = torch.tensor([0.7, 0.95])
    errors = torch.ones(3, 4, 4)
    errors[1] = 0.5
    seen, truth = Seen(evidence, (0, 1), errors), {NAMES[0]}
    rule, agreement = best([seen], [truth], SelfRule())
    assert rule.weight > 0
    assert agreement == MultilabelScores(correct=1, predicted=1, actual=1)
    assert kept(seen, rule) == truth
    assert kept(seen, replace(rule, weight=0.0)) == {NAMES[1]}

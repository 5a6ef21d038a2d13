"""Two models and two recipes on the same scenes, given the nouns of each, with paired differences."""

from itertools import product
from pathlib import Path

from goca.evaluation.compare import compare, load_run
from goca.evaluation.config import EvaluationConfig
from goca.evaluation.runner import evaluate

runs = []
for model, recipe in product(("bundled", "bundled-dit"), ("vanilla", "goca-refined")):
    folder = Path("runs") / f"{model}-{recipe}"
    evaluate(EvaluationConfig(dataset="scenes", limit=6, model=model, recipe=recipe), folder)
    runs.append(load_run(folder))
for row in compare(runs):
    print(row.columns())

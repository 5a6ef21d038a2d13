"""Evaluation: scenes and data sets, the scores of segmenters on them, and their confidence intervals."""

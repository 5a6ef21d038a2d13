"""Measuring: scenes and data sets, what a segmenter scores on them, and how sure that is."""

"""Tiny pipelines for tests, benchmarks and `goca models --check`."""

"""What tests, benchmarks and `goca models --check` build their pipelines from."""

"""The tasks that benchmarks search on: each with its data, a score and a split that is looked at once."""

"""Measurements of Headway against its peers, run from the repository root: ``python -m benchmarks.latency``."""

"""Streams of tasks: rows, orders, limits."""

from kif_lightning.benchmarks.local import LocalBenchmark

__all__ = ["LocalBenchmark"]

"""Streams of tasks: rows, orders, limits."""

from kif_lightning.benchmarks.local import LocalBenchmark
from kif_lightning.benchmarks.mini import MiniBenchmark

__all__ = ["LocalBenchmark", "MiniBenchmark"]

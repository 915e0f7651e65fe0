"""Streams of tasks: rows, orders, limits."""

from kif_lightning.benchmarks.local import LocalBenchmark
from kif_lightning.benchmarks.mini import MiniBenchmark
from kif_lightning.benchmarks.streams import JointStream, SequentialStream

__all__ = ["JointStream", "LocalBenchmark", "MiniBenchmark", "SequentialStream"]

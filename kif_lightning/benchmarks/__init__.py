"""Streams of tasks: rows, orders, limits."""

from kif_lightning.benchmarks.mini import MiniBenchmark
from kif_lightning.benchmarks.own import OwnBenchmark
from kif_lightning.benchmarks.public import PublicBenchmark
from kif_lightning.benchmarks.streams import JointStream, SequentialStream

__all__ = ["JointStream", "MiniBenchmark", "OwnBenchmark", "PublicBenchmark", "SequentialStream"]

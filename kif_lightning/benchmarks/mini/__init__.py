"""The bundled stand-in stream: 15 generated tasks, no data set needed."""

from kif_lightning.benchmarks.mini.benchmark import MiniBenchmark

__all__ = ["MiniBenchmark"]

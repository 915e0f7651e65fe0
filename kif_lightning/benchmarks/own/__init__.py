"""The user's own tasks, described in one yaml file."""

from kif_lightning.benchmarks.own.benchmark import OwnBenchmark, read_own_tasks
from kif_lightning.benchmarks.own.layout import Layout, layout_of

__all__ = ["Layout", "OwnBenchmark", "layout_of", "read_own_tasks"]

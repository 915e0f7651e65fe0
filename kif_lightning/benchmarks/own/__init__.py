"""The user's own tasks, described in one yaml file."""

from kif_lightning.benchmarks.own.benchmark import OwnBenchmark, read_own_tasks

__all__ = ["OwnBenchmark", "read_own_tasks"]

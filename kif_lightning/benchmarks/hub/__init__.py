"""The published benchmarks, built from their public data sets."""

from kif_lightning.benchmarks.hub.tasks import hub_origins, hub_tasks

__all__ = ["hub_origins", "hub_tasks"]

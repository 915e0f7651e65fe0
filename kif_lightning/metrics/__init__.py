"""Transfer metrics of a score matrix, and scores of texts."""

from kif_lightning.metrics.text import ExactMatch, JointGoalAccuracy, RougeL, TextScore
from kif_lightning.metrics.transfer import FORMULAS, transfer_metrics

__all__ = [
    "FORMULAS",
    "ExactMatch",
    "JointGoalAccuracy",
    "RougeL",
    "TextScore",
    "transfer_metrics",
]

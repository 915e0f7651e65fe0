"""Transfer metrics of a score matrix, and scores of texts."""

from kif_lightning.metrics.text import ExactMatch, RougeL, TextScore
from kif_lightning.metrics.transfer import FORMULAS, transfer_metrics

__all__ = ["FORMULAS", "ExactMatch", "RougeL", "TextScore", "transfer_metrics"]

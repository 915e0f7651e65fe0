"""Transfer metrics of a score matrix, and scores of texts."""

from typing import TYPE_CHECKING, Any

from kif_lightning.metrics.transfer import FORMULAS, transfer_metrics

if TYPE_CHECKING:
    from kif_lightning.metrics.text import ExactMatch, JointGoalAccuracy, RougeL, TextScore

__all__ = [
    "FORMULAS",
    "ExactMatch",
    "JointGoalAccuracy",
    "RougeL",
    "TextScore",
    "transfer_metrics",
]


def __getattr__(name: str) -> Any:
    """Scores of texts when they are asked for: torchmetrics takes seconds that reports can save."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from kif_lightning.metrics import text

    return getattr(text, name)

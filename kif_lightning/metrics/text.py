"""Scores of generated texts as torchmetrics objects, in percent.

torchmetrics brings the reduction over processes and the ROUGE implementation.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.text.rouge import ROUGEScore
from torchmetrics.utilities import dim_zero_cat

from kif_lightning.errors import require_choice

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise_answer(text: str, normalisation: Literal["sapt", "raw"] = "sapt") -> str:
    """Lower-case, without punctuation and repeated white space (SAPT); ``raw``: lower-case only."""
    if normalisation == "raw":
        return text.lower()
    return re.sub(r"\s+", " ", text.lower().translate(_PUNCTUATION)).strip()


class TextScore(Protocol):
    """What the evaluation needs of a metric: a torchmetrics Metric over texts."""

    def update(self, preds: Sequence[str], target: Sequence[str]) -> None:
        """Count predictions (N,) against references (N,)."""

    def compute(self) -> Tensor:
        """The mean over all rows, percent, a scalar tensor."""

    def row_scores(self) -> list[float]:
        """Each row's score, percent, in the order the rows came."""


class ExactMatch(Metric):
    """Share of predictions equal to the reference after normalisation, in percent.

    Args:
        normalisation: ``sapt`` or ``raw``, see :func:`normalise_answer`.

    Raises:
        UserError: another normalisation.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    matches: list[Tensor]

    def __init__(self, normalisation: Literal["sapt", "raw"] = "sapt", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        require_choice("exact_match.normalisation", normalisation, ("sapt", "raw"))
        self.normalisation: Literal["sapt", "raw"] = normalisation
        self.add_state("matches", default=[], dist_reduce_fx="cat")

    def update(self, preds: Sequence[str], target: Sequence[str]) -> None:
        """Count predictions (N,) against references (N,)."""
        equal = [
            normalise_answer(p, self.normalisation) == normalise_answer(t, self.normalisation)
            for p, t in zip(preds, target, strict=True)
        ]
        self.matches.append(torch.tensor(equal, dtype=torch.float64))

    def compute(self) -> Tensor:
        """Mean over rows, percent."""
        return 100.0 * dim_zero_cat(self.matches).mean()

    def row_scores(self) -> list[float]:
        """100 or 0 for each row."""
        return (100.0 * dim_zero_cat(self.matches)).tolist()


class RougeL(ROUGEScore):
    """ROUGE-L F1 with Porter stemming, mean over rows, in percent."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(rouge_keys="rougeL", use_stemmer=True, **kwargs)

    def update(self, preds: Sequence[str], target: Sequence[str]) -> None:  # type: ignore[override]
        """Count predictions (N,) against references (N,)."""
        # torchmetrics pairs them without looking at their lengths and drops what is left over.
        pairs = list(zip(preds, target, strict=True))
        super().update([pred for pred, _ in pairs], [reference for _, reference in pairs])

    def compute(self) -> Tensor:  # type: ignore[override]
        """Mean over rows, percent."""
        return 100.0 * super().compute()["rougeL_fmeasure"]

    def row_scores(self) -> list[float]:
        """F1 of each row, percent."""
        rows: list[Tensor] = self.rougeL_fmeasure  # type: ignore[assignment]
        return (100.0 * dim_zero_cat(rows)).tolist()

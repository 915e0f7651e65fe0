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

from kif_lightning.errors import UserError, require_choice

Normalisation = Literal["sapt", "raw"]
_NORMALISATIONS = ("sapt", "raw")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise_answer(text: str, normalisation: Normalisation = "sapt") -> str:
    """Lower-case, without punctuation and repeated white space (SAPT); ``raw``: lower-case only."""
    if normalisation == "raw":
        return text.lower()
    return re.sub(r"\s+", " ", text.lower().translate(_PUNCTUATION)).strip()


def dialogue_state(
    text: str, normalisation: Normalisation = "sapt"
) -> frozenset[tuple[str, str]] | None:
    """The (slot, value) pairs of ``slot=value; slot=value`` in any order, normalised.

    Blank text and ``none`` are the state without a slot. None: the text is no state, as a part has
    no ``=`` or no slot, or a slot has two values. The first ``=`` of a part ends the slot; a value
    cannot hold ``;``. ``slot=none`` is a pair as any other, not an unset slot.
    """
    if normalise_answer(text.strip(), normalisation) == "none":
        return frozenset()
    parts = [part.partition("=") for part in text.split(";") if part.strip()]
    pairs = {
        (
            normalise_answer(slot.strip(), normalisation),
            normalise_answer(value.strip(), normalisation),
        )
        for slot, _, value in parts
    }
    slots = {slot for slot, _ in pairs}
    well_formed = all(equals for _, equals, _ in parts) and "" not in slots
    return frozenset(pairs) if well_formed and len(slots) == len(pairs) else None


class TextScore(Protocol):
    """What the evaluation needs of a metric: a torchmetrics Metric over texts."""

    def update(self, preds: Sequence[str], target: Sequence[str]) -> None:
        """Count predictions (N,) against references (N,)."""

    def compute(self) -> Tensor:
        """The mean over all rows, percent, a scalar tensor."""

    def row_scores(self) -> list[float]:
        """Each row's score, percent, in the order the rows came."""


class _ShareRight(Metric):
    """Share of rows that are right, in percent; what is right is the matter of ``update``."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    matches: list[Tensor]

    def __init__(self, name: str, normalisation: Normalisation, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        require_choice(f"{name}.normalisation", normalisation, _NORMALISATIONS)
        self.normalisation: Normalisation = normalisation
        self.add_state("matches", default=[], dist_reduce_fx="cat")

    def compute(self) -> Tensor:
        """Mean over rows, percent."""
        return 100.0 * dim_zero_cat(self.matches).mean()

    def row_scores(self) -> list[float]:
        """100 or 0 for each row."""
        return (100.0 * dim_zero_cat(self.matches)).tolist()


class ExactMatch(_ShareRight):
    """Share of predictions equal to the reference after normalisation, in percent.

    Args:
        normalisation: ``sapt`` or ``raw``, see :func:`normalise_answer`.

    Raises:
        UserError: another normalisation.
    """

    def __init__(self, normalisation: Normalisation = "sapt", **kwargs: Any) -> None:
        super().__init__("exact_match", normalisation, **kwargs)

    def update(self, preds: Sequence[str], target: Sequence[str]) -> None:
        """Count predictions (N,) against references (N,)."""
        equal = [
            normalise_answer(p, self.normalisation) == normalise_answer(t, self.normalisation)
            for p, t in zip(preds, target, strict=True)
        ]
        self.matches.append(torch.tensor(equal, dtype=torch.float64))


class JointGoalAccuracy(_ShareRight):
    """Share of dialogue turns whose whole state is right, in percent (dialogue state tracking).

    A turn is right when the set of its (slot, value) pairs is the reference's, see
    :func:`dialogue_state`; a prediction that is no state is wrong.

    Args:
        normalisation: of slots and values, ``sapt`` or ``raw``, see :func:`normalise_answer`.

    Raises:
        UserError: another normalisation; in ``update`` a reference that is no state.
    """

    def __init__(self, normalisation: Normalisation = "sapt", **kwargs: Any) -> None:
        super().__init__("joint_goal_accuracy", normalisation, **kwargs)

    def update(self, preds: Sequence[str], target: Sequence[str]) -> None:
        """Count predicted states (N,) against references (N,)."""
        equal = [
            dialogue_state(pred, self.normalisation) == self._reference(reference)
            for pred, reference in zip(preds, target, strict=True)
        ]
        self.matches.append(torch.tensor(equal, dtype=torch.float64))

    def _reference(self, text: str) -> frozenset[tuple[str, str]]:
        state = dialogue_state(text, self.normalisation)
        if state is None:
            # No answer could ever be right: the score would say of the model what the data did.
            raise UserError(
                "joint_goal_accuracy expects answers 'slot=value; slot=value' or 'none', each slot "
                f"once, got {text!r}: mend the row or choose another metric for its task."
            )
        return state


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

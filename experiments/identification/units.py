"""How far the units' importance tells tasks apart, from what runs of KIF's kind keep of it.

python experiments/identification/units.py RUN [RUN ...] --to FILE.json

Nothing is computed anew: a run's folder importance/ holds each unit's score after each task.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from boundaries import PROTOCOL
from numpy.typing import NDArray

from kif_lightning.errors import UserError
from kif_lightning.storage import read_json, write_json

NEAR_HALF = 0.05
"""A share of the old weights so near to one half is told as such."""
QUANTILES = (50, 80, 95)
"""Percent; of the normalised scores."""


def rank_correlations(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Spearman's correlation of each two tasks' scores, (T, T), from (T, U) scores.

    Equal scores share the mean of their ranks.
    """
    ranks = np.empty_like(scores)
    for row, own in zip(ranks, scores, strict=True):
        _, places, counts = np.unique(own, return_inverse=True, return_counts=True)
        last = np.cumsum(counts)
        row[:] = (last - (counts - 1) / 2)[places]
    return np.corrcoef(ranks)


def described(run: Path) -> dict[str, Any]:
    """One run's scores, taken together.

    Raises:
        UserError: the run is not finished, or keeps no importance of two tasks.
    """
    results = read_json(run / "results.json")
    records = [read_json(path) for path in sorted((run / "importance").glob("*.json"))]
    if len(records) < 2:
        raise UserError(
            f"Expected the importance of two tasks or more in {run / 'importance'}, got "
            f"{len(records)}: give a run of a method that fuses."
        )
    current = np.array([record["current"] for record in records])
    shares = np.array([record["weight"] for record in records if record.get("weight")])
    together = rank_correlations(np.array([record["score"] for record in records]))
    return {
        "protocol": {key: results["protocol"].get(key) for key in PROTOCOL},
        "stand_ins": results["stand_ins"],
        "tasks": [record["task"] for record in records],
        "units": current.shape[1],
        "quantiles": {str(q): float(np.mean(np.percentile(current, q, axis=1))) for q in QUANTILES},
        "near_half": float(np.mean(np.abs(shares - 0.5) <= NEAR_HALF)),
        "rank_correlations": together.round(4).tolist(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="How far importance tells tasks apart.")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--to", type=Path, required=True, metavar="FILE.json")
    arguments = parser.parse_args()
    try:
        found = [described(run) for run in arguments.runs]
    except UserError as error:
        parser.error(str(error))
    arguments.to.parent.mkdir(parents=True, exist_ok=True)
    write_json(arguments.to, found)


if __name__ == "__main__":
    main()

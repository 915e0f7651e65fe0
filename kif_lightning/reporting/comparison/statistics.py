"""What the differences of a comparison are worth: paired bootstrap over test rows, spread of seeds.

Two uncertainties that must not be mixed up: resampling the test rows says how the difference of
these very models would vary on other test rows; the spread between seeds says how it varies with
the training's random draws. Neither holds the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kif_lightning.reporting.comparison.reading import Group, Run

RESAMPLES = 2000
SEED = 0
"""Of the resampling; each difference draws from a generator of its own."""
INTERVAL = 95
"""Percent."""
TOLERANCE = 0.01
"""Percent points by which a task's score may miss the mean of its rows' (single precision)."""
MOST_NUMBERS = 4_000_000
"""Drawn at a time: thousands of rows with graded scores would not fit the memory."""
Rows = Mapping[str, tuple[str, float]]
"""Test row's id -> reference, score."""


@dataclass(frozen=True)
class Interval:
    """A difference, percent points, and how it varies with the test rows."""

    difference: float
    low: float
    high: float
    share_not_above_zero: float
    """Of the resamples."""


def paired_bootstrap(
    differences: Sequence[NDArray[np.float64]], *, resamples: int = RESAMPLES, seed: int = SEED
) -> Interval:
    """Resample the test rows of each task; both methods get the same resample.

    Args:
        differences: one array a task, (rows,): a row's score minus the baseline's, percent points.
        resamples: how many.
        seed: of the draws.

    Returns:
        The mean over tasks of the mean over rows, with a percentile interval.
    """
    random = np.random.default_rng(seed)
    drawn = np.mean([_resampled_means(task, resamples, random) for task in differences], axis=0)
    tail = (100 - INTERVAL) / 2
    low, high = np.percentile(drawn, [tail, 100 - tail])
    difference = float(np.mean([task.mean() for task in differences]))
    return Interval(difference, float(low), float(high), float(np.mean(drawn <= 0)))


def _resampled_means(
    differences: NDArray[np.float64], resamples: int, random: np.random.Generator
) -> NDArray[np.float64]:
    """(resamples,). How often each distinct value is drawn is multinomial: the same, but faster."""
    values, counts = np.unique(differences, return_counts=True)
    rows = len(differences)
    at_once = max(1, MOST_NUMBERS // len(values))
    parts = [
        random.multinomial(rows, counts / rows, size=min(at_once, resamples - first)) @ values
        for first in range(0, resamples, at_once)
    ]
    return np.concatenate(parts) / rows


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, sample standard deviation (None for one value), smallest, largest, number."""
    return {
        "mean": mean(values),
        "standard_deviation": stdev(values) if len(values) > 1 else None,
        "smallest": min(values),
        "largest": max(values),
        "n": len(values),
    }


class RowScores:
    """The test rows' scores of runs at the end of the stream, each file read once."""

    def __init__(self) -> None:
        self._kept: dict[tuple[Path, int], Rows | str] = {}

    def of(self, run: Run, task: int) -> Rows | str:
        """Scores by row, or in words why there are none to use."""
        key = (run.folder, task)
        if key not in self._kept:
            self._kept[key] = _row_scores(run, task)
        return self._kept[key]


def _row_scores(run: Run, task: int) -> Rows | str:
    answers = run.answers(task)
    score = run.matrix[-1][task]
    if not answers or score is None:
        return "no answers kept"
    rows = {row["id"]: (str(row["reference"]), float(row["score"])) for row in answers}
    if len(rows) < len(answers):
        return "rows with the same id"
    if abs(float(np.mean([value for _, value in rows.values()])) - score) > TOLERANCE:
        return "the task's score is not the mean of its rows' scores"
    return rows


def differences_of(
    run: Run, baseline: Run, scores: RowScores
) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """Rows' scores minus the baseline's, by task and row; tasks left out, and why.

    Rows are paired by their ids.
    """
    found: dict[str, dict[str, float]] = {}
    left_out: dict[str, str] = {}
    for place, task in enumerate(run.tasks):
        ours, theirs = scores.of(run, place), scores.of(baseline, baseline.tasks.index(task))
        if isinstance(ours, str) or isinstance(theirs, str):
            left_out[task] = ours if isinstance(ours, str) else f"baseline: {theirs}"
        elif {k: text for k, (text, _) in ours.items()} != {k: t for k, (t, _) in theirs.items()}:
            left_out[task] = "other test rows than the baseline's"
        else:
            found[task] = {row: value - theirs[row][1] for row, (_, value) in ours.items()}
    return found, left_out


def paired_entry(
    group: Group, baseline: Group | None, scores: RowScores, resamples: int
) -> dict[str, Any]:
    """All differences of a method from the baseline of the same backbone and order."""
    others = {run.seed: run for run in baseline.runs} if baseline else {}
    others.pop(None, None)
    by_seed: dict[int, dict[str, dict[str, float]]] = {}
    notes: dict[str, None] = {}
    for run in group.runs:
        if run.seed not in others:
            notes[f"seed {run.seed}: no baseline of it with this backbone and order"] = None
            continue
        found, left_out = differences_of(run, others[run.seed], scores)
        notes.update(dict.fromkeys(_told(left_out)))
        if found:
            by_seed[run.seed] = found
    seeds = [
        {"seed": seed, "tasks": len(found), **vars(_interval(found.values(), resamples))}
        for seed, found in sorted(by_seed.items())
    ]
    pooled = _pooled(list(by_seed.values()))
    if by_seed and pooled is None:
        notes["seeds have other tasks or rows: not pooled"] = None
    return {
        "seeds": seeds,
        "pooled": None if pooled is None else vars(_interval(pooled.values(), resamples)),
        "between_seeds": spread([seed["difference"] for seed in seeds]) if seeds else None,
        "tasks": max((seed["tasks"] for seed in seeds), default=0),
        "of_tasks": len(group.runs[0].tasks),
        "notes": list(notes),
    }


def _interval(tasks: Iterable[Mapping[str, float]], resamples: int) -> Interval:
    return paired_bootstrap([np.array(list(rows.values())) for rows in tasks], resamples=resamples)


def _pooled(seeds: Sequence[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]] | None:
    """Each row's difference, averaged over the seeds: a resample of rows is one for all seeds.

    To draw anew for each seed would take the same rows for others, and the interval be too narrow.
    """
    if not seeds or any(
        {task: rows.keys() for task, rows in other.items()}
        != {task: rows.keys() for task, rows in seeds[0].items()}
        for other in seeds
    ):
        return None
    return {
        task: {row: mean(other[task][row] for other in seeds) for row in rows}
        for task, rows in seeds[0].items()
    }


def _told(left_out: Mapping[str, str]) -> list[str]:
    """One sentence a reason."""
    reasons: dict[str, list[str]] = {}
    for task, why in left_out.items():
        reasons.setdefault(why, []).append(task)
    return [f"{', '.join(tasks)} left out: {why}" for why, tasks in reasons.items()]

"""What the differences of a comparison are worth: paired bootstrap over test rows, spread of seeds.

Two uncertainties that must not be mixed up: resampling the test rows says how the difference of
these very models would vary on other test rows; the spread between seeds says how it varies with
the training's random draws. Neither holds the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, mean, stdev
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
    differences: Sequence[Sequence[NDArray[np.float64]]],
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Interval:
    """Resample the test rows of each task; both methods get the same resample.

    Args:
        differences: of each task one or more sets of rows, (rows,) each, that are resampled apart:
            a row's score minus the baseline's, percent points.
        resamples: how many.
        seed: of the draws.

    Returns:
        The mean over tasks of the mean over sets of the mean over rows, with a percentile interval.
    """
    random = np.random.default_rng(seed)
    tasks = [[_resampled_means(rows, resamples, random) for rows in task] for task in differences]
    drawn = np.mean([np.mean(task, axis=0) for task in tasks], axis=0)
    tail = (100 - INTERVAL) / 2
    low, high = np.percentile(drawn, [tail, 100 - tail])
    difference = float(np.mean([np.mean([rows.mean() for rows in task]) for task in differences]))
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
        if run.seed is None or run.seed not in others:
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
    pooled, apart = _pooled(list(by_seed.values()))
    if by_seed and not pooled:
        notes["seeds have other tasks: not pooled"] = None
    elif apart:
        notes["each seed has other test rows: resampled apart"] = None
    return {
        "seeds": seeds,
        "pooled": vars(paired_bootstrap(pooled, resamples=resamples)) if pooled else None,
        "between_seeds": spread([seed["difference"] for seed in seeds]) if seeds else None,
        "tasks": max((seed["tasks"] for seed in seeds), default=0),
        "of_tasks": len(group.runs[0].tasks),
        "notes": list(notes),
    }


def _interval(tasks: Iterable[Mapping[str, float]], resamples: int) -> Interval:
    return paired_bootstrap([[_array(rows.values())] for rows in tasks], resamples=resamples)


def _array(values: Iterable[float]) -> NDArray[np.float64]:
    return np.array(list(values), dtype=np.float64)


def _pooled(
    seeds: Sequence[dict[str, dict[str, float]]],
) -> tuple[list[list[NDArray[np.float64]]], bool]:
    """Of each task the sets of rows to resample, and whether some are of one seed each.

    Where all seeds were tested on the same rows, each row's difference is averaged over the seeds:
    one resample for all. To draw anew for each seed would take the same rows for new ones, and the
    interval would be too narrow.
    """
    if not seeds or any(other.keys() != seeds[0].keys() for other in seeds):
        return [], False
    found, apart = [], False
    for task, rows in seeds[0].items():
        if all(other[task].keys() == rows.keys() for other in seeds):
            found.append([_array(fmean(other[task][row] for other in seeds) for row in rows)])
        else:
            found.append([_array(other[task].values()) for other in seeds])
            apart = True
    return found, apart


def _told(left_out: Mapping[str, str]) -> list[str]:
    """One sentence a reason."""
    reasons: dict[str, list[str]] = {}
    for task, why in left_out.items():
        reasons.setdefault(why, []).append(task)
    return [f"{', '.join(tasks)} left out: {why}" for why, tasks in reasons.items()]

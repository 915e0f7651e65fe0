"""What the differences of a comparison are worth: paired bootstrap over test rows, spread of seeds.

Two uncertainties that must not be mixed up: resampling the test rows says how the difference of
these very models would vary on other test rows; the spread between seeds says how it varies with
the training's random draws. Neither holds the other where all seeds are tested on the same rows;
where they are not, the spread between seeds holds the choice of rows too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
OWN_ROWS = "seeds have test rows of their own: the sd between seeds holds the choice of rows too"
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
    differences: Sequence[NDArray[np.float64]],
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Interval:
    """Resample the test rows of each task; both methods, and all seeds, get the same resample.

    Args:
        differences: (seeds, rows) of each task: a row's score minus the baseline's, percent
            points; NaN where the seed was not tested on the row.
        resamples: how many.
        seed: of the draws.

    Returns:
        The mean over tasks of the mean over seeds of the mean over rows, with a percentile
        interval.
    """
    random = np.random.default_rng(seed)
    drawn = np.mean([_resampled_means(rows, resamples, random) for rows in differences], axis=0)
    tail = (100 - INTERVAL) / 2
    low, high = np.percentile(drawn, [tail, 100 - tail])
    difference = float(np.mean([np.nanmean(rows, axis=1).mean() for rows in differences]))
    return Interval(difference, float(low), float(high), float(np.mean(drawn <= 0)))


def _resampled_means(
    differences: NDArray[np.float64], resamples: int, random: np.random.Generator
) -> NDArray[np.float64]:
    """(resamples,) The mean over seeds of each seed's mean over those drawn rows that it has.

    How often each distinct row is drawn is multinomial: the same, but faster.
    """
    has = ~np.isnan(differences)
    if has.all():  # a row's mean over the seeds is all there is to draw: fewer distinct ones
        differences = differences.mean(axis=0, keepdims=True)
        has = has[:1]
    both = np.concatenate([has, np.where(has, differences, 0.0)])
    values, counts = np.unique(both, axis=1, return_counts=True)
    rows = differences.shape[1]
    at_once = max(1, MOST_NUMBERS // len(counts))
    parts = [
        random.multinomial(rows, counts / rows, size=min(at_once, resamples - first)) @ values.T
        for first in range(0, resamples, at_once)
    ]
    numbers, sums = np.split(np.concatenate(parts), 2, axis=1)
    with np.errstate(invalid="ignore"):  # of a seed with few rows none may be drawn
        return np.asarray(np.nanmean(sums / numbers, axis=1))


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, sample standard deviation (None for one value), smallest, largest, number."""
    return {
        "average": mean(values),
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
    notes: dict[str, list[str]] = {}
    for run in sorted(group.runs, key=lambda r: (r.seed is None, r.seed)):
        why = ["no baseline of it with this backbone and order"]
        if run.seed is not None and run.seed in others:
            found, left_out = differences_of(run, others[run.seed], scores)
            why = _told(left_out)
            if found:
                by_seed[run.seed] = found
        for note in why:
            notes.setdefault(note, []).append(str(run.seed))
    seeds = [
        {"seed": seed, "tasks": len(found), **vars(_interval([found], resamples))}
        for seed, found in by_seed.items()
    ]
    told = [f"seed {', '.join(of)}: {note}" for note, of in notes.items()]
    # The mean over other tasks is another number: neither a mean nor a spread of such is told.
    every = list(by_seed.values())
    alike = bool(every) and all(other.keys() == every[0].keys() for other in every)
    if every and not alike:
        told.append("seeds have other tasks: not pooled")
    elif any(other[task].keys() != every[0][task].keys() for other in every for task in other):
        told.append(OWN_ROWS)
    return {
        "seeds": seeds,
        "pooled": vars(_interval(every, resamples)) if alike else None,
        "between_seeds": spread([seed["difference"] for seed in seeds]) if alike else None,
        "of_tasks": len(group.runs[0].tasks),
        "notes": told,
    }


def _interval(seeds: Sequence[Mapping[str, Mapping[str, float]]], resamples: int) -> Interval:
    """Of seeds that have the same tasks: over their rows together, as some may share a row."""
    tasks = []
    for task in seeds[0]:
        rows = list(dict.fromkeys(row for seed in seeds for row in seed[task]))
        tasks.append(np.array([[seed[task].get(row, np.nan) for row in rows] for seed in seeds]))
    return paired_bootstrap(tasks, resamples=resamples)


def _told(left_out: Mapping[str, str]) -> list[str]:
    """One sentence a reason."""
    reasons: dict[str, list[str]] = {}
    for task, why in left_out.items():
        reasons.setdefault(why, []).append(task)
    return [f"{', '.join(tasks)} left out: {why}" for why, tasks in reasons.items()]

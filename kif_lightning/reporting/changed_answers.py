"""Test rows that were right when their task was just learnt and wrong at the end, and the reverse.

One rule for all metrics: an answer *broke* if its score fell by at least 50 of 100 points between
the two, and was *mended* if it rose by as much. Where a score is 0 or 100 (exact match) this is
right and then wrong; where it is graded (ROUGE-L) it is a clear fall.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kif_lightning.reporting.run_record import RunRecord

FALL = 50.0
"""Points of percent."""
MOST_TASKS = 20
MOST_SAMPLES = 3

Answer = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class BrokenAnswer:
    """A row whose answer broke."""

    id: str
    prompt: str | None
    """None: a run of an earlier version, which kept none."""
    reference: str
    just_learnt: str
    at_end: str
    score_just_learnt: float
    score_at_end: float
    first_broke_after: int | None
    """The first phase (0-based) after which its score was that low; None: by the end at the latest,
    for it was not asked after every task between."""


@dataclass(frozen=True, kw_only=True)
class TaskChanges:
    """A task's rows, those answered at both times."""

    task: int
    compared: int
    broke: int
    mended: int
    samples: Sequence[BrokenAnswer]

    @property
    def kept(self) -> int:
        """Rows whose score changed by less."""
        return self.compared - self.broke - self.mended


def changed_answers(record: RunRecord) -> list[TaskChanges]:
    """Of every task but the last whose answers at both times are kept.

    Samples, a few a task, are drawn by a hash of the run's seed and the row's id: the same each
    time. Of many tasks, those where most broke have some.
    """
    if len(record.phases) != len(record.tasks):
        return []  # all learnt at once: nothing comes later
    last = len(record.phases) - 1
    found = []
    for task in range(last):
        first, final = _by_id(record, task, task), _by_id(record, last, task)
        ids = [row for row in first if row in final]
        if not ids:
            continue
        changes = {row: final[row]["score"] - first[row]["score"] for row in ids}
        broken = [row for row in ids if changes[row] <= -FALL]
        mended = sum(change >= FALL for change in changes.values())
        found.append((task, len(ids), broken, mended))
    worst = sorted(found, key=lambda one: -len(one[2]))[:MOST_TASKS]
    with_samples = {task for task, *_ in worst}
    return [
        TaskChanges(
            task=task,
            compared=compared,
            broke=len(broken),
            mended=mended,
            samples=_samples(record, task, broken) if task in with_samples else (),
        )
        for task, compared, broken, mended in found
    ]


def _samples(record: RunRecord, task: int, broken: Sequence[str]) -> list[BrokenAnswer]:
    if not broken:
        return []
    seed = record.results["protocol"].get("seed")
    drawn = sorted(broken, key=lambda row: _hash(f"{seed}/{task}/{row}"))[:MOST_SAMPLES]
    phases = range(task, len(record.phases))
    asked = {phase: _by_id(record, phase, task, set(drawn)) for phase in phases}
    prompts = record.inputs(task)
    first, final = asked[task], asked[len(record.phases) - 1]
    return [
        BrokenAnswer(
            id=row,
            prompt=prompts.get(row),
            reference=str(final[row]["reference"]),
            just_learnt=str(first[row]["prediction"]),
            at_end=str(final[row]["prediction"]),
            score_just_learnt=first[row]["score"],
            score_at_end=final[row]["score"],
            first_broke_after=_first_fall(row, asked),
        )
        for row in drawn
    ]


def _first_fall(row: str, asked: Mapping[int, Mapping[str, Answer]]) -> int | None:
    learnt, *later = asked
    low = asked[learnt][row]["score"] - FALL
    for phase in later:
        if row not in asked[phase]:
            return None  # it may have broken then
        if asked[phase][row]["score"] <= low:
            return phase
    return None


def _by_id(
    record: RunRecord, phase: int, task: int, ids: set[str] | None = None
) -> dict[str, Answer]:
    answers = record.predictions(phase, task)
    return {row["id"]: row for row in answers if ids is None or row["id"] in ids}


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()

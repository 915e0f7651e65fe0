"""All that a finished run left in its folder, read for tables and figures."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kif_lightning.errors import UserError
from kif_lightning.reporting.results import SCHEMA_VERSION
from kif_lightning.storage import read_json

Boundary = Mapping[str, Any]
"""The content of an importance file; lists of one entry a unit, in the order of ``unit_ids``.

``number``: of its task, counted from 1.
"""
NEEDED = {"tasks": list, "phases": list, "score_matrix": list, "metrics": dict, "protocol": dict}


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A finished run. Boundaries and curves come in the order of learning.

    ``boundaries`` is empty for a method that identifies nothing, ``curves`` for a run of an earlier
    version, which kept none.
    """

    folder: Path
    results: Mapping[str, Any]
    boundaries: tuple[Boundary, ...]
    curves: tuple[Mapping[str, Any], ...]
    """One a phase: ``first_step`` on the run's axis (from 1), ``loss`` of each optimizer step."""

    @property
    def tasks(self) -> list[str]:
        """Names of what is evaluated: the matrix's columns."""
        return [task["name"] for task in self.results["tasks"]]

    @property
    def phases(self) -> list[str]:
        """Names of what was trained on: the matrix's rows."""
        return [phase["name"] for phase in self.results["phases"]]

    @property
    def matrix(self) -> list[list[float | None]]:
        """``matrix[i][j]``: percent on task j after phase i; None: not evaluated."""
        found: list[list[float | None]] = self.results["score_matrix"]
        return found

    @property
    def stand_ins(self) -> Sequence[str]:
        """Which parts only stand for real ones; every figure and table says so."""
        found: Sequence[str] = self.results.get("stand_ins", [])
        return found

    @property
    def held_out(self) -> bool:
        """Scored on rows of train, not of test."""
        return self.results["protocol"].get("evaluation_rows") == "held_out"

    @property
    def rows(self) -> str:
        """Which rows were scored, in a word."""
        return "held-out" if self.held_out else "test"

    def predictions(self, phase: int, task: int) -> list[dict[str, Any]]:
        """Answers to a task's test rows after a phase: id, prediction, reference, score.

        Empty where they were not evaluated then, or not kept.
        """
        after = f"after_{phase + 1:02d}_{self.phases[phase]}"
        name = f"{after}__on_{task + 1:02d}_{self.tasks[task]}.jsonl"
        return _read_lines(self.folder / "predictions" / name)

    def inputs(self, task: int) -> dict[str, str]:
        """Test row's id -> prompt; empty for a run of an earlier version, which kept none."""
        path = self.folder / "test_rows" / f"{task + 1:02d}_{self.tasks[task]}.jsonl"
        return {row["id"]: row["input"] for row in _read_lines(path)}


def read_run(folder: Path) -> RunRecord:
    """Read a finished run's folder.

    Raises:
        UserError: there is no such run, it has not ended, a file is damaged, or an earlier version
            made it.
    """
    if not (folder / "results.json").is_file():
        held = sorted(path.parent.name for path in folder.glob("*/results.json"))
        way = f"name one of the runs in it ({', '.join(held[:5])})" if held else "run it to the end"
        raise UserError(
            f"Expected the folder of a finished run, but there is no results.json in {folder}: "
            f"{way} first."
        )
    return RunRecord(
        folder=folder,
        results=read_results(folder / "results.json"),
        boundaries=tuple(_read_all(folder / "importance")),
        curves=tuple(_read_all(folder / "curves")),
    )


def _read_all(folder: Path) -> list[Any]:
    """Files whose names begin with the task's number, in its order."""
    found = [(int(m[1]), p) for p in folder.glob("*.json") if (m := re.match(r"(\d+)_", p.name))]
    return [{**_object(path), "number": number} for number, path in sorted(found)]


def read_results(path: Path) -> dict[str, Any]:
    """The content of ``results.json``, with all that tables and figures count on.

    Raises:
        UserError: it is damaged, or another version made it.
    """
    found = _object(path)
    version = found.get("schema_version")
    if version != SCHEMA_VERSION:
        made = "another" if isinstance(version, int) and version > SCHEMA_VERSION else "an earlier"
        raise UserError(
            f"Expected results of schema version {SCHEMA_VERSION}, got {version} in {path}, made "
            f"by {made} version of kif-lightning: run it again."
        )
    wrong = [key for key, kind in NEEDED.items() if not isinstance(found.get(key), kind)]
    wrong = wrong or [
        key
        for key in ("tasks", "phases")
        if not all(isinstance(one, dict) and isinstance(one.get("name"), str) for one in found[key])
    ]
    if wrong:
        raise UserError(f"{path} is damaged (no usable {', '.join(wrong)}): run it again.")
    return found


def _object(path: Path) -> dict[str, Any]:
    found = read_json(path)
    if not isinstance(found, dict):
        raise UserError(f"{path} is damaged (expected a JSON object, got {found!r:.40}).")
    return found


def _read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    try:
        # Not splitlines(): answers may hold other characters that it takes for line ends.
        lines = path.read_text(encoding="utf-8").split("\n")
        return [dict(json.loads(line)) for line in lines if line]
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}).") from error

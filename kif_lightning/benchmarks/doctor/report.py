"""What the doctor says: findings, and a report of each task as plain JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]
"""error: numbers of a run would be wrong; warning: they may mislead; note: worth knowing."""
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong with a task.

    ``split`` is None where it concerns the whole task; ``count`` of ``of`` rows (or label words)
    are affected; ``message`` is a whole sentence; ``examples`` are at most 3.
    """

    task: str
    split: str | None
    check: str
    severity: Severity
    count: int
    of: int
    message: str
    examples: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SplitSummary:
    """What a split holds.

    ``classes`` maps each answer to its rows where all rows choose from the same few answers.
    """

    rows: int
    bytes: int
    distinct_inputs: int
    distinct_outputs: int
    classes: Mapping[str, int] | None


@dataclass(frozen=True, kw_only=True)
class TaskReport:
    """One task's splits and what is wrong with them."""

    name: str
    kind: str
    metric: str
    closed_answers: bool
    splits: Mapping[str, SplitSummary]
    findings: tuple[Finding, ...]


def report_json(reports: Sequence[TaskReport]) -> dict[str, Any]:
    """The reports as plain JSON values; findings of all tasks together, errors first."""
    tasks = [asdict(report) for report in reports]
    findings: list[dict[str, Any]] = [f for task in tasks for f in task.pop("findings")]
    for finding in findings:
        finding["examples"] = list(finding["examples"])
    findings.sort(key=lambda finding: SEVERITIES.index(finding["severity"]))
    said = [finding["severity"] for finding in findings]
    return {
        "schema_version": SCHEMA_VERSION,
        "tasks": tasks,
        "findings": findings,
        "counts": {severity: said.count(severity) for severity in SEVERITIES},
    }

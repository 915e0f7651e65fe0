"""The doctor's report as tables and as a few lines."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from kif_lightning.reporting.doctor_table import brief, findings_table, splits_table


def finding(task: str, check: str, severity: str, message: str, *examples: str) -> dict[str, Any]:
    return {
        "task": task,
        "split": "train",
        "check": check,
        "severity": severity,
        "count": 1,
        "of": 2,
        "message": message,
        "examples": list(examples),
    }


def report(*findings: dict[str, Any]) -> dict[str, Any]:
    def split(rows: int, classes: dict[str, int] | None) -> dict[str, Any]:
        return {
            "rows": rows,
            "bytes": 9,
            "distinct_inputs": rows,
            "distinct_outputs": 3,
            "classes": classes,
        }

    said = [f["severity"] for f in findings]
    return {
        "schema_version": 1,
        "tasks": [
            {
                "name": "shapes",
                "kind": "classification",
                "metric": "exact_match",
                "closed_answers": True,
                "splits": {
                    "train": split(1234, {"a": 5, "b": 700, "c": 529}),
                    "test": split(0, {}),
                },
            },
            {
                "name": "stories",
                "kind": "generation",
                "metric": "rouge_l",
                "closed_answers": False,
                "splits": {"train": split(7, None)},
            },
        ],
        "findings": list(findings),
        "counts": {severity: said.count(severity) for severity in ("error", "warning", "note")},
    }


def lines(table: Any, width: int = 120) -> list[list[str]]:
    said = io.StringIO()
    Console(file=said, width=width).print(table)
    return [line.split() for line in said.getvalue().splitlines()]


def test_splits_with_rows_classes_and_balance() -> None:
    assert lines(splits_table(report()))[1:] == [
        "task split rows classes rows a class".split(),
        "shapes train 1,234 3 5 to 700".split(),
        "shapes test 0 3".split(),
        "stories train 7 free answers".split(),
    ]


def test_findings_with_their_examples() -> None:
    table = findings_table(
        report(
            finding("shapes", "blank_output", "error", "1 of 2 rows [bold]x[/bold].", "r1", "[r2]"),
            finding("stories", "mojibake", "note", "1 of 9 rows."),
        )
    )
    assert lines(table) == [
        "Findings: 1 error, 0 warnings, 1 note".split(),
        "severity task check finding".split(),
        "error shapes blank_output 1 of 2 rows [bold]x[/bold].".split(),
        ["r1"],
        ["[r2]"],
        "note stories mojibake 1 of 9 rows.".split(),
    ]


def test_names_are_whole_on_a_narrow_terminal() -> None:
    table = findings_table(report(finding("shapes", "blank_output", "error", "word " * 40)))
    said = lines(table, width=60)
    assert said[2][:3] == ["error", "shapes", "blank_output"]
    assert sum(line.count("word") for line in said) == 40


def test_in_brief_errors_come_first_and_notes_not_at_all() -> None:
    said = brief(
        report(
            finding("shapes", "zeal", "warning", "Odd."),
            finding("shapes", "mojibake", "note", "Small."),
            finding("stories", "bare", "error", "Bad."),
        ),
        "data",
    )
    assert said == ["error: task stories: Bad.", "warning: task shapes: Odd."]


def test_in_brief_a_check_takes_one_line() -> None:
    tasks = [f"t{i}" for i in range(8)]
    said = brief(report(*(finding(t, "overlap", "warning", f"{t} bad.") for t in tasks)), "data")
    told = "warning: task t0: t0 bad. (overlap 8 times, also in t1, t2, t3, t4, t5, ...)"
    assert said == [told]
    twice = [finding("t", "overlap", "error", "First."), finding("t", "overlap", "error", "Next.")]
    assert brief(report(*twice), "data") == ["error: task t: First. (overlap 2 times)"]


def test_in_brief_there_are_at_most_eight_lines() -> None:
    def said(number: int) -> list[str]:
        checks = [f"check_{i:02}" for i in range(number)]
        return brief(report(*(finding("t", c, "warning", f"{c}.") for c in checks)), "my data")

    assert len(said(8)) == 8
    assert said(8)[-1] == "warning: task t: check_07."
    assert len(said(12)) == 8
    assert said(12)[-1] == "and 5 more: my data"


def test_in_brief_nothing_is_said_of_nothing() -> None:
    assert brief(report(), "data") == []
    assert brief(report(finding("t", "c", "note", "Small.")), "data") == []

"""The data doctor's report, its plain JSON, as text: tables, and a few lines for before a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

from rich.markup import escape
from rich.table import Table

Report = Mapping[str, Any]
MOST_LINES = 8


def splits_table(report: Report) -> Table:
    """Rows, classes and balance of each split."""
    table = _table("Tasks", ("task", "split"), ("rows", "classes", "rows a class"))
    for task in report["tasks"]:
        for name, split in task["splits"].items():
            sizes = (split["classes"] or {}).values()
            balance = f"{min(sizes)} to {max(sizes)}" if sizes else ""
            classes = f"{split['distinct_outputs']:,}" if task["closed_answers"] else "free answers"
            table.add_row(escape(task["name"]), name, f"{split['rows']:,}", classes, balance)
    return table


def findings_table(report: Report) -> Table:
    """What is wrong, errors first, with the ids of some rows."""
    counts = report["counts"]
    title = ", ".join(_number(count, severity) for severity, count in counts.items())
    table = _table(f"Findings: {title}", ("severity", "task", "check", "finding"), ())
    table.show_header = bool(report["findings"])
    for finding in report["findings"]:
        for line, text in enumerate((finding["message"], *finding["examples"])):
            first = (finding["severity"], finding["task"], finding["check"])
            cells = ("", "", "", f"  {text}") if line else (*first, text)
            table.add_row(*map(escape, cells))
    return table


def brief(report: Report, whole: str) -> list[str]:
    """Errors and warnings alone, a line for each check, at most 8 lines; empty if there are none.

    Args:
        report: of all tasks.
        whole: where all of it can be read.
    """
    lines = list(_lines(report))
    if len(lines) > MOST_LINES:
        more = len(lines) - MOST_LINES + 1
        lines = [*lines[: MOST_LINES - 1], f"and {more} more: {whole}"]
    return lines


def _lines(report: Report) -> Iterator[str]:
    serious = [f for f in report["findings"] if f["severity"] != "note"]
    ordered = sorted(serious, key=_kind)  # stable: of equal ones the first task's stays first
    for (_, check), findings in groupby(ordered, key=_kind):
        first, *others = findings
        line = f"{first['severity']}: task {first['task']}: {first['message']}"
        if others:
            names = list(dict.fromkeys(f["task"] for f in others if f["task"] != first["task"]))
            listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            line += f" ({check} {len(others) + 1} times{f', also in {listed}' if listed else ''})"
        yield line


def _kind(finding: Mapping[str, Any]) -> tuple[bool, str]:
    return finding["severity"] != "error", finding["check"]


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _table(title: str, texts: tuple[str, ...], numbers: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1))
    for name in texts:
        # The last of the texts may be long; ids and names are read whole.
        table.add_column(name, no_wrap=name != texts[-1], overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right")
    return table

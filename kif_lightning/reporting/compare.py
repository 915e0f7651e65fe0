"""Finished runs side by side: what each task scored at first and scores at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from kif_lightning.errors import UserError
from kif_lightning.reporting.console import RunConsole, stamped
from kif_lightning.storage import read_json

MUST_MATCH = (
    "benchmark", "order", "data_sha256", "rows", "metrics", "backbone", "weights",
    "prompt_and_decoding", "seed", "epochs", "effective_batch",
)  # fmt: skip
"""Keys of the protocol stamp in which runs must agree for their methods to be comparable."""


def read_runs(folders: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Label -> results of each run: the method's name, or the folder's where methods repeat.

    Raises:
        UserError: fewer than two runs, one that is not finished, or protocols that differ.
    """
    if len(folders) < 2:
        raise UserError(f"A comparison needs at least two run folders, got {len(folders)}.")
    unfinished = [str(folder) for folder in folders if not (folder / "results.json").is_file()]
    if unfinished:
        raise UserError(
            f"Expected folders of finished runs, but there is no results.json in "
            f"{', '.join(unfinished)}: run them to the end first."
        )
    results = [read_json(folder / "results.json") for folder in folders]
    _check_same_protocol(folders, results)
    methods = [found["protocol"]["method"] for found in results]
    labels = methods if len(set(methods)) == len(methods) else [str(f) for f in folders]
    return dict(zip(labels, results, strict=True))


def _check_same_protocol(folders: Sequence[Path], results: Sequence[Mapping[str, Any]]) -> None:
    first = results[0]["protocol"]
    for folder, found in zip(folders[1:], results[1:], strict=True):
        differing = [key for key in MUST_MATCH if found["protocol"].get(key) != first.get(key)]
        if differing:
            raise UserError(
                f"{folder} was measured under another protocol than {folders[0]} (different: "
                f"{', '.join(differing)}): compare runs that differ in the method alone."
            )


def show_comparison(runs: Mapping[str, Mapping[str, Any]], console: RunConsole) -> None:
    """One row a task, one column a run: 'just learnt -> at the end'; then the transfer metrics."""
    first = next(iter(runs.values()))
    table = Table(box=None, padding=(0, 2))
    table.add_column("")
    for label in runs:
        table.add_column(label, justify="right", no_wrap=True)
    for index, task in enumerate(first["tasks"]):
        cells = [_course(found["score_matrix"], index) for found in runs.values()]
        table.add_row(f"{index + 1} {task['name']}", *cells)
    table.add_section()
    for name in first["metrics"]:
        values = [found["metrics"].get(name) for found in runs.values()]
        table.add_row(name, *["" if value is None else f"{value:.1f}" for value in values])
    minutes = [found["cost"]["seconds"]["total"] / 60 for found in runs.values()]
    table.add_row("minutes", *[f"{value:.1f}" for value in minutes])
    title = "Percent on each task, when just learnt -> at the end of the stream"
    console.say(stamped(title, first["stand_ins"]))
    console.console.print(table)
    for name, formula in first["formulas"].items():
        console.say(f"  {name} = {formula}")


def _course(matrix: Sequence[Sequence[float | None]], task: int) -> str:
    learnt, at_the_end = matrix[task][task], matrix[-1][task]
    return " -> ".join("" if score is None else f"{score:.1f}" for score in (learnt, at_the_end))

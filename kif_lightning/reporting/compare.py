"""Finished runs side by side: what each task scored at first and scores at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from kif_lightning.errors import UserError
from kif_lightning.reporting.console import RunConsole, stamped
from kif_lightning.storage import read_json

MUST_MATCH = (
    "benchmark", "order", "data_sha256", "rows", "metrics", "backbone", "weights", "lora", "optim",
    "prompt_and_decoding", "seed", "epochs", "effective_batch",
)  # fmt: skip
"""Keys of the protocol stamp in which runs must agree for their methods to be comparable."""
Results = Mapping[str, Any]


def read_runs(folders: Sequence[Path]) -> list[tuple[str, Results]]:
    """(label, results) of each run: the method's name, or the folder's where methods repeat.

    Raises:
        UserError: fewer than two runs, one given twice or not finished, or protocols that differ.
    """
    if len({folder.resolve() for folder in folders}) < max(2, len(folders)):
        raise UserError(
            f"A comparison needs at least two different run folders, got "
            f"{', '.join(map(str, folders)) or 'none'}."
        )
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
    return list(zip(labels, results, strict=True))


def _check_same_protocol(folders: Sequence[Path], results: Sequence[Results]) -> None:
    first = _comparable(results[0]["protocol"])
    for folder, found in zip(folders[1:], results[1:], strict=True):
        other = _comparable(found["protocol"])
        differing = [key for key in MUST_MATCH if other.get(key) != first.get(key)]
        if differing:
            raise UserError(
                f"{folder} was measured under another protocol than {folders[0]} (different: "
                f"{', '.join(differing)}): compare runs that differ in the method alone."
            )


def _comparable(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """The stamp without truncation, which a method may fix as a part of itself."""
    prompt = protocol.get("prompt_and_decoding")
    if isinstance(prompt, dict):
        prompt = {key: value for key, value in prompt.items() if key != "truncation"}
    return {**protocol, "prompt_and_decoding": prompt}


def show_comparison(runs: Sequence[tuple[str, Results]], console: RunConsole) -> None:
    """One row a task, one column a run: 'just learnt -> at the end'; then the transfer metrics."""
    first = runs[0][1]
    table = Table(box=None, padding=(0, 2))
    table.add_column("")
    for label, _ in runs:
        table.add_column(escape(label), justify="right", no_wrap=True)
    for index, task in enumerate(first["tasks"]):
        cells = [_course(found["score_matrix"], index) for _, found in runs]
        table.add_row(f"{index + 1} {task['name']}", *cells)
    table.add_section()
    formulas = {name: text for _, found in runs for name, text in found["formulas"].items()}
    for name in formulas:
        values = [found["metrics"].get(name) for _, found in runs]
        table.add_row(name, *["" if value is None else f"{value:.1f}" for value in values])
    minutes = [found["cost"]["seconds"]["total"] / 60 for _, found in runs]
    table.add_row("minutes", *[f"{value:.1f}" for value in minutes])
    title = "Percent on each task, when just learnt -> at the end of the stream"
    console.say(stamped(title, first.get("stand_ins", [])))
    console.console.print(table)
    for name, formula in formulas.items():
        console.say(f"  {name} = {formula}")


def _course(matrix: Sequence[Sequence[float | None]], task: int) -> str:
    learnt, at_the_end = matrix[task][task], matrix[-1][task]
    return " -> ".join("" if score is None else f"{score:.1f}" for score in (learnt, at_the_end))

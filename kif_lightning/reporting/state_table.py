"""A continual state in a table: what it learnt, when, and what is in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from kif_lightning.reporting.console import NOT_EVALUATED, RunConsole, stamped

DIGITS = 12
"""Of a digest: enough to tell states apart."""


def show_state(state: Any, folder: Path, console: RunConsole) -> None:
    """Its tasks in the order of learning, then what else there is to know of it.

    Args:
        state: a :class:`~kif_lightning.continual_state.ContinualState`, as read from ``folder``.
        folder: where it lies.
        console: where it speaks.
    """
    title = escape(stamped(f"State {folder}", state.stand_ins))
    table = Table(title=title, title_justify="left", box=None)
    for name in ("task", "metric", "when learnt", "last score", "after", "rows"):
        table.add_column(name, justify="left" if name in ("task", "metric") else "right")
    matrix = state.score_matrix
    for place, task in enumerate(state.tasks):
        learnt, (after, last) = matrix[place][place], _last(matrix, place)
        table.add_row(
            escape(f"{place + 1} {task.name}{' (stand-in data)' if task.stand_in else ''}"),
            task.metric,
            _score(learnt),
            _score(last),
            "" if after is None else str(after + 1),
            f"{task.train_rows:,} + {task.test_rows:,}",
        )
    console.console.print(table)
    console.say("Percent; after: the task whose learning the last score came after; rows: train "
                f"and test; {NOT_EVALUATED}: not evaluated.")  # fmt: skip
    console.mapping("", _facts(state, folder))


def _last(matrix: Sequence[Sequence[float | None]], place: int) -> tuple[int | None, float | None]:
    """After which task one was scored for the last time, and its score then."""
    for after in reversed(range(len(matrix))):
        score = matrix[after][place]
        if score is not None:
            return after, score
    return None, None


def _facts(state: Any, folder: Path) -> dict[str, str]:
    config, protocol = state.config, state.protocols[-1]
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if not state.keeps_memory:
        memory = "the method keeps none"
    elif state.memory is None:
        memory = "left out: it can learn no more tasks"
    else:
        memory = f"{state.num_memory_rows:,} raw rows of past tasks within"
    return {
        "method": config["method"]["name"],
        "backbone": config["backbone"]["name"],
        "memory": memory,
        "digest": state.digest[:DIGITS],
        "extended from": "no state" if state.parent is None else state.parent[:DIGITS],
        "conditions": f"{len(state.protocols)} "
        f"{'protocol' if len(state.protocols) == 1 else 'protocols'}, "
        f"the last by kif-lightning {protocol['kif_lightning']} on {protocol['device']}",
        "size": f"{size / 1e6:.1f} MB",
    }


def _score(score: float | None) -> str:
    return NOT_EVALUATED if score is None else f"{score:.1f}"

"""One boundary fused otherwise: how its results are told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from kif_lightning.reporting.console import MOST_COLUMNS, RunConsole, on_held_out, stamped

LABEL = "counterfactual, single boundary"
NOTE = (
    "Exact for this one row of the score matrix: with another fusion here every later task would "
    "have started elsewhere, so nothing is said of the rest of the run. "
)
BETA_NOTE = (
    "Another beta accumulates the importance of all earlier tasks anew; the weights of the earlier "
    "boundaries stay as they were."
)
Settings = Mapping[str, Any]
Answer = Mapping[str, Any]
"""``settings``, ``scores`` in percent of the tasks learnt so far, ``average``, ``old_mean``,
``new``, ``mean_weight`` and ``entropy`` of the fusion weights."""


def note(stand_ins: Sequence[str]) -> str:
    """What the numbers say and what not, also of the rows that they are of."""
    if on_held_out(stand_ins):
        return f"{NOTE}The scores are of held-out rows of train: settings may be chosen by them."
    test = "The scores are of test rows: settings chosen by them were chosen on the test."
    return NOTE + test


def words(settings: Settings) -> str:
    """A fusion's settings in one line."""
    told = [f"{key}={v:g}" if isinstance(v, float) else str(v) for key, v in settings.items()]
    return " ".join(told)


def show_what_if(
    answers: Sequence[Answer],
    names: Sequence[str],
    original: Settings,
    own_row: Sequence[float | None] | None,
    stand_ins: Sequence[str],
    console: RunConsole,
) -> None:
    """A table, a row for each way of fusing.

    Args:
        answers: in the order to show.
        names: of the tasks learnt so far; the last one's boundary is fused again.
        original: the run's own settings, marked.
        own_row: what the run measured, None where it did not.
        stand_ins: told in the title.
        console: where.
    """
    title = f"Boundary {len(names)} ({names[-1]}) fused again: {LABEL} (percent)"
    table = Table(title=stamped(title, stand_ins), title_justify="left", box=None, padding=(0, 1))
    table.add_column("fusion", no_wrap=True)
    for name in ("average", "old tasks", "new task", "share of the past", "entropy"):
        table.add_column(name, justify="right", no_wrap=True)
    shown = names if len(names) <= MOST_COLUMNS else ()
    for number in range(1, len(shown) + 1):
        table.add_column(str(number), justify="right", no_wrap=True)
    if any(score is not None for score in own_row or ()):
        cells = ["" if score is None else f"{score:.1f}" for score in own_row or ()]
        table.add_row("(as measured by the run)", *[""] * 5, *(cells if shown else ()))
    for answer in answers:
        mark = " (the run's own)" if answer["settings"] == original else ""
        means = [f"{answer[key]:.2f}" for key in ("average", "old_mean", "new")]
        weights = [f"{answer[key]:.3f}" for key in ("mean_weight", "entropy")]
        scores = [f"{score:.1f}" for score in answer["scores"]] if shown else []
        table.add_row(words(answer["settings"]) + mark, *means, *weights, *scores)
    console.console.print(table)
    if shown:
        listed = ", ".join(f"{number} {name}" for number, name in enumerate(shown, start=1))
        console.say(f"Tasks: {listed}.")
    console.say(
        "average: over the tasks learnt so far; old tasks: without the new one; share of the past: "
        "mean fusion weight; entropy: mean binary entropy of the weights in bits, 0 = each unit is "
        "all old or all new, 1 = each is the average."
    )
    console.say(note(stand_ins))

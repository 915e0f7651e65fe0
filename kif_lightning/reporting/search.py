"""A search for settings: every trial and the pick, in files and on the console."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from kif_lightning.reporting.console import RunConsole, stamped
from kif_lightning.storage import write_json, write_text


@dataclass(frozen=True, kw_only=True)
class Searched:
    """One setting that is searched: between ``low`` and ``high``, evenly or on a log scale."""

    key: str
    default: float
    low: float
    high: float
    log: bool


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run of a search; ``value`` in percent, None where it failed."""

    number: int
    settings: Mapping[str, float]
    run: str
    value: float | None
    error: str | None


def publish(
    file: Path,
    *,
    conditions: Mapping[str, Any],
    searched: Sequence[Searched],
    trials: Sequence[Trial],
    command: Callable[[Trial], str],
    console: RunConsole,
) -> Trial | None:
    """Write and show all trials, and the pick with its command: the best, of equal ones the first.

    Args:
        file: the JSON file; a CSV file of the trials stands beside it.
        conditions: what else the JSON file shall say, ``method`` and ``objective`` among it.
        searched: the settings, in the order of a trial's.
        trials: in the order they ran.
        command: of the runs to report, with a trial's settings.
        console: ``stand_ins`` says on what the scores were.

    Returns:
        the pick, None where all failed.
    """
    done = [trial for trial in trials if trial.value is not None]
    pick = max(done, key=lambda trial: (trial.value, -trial.number), default=None)
    told = None if pick is None else command(pick)
    record = {
        **conditions,
        "stand_ins": list(console.stand_ins),
        "searched": [asdict(setting) for setting in searched],
        "ended": len(done),
        "trials": [asdict(trial) for trial in trials],
        "pick": None if pick is None else pick.number,
        "final_command": told,
    }
    write_json(file, record)
    write_text(file.with_suffix(".csv"), _as_csv(conditions["objective"], searched, trials))
    console.console.print(_table(conditions["method"], searched, trials, pick, console.stand_ins))
    console.say(f"All trials: {file} (and .csv)")
    if told is not None:
        console.say(f"The runs to report, on test rows and their own order:\n  {told}")
    return pick


def _as_csv(objective: str, searched: Sequence[Searched], trials: Sequence[Trial]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    keys = [setting.key for setting in searched]
    writer.writerow(["number", *keys, objective, "run", "error"])
    for trial in trials:
        values = [trial.settings[key] for key in keys]
        writer.writerow([trial.number, *values, trial.value, trial.run, trial.error])
    return text.getvalue()


def _table(
    method: str,
    searched: Sequence[Searched],
    trials: Sequence[Trial],
    pick: Trial | None,
    stand_ins: Sequence[str],
) -> Table:
    title = stamped(f"Search for {method}: AP in percent", stand_ins)
    table = Table(title=title, title_justify="left", box=None)
    for name in ("trial", *(setting.key for setting in searched), "AP", ""):
        table.add_column(name, justify="right" if name else "left")
    ended = sum(trial.value is not None for trial in trials)
    picked = f"the pick among {ended} of {len(trials)}"
    for trial in trials:
        score = "failed" if trial.value is None else f"{trial.value:.2f}"
        notes = ["defaults"] * (trial.number == 0) + [picked] * (trial is pick)
        settings = [f"{value:g}" for value in trial.settings.values()]
        table.add_row(str(trial.number), *settings, score, ", ".join(notes))
    return table

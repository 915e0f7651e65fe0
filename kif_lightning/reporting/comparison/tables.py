"""The tables of a comparison: on the console, in Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table as RichTable

from kif_lightning.metrics.transfer import FORMULAS
from kif_lightning.reporting.comparison.contents import AP, UNKNOWN, VS_SINGLE, Contents, rank
from kif_lightning.reporting.console import (
    NOT_EVALUATED,
    RunConsole,
    markdown_table,
    one_cell,
    stamped,
)

MAX_COLUMNS = 6
"""Runs whose tasks are shown side by side; more would not fit a terminal."""
HEADER = (
    "method", "told", "seeds", "AP", "forgetting", "BWT", "FWT", "trained weights", "memory rows",
    "seconds",
)  # fmt: skip
"""Of the summary; with several backbones or orders, columns for them come second."""
METRICS = (AP, "forgetting_rate", "backward_transfer", VS_SINGLE)
"""Of the summary's columns AP to FWT."""
SHORT = dict(zip(METRICS, HEADER[3:7], strict=True)) | {"forward_transfer_zero_shot": "FWT0"}
NOT_THE_SAME = "NOT THE SAME PROTOCOL"


@dataclass(frozen=True, kw_only=True)
class Table:
    """Cells as text, what they are and how to read them."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    words: int = 1
    """How many columns from the left hold words."""
    ours: bool = True
    """Whether our runs are in it, of which stand-ins and differing protocols are to be told."""


def banner(found: Contents) -> str:
    """What must be said on everything that shows runs of different protocols; else empty."""
    if not found["variants"]:
        return ""
    keys = ", ".join(dict.fromkeys(key.split(".")[0] for key in found["differences"]))
    return f"{NOT_THE_SAME}: runs differ in {keys}; letters in brackets tell them apart"


def titled(text: str, found: Contents) -> str:
    """The text with the protocol's banner before it and what only stands for real ones behind."""
    return ". ".join(part for part in (banner(found), stamped(text, found["stand_ins"])) if part)


def _title(table: Table, found: Contents) -> str:
    return titled(table.title, found) if table.ours else table.title


def _axes(found: Contents) -> dict[str, Callable[[Mapping[str, Any]], str]]:
    """Columns for what is not the same of all: an imported run's unknown backbone is none."""
    known = [backbone for backbone in found["backbones"] if backbone != UNKNOWN]
    axes: dict[str, Callable[[Mapping[str, Any]], str]] = {}
    if len(known) > 1:
        axes["backbone"] = lambda entry: str(entry["backbone"])
    if len(found["orders"]) > 1:
        axes["order"] = lambda entry: str(entry["order"])
    return axes


def header(found: Contents) -> list[str]:
    """Names of the summary's columns."""
    return [HEADER[0], *_axes(found), *HEADER[1:]]


def summary(found: Contents) -> list[list[str]]:
    """One row a method, backbone and order, the best first within a backbone and order.

    The columns are :func:`header`'s. What is not known stays empty. FWT is :data:`VS_SINGLE`: the
    single-task scores are those of a run among these, of the same backbone, order and seed, whose
    method declares itself the reference.
    """
    axes = _axes(found).values()
    places = [*found["backbones"], *found["orders"]]
    groups = sorted(
        found["groups"], key=lambda g: (*[places.index(axis(g)) for axis in axes], rank(g))
    )
    rows = []
    for group in groups:
        costs = [run["cost"] for run in group["runs"]]
        rows.append(
            [
                group["label"],
                *[axis(group) for axis in axes],
                group["told"],
                ", ".join(map(str, group["seeds"])),
                *[_spread(group["metrics"].get(name)) for name in METRICS],
                _each(_weights(cost) for cost in costs),
                _each(str(cost.get("memory_rows", "")) for cost in costs),
                _spread(group["seconds"], 0),
            ]
        )
    return rows


def summary_table(found: Contents) -> Table:
    """The summary with its title."""
    columns = header(found)
    return Table(
        title="Summary, percent (mean ± standard deviation over seeds)",
        header=columns,
        rows=summary(found),
        note=" ".join(found["notes"]),
        words=len(columns) - 7,
    )


def _spread(values: Mapping[str, Any] | None, digits: int = 1) -> str:
    if values is None:
        return ""
    middle = f"{values['average']:.{digits}f}"
    deviation = values["standard_deviation"]
    return middle if deviation is None else f"{middle} ± {deviation:.{digits}f}"


def _each(texts: Iterable[str]) -> str:
    """Of seeds that differ in it, each one's."""
    return " / ".join(dict.fromkeys(texts))


def _weights(cost: Mapping[str, Any]) -> str:
    trainable, kept = cost.get("trainable_weights"), cost.get("learnt_weights")
    if trainable is None:
        return ""
    return f"{trainable:,}" if kept in (None, trainable) else f"{trainable:,} ({kept:,} kept)"


def further_tables(found: Contents) -> list[Table]:
    """What else there is to tell beside the summary, of the parts that were asked for."""
    makers = (differences_table, paired_table, order_table, published_table)
    return [table for make in makers if (table := make(found)) is not None]


def differences_table(found: Contents) -> Table | None:
    """Every key in which runs of different protocols differ."""
    letters = list(found["variants"])
    if not letters:
        return None
    rows = [
        [key, *[values.get(letter, "") for letter in letters]]
        for key, values in found["differences"].items()
    ]
    runs = ", ".join(f"[{letter}] {len(found['variants'][letter])} runs" for letter in letters)
    return Table(
        title=f"{NOT_THE_SAME}: what differs",
        header=["key", *letters],
        rows=rows,
        note=f"{runs}; which runs: column protocol of summary.csv (--out FOLDER).",
        words=1 + len(letters),
    )


def backbones_table(found: Contents) -> Table | None:
    """What belongs to each backbone."""
    if not found["by_backbone"]:
        return None
    names = [name for name in found["backbones"] if name != UNKNOWN]
    rows = [[key, *[v.get(n, "") for n in names]] for key, v in found["by_backbone"].items()]
    note = "Published protocols choose these for each backbone; within one, all runs agree in them."
    return Table(
        title="What differs with the backbone",
        header=["key", *names],
        rows=rows,
        note=note,
        words=1 + len(names),
    )


PAIRED_NOTE = (
    "Mean over tasks of the difference in percent points; above zero: better than the baseline. "
    "Intervals and shares resample the test rows, both methods alike (pooled: mean over seeds): "
    "they cover the choice of test rows, not the chance in training. That is in the spread between "
    "seeds, as far as so few seeds show it."
)


def paired_table(found: Contents) -> Table | None:
    """Differences from the baseline: a row pooled over the seeds, then one a seed."""
    paired = found["paired"]
    if paired is None:
        return None
    axes, rows = _axes(found), []
    for entry in paired["entries"]:
        place = [entry["label"], *[axis(entry) for axis in axes.values()]]
        between = entry["between_seeds"]
        notes = entry["notes"]
        if len(entry["seeds"]) != 1:
            apart = "" if between is None else _deviation(between)
            rows.append([*place, "pooled", *_interval(entry["pooled"]), apart, "; ".join(notes)])
        for seed in entry["seeds"]:
            few = seed["tasks"] < entry["of_tasks"]
            told = [f"{seed['tasks']} of {entry['of_tasks']} tasks"] if few else []
            told += notes if len(entry["seeds"]) == 1 else []
            rows.append([*place, str(seed["seed"]), *_interval(seed), "", "; ".join(told)])
    interval = f"{paired['interval']}% interval"
    return Table(
        title=f"Paired differences from {paired['baseline']} ({paired['resamples']} resamples)",
        header=[
            *("method", *axes, "seed", "difference", interval),
            *("resamples at or below 0", "sd between seeds", "note"),
        ],
        rows=rows,
        note=PAIRED_NOTE,
        words=2 + len(axes),
    )


def _interval(values: Mapping[str, Any] | None) -> list[str]:
    if values is None:
        return ["", "", ""]
    return [
        f"{values['difference']:+.1f}",
        f"{values['low']:+.1f} to {values['high']:+.1f}",
        f"{100 * values['share_not_above_zero']:.1f}%",
    ]


def _deviation(values: Mapping[str, Any]) -> str:
    deviation = values["standard_deviation"]
    return "one seed" if deviation is None else f"{deviation:.1f} (n={values['n']})"


def order_table(found: Contents) -> Table | None:
    """How much a method depends on the order of the tasks."""
    if not found["order_study"]:
        return None
    names = list(found["orders"])
    rows = [
        [
            *(study["backbone"], study["label"]),
            *[f"{study['orders'][n]:.1f}" if n in study["orders"] else "" for n in names],
            *(f"{study[key]:.1f}" for key in ("average", "smallest", "largest")),
            f"{study['standard_deviation']:.1f}",
        ]
        for study in found["order_study"]
    ]
    return Table(
        title="Order study: AP by order, percent",
        header=["backbone", "method", *names, "average", "min", "max", "sd over orders"],
        rows=rows,
        note="Seeds are averaged within an order first; the deviation is between those averages.",
        words=2,
    )


def published_table(found: Contents) -> Table | None:
    """Results of papers on the same benchmark, with their sources."""
    entries = found["published"]
    if entries is None:
        return None
    names = [name for name in SHORT if any(name in entry["metrics"] for entry in entries)]
    sources = list(dict.fromkeys(_source(entry) for entry in entries))
    rows = [
        [
            *(entry["method"], entry["model"], entry["benchmark"], entry["orders"]),
            *[_number(entry["metrics"].get(name)) for name in names],
            f"[{sources.index(_source(entry)) + 1}]",
        ]
        for entry in entries
    ]
    told = "; ".join(f"[{i}] {source}" for i, source in enumerate(sources, 1))
    benchmarks = " and ".join(found["benchmarks"])
    return Table(
        title="PUBLISHED by others, not measured here",
        header=["method", "model", "benchmark", "orders", *[SHORT[n] for n in names], "source"],
        rows=rows,
        note=f"Other code and protocol: they enter no mean and no ranking of ours. {told}."
        if entries
        else f"Nothing published is on record for {benchmarks} in these orders.",
        words=4,
        ours=False,
    )


def _source(entry: Mapping[str, Any]) -> str:
    unchecked = "".join(f"; definition of {SHORT[n]} not checked" for n in entry["unchecked"])
    return f"{entry['source']} (from {entry['read_from']}{unchecked})"


def runs_table(found: Contents) -> Table:
    """One row a run."""
    names = list(found["formulas"])
    endings = _endings([run["folder"] for group in found["groups"] for run in group["runs"]])
    rows = [
        [
            *(group["label"], group["backbone"], group["order"], endings[run["folder"]]),
            "" if run["seed"] is None else str(run["seed"]),
            *[_number(run["metrics"].get(name)) for name in names],
        ]
        for group in found["groups"]
        for run in group["runs"]
    ]
    return Table(
        title="Every run",
        header=["method", "backbone", "order", "folder", "seed", *[SHORT.get(n, n) for n in names]],
        rows=rows,
        words=4,
    )


def _endings(folders: Sequence[str]) -> dict[str, str]:
    """Folder -> its path's last parts, of all as few as tell them apart."""
    parts = {folder: Path(folder).parts for folder in folders}
    few = 1
    while len({own[-few:] for own in parts.values()}) < len(set(parts.values())):
        few += 1
    return {folder: str(Path(*own[-few:])) for folder, own in parts.items()}


def _number(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def show_comparison(found: Contents, console: RunConsole) -> None:
    """Few runs: one row a task, 'just learnt -> at the end'; then the summary and the rest."""
    runs = [run for group in found["groups"] for run in group["runs"]]
    if len(runs) <= MAX_COLUMNS:
        title = "Percent on each task, when just learnt -> at the end of the stream"
        console.say(titled(title, found))
        console.console.print(_task_table(found))
        if any(score is None for run in runs for score in (*_learnt(run), *run["scores"][-1])):
            console.say(f"  {NOT_EVALUATED}: not evaluated")
    _show(summary_table(found), found, console)
    for name, formula in found["formulas"].items():
        console.say(f"  {name} = {formula}")
    for table in further_tables(found):
        _show(table, found, console)
    if found["unchecked"]:
        told = ", ".join(found["unchecked"])
        console.say(f"Imported runs do not tell, so not compared: {told}.")


def _show(table: Table, found: Contents, console: RunConsole) -> None:
    console.say(_title(table, found))
    shown = RichTable(box=None, padding=(0, 2))
    for place, name in enumerate(table.header):
        justify: Any = "left" if place < table.words else "right"
        # Where room is short, words are wrapped and numbers never cut.
        words = place < table.words or name == "note"
        shown.add_column(escape(name), justify=justify, no_wrap=not words, overflow="fold")
    for row in table.rows:
        shown.add_row(*[escape(cell) for cell in row])
    if table.rows:
        console.console.print(shown)
    if table.note:
        console.say(f"  {table.note}")


def _task_table(found: Contents) -> RichTable:
    table = RichTable(box=None, padding=(0, 2))
    table.add_column("", no_wrap=True)
    axes = _axes(found).values()
    columns = [(group, run) for group in found["groups"] for run in group["runs"]]
    for group, run in columns:
        seed = [f"seed {run['seed']}"] if len(group["runs"]) > 1 else []
        # A long label would leave no room for the tasks' names.
        label = ", ".join([group["label"], *[axis(group) for axis in axes], *seed])
        label = label.replace(" (", "\n(").replace(", ", ",\n")
        table.add_column(escape(label), justify="right", no_wrap=True)
    tasks = list(dict.fromkeys(task for _, run in columns for task in run["tasks"]))
    for index, task in enumerate(tasks):
        table.add_row(f"{index + 1} {escape(task)}", *[_course(run, task) for _, run in columns])
    table.add_section()
    for name in FORMULAS:
        values = [run["metrics"].get(name) for _, run in columns]
        if name != VS_SINGLE and any(value is not None for value in values):
            table.add_row(name, *[_number(value) for value in values])
    times = [run["cost"].get("seconds", {}).get("total") for _, run in columns]
    table.add_row("minutes", *["" if time is None else f"{time / 60:.1f}" for time in times])
    return table


def _learnt(run: Mapping[str, Any]) -> list[float | None]:
    """Each task's score when just learnt; empty where all were learnt at once."""
    matrix = run["scores"]
    return [matrix[task][task] for task in range(len(matrix))] if len(matrix) > 1 else []


def _course(run: Mapping[str, Any], name: str) -> str:
    """Tasks learnt all at once have no way, only an end."""
    matrix = run["scores"]
    if name not in run["tasks"]:
        return ""
    task = run["tasks"].index(name)
    course = [matrix[task][task], matrix[-1][task]] if len(matrix) > 1 else [matrix[0][task]]
    return " -> ".join(NOT_EVALUATED if score is None else f"{score:.1f}" for score in course)


def markdown(found: Contents) -> str:
    """The summary as a Markdown table; of different protocols, that comes before it."""
    table = _markdown(summary_table(found))
    return "\n\n".join(part for part in (banner(found), table) if part)


def markdown_page(found: Contents) -> str:
    """All tables, each with its title and how to read it."""
    parts = []
    for table in (summary_table(found), *further_tables(found)):
        parts += [f"**{_title(table, found)}**", _markdown(table) if table.rows else ""]
        parts.append(table.note)
    parts += [f"{name} = `{formula}`" for name, formula in found["formulas"].items()]
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown(table: Table) -> str:
    return markdown_table(
        [one_cell(cell) for cell in table.header],
        [[one_cell(cell) for cell in row] for row in table.rows],
    )


LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "≤": r"$\leq$",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def latex_text(text: str) -> str:
    """The text as LaTeX sets it, whatever characters it has."""
    return "".join(LATEX.get(character, character) for character in " ".join(text.split()))


def latex(found: Contents) -> str:
    r"""All tables for a paper; they need ``\usepackage{booktabs}``."""
    return "\n".join(_latex(t, found) for t in (summary_table(found), *further_tables(found)))


def _latex(table: Table, found: Contents) -> str:
    """The {} keeps a row that begins with [ or * from being an option of the line before."""
    columns = "l" * table.words + "r" * (len(table.header) - table.words)
    rows = [f"{{}}{' & '.join(latex_text(cell) for cell in cells)} \\\\" for cells in table.rows]
    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{latex_text(_title(table, found))}. {latex_text(table.note)}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            f"{' & '.join(latex_text(cell) for cell in table.header)} \\\\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


COSTS = ("trainable_weights", "learnt_weights", "memory_rows", "peak_memory_bytes",
         "peak_gpu_memory_bytes")  # fmt: skip
SECONDS = ("train", "boundary", "evaluate", "total")


def summary_rows(found: Contents) -> list[dict[str, Any]]:
    """One row a run, every number in full; None: not known."""
    return [
        {
            "folder": run["folder"],
            "label": group["label"],
            "method": group["method"],
            "backbone": group["backbone"],
            "benchmark": run["benchmark"],
            "order": group["order"],
            "seed": run["seed"],
            "protocol": group["protocol"],
            "told": group["told"],
            "stand_ins": "; ".join(run["stand_ins"]),
            **{name: run["metrics"].get(name) for name in FORMULAS},
            **{name: run["cost"].get(name) for name in COSTS},
            **{f"seconds_{name}": run["cost"].get("seconds", {}).get(name) for name in SECONDS},
        }
        for group in found["groups"]
        for run in group["runs"]
    ]


def summary_csv(found: Contents) -> str:
    """:func:`summary_rows` as a file; there is at least one run."""
    rows = summary_rows(found)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()

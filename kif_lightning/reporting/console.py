"""What a run shows on the console."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

MOST_NAMES = 8
"""Of tasks in a sentence."""
MOST_COLUMNS = 40
"""Of a score matrix that is shown: a wider one fits no terminal, and T of them are T^3 cells."""


NOT_EVALUATED = "-"
"""In a table of scores: of a task that has been learnt, but was not scored then."""
STAND_IN_PROBE = "stand-in probe"
"""What is said of a home-made probe, beside the stand-ins of the run."""


class RunConsole:
    """Plain statements and tables; progress bars are the callbacks' matter."""

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        # Rich assumes 80 columns where there is no terminal: too narrow for 15 tasks. In a notebook
        # it would show every line as a page of its own.
        width = None if sys.stdout.isatty() else 200
        self.console = console or Console(
            quiet=quiet, highlight=False, soft_wrap=True, width=width, force_jupyter=False
        )
        self.stand_ins: Sequence[str] = ()
        """What stands for something real in the present run: every table's title names it."""

    @property
    def quiet(self) -> bool:
        """Whether nothing is to be shown, progress bars among it."""
        return self.console.quiet

    def say(self, text: str) -> None:
        """One line."""
        self.console.print(text, markup=False)

    def mapping(self, title: str, values: Mapping[str, Any]) -> None:
        """Names and values under a title."""
        table = Table(title=title, title_justify="left", show_header=False, box=None)
        for name, value in values.items():
            table.add_row(name, str(value))
        self.console.print(table)

    def scores_so_far(
        self,
        names: Sequence[str],
        matrix: Sequence[Sequence[float | None]],
        untrained: Sequence[float | None] | None,
        phases: Sequence[str],
        num_learnt: int,
    ) -> None:
        """The score matrix after each phase; of one too wide to be read, the last row's mean.

        Of the first ``num_learnt`` tasks alone: others may have been scored before they are learnt.
        """
        if len(names) <= MOST_COLUMNS:
            self.score_matrix(names, matrix, untrained, phases)
            return
        scores = [score for score in matrix[-1][:num_learnt] if score is not None]
        if scores:
            phase = f"{len(matrix)} ({phases[len(matrix) - 1]})"
            mean = f"{sum(scores) / len(scores):.1f}%"
            text = f"Scores after task {phase}: {mean} on average over {len(scores)} tasks"
            self.say(f"{self._title(text)}.")

    def score_matrix(
        self,
        names: Sequence[str],
        matrix: Sequence[Sequence[float | None]],
        untrained: Sequence[float | None] | None = None,
        phases: Sequence[str] | None = None,
    ) -> None:
        """Rows: after which phase (None: each task is one); columns: score on which task.

        Blank: not learnt yet; ``-``: not evaluated, which a line below says.
        """
        table = Table(
            title=self._title("Score matrix (percent)"),
            title_justify="left",
            box=None,
            padding=(0, 1),
        )
        # Numbers head the columns, their names stand in the rows: 15 tasks fit a terminal.
        digits = 1 if self.console.width >= 24 + 7 * len(names) else 0
        table.add_column("after", no_wrap=True)
        for index in range(len(names)):
            table.add_column(f"{index + 1}", justify="right", no_wrap=True)
        if untrained is not None:
            table.add_row("(untrained)", *[_percent(score, digits) for score in untrained])
        missing = False
        for index, row in enumerate(matrix):
            gaps = missing_scores(row, index)
            missing = missing or bool(gaps)
            cells = [
                NOT_EVALUATED if place in gaps else _percent(score, digits)
                for place, score in enumerate(row)
            ]
            table.add_row(f"{index + 1} {(phases or names)[index]}", *cells)
        self.console.print(table)
        if missing:
            self.say(f" {NOT_EVALUATED}: not evaluated")

    def final(self, results: Mapping[str, Any]) -> None:
        """The metrics of a run's results, and why there are none of tasks not evaluated."""
        if results["metrics"]:
            self.metrics(results["metrics"], results["formulas"])
        told = not_evaluated(results)
        if told:
            self.say(f"{stamped(told, results.get('stand_ins', []))}.")

    def metrics(self, metrics: Mapping[str, float], formulas: Mapping[str, str]) -> None:
        """Each metric with its formula."""
        table = Table(title=self._title("Transfer metrics"), title_justify="left", box=None)
        table.add_column("metric")
        table.add_column("percent", justify="right")
        table.add_column(escape("formula (a[i][j]: score on task j after task i)"))
        for name, value in metrics.items():
            table.add_row(name, f"{value:.2f}", escape(formulas[name]))
        self.console.print(table)

    def finished(self, results: Mapping[str, Any]) -> None:
        """Scores and metrics of a finished run."""
        self.stand_ins = results.get("stand_ins", [])
        names = [task["name"] for task in results["tasks"]]
        phases = [phase["name"] for phase in results["phases"]]
        matrix, untrained = results["score_matrix"], results["untrained"]
        self.scores_so_far(names, matrix, untrained, phases, len(names))
        self.final(results)
        if "probe" in results:
            stands_in = probe_stand_ins(self.stand_ins, results["probe"]["stand_in"])
            self.say(f"{stamped(general_ability(results['probe']), stands_in)}.")

    def _title(self, text: str) -> str:
        return stamped(text, self.stand_ins)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells as a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def one_cell(text: str) -> str:
    """Of a Markdown table: a bar or a new line would end it, an angle bracket begin HTML."""
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())


def stand_in_parts(stand_ins: Sequence[str]) -> list[str]:
    """Of what results stand on: not the rows that answers were scored on."""
    return [name for name in stand_ins if name.startswith("stand-in ")]


def on_held_out(stand_ins: Sequence[str]) -> bool:
    """Whether the rest is there too: rows of train were scored, not of test."""
    return len(stand_ins) > len(stand_in_parts(stand_ins))


def probe_stand_ins(stand_ins: Sequence[str], stands_in: bool) -> list[str]:
    """Of what a probe's numbers stand on: its rows are no task's."""
    return [*stand_in_parts(stand_ins), *([STAND_IN_PROBE] if stands_in else [])]


def stamped(text: str, stand_ins: Sequence[str]) -> str:
    """A title with what stands for something real behind it."""
    return " - ".join([text, *([f"on {' and '.join(stand_ins)}"] if stand_ins else [])])


def general_ability(probe: Mapping[str, Any]) -> str:
    """Score and loss on the rows of no task, before the first task and after the last."""
    before, now = probe["untrained"], probe["after"][-1]
    losses = " -> ".join(
        "not finite" if loss is None else f"{loss:.2f}" for loss in (before["loss"], now["loss"])
    )
    return (
        f"General ability ({probe['name']}, {probe['rows']} rows): loss {losses} nats a token "
        f"(lower is better), score {before['score']:.1f} -> {now['score']:.1f}%"
    )


def missing_scores(row: Sequence[float | None], index: int) -> list[int]:
    """Places, in row ``index`` of a score matrix, of learnt tasks that were not evaluated."""
    return [place for place, score in enumerate(row[: index + 1]) if score is None]


def not_evaluated(results: Mapping[str, Any]) -> str:
    """Which tasks have no score at the end, and the mean of the others; empty: all have one."""
    names = [task["name"] for task in results["tasks"]]
    last = results["score_matrix"][-1]
    known = [score for score in last if score is not None]
    if len(known) == len(last):
        return ""
    missing = [name for name, score in zip(names, last, strict=True) if score is None]
    mean = f"{sum(known) / len(known):.1f}%" if known else ""
    others = f"; the mean of the other scores ({len(known)}) is {mean}" if known else ""
    return (
        f"Not evaluated at the end: {listed(missing)}, so metrics over all {len(names)} tasks are "
        f"absent{others}"
    )


def listed(names: Sequence[str]) -> str:
    """Of many the first ones, and how many more there are."""
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return f"{', '.join(names[:MOST_NAMES])}{more}"


def _percent(score: float | None, digits: int) -> str:
    return "" if score is None else f"{score:.{digits}f}"

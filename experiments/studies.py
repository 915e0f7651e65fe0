"""What the studies' reports share: reading stored runs, paired differences, Markdown tables.

A study is a folder of experiments/. Its ``report.py`` makes its tables with these functions and its
figures with those of ``study_figures.py``; ``experiments/report.py`` writes them.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any

EXPERIMENTS = Path(__file__).parent
NO_RUNS = "No runs yet."
AVERAGE, FORGETTING, BACKWARD, FORWARD, LEARNT = (
    "average_performance", "forgetting_rate", "backward_transfer",
    "forward_transfer_vs_single_task", "just_learnt",
)  # fmt: skip
SHORT = {
    AVERAGE: "AP",
    LEARNT: "just learnt",
    FORGETTING: "forgetting",
    BACKWARD: "BWT",
    FORWARD: "FWT",
}
SAME_CELL = (
    "benchmark", "order", "data_sha256", "rows", "metrics", "backbone", "weights", "lora", "optim",
    "epochs", "effective_batch", "precision", "seed",
)  # fmt: skip
"""Two methods' runs that agree in these, and in how they answer, are a pair."""
STUDENT = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""97.5% quantiles of Student's t for 1, 2, ... degrees of freedom; the last serves all further."""


@dataclass(frozen=True)
class Run:
    """One finished run, as gather.py or ``kif compare`` stores it."""

    method: str
    protocol: Mapping[str, Any]
    metrics: Mapping[str, float]
    matrix: Sequence[Sequence[float | None]]
    stand_ins: tuple[str, ...]
    cost: Mapping[str, Any]

    @property
    def seed(self) -> int:
        return self.protocol["seed"]

    @property
    def tasks(self) -> list[str]:
        return self.protocol["order"]

    @property
    def told(self) -> str:
        """What the method is given that others are not."""
        if len(self.matrix) == 1 < len(self.tasks):
            return "all tasks at once"
        settings = self.protocol.get("method_settings") or {}
        return "task id" if settings.get("needs_task_id") else ""

    @property
    def is_reference(self) -> bool:
        """Whether each task is learnt alone, so that other runs' learning is held against it."""
        return bool((self.protocol.get("method_settings") or {}).get("single_task_reference"))

    @cached_property
    def cell(self) -> str:
        """Under which conditions the method ran; the commit is no part of it."""
        protocol = self.protocol
        prompt = dict(protocol.get("prompt_and_decoding") or {})
        prompt.pop("truncation", None)  # a method may fix it as a part of itself
        asked = [prompt, protocol.get("decode") or dict.fromkeys(self.tasks, "generate")]
        asked.append(protocol.get("evaluation_rows") or "test")
        asked.append(protocol.get("length_grouping") == "across_steps")
        return json.dumps([*(protocol.get(key) for key in SAME_CELL), asked], sort_keys=True)

    def metric(self, name: str) -> float | None:
        """In percent; ``just_learnt`` is the mean score of a task right after its training."""
        if name == LEARNT and len(self.matrix) == len(self.tasks):
            return mean(row[i] for i, row in enumerate(self.matrix) if row[i] is not None)
        return self.metrics.get(name)


def read_runs(path: Path) -> list[Run]:
    """The runs of a file of gather.py or of a ``comparison.json``; none if there is no file."""
    if not path.is_file():
        return []
    found = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(found, dict):
        return [_compared(run, group, found) for group in found["groups"] for run in group["runs"]]
    return [
        Run(
            method=run["protocol"]["method"],
            protocol=run["protocol"],
            metrics=run["metrics"],
            matrix=run["score_matrix"],
            stand_ins=tuple(run["stand_ins"]),
            cost=run.get("cost") or {"seconds": run["seconds"]},
        )
        for run in found
    ]


def _compared(run: Mapping[str, Any], group: Mapping[str, Any], found: Mapping[str, Any]) -> Run:
    own = {"method": group["method"], "seed": run["seed"], "order_name": group["order"]}
    settings = {"needs_task_id": group["told"] == "task id"}
    return Run(
        method=group["method"],
        protocol={**found["protocol"], **own, "order": run["tasks"], "method_settings": settings},
        metrics=run["metrics"],
        matrix=run["scores"],
        stand_ins=tuple(run["stand_ins"]),
        cost=run["cost"],
    )


def by_method(runs: Iterable[Run]) -> dict[str, dict[str, Run]]:
    """Method -> cell -> its run.

    Raises:
        SystemExit: a method has two runs in one cell.
    """
    found: dict[str, dict[str, Run]] = defaultdict(dict)
    for run in runs:
        if run.cell in found[run.method]:
            raise SystemExit(
                f"Expected one run of {run.method} with seed {run.seed} under the same protocol, "
                "got two: keep runs of other method settings in a results file of their own."
            )
        found[run.method][run.cell] = run
    return dict(found)


def groups(runs: Iterable[Run], *keys: str) -> dict[tuple[str, ...], list[Run]]:
    """Runs by those keys of their protocol, in the order in which they come."""
    found: dict[tuple[str, ...], list[Run]] = defaultdict(list)
    for run in runs:
        found[tuple(str(run.protocol.get(key)) for key in keys)].append(run)
    return dict(found)


@dataclass(frozen=True)
class Difference:
    """The mean over n pairs of one number less another."""

    n: int
    mean: float
    error: float | None
    """Standard error of the mean; None for one pair."""
    low: float | None
    high: float | None
    """Ends of the 95% t interval; None for fewer than three pairs."""

    def __str__(self) -> str:
        interval = "" if self.low is None else f" [{self.low:+.1f}, {self.high:+.1f}]"
        return f"{self.mean:+.1f}{interval}, n = {self.n}"


def mean_difference(values: Sequence[float]) -> Difference:
    """Of at least one pair's difference; the pairs count as independent of one another."""
    n, middle = len(values), mean(values)
    error = stdev(values) / sqrt(n) if n > 1 else None
    if error is None or n < 3:
        return Difference(n, middle, error, None, None)
    reach = STUDENT[min(n - 1, len(STUDENT)) - 1] * error
    return Difference(n, middle, error, middle - reach, middle + reach)


def paired(runs: Sequence[Run], metric: str, higher: str, lower: str | None) -> Difference | None:
    """``higher`` less ``lower`` over all cells that have both and the metric; None without a pair.

    Args:
        runs: of any methods and settings.
        metric: a key of SHORT.
        higher: a method.
        lower: another one; None: zero.
    """
    methods = by_method(runs)
    firsts, others = methods.get(higher, {}), methods.get(lower or higher, {})
    values = []
    for key in firsts.keys() & others.keys():
        first = firsts[key].metric(metric)
        other = 0.0 if lower is None else others[key].metric(metric)
        if first is not None and other is not None:
            values.append(first - other)
    # Sums in a fixed order: sets have none.
    return mean_difference(sorted(values)) if values else None


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; columns in which no row has anything are left out."""
    rows = list(rows)
    shown = [place for place in range(len(header)) if any(row[place] for row in rows)]
    lines = [[header[place] for place in shown], ["---"] * len(shown)]
    lines += [[row[place] for place in shown] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def commit_label(commit: str | None) -> str:
    """Short, and whether the checkout had changes beside it."""
    head, changes, _ = (commit or "unknown").partition("+")
    return f"`{head[:9]}`{' with changes' if changes else ''}"


def spread(values: Iterable[float | None]) -> str:
    """Mean ± standard deviation of those that are there."""
    there = [value for value in values if value is not None]
    if not there:
        return ""
    text = f"{mean(there):.1f}"
    return text + (f" ± {stdev(there):.1f}" if len(there) > 1 else "")


def best_first(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Method -> its runs; the method of the highest mean AP first.

    Raises:
        SystemExit: a method has two runs of one order and seed: their protocols differ.
    """
    found: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        if any((run.tasks, run.seed) == (other.tasks, other.seed) for other in found[run.method]):
            raise SystemExit(
                f"Expected one run of {run.method} for each order and seed in a table, got two of "
                f"seed {run.seed}: make a table for each protocol."
            )
        found[run.method].append(run)
    places = {method: -mean(run.metrics[AVERAGE] for run in own) for method, own in found.items()}
    return dict(sorted(found.items(), key=lambda entry: (places[entry[0]], entry[0])))


def lead(runs: Sequence[Run]) -> str:
    """One paragraph before a table: under which protocol, on what, of which commits."""

    def each(value: Callable[[Run], Any]) -> str:
        return ", ".join(sorted({str(value(run)) for run in runs if value(run) is not None}))

    def key(name: str, part: str) -> Callable[[Run], Any]:
        return lambda run: (run.protocol.get(name) or {}).get(part)

    of_protocol = ("backbone", "benchmark", "order_name", "epochs", "effective_batch", "precision")
    backbone, benchmark, orders, epochs, batch, precision = (
        each(lambda run, name=name: run.protocol.get(name)) for name in of_protocol
    )
    told = [f"`{backbone}` on `{benchmark}`, {orders}: {each(lambda run: len(run.tasks))} tasks"]
    if rows := each(_rows):
        told.append(f"{rows} rows a task")
    told.append(f"epochs {epochs}, batch {batch}")
    if rate := each(key("optim", "lr")):
        told.append(f"lr {rate}, LoRA r {each(key('lora', 'r'))}, {precision}")
    stand_ins = sorted({name for run in runs for name in run.stand_ins})
    mark = f" **On {' and '.join(stand_ins)}.**" if stand_ins else ""
    commits = each(lambda run: commit_label(run.protocol.get("commit")))
    how = "Percent, mean ± standard deviation over the runs."
    return f"{'; '.join(told)}.{mark} {how} Commits: {commits}."


def _rows(run: Run) -> str | None:
    counts = (run.protocol.get("rows") or {}).values()
    each = {f"{rows['train']} train and {rows['test']} test" for rows in counts}
    return " or ".join(sorted(each)) or None


def summary_table(runs: Sequence[Run]) -> str:
    """Methods of one backbone and benchmark, the best first; ``No runs yet.`` without any."""
    if not runs:
        return NO_RUNS
    alone = {run.cell: run for run in runs if run.is_reference}
    several_orders = len(groups(runs, "order")) > 1
    header = [
        *("method", "told", "orders", "seeds", *SHORT.values()),
        *("trained weights", "memory rows", "minutes"),
    ]
    rows, found = [], best_first(runs)
    for method, own in found.items():
        numbers = {name: spread(run.metric(name) for run in own) for name in SHORT}
        numbers[FORWARD] = spread(_forward(run, alone.get(run.cell)) for run in own)
        names = sorted({str(run.protocol.get("order_name")) for run in own})
        rows.append(
            [
                *(f"`{method}`", own[0].told, ", ".join(names) if several_orders else ""),
                ", ".join(map(str, sorted({run.seed for run in own}))),
                *numbers.values(),
                *(_weights(own[0].cost), str(own[0].cost.get("memory_rows", ""))),
                spread(run.cost["seconds"]["total"] / 60 for run in own),
            ]
        )
    cells = {frozenset((*run.tasks, run.seed) for run in own) for own in found.values()}
    uneven = " Not every method has every order and seed: compare pairs, not rows."
    return f"{lead(runs)}{uneven * (len(cells) > 1)}\n\n{table(header, rows)}"


def _forward(run: Run, alone: Run | None) -> float | None:
    """How much better the run learns its tasks than training on each alone does."""
    if FORWARD in run.metrics or alone is None or run is alone:
        return run.metrics.get(FORWARD)
    learnt, reference = run.metric(LEARNT), alone.metric(LEARNT)
    return None if learnt is None or reference is None else learnt - reference


def _weights(cost: Mapping[str, Any]) -> str:
    trained, kept = cost.get("trainable_weights"), cost.get("learnt_weights")
    if trained is None:
        return ""
    return f"{trained:,}" if kept in (None, trained) else f"{trained:,} ({kept:,} kept)"


def differences_table(runs: Sequence[Run], baseline: str) -> str:
    """Every method less the baseline, pair by pair of the same order and seed."""
    names = (AVERAGE, LEARNT, FORGETTING, BACKWARD)
    rows = []
    for method in best_first(runs):
        found = [paired(runs, name, method, baseline) for name in names]
        if method != baseline and any(found):
            rows.append([f"`{method}`", *("" if one is None else str(one) for one in found)])
    if not rows:
        return NO_RUNS
    head = (
        f"Less `{baseline}`: mean over n pairs of the same order and seed, with the 95% t interval "
        "of three pairs or more."
    )
    return f"{head}\n\n{table(['method', *(SHORT[name] for name in names)], rows)}"


def mean_matrix(runs: Sequence[Run]) -> list[list[float | None]]:
    """The mean over the runs of each cell of the score matrix that all have measured.

    Raises:
        SystemExit: the runs learn their tasks in several orders.
    """
    if len(orders := groups(runs, "order")) > 1:
        raise SystemExit(
            f"Expected runs of one order for a mean score matrix, got {len(orders)} orders: make "
            "one for each."
        )
    stacked = zip(*(run.matrix for run in runs), strict=True)
    return [
        [None if None in scores else mean(scores) for scores in zip(*rows, strict=True)]
        for rows in stacked
    ]


def matrix_table(runs: Sequence[Run]) -> str:
    """The score matrices of all methods below each other, means over the seeds, of one order."""
    if not runs:
        return NO_RUNS
    tasks = runs[0].tasks
    rows = []
    for method, own in best_first(runs).items():
        phases = tasks if len(own[0].matrix) == len(tasks) else ["all"]
        for phase, (task, scores) in enumerate(zip(phases, mean_matrix(own), strict=True)):
            shown = ["" if score is None else f"{score:.1f}" for score in scores]
            rows.append([f"`{method}`" if phase == 0 else "", task, *shown])
    return table(["method", "after", *tasks], rows)


def image(name: str, what: str) -> str:
    """A figure of the study, to stand in one of its blocks."""
    return f"![{what}](figures/{name}.png)"


def usual_images(runs: Sequence[Run]) -> str:
    """What ``study_figures.usual_figures`` draws."""
    if not runs:
        return NO_RUNS
    shown = (
        image("scores", "AP of each run by method"),
        image("learning_and_forgetting", "What methods learn against what they keep"),
    )
    return "\n".join(shown)

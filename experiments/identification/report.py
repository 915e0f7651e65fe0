"""Tables and figures of this study's README."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from studies import NO_RUNS, Difference, commit_label, image, mean_difference, table

from kif_lightning.reporting.figures.style import (
    COLOURS,
    MARKERS,
    colour_bar,
    heat_map,
    name_ticks,
    new_figure,
    say_stand_ins,
    width_for,
)

UNIFORM = "uniform "
"""How the rules without knowledge begin; their shares follow."""
Run = Mapping[str, Any]
Point = tuple[float, float]
"""The new task's loss, and the old tasks'."""


def read_runs(folder: Path) -> dict[str, list[Run]]:
    """What boundaries.py wrote, one run a file, by backbone and benchmark."""
    found: dict[str, list[Run]] = defaultdict(list)
    for path in sorted(folder.glob("*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        protocol = run["protocol"]
        found[f"{protocol['backbone']}_{protocol['benchmark']}"].append(run)
    return dict(found)


RESULTS = Path(__file__).parent / "results"
GROUPS = read_runs(RESULTS)


def read_units(path: Path) -> list[Run]:
    """What units.py wrote; nothing before it did."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


UNITS = read_units(RESULTS / "units" / "scores.json")


def point(entry: Mapping[str, float]) -> Point:
    return entry["new_loss"], entry["old_loss"]


def excess(uniform: Iterable[Point], new_loss: float, old_loss: float) -> float:
    """The old tasks' loss less that of mixing without knowledge at the same new loss, in nats.

    Args:
        uniform: losses of the uniform mixes, joined by straight lines in the order of the new
            task's loss; beyond either end the old tasks' loss of that end counts.
        new_loss: of the rule, on the new task.
        old_loss: of the rule, the mean over the old tasks.
    """
    across, up = zip(*sorted(uniform), strict=True)
    return old_loss - float(np.interp(new_loss, across, up))


def best(points: Iterable[Point]) -> list[Point]:
    """Those to which no other is lower in both losses, from the lowest new loss to the highest."""
    kept: list[Point] = []
    for new, old in sorted(points):
        if not kept or old < kept[-1][1]:
            kept.append((new, old))
    return kept


def uniform_points(fusions: Mapping[str, Mapping[str, float]]) -> list[Point]:
    return [point(entry) for name, entry in fusions.items() if name.startswith(UNIFORM)]


def excesses(run: Run, rule: str, reference: Callable[[list[Point]], list[Point]]) -> list[float]:
    """Of one rule, at each boundary of a run that has it.

    Args:
        run: as boundaries.py wrote it.
        rule: its name.
        reference: the uniform mixes -> those that the rule is held against.
    """
    return [
        excess(reference(uniform_points(boundary["fusions"])), *point(boundary["fusions"][rule]))
        for boundary in run["boundaries"]
        if rule in boundary["fusions"]
    ]


def means(runs: Sequence[Run]) -> dict[str, dict[str, float]]:
    """Rule -> each of its numbers, the mean over all boundaries that have it."""
    entries: dict[str, list[Mapping[str, float]]] = defaultdict(list)
    for run in runs:
        for boundary in run["boundaries"]:
            for name, entry in boundary["fusions"].items():
                entries[name].append(entry)
    return {
        name: {key: mean(entry[key] for entry in own) for key in own[0]}
        for name, own in entries.items()
    }


def lead(runs: Sequence[Run]) -> str:
    """One paragraph before a table: of which runs, scored how."""
    protocol = runs[0]["protocol"]
    listed = "; ".join(
        f"`{run['protocol']['method']}`, {_name(run)}, after task "
        f"{', '.join(str(boundary['number']) for boundary in run['boundaries'])}"
        for run in runs
    )
    rows = ", ".join(sorted({str(run["rows"]) for run in runs}))
    machines = ", ".join(sorted({run["machine"] for run in runs}))
    commits = ", ".join(sorted({commit_label(run["protocol"]["commit"]) for run in runs}))
    stand_ins = sorted({name for run in runs for name in run["stand_ins"]})
    mark = f" **On {' and '.join(stand_ins)}.**" if stand_ins else ""
    return (
        f"`{protocol['backbone']}` on `{protocol['benchmark']}`.{mark} Runs: {listed}. At most "
        f"{rows} test rows a task; {machines}; commits of the runs: {commits}."
    )


def _name(run: Run) -> str:
    return f"{run['protocol']['order_name']} seed {run['protocol']['seed']}"


def rules_table(runs: Sequence[Run]) -> str:
    """Every rule over all boundaries of the runs, the lowest excess first."""
    each = [_name(run) for run in runs] if len(runs) > 1 else []
    header = [
        *("rule", "mean share of old", "old loss", "new loss", "old exact match"),
        *("new exact match", "excess", "excess over best", "n"),
        *(f"excess, {name}" for name in each),
    ]
    rows = []
    for name, own in means(runs).items():
        by_run = [excesses(run, name, list) for run in runs]
        over_curve = mean_difference([value for values in by_run for value in values])
        over_best = mean_difference([value for run in runs for value in excesses(run, name, best)])
        row = [
            *(name, f"{own['mean_share']:.2f}", f"{own['old_loss']:.2f}"),
            *(f"{own['new_loss']:.2f}", f"{own['old_exact_match']:.1f}"),
            *(f"{own['new_exact_match']:.1f}", _told(over_curve), _told(over_best)),
            *(str(over_curve.n), *(f"{mean(v):+.2f}" if v else "" for v in by_run if each)),
        ]
        rows.append((over_curve.mean, row))
    return f"{lead(runs)}\n\n{table(header, [row for _, row in sorted(rows)])}"


def _told(found: Difference) -> str:
    return f"{found.mean:+.2f}" + ("" if found.error is None else f" ± {found.error:.2f}")


def trade(runs: Sequence[Run]) -> Figure:
    """Means over the boundaries: what each rule keeps of old tasks against what the new one has."""
    figure = new_figure(7.5, 4.5)
    axes = figure.add_subplot()
    rules = means(runs)
    uniform = {name: own for name, own in rules.items() if name.startswith(UNIFORM)}
    axes.plot(*zip(*map(point, uniform.values()), strict=True), "-", color="black", marker=".")
    for name, own in uniform.items():
        place: dict[str, Any] = {"xytext": (4, 4), "textcoords": "offset points", "fontsize": 7}
        axes.annotate(name, point(own), **place)
    colours = COLOURS[:-1]  # black is the curve's
    others = [(name, own) for name, own in rules.items() if name not in uniform]
    for number, (name, own) in enumerate(others):
        style = {"color": colours[number % len(colours)], "marker": MARKERS[number % len(MARKERS)]}
        axes.plot(*point(own), linestyle="none", label=name, **style)
    axes.set_xlabel("loss on the new task, nats an answer")
    axes.set_ylabel("loss on old tasks, nats an answer")
    figure.legend(loc="outside right upper", fontsize=7)
    say_stand_ins(figure, sorted({name for run in runs for name in run["stand_ins"]}))
    return figure


def between_tasks(run: Run) -> list[float]:
    """Rank correlation of the units' scores of each two tasks of a run."""
    together = np.array(run["rank_correlations"])
    return together[np.triu_indices(len(together), 1)].tolist()


def units_table(runs: Sequence[Run]) -> str:
    """How the scores lie, and how alike those of two tasks are, one run a row."""
    header = [
        *("run", "units", "median score", "80th percentile", "95th percentile"),
        *("shares of old within 0.05 of 0.5", "rank correlation of two tasks", "least", "most"),
    ]
    rows = []
    for run in runs:
        protocol, pairs = run["protocol"], between_tasks(run)
        marks = f" ({', '.join(run['stand_ins'])})" if run["stand_ins"] else ""
        name = f"`{protocol['method']}`, {protocol['backbone']}, {_name(run)}{marks}"
        rows.append(
            [
                *(
                    name,
                    str(run["units"]),
                    *(f"{value:.3f}" for value in run["quantiles"].values()),
                ),
                *(f"{100 * run['near_half']:.0f}%", f"{mean(pairs):.2f}"),
                *(f"{min(pairs):.2f}", f"{max(pairs):.2f}"),
            ]
        )
    return table(header, rows)


def alike(run: Run) -> Figure:
    """The rank correlation of each two tasks' scores."""
    tasks = run["tasks"]
    side = width_for(len(tasks)) / 1.4
    figure = new_figure(side + 1, side)
    axes = figure.add_subplot()
    image = heat_map(axes, np.array(run["rank_correlations"]), Normalize(0, 1))
    name_ticks(axes.xaxis, tasks)
    name_ticks(axes.yaxis, tasks, angle=0)
    colour_bar(figure, image, axes, "rank correlation of unit scores")
    say_stand_ins(figure, run["stand_ins"])
    return figure


def blocks() -> dict[str, str]:
    tables = "\n\n".join(rules_table(runs) for runs in GROUPS.values())
    images = "\n".join(image(f"trade_{name}", f"Old against new loss, {name}") for name in GROUPS)
    alikes = "\n".join(
        image(f"alike_{number}", f"Likeness of tasks, {run['protocol']['backbone']}, {_name(run)}")
        for number, run in enumerate(UNITS, start=1)
    )
    return {
        "tables": tables or NO_RUNS,
        "figures": images or NO_RUNS,
        "units": units_table(UNITS) if UNITS else NO_RUNS,
        "alike": alikes or NO_RUNS,
    }


def figures() -> dict[str, Figure]:
    return {
        **{f"trade_{name}": trade(runs) for name, runs in GROUPS.items()},
        **{f"alike_{number}": alike(run) for number, run in enumerate(UNITS, start=1)},
    }

"""Table and figure of this study's README."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from studies import AVERAGE, BACKWARD, LEARNT, NO_RUNS, SHORT, Run, image, lead, read_runs, table

from kif_lightning.reporting.figures.style import COLOURS, MARKERS, new_figure, say_stand_ins

RUNS = read_runs(Path(__file__).parent / "results" / "selection.json")
WHAT = {
    "ewc, coefficient 10": "no fusion: online EWC",
    "kif": "the paper's adaptive rule",
    "lab_elastic, coefficient 2": "no fusion: Synaptic Intelligence, weights held by their part in "
    "the fall of past losses",
    "lab_kif_ewc, coefficient 10": "adaptive rule, and EWC's penalty while a task is learnt",
    "lab_entropy, entropy 0.5": "adaptive rule, tau set so that the shares have half a bit each",
    "lab_fisher": "single weights, in closed form by the squared gradients of past and present",
    "lab_logarithms, entropy 0.5": "adaptive rule on the scores' logarithms, tau set by the "
    "entropy",
    "lab_product": "averaging of the LoRA products, not of their factors",
    "lab_ranks, tau 0.05": "adaptive rule on the scores' ranks",
    "lab_regmean, balance 10": "least squares over each module's inputs, nearest factors in the "
    "weights",
    "lab_regmean, balance 10, no penalty": "the same without KIF's penalty, nearest factors in the "
    "outputs",
    "lab_replay_fitted": "replay; each unit's share of the past fitted on the memory",
    "lab_replay_fitted, one share": "replay; one share of the past for all units, fitted on the "
    "memory",
    "lab_replay_mean": "replay; averaging at each boundary",
    "lab_running_mean": "after k tasks the past's share is k / (k + 1)",
    "lab_several, times 4": "adaptive rule, four fusions a task with the weights before it",
    "lab_wtop, keep 0.3": "single weights: the task's most important take their new value",
    "mean": "averaging at each boundary",
    "replay": "no fusion: the memory's rows join the task's",
}
"""Variant -> what it is."""
BELOW = ("kif", "lab_replay_fitted, one share")
"""Named under their points: above, another's name is in the way."""


def variant(run: Run) -> str:
    """The method, with those of its settings that tell it from other runs."""
    settings = run.protocol["method_settings"]
    fusion, penalties = settings["boundary"].get("fusion", {}), settings["penalty"]
    told = [f"{key} {fusion[key]:g}" for key in ("keep", "balance", "times") if key in fusion]
    rule = settings["rule"] or {}
    if "scores" in rule:
        key = "entropy" if rule["tau"] is None else "tau"
        told.append(f"{key} {rule[key]:g}")
    if fusion.get("one"):
        told.append("one share")
    if fusion and not penalties:
        told.append("no penalty")
    told += [
        f"coefficient {penalties[name]['coefficient']:g}"
        for name in ("elastic", "elastic_weights")
        if name in penalties
    ]
    return ", ".join([run.method, *told])


def has_memory(run: Run) -> bool:
    return run.cost["memory_rows"] > 0


def variants_table(runs: Sequence[Run]) -> str:
    """A row a run: those without memory first, of each kind the one of the highest AP first.

    Raises:
        SystemExit: a variant without a word on what it is, or two runs that would read the same.
    """
    if not runs:
        return NO_RUNS
    names = [variant(run) for run in runs]
    for name in names:
        if name not in WHAT or names.count(name) > 1:
            raise SystemExit(
                f"Expected one run of each variant that WHAT in report.py names, got {name} "
                f"{names.count(name)} times: name it there, or tell its runs apart in variant()."
            )
    metrics = (AVERAGE, LEARNT, BACKWARD)
    rows = []
    for run in sorted(runs, key=lambda run: (has_memory(run), -run.metrics[AVERAGE])):
        method, *told = variant(run).split(", ")
        found = [run.metric(name) for name in metrics]
        rows.append(
            [
                ", ".join([f"`{method}`", *told]),
                WHAT[variant(run)],
                str(run.cost["memory_rows"]),
                *("" if value is None else f"{value:.1f}" for value in found),
            ]
        )
    header = ["variant", "what it is", "memory rows", *(SHORT[name] for name in metrics)]
    return f"{lead(runs)} One run each.\n\n{table(header, rows)}"


def trade(runs: Sequence[Run]) -> Figure:
    """What each variant learns, across, against what it keeps: to the upper right is better."""
    figure = new_figure(7.5, 5.0)
    axes = figure.add_subplot()
    for place, (memory, name) in enumerate(((False, "without memory"), (True, "with memory"))):
        own = [run for run in runs if has_memory(run) == memory]
        points = [(run.metric(LEARNT), run.metric(BACKWARD)) for run in own]
        across, up = zip(*points, strict=True) if points else ((), ())
        axes.scatter(across, up, s=30, color=COLOURS[place], marker=MARKERS[place], label=name)
        for run, point in zip(own, points, strict=True):
            height = -10 if variant(run) in BELOW else 4
            axes.annotate(
                variant(run), point, xytext=(5, height), textcoords="offset points", fontsize=7
            )
    axes.margins(x=0.15, y=0.08)
    axes.set_xlabel("score of a task when just learnt, percent")
    axes.set_ylabel("BWT, points")
    axes.legend(loc="lower right")
    say_stand_ins(figure, sorted({name for run in runs for name in run.stand_ins}))
    return figure


def blocks() -> dict[str, str]:
    figure = image("trade", "What variants learn against what they keep") if RUNS else NO_RUNS
    return {"table": variants_table(RUNS), "figure": figure}


def figures() -> dict[str, Figure]:
    return {"trade": trade(RUNS)} if RUNS else {}

"""A run's numbers as tables and lists of facts, in words for its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from kif_lightning.metrics.entropy import mean_binary_entropy
from kif_lightning.metrics.transfer import FORMULAS, best_by_task
from kif_lightning.reporting.console import (
    MOST_COLUMNS,
    NOT_EVALUATED,
    missing_scores,
    not_evaluated,
)
from kif_lightning.reporting.figures.fusion_audit import CLASSES
from kif_lightning.reporting.page import PageTable
from kif_lightning.reporting.run_record import RunRecord

Facts = Sequence[tuple[str, str]]
UNKNOWN = "not known"
EXPLAINED = {
    "average_performance": (
        "Average performance (AP)",
        "Mean score of all tasks at the end of the stream. Higher is better.",
        "the scores of all tasks after the last one were not measured.",
    ),
    "forgetting_rate": (
        "Forgetting",
        "How far earlier tasks fell from their best score by the end, in points, on average. "
        "Lower is better; below zero: they got better.",
        "it needs two tasks or more, and the scores after every task (evaluation.matrix=full).",
    ),
    "backward_transfer": (
        "Backward transfer (BWT)",
        "What later tasks did to earlier ones: score at the end minus score when just learnt, in "
        "points, on average. Below zero: forgotten.",
        "it needs two tasks or more, and the scores when just learnt and at the end.",
    ),
    "forward_transfer_vs_single_task": (
        "Forward transfer (FWT)",
        "Score when just learnt minus the score of training on that task alone, in points, on "
        "average. Above zero: earlier tasks helped.",
        "kif compare gives it beside a run that trained on each task alone, all else the same.",
    ),
    "forward_transfer_zero_shot": (
        "Forward transfer before learning",
        "Score just before a task is learnt minus the untrained model's, in points, on average. "
        "Above zero: earlier tasks helped.",
        "it needs evaluation.untrained=true and evaluation.next_task=true.",
    ),
}
"""Metric -> its name, what it says, and why it may be absent."""
AT_ONCE = "all tasks were learnt at once, nothing came before or after."
NO_FIXES = {"loss_mean": "step_tokens", "lr_factor": 1.0}
"""What a method that insists on nothing has under ``fixes``, beside null."""


def metric_cards(record: RunRecord) -> list[dict[str, str]]:
    """Those the run has, with their formulas."""
    return [
        {
            "name": EXPLAINED[key][0],
            "key": key,
            "value": f"{value:.2f}",
            "meaning": EXPLAINED[key][1],
            "formula": record.results.get("formulas", FORMULAS)[key],
        }
        for key, value in record.results["metrics"].items()
    ]


def absent_metrics(record: RunRecord) -> list[str]:
    """Why others are not there, a sentence each."""
    at_once = len(record.phases) < len(record.tasks)
    told = not_evaluated(record.results)
    return [f"{told}."] * bool(told) + [
        f"{name}: {AT_ONCE if at_once and key != 'average_performance' else reason}"
        for key, (name, _, reason) in EXPLAINED.items()
        if key not in record.results["metrics"]
    ]


def identity(record: RunRecord) -> Facts:
    """What run it is."""
    stamp = record.results["protocol"]
    seed = stamp.get("seed")
    facts = [
        ("Method", str(stamp.get("method"))),
        ("Backbone", _with(stamp.get("backbone"), stamp.get("weights"), ("source", "name"))),
        ("Benchmark", _with(stamp.get("benchmark"), stamp.get("data_source"), ("source",))),
        ("Order", f"{stamp.get('order_name', 'order')}: {', '.join(stamp.get('order', []))}"),
        ("Seed", UNKNOWN if seed is None else str(seed)),
    ]
    budget = [
        f"{words} {stamp[key]}"
        for key, words in (("epochs", "epochs"), ("effective_batch", "batch size"))
        if key in stamp
    ]
    optim = dict(stamp.get("optim") or {})
    factor = _fixes(stamp).get("lr_factor", 1.0)
    if "lr" in optim and factor != 1:
        optim["lr"] = f"{optim['lr'] * factor:g} ({optim['lr']:g} x {factor:g})"
    budget += [f"{key} {value}" for key, value in optim.items()]
    return [*facts, *([("Training", ", ".join(budget))] if budget else [])]


def _fixes(stamp: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the method insists on; empty where that is not known."""
    found: Mapping[str, Any] = (stamp.get("method_settings") or {}).get("fixes") or {}
    return found


def method_parts(record: RunRecord) -> Facts:
    """What fills each of the method's slots, and what it insists on."""
    stamp = record.results["protocol"]
    settings = stamp.get("method_settings") or {}
    parts = [(slot, text) for slot, value in settings.items() if (text := described(value))]
    fixes = [
        f"{key}={value}"
        for key, value in _fixes(stamp).items()
        if value is not None and value != NO_FIXES.get(key)
    ]
    return [*parts, *([("fixes", ", ".join(fixes))] if fixes else [])]


def described(value: Any) -> str:
    """An object of a config as its class and what it is given: ``AdaptiveRule(tau=0.15)``."""
    if not isinstance(value, Mapping):
        return ""
    inner = [
        described(item) if isinstance(item, Mapping) and "_target_" in item else f"{key}={item}"
        for key, item in value.items()
        if not key.startswith("_")
    ]
    if "_target_" in value:
        name = str(value["_target_"]).rpartition(".")[2]
        return f"{name}({', '.join(inner)})" if inner else name
    return ", ".join(text for item in value.values() if (text := described(item)))


def _with(name: Any, details: Any, keys: Sequence[str]) -> str:
    known = [str(details[key]) for key in keys if key in details] if details else []
    more = f" ({', '.join(known)})" if known else ""
    return f"{name or UNKNOWN}{more}"


def task_table(record: RunRecord) -> PageTable:
    """Each task when just learnt, at its best and at the end."""
    matrix, names = record.matrix, record.tasks
    at_once = len(matrix) != len(names)
    bests = [*best_by_task(matrix), None]
    rows = []
    for task, about in enumerate(record.results["tasks"]):
        learnt, end = matrix[0 if at_once else task][task], matrix[-1][task]
        last = task == len(names) - 1
        change = None if last or learnt is None or end is None else end - learnt
        rows.append(
            [
                f"{task + 1} {names[task]}",
                str(about.get("metric", "")),
                str(about.get("test_rows", "")),
                *([] if at_once else [_score(learnt), _score(bests[task])]),
                _score(end),
                *([] if at_once else ["" if change is None else f"{change:+.1f}"]),
            ]
        )
    between = () if at_once else ("just learnt", "best before the last")
    return PageTable(
        caption="Each task, in percent",
        header=(
            "task",
            "metric",
            f"{record.rows} rows",
            *between,
            "at the end",
            *(["change"][at_once:]),
        ),
        rows=rows,
        texts=2,
        note="All tasks were learnt at once: nothing came later that could make them forgotten."
        if at_once
        else "Change: at the end minus just learnt; its mean is BWT. Best: from just learnt to "
        "before the last task was learnt; minus the score at the end it is what was forgotten. "
        "Nothing came after the last task: it has neither. Blank elsewhere: not evaluated.",
    )


def matrix_table(record: RunRecord) -> PageTable | None:
    """The whole score matrix; None if it is too wide for a page, or of a single row."""
    names = record.tasks
    if len(names) > MOST_COLUMNS or len(record.matrix) < 2:
        return None
    untrained = record.results.get("untrained")
    before = [["untrained", *map(_score, untrained)]] if untrained else []
    gaps = [missing_scores(row, place) for place, row in enumerate(record.matrix)]
    return PageTable(
        caption="Score matrix, in percent",
        header=("after", *names),
        rows=[
            *before,
            *(
                [
                    f"{place + 1} {record.phases[place]}",
                    *(NOT_EVALUATED if j in gaps[place] else _score(s) for j, s in enumerate(row)),
                ]
                for place, row in enumerate(record.matrix)
            ),
        ],
        note="Row: after which task was learnt. Column: score on which task. Bold: just learnt."
        + (f" {NOT_EVALUATED}: not evaluated." if any(gaps) else ""),
        diagonal=len(before),
    )


def fusion_table(record: RunRecord) -> PageTable | None:
    """The fusion audit, boundary by boundary; None without one."""
    if not record.boundaries:
        return None
    rows = []
    for boundary in record.boundaries:
        weights, classes = boundary.get("weight"), boundary.get("classes")
        counts = [str(classes.count(kind)) if classes else "" for kind in CLASSES]
        found = ("", "")
        if weights:
            mean = sum(weights) / len(weights)
            found = (f"{mean:.3f}", f"{mean_binary_entropy(weights):.3f}")
        rows.append([boundary["task"], str(len(boundary["unit_ids"])), *counts, *found])
    return PageTable(
        caption="Fusion at each boundary",
        header=(
            *("boundary after", "skill units", *(label for label, *_ in CLASSES.values())),
            *("mean weight of the past", "entropy, bits"),
        ),
        rows=rows,
        note="Weight of the past: 1 keeps a unit as it was, 0 takes what the task made of it. "
        "Entropy of a unit's two shares (past, present), mean over units: 0 bits where one side "
        "alone was taken, 1 bit where both weigh the same. The first task has nothing to be fused "
        "with.",
    )


def phase_table(record: RunRecord) -> PageTable:
    """What each phase of training took."""
    columns = {
        "train_rows": "train rows",
        "rehearsed_rows": "rehearsed rows",
        "memory_rows": "rows in memory",
        "optimizer_steps": "optimizer steps",
        "replay_steps": "replay steps",
        "skipped_steps": "skipped steps",
        "scaler_overflows": "scaler overflows",
        "selected_step": "selected step",
    }
    phases = record.results["phases"]
    # What no phase has anything of is left out, but for steps skipped: none is good to know.
    used = [
        key
        for key in columns
        if any(phase.get(key) for phase in phases) or (key == "skipped_steps" and key in phases[0])
    ]
    clocks = [key for key in ("train", "boundary", "evaluate") if "seconds" in phases[0]]
    rows = []
    for place, phase in enumerate(phases):
        loss = phase.get("last_loss")
        cells = ["" if phase.get(key) is None else f"{phase[key]:,}" for key in used]
        times = [_seconds(phase["seconds"].get(key)) for key in clocks]
        last = "" if loss is None else f"{loss:.4g}"
        rows.append([f"{place + 1} {phase['name']}", *cells, last, *times])
    header = ["phase", *(columns[key] for key in used), "last loss"]
    left_out = [columns[key] for key in columns if key not in used]
    return PageTable(
        caption="Each phase of training",
        header=[*header, *(f"{key}, seconds" for key in clocks)],
        rows=rows,
        note=f"No phase has: {', '.join(left_out)}." if left_out else "",
    )


def cost_facts(record: RunRecord) -> Facts:
    """What the whole run took; empty where it is not known."""
    cost = record.results.get("cost") or {}
    facts = [(f"Seconds: {key}", _seconds(value)) for key, value in cost.get("seconds", {}).items()]
    for key, unit in (("peak_memory_bytes", "memory"), ("peak_gpu_memory_bytes", "GPU memory")):
        if cost.get(key) is not None:
            facts.append((f"Peak {unit}", f"{cost[key] / 1e9:.2f} GB"))
    facts += [
        (key.replace("_", " ").capitalize(), f"{cost[key]:,}")
        for key in ("trainable_weights", "learnt_weights", "frozen_weights", "memory_rows")
        if cost.get(key) is not None
    ]
    return facts


def probe_table(record: RunRecord) -> PageTable | None:
    """The general-ability probe; None if the run had none."""
    probe = record.results.get("probe")
    if not probe:
        return None
    names = ["untrained", *(f"{i + 1} {name}" for i, name in enumerate(record.phases))]
    looks = [probe["untrained"], *probe["after"]]
    changes = ["", *(f"{now['score'] - was['score']:+.1f}" for was, now in pairwise(looks))]
    return PageTable(
        caption=f"Probe {probe['name']}"
        f"{' (stand-in)' if probe.get('stand_in') else ''}: {probe['rows']} rows",
        header=("after", f"{probe['metric']}, percent", "change", "loss"),
        rows=[
            [name, _score(look["score"]), change, _loss(look["loss"])]
            for name, look, change in zip(names, looks, changes, strict=False)
        ],
        note="Rows that no task trains on: what becomes of the model's general ability. Change: "
        "since the line above.",
    )


def _score(score: float | None) -> str:
    return "" if score is None else f"{score:.1f}"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}" if value >= 10 else f"{value:.2f}"


def _loss(loss: float | None) -> str:
    return "not finite" if loss is None else f"{loss:.4g}"

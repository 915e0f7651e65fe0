"""All numbers of a comparison as plain JSON values: what tables, figures and the report show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from statistics import mean
from typing import Any

from kif_lightning.errors import UserError, nearest_names
from kif_lightning.metrics.transfer import FORMULAS, forward_transfer_vs_single_task
from kif_lightning.reporting.comparison.protocols import MUST_MATCH, by_backbone, differences
from kif_lightning.reporting.comparison.published import published_results
from kif_lightning.reporting.comparison.reading import Group, Run
from kif_lightning.reporting.comparison.statistics import (
    INTERVAL,
    RESAMPLES,
    RowScores,
    paired_entry,
    spread,
)

SCHEMA_VERSION = 1
AP = "average_performance"
VS_SINGLE = "forward_transfer_vs_single_task"
UNKNOWN = "not told"
Contents = dict[str, Any]
Single = dict[tuple[Any, ...], list[float | None]]


def contents(
    groups: Sequence[Group],
    *,
    baseline: str | None = None,
    published: bool = False,
    resamples: int = RESAMPLES,
) -> Contents:
    """Everything that is told of the runs.

    Args:
        groups: as :func:`~kif_lightning.reporting.comparison.read_runs` gives them.
        baseline: label or method that the others are held against, row by row; None: no such part.
        published: put published results of the same benchmark and order beside them.
        resamples: of test rows, for the paired differences.

    Raises:
        UserError: no method, or more than one, is the baseline.
    """
    runs = [run for group in groups for run in group.runs]
    orders = _order_names(runs)
    single, notes = _single_task_scores(runs)
    described = [_group(group, orders[group.runs[0].tasks], single) for group in groups]
    results = {run.folder: run.results for run in runs}
    letters = {run.folder: run.variant for run in runs if run.variant}
    benchmarks = list(dict.fromkeys(str(run.protocol.get("benchmark", UNKNOWN)) for run in runs))
    return {
        "schema_version": SCHEMA_VERSION,
        # Not of the first alone: it may be imported, and know of none.
        "stand_ins": list(dict.fromkeys(n for r in runs for n in r.results.get("stand_ins", []))),
        "benchmarks": benchmarks,
        "backbones": list(dict.fromkeys(group["backbone"] for group in described)),
        "orders": {name: list(tasks) for tasks, name in orders.items()},
        "notes": [*notes, *_not_evaluated(runs)],
        "formulas": _formulas(described, any(run.is_reference for run in runs)),
        "groups": described,
        "differences": differences(results, letters) if letters else {},
        "variants": {letter: [str(f) for f in letters if letters[f] == letter]
                     for letter in sorted(set(letters.values()))},
        "by_backbone": by_backbone(results),
        "unchecked": _unchecked(runs),
        "protocol": _shared_protocol(runs),
        "order_study": _order_study(described),
        "paired": None if baseline is None else _paired(groups, baseline, orders, resamples),
        "published": published_results(benchmarks, list(orders.values())) if published else None,
    }  # fmt: skip


def _not_evaluated(runs: Sequence[Run]) -> list[str]:
    """Why metrics over all tasks are missing, where they are; at most one sentence."""
    found = [run.folder.name for run in runs if None in run.matrix[-1]]
    if not found:
        return []
    return [f"Tasks were not evaluated at the end in {', '.join(found)}: metrics that need them "
            "are blank."]  # fmt: skip


def _order_names(runs: Sequence[Run]) -> dict[tuple[str, ...], str]:
    """Sequence of tasks -> its name; the same name of other sequences is numbered."""
    given: dict[tuple[str, ...], str | None] = {}
    for run in runs:
        given[run.tasks] = given.get(run.tasks) or run.protocol.get("order_name")
    names: dict[tuple[str, ...], str] = {}
    for tasks, told in given.items():
        name = told or f"{len(tasks)} tasks from {tasks[0]}"
        number = 2
        while name in names.values():
            name, number = f"{told or name} ({number})", number + 1
        names[tasks] = name
    return names


def _single_task_scores(runs: Sequence[Run]) -> tuple[Single, list[str]]:
    """Of each key the scores of the one reference; where several differ none, and a note."""
    found: dict[tuple[Any, ...], list[list[float | None]]] = {}
    for run in runs:
        if run.is_reference:
            scores = [row[i] for i, row in enumerate(run.matrix)]
            kept = found.setdefault(_single_key(run), [])
            kept += [] if scores in kept else [scores]
    single = {key: kept[0] for key, kept in found.items() if len(kept) == 1}
    told = "No FWT where several references of one backbone, order and seed scored differently."
    return single, [told] if len(single) < len(found) else []


def _single_key(run: Run) -> tuple[Any, ...]:
    """What a run and its reference must share; a protocol that differs tells them apart too."""
    return run.backbone, run.tasks, run.seed, run.variant


def _group(group: Group, order: str, single: Single) -> dict[str, Any]:
    runs = [_run(run, single) for run in sorted(group.runs, key=lambda r: (r.seed is None, r.seed))]
    first = group.runs[0]
    values = {
        name: [run["metrics"][name] for run in runs]
        for name in FORMULAS
        if all(name in run["metrics"] for run in runs)
    }
    return {
        "label": group.label,
        "method": first.method,
        "backbone": first.backbone or UNKNOWN,
        "order": order,
        "protocol": first.variant,
        "told": " / ".join(dict.fromkeys(run.told for run in group.runs)),
        "seeds": sorted(run.seed for run in group.runs if run.seed is not None),
        "metrics": {name: spread(numbers) for name, numbers in values.items()},
        "seconds": _seconds(runs),
        "runs": runs,
    }


def _seconds(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    values = [run["cost"].get("seconds", {}).get("total") for run in runs]
    return None if None in values else spread(values)


def _run(run: Run, single: Single) -> dict[str, Any]:
    metrics = dict(run.results["metrics"])
    metrics.pop(VS_SINGLE, None)
    versus = _versus_single(run, single)
    return {
        "folder": str(run.folder),
        "seed": run.seed,
        "benchmark": run.protocol.get("benchmark"),
        "metrics": metrics if versus is None else {**metrics, VS_SINGLE: versus},
        "scores": run.matrix,
        "tasks": list(run.tasks),
        "cost": run.results.get("cost") or {},
        "stand_ins": list(run.results.get("stand_ins", [])),
    }


def _versus_single(run: Run, single: Single) -> float | None:
    """Single-task scores are those of a reference among the runs, with the same seed."""
    scores = single.get(_single_key(run))
    alone = run.is_reference or run.imported  # never under one known protocol
    if scores is None or alone or len(run.matrix) != len(scores):
        return None
    return forward_transfer_vs_single_task(run.matrix, scores)


def rank(group: Mapping[str, Any]) -> float:
    """The best first; last those without an average, as the scores at the end were not measured."""
    return -group["metrics"][AP]["average"] if AP in group["metrics"] else inf


def _formulas(groups: Sequence[Mapping[str, Any]], reference: bool) -> dict[str, str]:
    named = {name for group in groups for run in group["runs"] for name in run["metrics"]}
    if reference:
        named.add(VS_SINGLE)
    return {name: formula for name, formula in FORMULAS.items() if name in named}


def _unchecked(runs: Sequence[Run]) -> list[str]:
    """What imported runs do not say of their protocol."""
    return [
        key for key in MUST_MATCH if any(run.imported and key not in run.protocol for run in runs)
    ]


def _shared_protocol(runs: Sequence[Run]) -> dict[str, Any]:
    """The keys of the stamp that all runs have with the same value."""
    first, *others = [run.protocol for run in runs]
    return {
        key: value
        for key, value in first.items()
        if all(key in other and other[key] == value for other in others)
    }


def _order_study(groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of each method seen in several orders: the orders' means of AP, and their spread.

    The seeds are averaged within an order first: an order with more seeds has no more weight.
    """
    means: dict[tuple[str, str], dict[str, float]] = {}
    for group in groups:
        if AP in group["metrics"]:
            key = (group["backbone"], group["label"])
            means.setdefault(key, {})[group["order"]] = group["metrics"][AP]["average"]
    return [
        {"backbone": backbone, "label": label, "orders": found, **spread(list(found.values()))}
        for (backbone, label), found in means.items()
        if len(found) > 1
    ]


def _paired(
    groups: Sequence[Group],
    baseline: str,
    orders: Mapping[tuple[str, ...], str],
    resamples: int,
) -> dict[str, Any]:
    places = {group.label: group.runs[0].method for group in groups}
    labels = [label for label in places if label == baseline]
    labels = labels or [label for label, method in places.items() if method == baseline]
    if len(labels) != 1:
        known = nearest_names(baseline, places)
        more = f"{len(labels)} fit: {'; '.join(labels)}" if labels else known
        raise UserError(f"--baseline must name one of the methods, got {baseline!r}; {more}.")
    scores = RowScores()
    at = {_block(g): g for g in groups if g.label == labels[0]}
    entries = []
    for group in groups:
        if group.label == labels[0]:
            continue
        run = group.runs[0]
        about = {
            "label": group.label,
            "backbone": run.backbone or UNKNOWN,
            "order": orders[run.tasks],
        }
        reference = at.get(_block(group))
        entries.append({**about, **paired_entry(group, reference, scores, resamples)})
    return {
        "baseline": labels[0],
        "resamples": resamples,
        "interval": INTERVAL,
        "entries": sorted(entries, key=_largest_first),
    }


def _block(group: Group) -> tuple[str | None, tuple[str, ...]]:
    return group.runs[0].backbone, group.runs[0].tasks


def _largest_first(entry: Mapping[str, Any]) -> float:
    return -entry["pooled"]["difference"] if entry["pooled"] else inf


def blocks(found: Contents) -> list[tuple[str, str, list[dict[str, Any]]]]:
    """(backbone, order, its groups, the best first): within a block scores may be averaged."""
    order: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for backbone in found["backbones"]:
        for name in found["orders"]:
            order[backbone, name] = []
    for group in found["groups"]:
        order[group["backbone"], group["order"]].append(group)
    return [
        (backbone, name, sorted(groups, key=rank))
        for (backbone, name), groups in order.items()
        if groups
    ]


def final_scores(group: Mapping[str, Any]) -> list[float | None]:
    """(T,) Each task's score at the end, the mean over seeds; None where a seed lacks it."""
    columns = zip(*[run["scores"][-1] for run in group["runs"]], strict=True)
    return [None if None in column else mean(column) for column in columns]

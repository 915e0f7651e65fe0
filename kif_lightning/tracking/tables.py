"""Numbers and tables out of what a run has so far."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kif_lightning.kif.fusion import UnitClass
from kif_lightning.metrics.transfer import ScoreMatrix, transfer_metrics
from kif_lightning.tracking.keys import COST, MEAN_WEIGHT, PROBE, SCORE, TRANSFER, UNITS

MOST_UNITS = 2000
"""Of a boundary's table; where there are more, each module has one row."""
COLUMNS = ("score", "current", "accumulated", "previous", "weight")


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of plain values under named columns; ``title`` says what they are."""

    title: str
    columns: list[str]
    rows: list[list[Any]]


def scores(tasks: Sequence[str], row: Sequence[float | None]) -> dict[str, float]:
    """Percent of each task that was evaluated."""
    pairs = zip(tasks, row, strict=True)
    return {f"{SCORE}{task}": score for task, score in pairs if score is not None}


def transfer_so_far(
    matrix: ScoreMatrix, num_learnt: int, untrained: Sequence[float | None] | None
) -> dict[str, float]:
    """The transfer metrics as if the stream ended here: of the tasks learnt so far alone.

    Args:
        matrix: the rows so far, each of all T tasks.
        num_learnt: how many of the tasks have been learnt.
        untrained: (T,) scores before the first task, if measured.
    """
    learnt = [row[:num_learnt] for row in matrix]
    before = None if untrained is None else untrained[:num_learnt]
    found = transfer_metrics(learnt, untrained=before)
    return {f"{TRANSFER}{name}": value for name, value in found.items()}


def probe_numbers(measured: Mapping[str, float | None]) -> dict[str, float]:
    """What the general-ability probe measured; not a loss that is not finite."""
    return {f"{PROBE}{key}": value for key, value in measured.items() if value is not None}


def cost_so_far(phases: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds of the last task's phases, and of all so far."""
    last = {f"{COST}{name}_seconds": value for name, value in phases[-1]["seconds"].items()}
    return {**last, f"{COST}total_seconds": sum(sum(p["seconds"].values()) for p in phases)}


def boundary_numbers(boundary: Mapping[str, Any]) -> dict[str, float]:
    """The mean fusion weight of the past and how many units are of each class."""
    if "weight" not in boundary:
        return {}  # the first task: nothing to fuse
    weight = boundary["weight"]
    found = {MEAN_WEIGHT: sum(weight) / len(weight)}
    counts = Counter({kind.name.lower(): 0 for kind in UnitClass})  # none of a class: zero
    counts.update(boundary.get("classes", []))
    return {**found, **{f"{UNITS}{kind}": float(number) for kind, number in counts.items()}}


def matrix_table(tasks: Sequence[str], phases: Sequence[str], matrix: ScoreMatrix) -> Table:
    """The score matrix: one row for each task that has been learnt."""
    rows = [[phase, *row] for phase, row in zip(phases, matrix, strict=True)]
    return Table(title="percent on each task", columns=["after", *tasks], rows=rows)


def importance_table(boundary: Mapping[str, Any]) -> Table:
    """A boundary's units; of more than :data:`MOST_UNITS` the mean over each module's."""
    units = boundary["unit_ids"]
    present = [name for name in COLUMNS if name in boundary]
    kinds = boundary.get("classes") or [None] * len(units)
    values = list(zip(*[boundary[name] for name in present], strict=True))
    modules, _ = zip(*[_parted(unit) for unit in units], strict=True)
    if len(units) <= MOST_UNITS:
        rows = [
            [unit, module, *row, kind]
            for unit, module, row, kind in zip(units, modules, values, kinds, strict=True)
        ]
        columns = ["unit", "module", *present, "class"]
        return Table(title=f"{len(units)} units", columns=columns, rows=rows)
    of_module: dict[str, list[int]] = defaultdict(list)
    for place, module in enumerate(modules):
        of_module[module].append(place)
    rows = []
    for module, places in of_module.items():
        means = [sum(values[p][c] for p in places) / len(places) for c in range(len(present))]
        commonest = Counter(kinds[p] for p in places).most_common(1)[0][0]
        rows.append([module, len(places), *means, commonest])
    columns = ["module", "units", *[f"mean {name}" for name in present], "commonest class"]
    title = f"means over each module's units: {len(units)} units are more than {MOST_UNITS}"
    return Table(title=title, columns=columns, rows=rows)


def _parted(unit: str) -> tuple[str, str]:
    """``<module>/rank:0`` -> module and the rest."""
    module, _, rest = unit.partition("/")
    return module, rest

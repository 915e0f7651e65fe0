"""Finished runs side by side: what each task scored, and a summary over seeds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import inf
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.markup import escape
from rich.table import Table

from kif_lightning.errors import UserError
from kif_lightning.metrics.transfer import FORMULAS, forward_transfer_vs_single_task
from kif_lightning.reporting.console import RunConsole, markdown_table, stamped
from kif_lightning.storage import flat, read_json

MUST_MATCH = (
    "benchmark", "order", "data_sha256", "rows", "metrics", "backbone", "weights", "lora", "optim",
    "prompt_and_decoding", "decode", "epochs", "effective_batch",
)  # fmt: skip
"""Keys of the protocol stamp in which runs must agree for their methods to be comparable.

Imported runs do not have all of them: of each pair, the keys that both have are compared.
"""
DEV_FILES = "data_sha256 of dev"
STEPS_BY_LENGTH = "length_grouping"
EVALUATED_IN = "evaluation_precision"
EVALUATED_ON = "evaluation_rows"
Results = Mapping[str, Any]
IMPORTED = " (imported)"
ABSENT = "absent"
VS_SINGLE = "forward_transfer_vs_single_task"
MAX_COLUMNS = 6
"""Runs whose tasks are shown side by side; more would not fit a terminal."""


@dataclass(frozen=True)
class Group:
    """The runs of one method with one set of settings, one a seed."""

    label: str
    runs: tuple[Results, ...]


def read_runs(folders: Sequence[Path]) -> list[Group]:
    """The runs by method, in the order given.

    Args:
        folders: run folders, or folders that hold run folders.

    Raises:
        UserError: fewer than two runs, one given twice or not finished, protocols that differ.
    """
    found = [run for folder in folders for run in _runs_in(folder)]
    if len({folder.resolve() for folder in found}) < max(2, len(found)):
        raise UserError(
            f"A comparison needs at least two different run folders, got "
            f"{', '.join(map(str, found or folders)) or 'none'}."
        )
    results = {folder: read_json(folder / "results.json") for folder in found}
    _check_same_protocol(results)
    return _labelled(results)


def _runs_in(folder: Path) -> list[Path]:
    if (folder / "results.json").is_file():
        return [folder]
    runs = sorted(path.parent for path in folder.rglob("results.json"))
    if not runs:
        raise UserError(
            f"Expected folders of finished runs, but there is no results.json in {folder}: run "
            "them to the end first."
        )
    return runs


def unfinished(folders: Sequence[Path]) -> list[Path]:
    """Runs beneath the folders that have no results yet."""
    begun = {path.parent for folder in folders for path in folder.rglob("config.yaml")}
    return sorted(run for run in begun if not (run / "results.json").is_file())


def _check_same_protocol(results: Mapping[Path, Results]) -> None:
    """Every pair: an imported run may lack what two others differ in."""
    compared = {folder: _comparable(found["protocol"]) for folder, found in results.items()}
    for (reference, expected), (folder, other) in combinations(compared.items(), 2):
        imported = any(_is_imported(results[run]) for run in (reference, folder))
        both = expected.keys() & other.keys()
        keys = [key for key in MUST_MATCH if not imported or key in both]
        keys += [EVALUATED_ON] if imported else [EVALUATED_ON, STEPS_BY_LENGTH]
        # Earlier results do not tell in which dtype their weights were.
        keys += [key for key in (DEV_FILES, "backbone_dtype") if key in both]
        differing = [key for key in keys if other.get(key) != expected.get(key)]
        if not imported and not _evaluated_alike(expected, other):
            differing.append(EVALUATED_IN)
        if differing:
            names = " (kif import --rename THEIRS=OURS gives their tasks our names)"
            raise UserError(
                f"{folder} was measured under another protocol than {reference} (different: "
                f"{', '.join(differing)}): compare runs that differ in method and seed alone"
                f"{names if imported and 'order' in differing else ''}."
            )


def _evaluated_alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """In the same precision, or each in that of its training, which a method may fix."""
    as_in_training = all(run[EVALUATED_IN] == run.get("precision") for run in (one, other))
    return as_in_training or one[EVALUATED_IN] == other[EVALUATED_IN]


def _is_imported(found: Results) -> bool:
    return bool(found["protocol"].get("imported"))


def _comparable(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """The stamp without what decides no number of this comparison.

    That is truncation, which a method may fix as a part of itself, and the files of dev rows;
    those stand apart where steps were selected by them, as only runs that both do so need the same.
    Grouping by length decides which rows meet in a step only across steps.
    """
    found = dict(protocol)
    if isinstance(prompt := found.get("prompt_and_decoding"), dict):
        found["prompt_and_decoding"] = _without(prompt, "truncation")
    found[EVALUATED_IN] = found.get(EVALUATED_IN) or found.get("precision")
    found[STEPS_BY_LENGTH] = found.get(STEPS_BY_LENGTH) == "across_steps"
    if isinstance(data := found.get("data_sha256"), dict):
        found["data_sha256"] = {task: _without(splits, "dev") for task, splits in data.items()}
        if _selects_by_dev(protocol):
            found[DEV_FILES] = {task: splits.get("dev") for task, splits in data.items()}
    if "decode" not in found and not protocol.get("imported"):
        # From before there was a choice.
        found["decode"] = dict.fromkeys(found.get("order", ()), "generate")
    found.setdefault(EVALUATED_ON, "test")
    return found


def _selects_by_dev(protocol: Mapping[str, Any]) -> bool:
    return (protocol.get("selection") or {}).get("rows") == "dev"


def _without(values: Mapping[str, Any], left_out: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != left_out}


def _labelled(results: Mapping[Path, Results]) -> list[Group]:
    """Runs of the same settings and different seeds together; what names do not tell, paths do."""
    groups: dict[tuple[str, str], list[tuple[Path, Results]]] = {}
    for folder, found in results.items():
        settings = json.dumps(_settings(found), sort_keys=True)
        groups.setdefault((_name(found), settings), []).append((folder, found))
    names = [name for name, _ in groups]
    named = []
    for (name, _), runs in groups.items():
        # A seed that is not known tells no runs apart.
        seeds = {_seed(found) for _, found in runs} - {None}
        if len(seeds) < len(runs) > 1:
            named += [
                Group(f"{folder}{IMPORTED if _is_imported(found) else ''}", (found,))
                for folder, found in runs
            ]
        elif names.count(name) > 1:
            label = f"{name} ({_difference(name, runs[0][1], results.values())})"
            named.append(Group(label, tuple(found for _, found in runs)))
        else:
            named.append(Group(name, tuple(found for _, found in runs)))
    return named


def _name(found: Results) -> str:
    """The method's; an imported one is never joined with ours."""
    return found["protocol"]["method"] + (IMPORTED if _is_imported(found) else "")


def _seed(found: Results) -> int | None:
    seed: int | None = found["protocol"].get("seed")
    return seed


def _difference(name: str, found: Results, results: Iterable[Results]) -> str:
    """The settings in which a run differs from others of the same method's name."""
    alike = [flat(_settings(r)) for r in results if _name(r) == name]
    own = flat(_settings(found))
    keys = [
        key
        for key in sorted({key for other in alike for key in other})
        if any(other.get(key, ABSENT) != own.get(key, ABSENT) for other in alike)
    ]
    # What others have and this one has not is told by their labels.
    telling = [key for key in keys if key in own and not _told_by_others(key, keys)] or keys
    return ", ".join(f"{key}={own.get(key)}" for key in telling)


def _told_by_others(key: str, keys: Sequence[str]) -> bool:
    """Whether it is a class whose settings differ too, which tell as much in plainer words."""
    part = key.removesuffix("_target_")
    return part != key and any(k.startswith(part) and k != key for k in keys)


def _settings(found: Results) -> Any:
    """A method's settings, to tell it from others; of an imported run only where it came from."""
    if _is_imported(found):
        return {"from": found["protocol"]["imported"].get("from")}
    return _without_seeds(found["protocol"].get("method_settings"))


def _without_seeds(settings: Any) -> Any:
    """A part's own copy of the run's seed makes no other method."""
    if not isinstance(settings, dict):
        return settings
    return {key: _without_seeds(value) for key, value in settings.items() if key != "seed"}


def show_comparison(groups: Sequence[Group], console: RunConsole) -> None:
    """Few runs: one row a task, 'just learnt -> at the end'; then one row a method, its summary."""
    # Not of the first alone: it may be imported, and know of none.
    runs = [found for group in groups for found in group.runs]
    stand_ins = list(dict.fromkeys(name for found in runs for name in found.get("stand_ins", [])))
    if len(runs) <= MAX_COLUMNS:
        title = "Percent on each task, when just learnt -> at the end of the stream"
        console.say(stamped(title, stand_ins))
        console.console.print(_task_table(groups))
    table = Table(box=None, padding=(0, 2))
    for place, name in enumerate(HEADER):
        table.add_column(name, justify="right" if place > 2 else "left", no_wrap=True)
    for row in summary(groups):
        table.add_row(*[escape(cell) for cell in row])
    console.say(stamped("Summary, percent (mean ± standard deviation over seeds)", stand_ins))
    console.console.print(table)
    for name in formulas(groups):
        console.say(f"  {name} = {FORMULAS[name]}")
    _tell_unchecked(runs, console)


def _tell_unchecked(runs: Sequence[Results], console: RunConsole) -> None:
    """What imported runs do not say of their protocol."""
    unknown = [
        key
        for key in MUST_MATCH
        if any(_is_imported(found) and key not in found["protocol"] for found in runs)
    ]
    if unknown:
        console.say(f"Imported runs do not tell, so not compared: {', '.join(unknown)}.")


def markdown(groups: Sequence[Group]) -> str:
    """The summary as a Markdown table."""
    return markdown_table(HEADER, summary(groups))


HEADER = (
    "method", "told", "seeds", "AP", "forgetting", "BWT", "FWT", "trained weights", "memory rows",
    "seconds",
)  # fmt: skip


def summary(groups: Sequence[Group]) -> list[list[str]]:
    """One row a method, the best first, in the columns of :data:`HEADER`.

    What is not known stays empty.

    FWT is :data:`VS_SINGLE`: the single-task scores are those of a run among these, with the same
    seed, whose method declares itself the reference.
    """
    single = {
        _seed(found): [row[i] for i, row in enumerate(found["score_matrix"])]
        for group in groups
        for found in group.runs
        if _is_reference(found)
    }

    def versus_single(found: Results) -> float | None:
        scores, matrix = single.get(_seed(found)), found["score_matrix"]
        alone = _is_reference(found) or _is_imported(found)  # never under one known protocol
        if scores is None or alone or len(matrix) != len(scores):
            return None
        return forward_transfer_vs_single_task(matrix, scores)

    rows = []
    for group in sorted(groups, key=_rank):
        seeds = sorted(seed for found in group.runs if (seed := _seed(found)) is not None)
        rows.append(
            [
                group.label,
                " / ".join(dict.fromkeys(_told(found) for found in group.runs)),
                ", ".join(map(str, seeds)),
                *[
                    _spread(_values(group, value))
                    for value in (
                        _metric("average_performance"),
                        _metric("forgetting_rate"),
                        _metric("backward_transfer"),
                        versus_single,
                    )
                ],
                _weights(group.runs[0]["cost"]),
                str(group.runs[0]["cost"].get("memory_rows", "")),
                _spread(_values(group, _seconds), 0),
            ]
        )
    return rows


def _rank(group: Group) -> float:
    """The best first; last those without an average, as the scores at the end were not measured."""
    values = _values(group, _metric("average_performance"))
    return -mean(values) if values else inf


def formulas(groups: Sequence[Group]) -> list[str]:
    """Names of the metrics that the summary shows."""
    named = {name for group in groups for found in group.runs for name in found["metrics"]}
    if any(_is_reference(found) for group in groups for found in group.runs):
        named.add(VS_SINGLE)
    return [name for name in FORMULAS if name in named]


def _is_reference(found: Results) -> bool:
    return bool((found["protocol"].get("method_settings") or {}).get("single_task_reference"))


def _seconds(found: Results) -> float | None:
    total: float | None = found["cost"].get("seconds", {}).get("total")
    return total


def _metric(name: str) -> Callable[[Results], float | None]:
    return lambda found: found["metrics"].get(name)


def _values(group: Group, value: Callable[[Results], float | None]) -> list[float]:
    """The value of every run; none if one lacks it."""
    values = [value(found) for found in group.runs]
    known = [number for number in values if number is not None]
    return known if len(known) == len(values) else []


def _spread(values: Sequence[float], digits: int = 1) -> str:
    if not values:
        return ""
    middle = f"{mean(values):.{digits}f}"
    return middle if len(values) == 1 else f"{middle} ± {stdev(values):.{digits}f}"


def _told(found: Results) -> str:
    """What a method is given that others are not; of an imported one that is not known."""
    if _is_imported(found):
        return "imported"
    told, protocol = [], found["protocol"]
    if len(found["score_matrix"]) == 1 < len(found["tasks"]):
        told.append("all tasks at once")
    elif (protocol.get("method_settings") or {}).get("needs_task_id"):
        told.append("task id")
    if _selects_by_dev(protocol):
        in_test = sum(protocol["selection"].get("dev_rows_in_test", {}).values())
        told.append(f"dev rows ({in_test} in test)")
    return ", ".join(told)


def _weights(cost: Mapping[str, Any]) -> str:
    trainable, kept = cost.get("trainable_weights"), cost.get("learnt_weights")
    if trainable is None:
        return ""
    return f"{trainable:,}" if kept in (None, trainable) else f"{trainable:,} ({kept:,} kept)"


def _task_table(groups: Sequence[Group]) -> Table:
    table = Table(box=None, padding=(0, 2))
    table.add_column("", no_wrap=True)
    columns = [(group, found) for group in groups for found in group.runs]
    for group, found in columns:
        seed = f", seed {_seed(found)}" if len(group.runs) > 1 else ""
        # A long label would leave no room for the tasks' names.
        label = f"{group.label}{seed}".replace(" (", "\n(").replace(", ", ",\n")
        table.add_column(escape(label), justify="right", no_wrap=True)
    for index, task in enumerate(columns[0][1]["tasks"]):
        cells = [_course(found["score_matrix"], index) for _, found in columns]
        table.add_row(f"{index + 1} {task['name']}", *cells)
    table.add_section()
    for name in FORMULAS:
        values = [found["metrics"].get(name) for _, found in columns]
        if any(value is not None for value in values):
            table.add_row(name, *["" if value is None else f"{value:.1f}" for value in values])
    times = [_seconds(found) for _, found in columns]
    table.add_row("minutes", *["" if time is None else f"{time / 60:.1f}" for time in times])
    return table


def _course(matrix: Sequence[Sequence[float | None]], task: int) -> str:
    """Tasks learnt all at once have no way, only an end."""
    course = [matrix[task][task], matrix[-1][task]] if len(matrix) > 1 else [matrix[0][task]]
    return " -> ".join("" if score is None else f"{score:.1f}" for score in course)

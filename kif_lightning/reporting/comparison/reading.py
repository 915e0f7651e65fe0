"""The runs of a comparison, by method and settings, backbone and order."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from kif_lightning.errors import UserError
from kif_lightning.reporting.comparison.protocols import (
    ABSENT,
    Results,
    check_same_protocol,
    is_imported,
    selects_by_dev,
    variants,
)
from kif_lightning.reporting.run_record import RunRecord, read_results
from kif_lightning.storage import flat

IMPORTED = " (imported)"


@dataclass(frozen=True)
class Run:
    """A finished run; of its folder only the results are read, answers when asked for."""

    folder: Path
    results: Results
    variant: str = ""
    """Letter of its protocol, where those of the compared runs differ."""

    @property
    def protocol(self) -> dict[str, Any]:
        """The stamp."""
        found: dict[str, Any] = self.results["protocol"]
        return found

    @property
    def imported(self) -> bool:
        """Whether it comes from other code."""
        return is_imported(self.results)

    @property
    def method(self) -> str:
        """The method's name; an imported one is never joined with ours."""
        return str(self.protocol["method"]) + (IMPORTED if self.imported else "")

    @property
    def seed(self) -> int | None:
        """None: not known."""
        found: int | None = self.protocol.get("seed")
        return found

    @property
    def backbone(self) -> str | None:
        """None: not known."""
        found = self.protocol.get("backbone")
        return None if found is None else str(found)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of what is evaluated, in the order of learning: the matrix's columns."""
        return tuple(task["name"] for task in self.results["tasks"])

    @property
    def matrix(self) -> list[list[float | None]]:
        """``matrix[i][j]``: percent on task j after phase i."""
        found: list[list[float | None]] = self.results["score_matrix"]
        return found

    @property
    def is_reference(self) -> bool:
        """Whether its scores are those of each task alone."""
        settings = self.protocol.get("method_settings") or {}
        return bool(settings.get("single_task_reference"))

    @property
    def told(self) -> str:
        """What a method is given that others are not; of an imported one that is not known."""
        if self.imported:
            return "imported"
        told = []
        if len(self.matrix) == 1 < len(self.tasks):
            told.append("all tasks at once")
        elif (self.protocol.get("method_settings") or {}).get("needs_task_id"):
            told.append("task id")
        if selects_by_dev(self.protocol):
            in_test = sum(self.protocol["selection"].get("dev_rows_in_test", {}).values())
            told.append(f"dev rows ({in_test} in test)")
        return ", ".join(told)

    @cached_property
    def settings(self) -> str:
        """A method's settings as JSON, to tell it from others."""
        return json.dumps(_settings(self.results), sort_keys=True)

    def answers(self, task: int) -> list[dict[str, Any]]:
        """Answers to a task's test rows at the end of the stream; empty where they are not kept."""
        if self.imported:
            return []
        record = RunRecord(folder=self.folder, results=self.results, boundaries=(), curves=())
        return record.predictions(len(self.matrix) - 1, task)


@dataclass(frozen=True)
class Group:
    """The runs of one method with one set of settings, one backbone and order; one a seed."""

    label: str
    runs: tuple[Run, ...]


def read_runs(folders: Sequence[Path], *, show_differences: bool = False) -> list[Group]:
    """The runs by method, in the order given.

    Args:
        folders: run folders, or folders that hold run folders.
        show_differences: keep runs of different protocols apart instead of refusing them.

    Raises:
        UserError: fewer than two runs, one given twice or not finished, protocols that differ.
    """
    found = [run for folder in folders for run in _runs_in(folder)]
    if len({folder.resolve() for folder in found}) < max(2, len(found)):
        raise UserError(
            f"A comparison needs at least two different run folders, got "
            f"{', '.join(map(str, found or folders)) or 'none'}."
        )
    results = {folder: read_results(folder / "results.json") for folder in found}
    letters: dict[Path, str] = {}
    if show_differences:
        letters = variants(results)
    else:
        check_same_protocol(results)
    runs = [Run(folder, results[folder], letters.get(folder, "")) for folder in found]
    return [
        group
        for backbone in dict.fromkeys(run.backbone for run in runs)
        for group in _labelled([run for run in runs if run.backbone == backbone])
    ]


def _runs_in(folder: Path) -> list[Path]:
    if (folder / "results.json").is_file():
        return [folder]
    if (folder / "comparison.json").is_file():
        return []  # as runs/demo/* names it, too
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


def _labelled(runs: Sequence[Run]) -> list[Group]:
    """Runs of the same settings and different seeds together; what names do not tell, paths do.

    All of one backbone, so that what a method's settings take from it tells nothing apart.
    """
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        key = (run.method, run.settings, run.variant, run.tasks)
        groups.setdefault(key, []).append(run)
    settings: dict[str, set[str]] = {}
    for run in runs:
        settings.setdefault(run.method, set()).add(run.settings)
    differing = {of: _differences([run for run in runs if run.method == of]) for of in settings}
    named = []
    for alike in groups.values():
        first = alike[0]
        kept_apart = f" [{first.variant}]" if first.variant else ""
        # A seed that is not known tells no runs apart.
        seeds = {run.seed for run in alike} - {None}
        if len(seeds) < len(alike) > 1:
            named += [
                Group(f"{run.folder}{IMPORTED if run.imported else ''}{kept_apart}", (run,))
                for run in alike
            ]
            continue
        label = first.method
        if len(settings[first.method]) > 1:
            label += f" ({differing[first.method][first.settings]})"
        named.append(Group(f"{label}{kept_apart}", tuple(alike)))
    return named


def _differences(runs: Iterable[Run]) -> dict[str, str]:
    """Of runs of one method's name: settings -> those in which they differ from the others."""
    every = {run.settings: flat(_settings(run.results)) for run in runs}
    keys = sorted({key for own in every.values() for key in own})
    keys = [key for key in keys if len({repr(own.get(key, ABSENT)) for own in every.values()}) > 1]
    keys = [key for key in keys if not any(_repeats(key, other, every.values()) for other in keys)]
    told = {}
    for settings, own in every.items():
        # What others have and this one has not is told by their labels.
        telling = [key for key in keys if key in own and not _told_by_others(key, keys)] or keys
        told[settings] = _values(own, telling)
    counts = Counter(told.values())
    # Where plain words tell two apart no longer, all that differs does.
    return {
        settings: text if counts[text] == 1 else _values(every[settings], keys)
        for settings, text in told.items()
    }


def _repeats(key: str, other: str, every: Iterable[Mapping[str, Any]]) -> bool:
    """Whether a part of a part (``boundary.fusion.rule.tau``) only says what the part does."""
    return key.endswith(f".{other}") and all(own.get(key) == own.get(other) for own in every)


def _values(own: Mapping[str, Any], keys: Iterable[str]) -> str:
    return ", ".join(f"{key}={own.get(key, ABSENT)}" for key in keys)


def _told_by_others(key: str, keys: Sequence[str]) -> bool:
    """Whether it is a class whose settings differ too, which tell as much in plainer words."""
    part = key.removesuffix("_target_")
    return part != key and any(k.startswith(part) and k != key for k in keys)


def _settings(found: Results) -> Any:
    """A method's settings, to tell it from others; of an imported run only where it came from."""
    if is_imported(found):
        return {"from": found["protocol"]["imported"].get("from")}
    settings = _without_seeds(found["protocol"].get("method_settings"))
    probe = found["protocol"].get("probe")  # which is asked beside, and makes another run of it
    return {**(settings or {}), "probe": probe["name"]} if probe else settings


def _without_seeds(settings: Any) -> Any:
    """A part's own copy of the run's seed makes no other method."""
    if not isinstance(settings, dict):
        return settings
    return {key: _without_seeds(value) for key, value in settings.items() if key != "seed"}

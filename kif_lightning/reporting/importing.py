"""Published result folders of other code, as a run folder of ours.

O-LoRA and SAPT write ``outputs/<k>-<task>/all_results.json`` after the k-th task, with a score in
percent for each task learnt so far: ``predict_<metric>_for_<task>``. Categories stand there as if
they were tasks (``..._for_SC``): only the names of the folders say which are tasks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kif_lightning.errors import UserError, nearest_names, require_between, require_choice
from kif_lightning.metrics.transfer import PEER_FORMULAS, peer_variants
from kif_lightning.reporting.results import results_record
from kif_lightning.storage import read_json, write_json

KEYS: dict[str, tuple[str, ...]] = {
    "exact_match": ("predict_exact_match_for_",),
    "rouge_l": ("predict_eval_rougeL_for_", "predict_rougeL_for_"),  # SAPT's, O-LoRA's
}
"""Metric of ours -> how the keys of its scores begin there."""


@dataclass(frozen=True, kw_only=True)
class Names:
    """Something for tasks, as they are called there."""

    single: Mapping[str, str] = field(default_factory=dict)
    """Meant for this run: each task must be in it."""
    listed: Mapping[str, str] = field(default_factory=dict)
    """Of a file for all runs of a collection: tasks that are not in this one are passed over."""


def import_run(
    outputs: Path,
    target: Path,
    *,
    method: str,
    metric: str = "rouge_l",
    metric_of: Names | None = None,
    rename: Names | None = None,
    backbone: str | None = None,
    benchmark: str | None = None,
    seed: int | None = None,
    source: str | None = None,
) -> dict[str, Any]:
    """Write ``<target>/results.json``, all metrics recomputed from the score matrix; returns it.

    What is not known stays absent from the record.

    Args:
        outputs: the folder that holds ``<k>-<task>``.
        target: a new or empty folder, or that of an earlier import.
        method: the method's name, for the tables.
        metric: ``exact_match`` or ``rouge_l``: of all tasks but those in ``metric_of``.
        metric_of: task, as there -> its metric.
        rename: task, as there -> its name here.
        backbone: the model's name here.
        benchmark: the benchmark's name here.
        seed: of the run.
        source: where the folder comes from: repository, commit, paper.

    Raises:
        UserError: a task's folder or file is missing or damaged, a score is missing, no number or
            no percentage, a name is unknown, the target holds something else.
    """
    paths = _result_files(outputs)
    metrics = dict.fromkeys(paths, metric) | _known("metric", metric_of, paths)
    for chosen in metrics.values():
        require_choice("The metric of an imported task", chosen, KEYS)
    names = {task: task for task in paths} | _known("rename", rename, paths)
    order = list(names.values())
    doubled = {name for name in order if order.count(name) > 1}
    if doubled:
        raise UserError(
            f"rename must keep tasks apart, got {' and '.join(doubled)} more than once."
        )
    _check_target(target)
    files = [_read(path) for path in paths.values()]
    matrix = [
        [
            _score(found, path, task, metrics[task], learnt=column <= place)
            for column, task in enumerate(paths)
        ]
        for place, (path, found) in enumerate(zip(paths.values(), files, strict=True))
    ]
    about = {"backbone": backbone, "benchmark": benchmark, "seed": seed}
    record = results_record(
        score_matrix=matrix,
        untrained=None,
        tasks=[{"name": names[task], "metric": metrics[task]} for task in paths],
        phases=[{"name": name} for name in order],
        stand_ins=(),
        protocol={
            "imported": {
                **({} if source is None else {"from": source}),
                "what": "scores of outputs/<k>-<task>/all_results.json; the protocol is not known",
                "metric": {names[task]: _key(files[-1], task, metrics[task]) for task in paths},
            },
            "method": method,
            "order": order,
            "metrics": {names[task]: metrics[task] for task in paths},
            **{key: value for key, value in about.items() if value is not None},
        },
        cost={},
    )
    record["peer_variants"] = {
        name: {"value": value, "formula": PEER_FORMULAS[name]}
        for name, value in peer_variants(matrix).items()
    }
    write_json(target / "results.json", record)
    (target / "report.html").unlink(missing_ok=True)  # of an earlier import
    return record


def named_pairs(option: str, entries: Sequence[str]) -> Names:
    """Of ``theirs=ours`` entries; an entry without ``=`` is a JSON file of such names.

    Raises:
        UserError: a file that is missing or holds something else, a half that is empty, a name
            given twice.
    """
    single: list[tuple[str, str]] = []
    listed: list[tuple[str, str]] = []
    for entry in entries:
        if "=" in entry:
            theirs, _, ours = entry.partition("=")
            single.append((theirs, ours))
            continue
        if not Path(entry).is_file():
            raise UserError(
                f"{option} expects THEIRS=OURS or a JSON file of such names, got {entry!r}."
            )
        found = read_json(Path(entry))
        if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
            raise UserError(f'{entry} must hold a JSON object of names, {{"theirs": "ours"}}.')
        listed.extend(found.items())
    pairs = single + listed
    names = [theirs for theirs, _ in pairs]
    wrong = [f"{a}={b}" for a, b in pairs if not a or not b or names.count(a) > 1]
    if wrong:
        raise UserError(f"{option} must name each task once as THEIRS=OURS, got {wrong[0]!r}.")
    return Names(single=dict(single), listed=dict(listed))


def _result_files(outputs: Path) -> dict[str, Path]:
    """Task -> its results file, in the order of the folders' numbers."""
    folders = [path.name for path in outputs.iterdir() if path.is_dir()] if outputs.is_dir() else []
    matches = [re.fullmatch(r"(\d+)-(.+)", name) for name in folders]
    numbered = sorted((int(match[1]), match[2], match[0]) for match in matches if match)
    if not numbered:
        raise UserError(f"Expected a folder that holds <k>-<task>/all_results.json, got {outputs}.")
    files: dict[str, Path] = {}
    for place, (number, task, name) in enumerate(numbered, start=1):
        if number != place or task in files:
            raise UserError(
                f"Expected each task once in folders 1-<task>, 2-<task>, ... of {outputs}, got "
                f"{name} where number {place} is due."
            )
        files[task] = outputs / name / "all_results.json"
    # SAPT keeps the order beside the folders: without it a missing end could not be seen.
    order_file = outputs / "task_order.txt"
    if order_file.is_file():
        order = order_file.read_text("utf-8", errors="replace").strip().split(",")
        if order != list(files):
            raise UserError(
                f"{order_file} says {', '.join(order)}, but the folders are {', '.join(files)}: "
                "expected those of a whole run."
            )
    return files


def _known(what: str, given: Names | None, tasks: Mapping[str, Path]) -> dict[str, str]:
    """Of the run's tasks."""
    given = given or Names()
    for task in given.single:
        if task not in tasks:
            raise UserError(f"No task {task!r} to give a {what}; {nearest_names(task, tasks)}.")
    return {t: value for t, value in {**given.listed, **given.single}.items() if t in tasks}


def _check_target(target: Path) -> None:
    """Only an earlier import may be written over."""
    held = sorted(path.name for path in target.iterdir()) if target.is_dir() else []
    ours = set(held) <= {"results.json", "report.html"} and "results.json" in held
    if target.is_dir() and (not held or (ours and _is_import(target))):
        return
    if target.exists():
        listed = ", ".join(held[:3]) or "a file"
        raise UserError(
            f"{target} holds something else than an imported run ({listed}): choose a new folder."
        )


def _is_import(target: Path) -> bool:
    found = read_json(target / "results.json")
    protocol = found.get("protocol") if isinstance(found, dict) else None
    return isinstance(protocol, dict) and bool(protocol.get("imported"))


def _read(path: Path) -> dict[str, Any]:
    found = read_json(path)
    if not isinstance(found, dict):
        raise UserError(f"{path} must hold a JSON object of scores, got {found!r:.40}.")
    return found


def _key(found: Mapping[str, Any], task: str, metric: str) -> str | None:
    return next((start + task for start in KEYS[metric] if start + task in found), None)


def _score(
    found: Mapping[str, Any], path: Path, task: str, metric: str, *, learnt: bool
) -> float | None:
    """A task that was not learnt yet may have no score."""
    key = _key(found, task, metric)
    if key is not None:
        require_between(f"{path}: {key}", found[key], 0, 100)
        return float(found[key])
    if not learnt:
        return None
    scored = [k.removeprefix(s) for s in KEYS[metric] for k in found if k.startswith(s)]
    hint = nearest_names(task, scored) if scored else "it has no such score at all"
    raise UserError(
        f"{path} has no {' or '.join(start + task for start in KEYS[metric])}, the score of a task "
        f"learnt by then; {hint}."
    )

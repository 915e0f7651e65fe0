"""Tasks of a folder: ``<task>/{train,dev,test}.jsonl`` and what a manifest says of them."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, get_args

from kif_lightning.benchmarks.rows import read_split
from kif_lightning.errors import UserError, require_choice
from kif_lightning.interfaces import SourceTask, TaskKind

log = logging.getLogger(__name__)
SPLITS = ("train", "dev", "test")
KINDS: tuple[str, ...] = get_args(TaskKind)
DEFAULT_TASK = {"kind": "generation", "metric": "rouge_l"}
_METRIC_OF_MANIFEST = {"accuracy": "exact_match"}

Description = Mapping[str, Any]
"""kind, metric and, where it differs from the kind's, closed_answers."""


def require_folder(data_dir: str) -> Path:
    """The folder, if it is there and holds a task.

    Raises:
        UserError: it is not, or does not.
    """
    folder = Path(data_dir)
    if not folder.is_dir():
        raise UserError(f"benchmark.data_dir must be an existing folder, got {data_dir!r}.")
    if not task_names(folder):
        raise UserError(
            f"benchmark.data_dir={data_dir!r} holds no task: expected folders with train.jsonl and "
            "test.jsonl in it."
        )
    return folder


def task_names(folder: Path) -> list[str]:
    """The folders that hold a train file."""
    return sorted(path.parent.name for path in folder.glob("*/train.jsonl"))


def read_task(folder: Path, description: Description, *, tolerant: bool = False) -> SourceTask:
    """One task's files; train and test must be there, dev may.

    Args:
        folder: named as the task.
        description: of the task.
        tolerant: note unreadable rows and missing splits instead of refusing them.

    Raises:
        UserError: an unknown kind, a missing split, an unreadable row.
    """
    kind = description["kind"]
    require_choice(f"The kind of task {folder.name}", kind, KINDS)
    files = {split: folder / f"{split}.jsonl" for split in SPLITS}
    return SourceTask(
        name=folder.name,
        kind=cast(TaskKind, kind),
        metric=description["metric"],
        splits={
            split: read_split(path, tolerant=tolerant)
            for split, path in files.items()
            if path.is_file() or not (tolerant or split == "dev")
        },
        closed_answers=description.get("closed_answers", kind == "classification"),
    )


def read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """Each task's description by a ``manifest.json`` in or beside the folder; else empty.

    One beside the folder that is no manifest of tasks is somebody else's: it is told and not used.

    Raises:
        UserError: the one in the folder is no manifest of tasks.
    """
    inside, beside = folder / "manifest.json", folder.parent / "manifest.json"
    if inside.is_file():
        return _described(inside, folder.resolve().name)
    if beside.is_file():
        try:
            return _described(beside, folder.resolve().name)
        except UserError as error:
            log.warning("Not used to describe the tasks of %s: %s", folder, error)
    return {}


def _described(file: Path, collection: str) -> dict[str, dict[str, Any]]:
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} must be JSON, but it cannot be read: {error}.") from error
    manifest = _object(manifest, f"{file} must hold")
    collections = _object(manifest.get("collections", {}), f"{file}: 'collections' must be")
    found = _object(collections.get(collection, manifest), f"{file}: '{collection}' must be")
    tasks = _object(found.get("tasks", {}), f"{file}: 'tasks' must be")
    described: dict[str, dict[str, Any]] = {}
    for name, entry in tasks.items():
        entry = _object(entry, f"{file}: task '{name}' must be")
        if "kind" not in entry or "metric" not in entry:
            continue
        for key, kind in (("kind", str), ("metric", str), ("closed_answers", bool)):
            if key in entry and not isinstance(entry[key], kind):
                what = "a text" if kind is str else "true or false"
                raise UserError(
                    f"{file}: '{key}' of task '{name}' must be {what}, got {entry[key]!r:.40}."
                )
        described[name] = {
            **{key: entry[key] for key in ("kind", "closed_answers") if key in entry},
            "metric": _METRIC_OF_MANIFEST.get(entry["metric"], entry["metric"]),
        }
    return described


def _object(value: Any, expected: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{expected} a JSON object, got {value!r:.40}.")
    return value

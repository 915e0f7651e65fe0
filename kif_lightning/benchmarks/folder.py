"""Tasks of a folder: ``<task>/{train,dev,test}.jsonl`` and what a manifest says of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args

from kif_lightning.benchmarks.rows import read_split
from kif_lightning.errors import UserError, require_choice
from kif_lightning.interfaces import SourceTask, TaskKind

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

    Raises:
        UserError: it is no JSON object.
    """
    for path in (folder / "manifest.json", folder.parent / "manifest.json"):
        if not path.is_file():
            continue
        try:
            manifest: Any = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path} must be JSON, but it does not parse: {error}.") from error
        if not isinstance(manifest, dict):
            raise UserError(f"{path} must hold a JSON object, got a {type(manifest).__name__}.")
        collections = manifest.get("collections", {})
        tasks = collections.get(folder.resolve().name, manifest).get("tasks", {})
        return {
            name: {
                **{key: entry[key] for key in ("kind", "closed_answers") if key in entry},
                "metric": _METRIC_OF_MANIFEST.get(entry["metric"], entry["metric"]),
            }
            for name, entry in tasks.items()
            if "kind" in entry and "metric" in entry
        }
    return {}


def read_folder(folder: Path, names: Sequence[str], *, tolerant: bool = False) -> list[SourceTask]:
    """Tasks of a folder as its manifest describes them; others count as generation by ROUGE-L."""
    described = read_manifest(folder)
    return [
        read_task(folder / name, {**DEFAULT_TASK, **described.get(name, {})}, tolerant=tolerant)
        for name in names
    ]

"""The continual state: all that a model needs to learn its next task, in a folder.

docs/state_format.md describes the folder. It holds no pickle and, unless asked for, no row of data.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from kif_lightning.errors import UserError
from kif_lightning.interfaces import RowsElsewhere, Task, TaskKind
from kif_lightning.storage import (
    CONTENTS,
    load_state,
    read_json,
    replacing_folder,
    save_state,
    write_json,
)

FORMAT = "kif-lightning continual state"
VERSION = 1
STATE, PARTS, MEMORY = "state.json", "parts", "memory"
LAYOUT = "layout"
"""Of a task's ``data``, where its rows are made of columns: how prompts and answers are."""
MEMORY_WITHIN = (
    "Warning: The state holds raw rows of the tasks before (memory/): whoever gets it can read "
    "them."
)
MEMORY_LEFT_OUT = (
    "The rows of past tasks that the method keeps were left out: the state can answer and be "
    "exported, but learn no more tasks without them (--with-memory writes them)."
)


@dataclass(frozen=True, kw_only=True)
class PastTask:
    """A task that has been learnt, without its rows.

    ``scores``: percent on each task that was evaluated after it, by the task's place in the stream
    from 0; a task not evaluated is absent. ``phase``: steps, seconds and row numbers of its
    training. ``protocol``: place, in the state's protocols, of the conditions it was learnt under.
    """

    name: str
    kind: TaskKind
    metric: str
    labels: tuple[str, ...]
    sha256: Mapping[str, str]
    train_rows: int
    test_rows: int
    test_sha256: str
    """Of the very test rows, as they were drawn; ``sha256`` is of what they were drawn from."""
    decode: str
    max_new_tokens: int
    data: Mapping[str, Any]
    """Where its rows came from."""
    stand_in: bool
    """Whether its rows only stood for real ones."""
    phase: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    protocol: int = 0

    def task(self) -> Task:
        """The task as a stream holds it; its rows are not at hand."""
        return Task(
            name=self.name,
            kind=self.kind,
            metric=self.metric,
            train=RowsElsewhere(self.train_rows),
            test=RowsElsewhere(self.test_rows),
            labels=self.labels,
            sha256=self.sha256,
        )


def past_task(record: Mapping[str, Any]) -> PastTask:
    """A task as it was written, without keys of later programs.

    Raises:
        UserError: a key is missing.
    """
    known = [each.name for each in fields(PastTask)]
    missing = [name for name in known if name not in record]
    if missing:
        raise UserError(
            f"Task {record.get('name')} of the state lacks {', '.join(missing)}: take another copy."
        )
    values = {name: record[name] for name in known}
    return PastTask(**{**values, "labels": tuple(values["labels"])})


@dataclass(frozen=True, kw_only=True)
class ContinualState:
    """What was learnt so far, and how.

    ``config``: the resolved settings but for the data's; the base model's folder is never written.
    ``protocols``: each once, without what belongs to single tasks. ``parts``: what the method's
    parts keep, by slot, the adapter's weights (``adapter``) and the base weights' fingerprint
    (``base``) among them. ``memory``: rows of past tasks that the method keeps, None: left out.
    ``parent``: digest of the state that was extended.
    """

    config: Mapping[str, Any]
    tasks: tuple[PastTask, ...]
    protocols: tuple[Mapping[str, Any], ...]
    stand_ins: tuple[str, ...]
    parts: Mapping[str, Any]
    memory: Mapping[str, Any] | None
    keeps_memory: bool
    """Whether the method works with rows of past tasks."""
    parent: str | None
    digest: str = ""
    """sha256 of what was written; empty: not written yet."""

    @property
    def num_memory_rows(self) -> int:
        """Rows of past tasks, of all tasks together."""
        return sum(len(rows) for rows in (self.memory or {}).values())

    @property
    def score_matrix(self) -> list[list[float | None]]:
        """Percent on task j after task i, None where it was not evaluated."""
        matrix: list[list[float | None]] = [[None] * len(self.tasks) for _ in self.tasks]
        for row, task in zip(matrix, self.tasks, strict=True):
            for place, score in task.scores.items():
                row[int(place)] = score
        return matrix


def write_state(state: ContinualState, folder: Path, *, with_memory: bool = False) -> str:
    """Write the folder whole or not at all; returns its digest.

    Args:
        state: the state.
        folder: a new one.
        with_memory: also write rows of past tasks, if the method keeps some.

    Raises:
        UserError: the folder exists or cannot be written; memory is asked for, but there is none.
    """
    require_new(folder)
    if with_memory and not state.memory:
        raise UserError("There are no rows of past tasks to write: leave --with-memory out.")
    try:
        with replacing_folder(folder) as temporary:
            return _write(state, temporary, with_memory=with_memory)
    except OSError as error:
        raise _unwritable(folder, error.strerror or str(error)) from error


def require_new(folder: Path) -> None:
    """Raise UserError unless a state can be written there, as far as that is known beforehand."""
    try:
        if folder.exists():
            raise UserError(
                f"A state is never written over another: --to must be a new folder, got {folder}, "
                "which exists; name another one."
            )
        nearest = next(place for place in folder.absolute().parents if place.exists())
    except OSError as error:
        raise _unwritable(folder, error.strerror or str(error)) from error
    if not nearest.is_dir():
        raise _unwritable(folder, f"{nearest} is no folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise _unwritable(folder, f"nothing may be written to {nearest}")


def _unwritable(folder: Path, why: str) -> UserError:
    return UserError(f"The state cannot be written to {folder} ({why}): name another folder.")


def _write(state: ContinualState, folder: Path, *, with_memory: bool) -> str:
    save_state(folder / PARTS, state.parts)
    if with_memory:
        save_state(folder / MEMORY, {"rows": state.memory})
    record = _record(state)
    record["memory_rows"] = state.num_memory_rows if with_memory else 0
    record["contents"] = {
        name: read_json(folder / name / CONTENTS)
        for name in (PARTS, *([MEMORY] if with_memory else []))
    }
    record["digest"] = _digest(record)
    write_json(folder / STATE, record)
    return str(record["digest"])


def read_state(folder: Path, *, with_parts: bool = True) -> ContinualState:
    """Read what :func:`write_state` wrote.

    Args:
        folder: of the state.
        with_parts: False: without what may be large, tensors and rows, which stay unread.

    Raises:
        UserError: no state, one of a later version, a damaged one.
    """
    record = read_record(folder)
    if record.get("version") != VERSION:
        raise UserError(
            f"{folder} is a state of version {record.get('version')}, expected {VERSION}: use the "
            f"kif-lightning that wrote it ({record.get('made_by')}), or a later one."
        )
    if record.get("digest") != _digest({k: v for k, v in record.items() if k != "digest"}):
        raise _damaged(folder)
    found = {name: read_json(folder / name / CONTENTS) for name in record["contents"]}
    if found != record["contents"]:
        raise _damaged(folder)
    memory = load_state(folder / MEMORY)["rows"] if with_parts and MEMORY in found else None
    return ContinualState(
        config=_without_place(record["config"]),
        tasks=tuple(past_task(task) for task in record["tasks"]),
        protocols=tuple(record["protocols"]),
        stand_ins=tuple(record["stand_ins"]),
        parts=load_state(folder / PARTS) if with_parts else {},
        memory=memory,
        keeps_memory=record["keeps_memory"],
        parent=record["parent"],
        digest=record["digest"],
    )


def read_record(folder: Path) -> dict[str, Any]:
    """What ``state.json`` holds, without a look at the rest.

    Raises:
        UserError: no state, or something else of that name.
    """
    if not is_state(folder):
        raise _no_state(folder)
    record = read_json(folder / STATE)
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise UserError(f"{folder / STATE} is no continual state of kif-lightning.")
    return record


def _damaged(folder: Path) -> UserError:
    return UserError(
        f"{folder} is damaged, or put together from several states (its digest is not what was "
        "written): take another copy."
    )


def memory_note(folder: Path) -> str | None:
    """What to know of a written state's memory, in words; None: its method keeps none."""
    record = read_record(folder)
    if not record["keeps_memory"]:
        return None
    return MEMORY_WITHIN if MEMORY in record["contents"] else MEMORY_LEFT_OUT


def digest_of(folder: Path) -> str:
    """The digest of a state, without reading its tensors.

    Raises:
        UserError: there is none, or it is damaged.
    """
    record = read_record(folder)
    if "digest" not in record:
        raise _damaged(folder)
    return str(record["digest"])


def is_state(folder: Path) -> bool:
    """Whether a continual state stands there."""
    return (folder / STATE).is_file()


def _no_state(folder: Path) -> UserError:
    return UserError(
        f"Expected a continual state, but {folder} holds no {STATE}: give a folder that kif pack "
        "or kif extend wrote (kif pack RUN --to FOLDER makes one of a run)."
    )


def _record(state: ContinualState) -> dict[str, Any]:
    from kif_lightning import __version__

    return {
        "format": FORMAT,
        "version": VERSION,
        "made_by": f"kif-lightning {__version__}",
        "stand_ins": list(state.stand_ins),
        "parent": state.parent,
        "keeps_memory": state.keeps_memory,
        "tasks": [dict(vars(task)) for task in state.tasks],
        "protocols": list(state.protocols),
        "config": _without_place(state.config),
    }


def _without_place(config: Mapping[str, Any]) -> dict[str, Any]:
    """Where the base model lies is no business of other machines, nor is it theirs to say."""
    return {**config, "backbone": {**config.get("backbone", {}), "path": None}}


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()

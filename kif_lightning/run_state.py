"""The run folder: its settings, the states a run can go on from, and what stands in it."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from kif_lightning import ranks
from kif_lightning.errors import UserError, require_choice
from kif_lightning.storage import (
    check_state,
    flat,
    load_state,
    read_json,
    save_state,
    write_json,
    write_text,
)

LATEST, PREVIOUS, EARLIER = "latest.json", "previous.json", "earlier.json"
FINISHED = "finished.jsonl"
STREAM = "stream.json"
AFTER = "after_"
WRITTEN = (
    *("state", "predictions", "test_rows", "importance", "curves", "boundaries", "adapter"),
    *("figures", "logs", "tensorboard", "wandb", "whatif"),
)
"""Folders within a run's that rerun=true deletes."""


@dataclass
class RunState:
    """What the rest of the run needs to know of what has been done.

    ``num_tasks`` counts what is trained on, phase by phase. ``score_matrix[i][j]``: percent on task
    j after phase i, None where not evaluated. ``learnt``: the next task has been learnt already and
    is being evaluated; ``evaluated``: the scores of the evaluation that is under way, by the task's
    index.
    """

    num_tasks: int
    next_task: int = 0
    learnt: bool = False
    evaluated: dict[str, float] = field(default_factory=dict)
    score_matrix: list[list[float | None]] = field(default_factory=list)
    untrained: list[float | None] | None = None
    phases: list[dict[str, Any]] = field(default_factory=list)
    logged_steps: int = 0
    probe_untrained: dict[str, float | None] | None = None
    """The probe's score and loss before the first task; each phase holds those after it."""
    data_sha256: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether every task has been learnt and evaluated."""
        return self.next_task >= self.num_tasks

    def reached(self, training: str | None = None) -> str:
        """In words, where a run with this state stands."""
        if training is not None:
            step = int(training.rpartition("_")[2])
            return f"step {step} of task {self.next_task + 1} of {self.num_tasks}"
        if self.learnt:
            return f"the evaluation after task {self.next_task + 1} of {self.num_tasks}"
        if self.next_task == 0:
            return "the beginning of the run"
        return f"the end of task {self.next_task} of {self.num_tasks}"


def after_name(number: int) -> str:
    """Folder of the parts after so many tasks."""
    return f"{AFTER}{number:03d}"


NOTHING_FINISHED = {"tasks": 0, "bytes": 0, "crc32": 0}


def _record(state: RunState, index: int) -> dict[str, Any]:
    """A finished task on the disk: of its row of the score matrix only what was evaluated."""
    row = state.score_matrix[index]
    scores = {str(j): score for j, score in enumerate(row) if score is not None}
    return {"phase": state.phases[index], "columns": len(row), "scores": scores}


def _row(record: Mapping[str, Any]) -> list[float | None]:
    row: list[float | None] = [None] * record["columns"]
    for place, score in record["scores"].items():
        row[int(place)] = score
    return row


@dataclass(frozen=True)
class Resumed:
    """What a run goes on with.

    ``parts``: None before the first task was learnt. ``training``: the checkpoint within the next
    task, if there is one.
    """

    state: RunState
    parts: dict[str, Any] | None
    training: Path | None


def require_same_data(
    before: Mapping[str, Mapping[str, str]], now: Mapping[str, Mapping[str, str]], *, since: str
) -> None:
    """Raise UserError unless both are the same data in the same order of tasks.

    Args:
        before: task name -> split -> sha256.
        now: the same.
        since: when it was ``before``, for the message.
    """
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if changed or list(before) != list(now):
        what = f"data of {', '.join(changed)}" if changed else "order of the tasks"
        raise UserError(
            f"The {what} changed since {since}: put the old files back, choose another "
            "run_dir=FOLDER, or start anew with rerun=true."
        )


class RunFolder:
    """Reads and writes one run's folder.

    Every file but one takes the place of the old one once it is whole; the pointer comes last.
    ``state/latest.json`` points to the parts of the last learnt task and, within the next one, to
    the last checkpoint; ``state/previous.json`` to the state before, whose files stay as well, and
    ``state/earlier.json`` to the last one with other parts. What can change no more (a finished
    task's scores and cost) is appended once to ``state/finished.jsonl``, in place, before a pointer
    names it; each pointer says how many of its bytes are its own, with their CRC-32. So a save
    costs the same after 200 tasks as after one, and all states need this file. Only the first rank
    writes.

    Args:
        path: the folder.
        keep_states: whether the parts of every learnt task stay, so that ``kif pack --after`` can
            go back to any.
    """

    def __init__(self, path: Path, *, keep_states: bool = False) -> None:
        self.path = path
        self.keep_states = keep_states
        self._pointed: dict[str, Any] = {"run": None, "parts": None, "training": None}

    def is_finished(self, settings: dict[str, Any]) -> bool:
        """Whether a complete run of these very settings stands here.

        Raises:
            UserError: the folder belongs to other settings.
        """
        if not (self.path / "results.json").is_file() or not self._config.is_file():
            return False
        self._check_same(settings, OmegaConf.to_container(OmegaConf.load(self._config)))
        return True

    def require_same_data(self, data_sha256: Mapping[str, Mapping[str, str]]) -> None:
        """Raise UserError unless a finished run was of this very data.

        Args:
            data_sha256: task name -> split -> sha256, in the order of tasks.
        """
        before = self.results()["protocol"]["data_sha256"]
        require_same_data(before, data_sha256, since=f"the run in {self.path} ended")

    @property
    def _config(self) -> Path:
        return self.path / "config.yaml"

    def open(self, settings: dict[str, Any], *, rerun: bool) -> None:
        """Claim the folder for these settings, or check that it already has them.

        Raises:
            UserError: the folder belongs to other settings, or holds something else.
        """
        ours = self._config.is_file()
        if rerun and ours:
            self._throw_away()
        if self._config.is_file():
            self._check_same(settings, OmegaConf.to_container(OmegaConf.load(self._config)))
            for path in list(self.path.rglob(".*.tmp")):  # what a killed write left behind
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
            return
        self.require_own()
        write_text(self._config, OmegaConf.to_yaml(OmegaConf.create(settings)))

    def require_own(self) -> None:
        """Raise UserError if the folder holds something else than a run."""
        if self._config.is_file() or not self.path.is_dir():
            return
        # The lock comes before the config; a kill may have left a half-written file.
        if any(not path.name.startswith(".") for path in self.path.iterdir()):
            raise UserError(
                f"The run folder {self.path} holds files, but no run's config.yaml: choose another "
                "with run_dir=FOLDER, or empty it."
            )

    def _throw_away(self) -> None:
        """Remove what a run writes, ``config.yaml`` last, and nothing else."""
        stored: Any = OmegaConf.to_container(OmegaConf.load(self._config))
        if not isinstance(stored, dict) or not {"method", "benchmark", "seed"} <= stored.keys():
            raise UserError(
                f"{self._config} is not a run's: rerun=true deletes only what a run wrote; choose "
                "another run_dir=FOLDER."
            )
        for name in ("results.json", "report.html"):
            (self.path / name).unlink(missing_ok=True)
        for name in WRITTEN:
            if (self.path / name).is_dir():
                shutil.rmtree(self.path / name)
        self._config.unlink()

    def _check_same(self, settings: dict[str, Any], stored: Any) -> None:
        now, before = flat(settings), flat(stored)
        differing = [
            f"{key}: {before.get(key, 'absent')} there, {now.get(key, 'absent')} now"
            for key in sorted(now.keys() | before.keys())
            if now.get(key, "absent") != before.get(key, "absent")
        ]
        if differing:
            raise UserError(
                f"The run folder {self.path} belongs to other settings ({'; '.join(differing)}): "
                "use the same settings to resume, another run_dir=FOLDER, or rerun=true to start "
                "anew."
            )

    @property
    def _states(self) -> Path:
        return self.path / "state"

    def save(self, state: RunState, parts: dict[str, Any] | None = None) -> None:
        """Keep where the run stands; ``parts``: of a task just learnt, None: as saved before."""
        ranks.on_first(lambda: self._save(state, parts))

    def _save(self, state: RunState, parts: dict[str, Any] | None) -> None:
        if parts is None:
            self._point({**self._pointed, "run": self._written(state)})
        else:
            name = after_name(state.next_task + state.learnt)
            save_state(self._states / name, parts)
            self._point({"run": self._written(state), "parts": name, "training": None})

    def _written(self, state: RunState) -> dict[str, Any]:
        """What a pointer holds of the run, once the tasks finished meanwhile are on the disk."""
        before = (self._pointed["run"] or {}).get("finished", NOTHING_FINISHED)
        number = min(state.next_task, len(state.score_matrix), len(state.phases))
        records = [_record(state, i) for i in range(before["tasks"], number)]
        if before["bytes"] == 0 and (records or state.data_sha256):
            records.insert(0, {"data_sha256": state.data_sha256})
        added = "".join(f"{json.dumps(record, allow_nan=False)}\n" for record in records).encode()
        if added:
            self._append(before["bytes"], added)
        changing = replace(state, phases=state.phases[number:], score_matrix=[], data_sha256={})
        return {
            **asdict(changing),
            "finished": {
                "tasks": number,
                "bytes": before["bytes"] + len(added),
                "crc32": zlib.crc32(added, before["crc32"]),
            },
        }

    def _append(self, start: int, added: bytes) -> None:
        """Write from there on: what a killed write or a state given up left behind is cut off."""
        path = self._states / FINISHED
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("r+b" if start else "wb") as file:
            file.truncate(start)
            file.seek(start)
            file.write(added)
            file.flush()
            os.fsync(file.fileno())

    def _read_finished(self, finished: Mapping[str, int]) -> list[dict[str, Any]]:
        """The records that belong to a pointer."""
        path = self._states / FINISHED
        if finished["bytes"] == 0:
            return []
        try:
            with path.open("rb") as file:
                written = file.read(finished["bytes"])
        except OSError as error:
            raise UserError(f"{path} is missing or damaged ({error}).") from error
        if len(written) < finished["bytes"] or zlib.crc32(written) != finished["crc32"]:
            raise UserError(f"{path} is damaged (its CRC-32 is not what was written).")
        return [json.loads(line) for line in written.splitlines()]

    def reached(self) -> RunState | None:
        """Where the run stands by its latest state, without taking it up; None: nothing saved."""
        path = self._states / LATEST
        return self._state(read_json(path)["run"]) if path.is_file() else None

    def save_training(self, state: RunState, step: int, write: Callable[[Path], None]) -> None:
        """Keep a checkpoint within the next task; every rank calls ``write`` with its folder."""
        name = f"task_{state.next_task + 1:03d}_step_{step:08d}"
        write(self._states / name)
        ranks.on_first(
            lambda: self._point({**self._pointed, "run": self._written(state), "training": name})
        )

    def _point(self, pointed: dict[str, Any]) -> None:
        """Make this the latest state; with other files than the last one, that is the previous."""
        before = self._pointed
        if (self._states / LATEST).is_file():
            if any(pointed[key] != before[key] for key in ("parts", "training")):
                write_json(self._states / PREVIOUS, before)
            write_json(self._states / LATEST, pointed)
            if pointed["parts"] != before["parts"]:
                # After the latest: a kill in between leaves what is earlier still.
                write_json(self._states / EARLIER, {**before, "training": None})
        else:
            write_json(self._states / LATEST, pointed)
        self._pointed = pointed
        others = [self._states / name for name in (PREVIOUS, EARLIER)]
        try:
            kept = [pointed, *(read_json(path) for path in others if path.is_file())]
        except UserError:
            return  # What the damaged one names is not known: nothing is removed.
        names = {each[key] for each in kept for key in ("parts", "training")}
        for folder in self._states.iterdir():
            kept_all = self.keep_states and folder.name.startswith(AFTER)
            if folder.is_dir() and folder.name not in names and not kept_all:
                shutil.rmtree(folder, ignore_errors=True)  # what stays, goes the next time

    def load(self, resume: str = "latest") -> Resumed | None:
        """The state to go on from, or None in a new run.

        Args:
            resume: ``latest``, or ``previous``: the state before it, if the latest is damaged.

        Raises:
            UserError: the state is damaged; which state can be had instead.
        """
        require_choice("resume", resume, ("latest", "previous"))
        if not any((self._states / name).is_file() for name in (LATEST, PREVIOUS, EARLIER)):
            return None
        try:
            self._pointed, found = self._read(self._states / LATEST)
        except UserError as error:
            previous = self._read_previous()
            if previous is None:
                raise UserError(
                    f"{error} No other state can be read: start anew with rerun=true."
                ) from error
            self._pointed, found = previous
            if resume == "latest":
                reached = found.state.reached(self._pointed["training"])
                raise UserError(
                    f"{error} Go on from the state before, {reached}, with resume=previous."
                ) from error
            ranks.barrier()
            ranks.on_first(lambda: write_json(self._states / LATEST, self._pointed))
        return found

    def _read_previous(self) -> tuple[dict[str, Any], Resumed] | None:
        """The newest whole state but the latest, if there is one."""
        for name in (PREVIOUS, EARLIER):
            with suppress(UserError):
                return self._read(self._states / name)
        return None

    def _read(self, pointer: Path) -> tuple[dict[str, Any], Resumed]:
        pointed = read_json(pointer)
        try:
            state = self._state(pointed["run"])
            parts, training = pointed["parts"], pointed["training"]
        except (TypeError, KeyError) as error:
            raise UserError(f"{pointer} is damaged ({error!r}).") from error
        if training is not None:
            check_state(self._states / training)
        loaded = None if parts is None else load_state(self._states / parts)
        checkpoint = None if training is None else self._states / training
        return pointed, Resumed(state, loaded, checkpoint)

    def _state(self, run: Mapping[str, Any]) -> RunState:
        changing = dict(run)
        header, *records = self._read_finished(changing.pop("finished")) or [{"data_sha256": {}}]
        state = RunState(**changing)
        state.data_sha256 = header["data_sha256"]
        state.phases = [*(record["phase"] for record in records), *state.phases]
        state.score_matrix = [_row(record) for record in records]
        return state

    def keep_stream(self, record: Callable[[], dict[str, Any]]) -> None:
        """Write, once, what a continual state needs to know of the run's tasks."""

        def write() -> None:
            if not (self._states / STREAM).is_file():
                write_json(self._states / STREAM, record())

        ranks.on_first(write)  # not all may see the file at the same time

    def stream(self) -> dict[str, Any]:
        """What :meth:`keep_stream` wrote.

        Raises:
            UserError: there is none, as a run of an earlier version.
        """
        if not (self._states / STREAM).is_file():
            raise UserError(
                f"{self.path} holds no {STREAM} in its state/: no task is learnt there yet (the "
                "run's command goes on), or it is of an earlier version, which cannot be packed."
            )
        found: dict[str, Any] = read_json(self._states / STREAM)
        return found

    def parts_after(self, number: int) -> dict[str, Any]:
        """The parts as they were after so many tasks.

        Raises:
            UserError: they are not kept, or damaged.
        """
        folder = self._states / after_name(number)
        if not folder.is_dir():
            kept = sorted(path.name.removeprefix(AFTER) for path in self._states.glob(f"{AFTER}*"))
            listed = ", ".join(str(int(each)) for each in kept) or "none"
            raise UserError(
                f"{self.path} does not hold its state after task {number} any more, only after "
                f"{listed}: a run with keep_states=true keeps those after all tasks it learns."
            )
        return load_state(folder)

    def write_results(self, results: dict[str, Any]) -> None:
        """``results.json``."""
        write_json(self.path / "results.json", results)

    def results(self) -> dict[str, Any]:
        """What a finished run wrote."""
        found: dict[str, Any] = read_json(self.path / "results.json")
        return found

"""``kif pack``: a run's continual state, as a folder of its own, without model or data at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from kif_lightning.continual_state import (
    ContinualState,
    PastTask,
    is_state,
    past_task,
    read_state,
    write_state,
)
from kif_lightning.errors import UserError, nearest_names
from kif_lightning.run_state import RunFolder, RunState

NOT_OF_STATES = ("benchmark", "probe", "continue_from")
"""Keys of a run's settings that belong to its data, or to the state it went on from."""


def open_state(place: Path, after: str | None = None) -> ContinualState:
    """The continual state in a folder: a state that was written, or a run's.

    Args:
        place: a state's folder or a run's.
        after: of a run: the number (from 1) or the name of a task; None: the last one learnt.

    Raises:
        UserError: there is none, it is damaged, or it is not kept after that task.
    """
    if is_state(place):
        if after is not None:
            raise UserError(
                f"{place} holds the state after its last task alone: --after is for a run's folder."
            )
        return read_state(place)
    return state_of_run(place, after)


def pack(run: Path, to: Path, *, after: str | None = None, with_memory: bool = False) -> Path:
    """Write a run's state as a folder that another machine can go on from.

    Args:
        run: a run's folder, finished or not.
        to: a new folder.
        after: the number or name of the task to go back to; None: the last one learnt.
        with_memory: also the raw rows of past tasks that the method keeps.

    Returns:
        The folder.

    Raises:
        UserError: no run, a state that is not kept, a folder that holds something.
    """
    write_state(state_of_run(run, after), to, with_memory=with_memory)
    return to


def state_of_run(run: Path, after: str | None = None) -> ContinualState:
    """A run's state after a task; see :func:`open_state`."""
    if not (run / "config.yaml").is_file():
        raise UserError(
            f"Expected a run's folder or a continual state, but {run} holds neither config.yaml "
            "nor state.json: give the folder that a run named when it began, or one of kif pack."
        )
    folder = RunFolder(run)
    stream, reached = folder.stream(), folder.reached()
    if stream["at_once"]:
        raise UserError(
            "The run learnt all tasks at once: there is no state between tasks to go on from; its "
            "weights are in its adapter/."
        )
    before = stream.get("num_learnt", 0)
    if reached is None or reached.next_task <= before:
        raise UserError(f"{run} has not finished its first task yet: there is no state to take.")
    names = [task["name"] for task in stream["tasks"][: reached.next_task]]
    number = _number(after, names, before)
    parts = folder.parts_after(number)
    memory = parts.pop("memory")
    return ContinualState(
        config=_settings(run),
        tasks=tuple(_task(stream["tasks"][i], reached, i, number) for i in range(number)),
        protocols=tuple(stream["protocols"]),
        stand_ins=tuple(stream["stand_ins"]),
        parts=parts,
        memory=memory if stream["keeps_memory"] else None,
        keeps_memory=stream["keeps_memory"],
        parent=stream["parent"],
    )


def _task(record: dict[str, Any], reached: RunState, index: int, number: int) -> PastTask:
    row = reached.score_matrix[index][:number]
    return past_task(
        {
            **record,
            "phase": {key: v for key, v in reached.phases[index].items() if key != "probe"},
            "scores": {str(j): score for j, score in enumerate(row) if score is not None},
        }
    )


def _number(after: str | None, names: list[str], before: int) -> int:
    """How many tasks had been learnt.

    Args:
        after: number or name of a task; None: the last one.
        names: of all that have been.
        before: how many of them the run did not learn, as it went on from a state.
    """
    learnt, most = names[before:], len(names)
    if after is None:
        return most
    if after in learnt:
        return names.index(after) + 1
    if after.isdecimal() and before < int(after) <= most:
        return int(after)
    raise UserError(
        f"--after must be the number ({before + 1} to {most}) or the name of a task learnt in the "
        f"run, got {after}: {nearest_names(after, learnt)}."
    )


def _settings(run: Path) -> dict[str, Any]:
    """The run's settings without its data."""
    stored: Any = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))
    return {key: value for key, value in stored.items() if key not in NOT_OF_STATES}

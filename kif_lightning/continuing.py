"""A run that goes on from a continual state: its tasks, whether the state fits its model."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from kif_lightning.backbones.fingerprint import base_differences
from kif_lightning.continual_state import LAYOUT, ContinualState, PastTask
from kif_lightning.errors import UserError
from kif_lightning.interfaces import Benchmark, ChecksState, HasLayouts, Row, Task
from kif_lightning.run_state import RunState
from kif_lightning.storage import flat

if TYPE_CHECKING:
    from kif_lightning.runner import StreamRunner

OF_TASKS = (
    *("benchmark", "order_name", "order", "data_source", "data_sha256", "rows", "metrics"),
    *("decode", "continued_from"),
)
"""Keys of a protocol that belong to single tasks, or to the stream's place in a longer one."""
SLOTS = ("penalties", "gradient", "boundary")
"""Of a method, whose parts keep something from task to task."""
FREE = ("lora_dropout", "modules_to_save", "peft_version")
"""Settings of an adapter that may change from task to task: its weights stay the same."""


def continued(benchmark: Benchmark, state: ContinualState) -> Benchmark:
    """The stream so far, and behind it the benchmark's tasks that are new.

    A task learnt before that the benchmark has too, with the very same rows, is evaluated again;
    of others no row is at hand.

    Raises:
        UserError: no task is new; one of a name learnt before has other rows.
    """
    given = {task.name: task for task in benchmark.tasks}
    past = tuple(_known(task, given.get(task.name)) for task in state.tasks)
    learnt = {task.name for task in past}
    new = tuple(task for task in benchmark.tasks if task.name not in learnt)
    if not new:
        raise UserError(
            f"Nothing is left to learn: {', '.join(given)} {'has' if len(given) == 1 else 'have'} "
            "been learnt in the state already; add a task of another name."
        )
    longer = copy.copy(benchmark)
    longer.tasks = (*past, *new)
    longer.stand_in = benchmark.stand_in or any(task.stand_in for task in state.tasks)
    return longer


def _known(before: PastTask, given: Task | None) -> Task:
    if given is None:
        return before.task()
    now = (rows_digest(given.test), tuple(given.labels), given.metric)
    if now != (before.test_sha256, before.labels, before.metric):
        raise UserError(
            f"Task {before.name} was learnt before, from other data (its test rows, their number, "
            f"{before.test_rows} then and {len(given.test)} now, its labels or its metric "
            "changed): give the task another name to learn it as a new one, put the old file back "
            "to evaluate it, or leave it out with benchmark.order."
        )
    return given


def rows_digest(rows: Iterable[Row]) -> str:
    """sha256 of ids, inputs and outputs, in their order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps([row.id, row.input, row.output]).encode())
    return digest.hexdigest()


def require_fits(state: ContinualState, runner: StreamRunner, settings: Mapping[str, Any]) -> None:
    """Raise UserError, naming every difference, unless the state can go on in this very model.

    Args:
        state: to go on from.
        runner: with its model built.
        settings: the run's.
    """
    found = [
        *base_differences(state.parts["base"], runner.base),
        *_other_settings(state.config, settings),
        *_other_weights(state.parts["adapter"], runner),
        *_other_slots(state.parts, runner),
    ]
    if not found:
        found = _other_units(state.parts["boundary"], runner)
    if state.keeps_memory != (runner.parts.memory is not None):
        words = {True: "keeps rows of past tasks", False: "keeps none"}
        found.append(
            f"its method {words[state.keeps_memory]}, the present one "
            f"{words[not state.keeps_memory]}"
        )
    elif state.keeps_memory and state.memory is None:
        found.append(
            "its method works with rows of past tasks, which were left out when it was written "
            "(--with-memory writes them)"
        )
    if found:
        raise UserError(
            f"The state cannot go on in this run: {'; '.join(found)}. Use the state's own settings "
            "(kif extend takes them from it), or another state."
        )


def _other_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    then, here = (
        {
            "backbone.name": settings["backbone"]["name"],
            "backbone.mask_token": settings["backbone"].get("mask_token"),
            **flat(settings["method"]["adapter"], "method.adapter"),
        }
        for settings in (before, now)
    )
    return [
        f"{key} was {then.get(key)} and is {here.get(key)}"
        for key in sorted(then.keys() | here.keys())
        if then.get(key) != here.get(key) and key.rpartition(".")[2] not in FREE
    ]


def _other_weights(before: Mapping[str, Tensor], runner: StreamRunner) -> list[str]:
    adapter = runner.parts.adapter
    now = adapter.state_dict(runner.module.model)
    names = now.keys() | (before.keys() if adapter.shared else set())
    for name in sorted(names):
        shapes = [tuple(w[name].shape) if name in w else "absent" for w in (before, now)]
        if shapes[0] != shapes[1]:
            return [f"of the trained weights, {name} was {shapes[0]} and is {shapes[1]}"]
    return []


def _other_slots(before: Mapping[str, Any], runner: StreamRunner) -> list[str]:
    found = []
    for slot in SLOTS:
        names = sorted(before[slot]), sorted(getattr(runner.parts, slot))
        if names[0] != names[1]:
            then, now = (", ".join(each) or "none" for each in names)
            found.append(f"its method's {slot} were {then} and are {now}")
    return found


def _other_units(before: Mapping[str, Any], runner: StreamRunner) -> list[str]:
    for name, callback in runner.parts.boundary.items():
        if isinstance(callback, ChecksState):
            try:
                callback.check_state(runner.module, before[name])
            except UserError as error:
                return [str(error).rstrip(".")]
    return []


def first_run_state(state: ContinualState, num_tasks: int, sha256: dict[str, Any]) -> RunState:
    """Where a run stands that begins with the state; ``num_tasks``, ``sha256``: old tasks too."""
    padding = [None] * (num_tasks - len(state.tasks))
    return RunState(
        num_tasks=num_tasks,
        next_task=len(state.tasks),
        score_matrix=[[*row, *padding] for row in state.score_matrix],
        phases=[dict(task.phase) for task in state.tasks],
        data_sha256=sha256,
    )


def _provenance(benchmark: Benchmark, name: str) -> dict[str, Any]:
    """Where a task's rows came from; of what is told by the task, its own alone."""
    names = {task.name for task in benchmark.tasks}
    return {
        key: {name: value[name]}
        if isinstance(value, Mapping) and name in value and value.keys() <= names
        else value
        for key, value in benchmark.provenance.items()
    }


def _layout(layouts: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {LAYOUT: layouts[name]} if name in layouts else {}


def stream_record(runner: StreamRunner) -> dict[str, Any]:
    """What of a run's tasks goes into a continual state and stands nowhere else in its folder."""
    origin, parts, data = runner.parts.origin, runner.parts, runner.data
    past: Sequence[PastTask] = origin.tasks if origin else ()
    protocols = [*(origin.protocols if origin else ())]
    own = {key: value for key, value in runner.protocol().items() if key not in OF_TASKS}
    if own["selection"] is not None:
        own["selection"] = {"rows": own["selection"]["rows"]}  # the rest is counts of the tasks
    if own not in protocols:
        protocols.append(own)
    benchmark = parts.benchmark
    layouts = benchmark.layouts if isinstance(benchmark, HasLayouts) else {}
    new = [
        PastTask(
            name=task.name,
            kind=task.kind,
            metric=task.metric,
            labels=task.labels,
            sha256=dict(task.sha256),
            train_rows=len(task.train),
            test_rows=len(task.test),
            test_sha256=rows_digest(task.test),
            decode=data.decode_of(task),
            max_new_tokens=data.new_tokens_cap(task),
            data={**_provenance(benchmark, task.name), **_layout(layouts, task.name)},
            stand_in=runner.parts.new_data_stands_in,
            protocol=protocols.index(own),
        )
        for task in runner.tasks[len(past) :]
    ]
    return {
        "tasks": [{**vars(task), "phase": {}, "scores": {}} for task in (*past, *new)],
        "protocols": protocols,
        "stand_ins": parts.stand_ins,
        "keeps_memory": parts.memory is not None,
        "at_once": parts.stream.at_once,
        "num_learnt": parts.num_learnt,
        "parent": origin.digest if origin else None,
    }

"""The user's own tasks as a benchmark."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from kif_lightning.benchmarks.files import Records, named
from kif_lightning.benchmarks.limits import limited
from kif_lightning.benchmarks.orders import check_known, resolve_order
from kif_lightning.benchmarks.own.description import Place, TaskDescription, read_descriptions
from kif_lightning.benchmarks.rows import read_split, require_limits, rows_of, sha256_of, take
from kif_lightning.errors import MissingPartError, UserError
from kif_lightning.interfaces import Row, SourceTask, Split, Task

LISTED = "listed"
"""The order in which the file names the tasks."""


class OwnBenchmark:
    """Tasks of files, saved data sets or hub data sets that a yaml file describes.

    A task without a test split gets one: a share of its train rows, rows of the same input
    together, chosen by a hash of the input: another order of the rows changes nothing, and added
    rows hardly anything; closed answers: the share of each answer.

    Args:
        name: the config's name.
        file: the yaml file.
        order: ``listed``, or the task names themselves.
        train_rows: at most so many train rows a task (closed answers: balanced); None: all.
        test_rows: the same for test.
        seed: of the row limits.

    Raises:
        UserError: anything wrong with the file, the order, or a row, naming the place.
    """

    stand_in = False

    def __init__(
        self,
        *,
        name: str,
        file: str | None,
        order: str | Sequence[str] = LISTED,
        train_rows: int | None = None,
        test_rows: int | None = None,
        seed: int = 0,
    ) -> None:
        self.name = name
        require_limits(train_rows, test_rows)
        if file is None:
            raise MissingPartError(
                what="a description of your own tasks",
                bring="give benchmark.file=TASKS.yaml",
                stand_in="benchmark=long_sequence_mini",
            )
        listed, described = read_descriptions(Path(file))
        self.order_name, names = resolve_order(order, {LISTED: listed})
        check_known(names, list(described), file)
        shares = {n: described[n].test_share for n in names if "test" not in described[n].places}
        self.provenance: dict[str, Any] = {"source": "own", "test_held_out_of_train": shares}
        self.tasks: tuple[Task, ...] = tuple(
            limited(
                source_task(described[n]), train_rows=train_rows, test_rows=test_rows, seed=seed
            )
            for n in names
        )


def read_own_tasks(file: Path, *, tolerant: bool = False) -> list[SourceTask]:
    """All tasks of a yaml file, in its order."""
    listed, described = read_descriptions(file)
    check_known(listed, list(described), str(file))
    return [source_task(described[name], tolerant=tolerant) for name in listed]


def source_task(task: TaskDescription, *, tolerant: bool = False) -> SourceTask:
    """All rows of a task; a missing test split is held out of train."""
    splits = {split: _split(task, place, tolerant) for split, place in task.places.items()}
    if "test" not in splits:
        train = splits["train"]
        try:
            held_out = test_indices(task.name, train.rows, task.test_share, task.closed_answers)
        except UserError as error:
            if not tolerant:
                raise
            splits["train"] = replace(train, problems=(*train.problems, str(error)))
        else:
            others = set(range(len(train.rows))) - held_out
            splits["test"] = replace(train, rows=take(train.rows, held_out), problems=())
            splits["train"] = replace(train, rows=take(train.rows, others))
    return SourceTask(
        name=task.name,
        kind=task.kind,
        metric=task.metric,
        splits=splits,
        closed_answers=task.closed_answers,
    )


def test_indices(task: str, rows: Sequence[Row], share: float, closed_answers: bool) -> set[int]:
    """Which rows are held out for test.

    Raises:
        UserError: there are too few different inputs to have both.
    """
    by_input: dict[bytes, list[int]] = defaultdict(list)
    answer_of: dict[bytes, str] = {}
    for index, row in enumerate(rows):
        key = hashlib.blake2b(f"{task}/{row.input}".encode(), digest_size=8).digest()
        by_input[key].append(index)
        answer = row.output if closed_answers else ""
        # Of an input with several answers the same one, whichever stands first.
        answer_of[key] = min(answer, answer_of.get(key, answer))
    inputs_of: dict[str, list[bytes]] = defaultdict(list)
    for key, answer in answer_of.items():
        inputs_of[answer].append(key)
    held_out: set[int] = set()
    for keys in inputs_of.values():
        for key in sorted(keys)[: round(share * len(keys))]:
            held_out.update(by_input[key])
    if not held_out or len(held_out) == len(rows):
        raise UserError(
            f"Task {task} has {len(by_input)} different inputs, too few to hold {share:g} of them "
            "out for test: give it a test split or more rows."
        )
    return held_out


def _split(task: TaskDescription, place: Place, tolerant: bool) -> Split:
    settings = repr(asdict(task.layout))
    if place.path is not None and not place.path.is_dir():
        return read_split(place.path, task.layout, settings=settings, tolerant=tolerant)
    where, records = _dataset_records(place)
    problems: list[str] = []
    rows = tuple(
        rows_of(
            records,
            task.layout,
            lambda number: f"{where}, row {number}",
            problems=problems if tolerant else None,
        )
    )
    if not rows and not problems:
        raise UserError(f"{where} holds no row.")
    return Split(rows=rows, sha256=sha256_of(rows), problems=tuple(problems))


def _dataset_records(place: Place) -> tuple[str, Records]:
    """How messages call a data set's split, and its records; class numbers become their names."""
    from datasets import ClassLabel, DatasetDict, load_dataset, load_from_disk
    from datasets.exceptions import DatasetsError
    from datasets.utils.logging import disable_progress_bar

    disable_progress_bar()
    where = f"{place.hub or place.path}, split {place.split}"
    try:
        if place.hub is not None:
            data: Any = load_dataset(
                place.hub, place.config, split=place.split, revision=place.revision
            )
        else:
            data = load_from_disk(str(place.path))
    # RuntimeError: a data set that is a script.
    except (OSError, ValueError, KeyError, RuntimeError, DatasetsError) as error:
        told = " ".join(str(error).split())[:200]
        raise UserError(f"{where} cannot be had ({type(error).__name__}: {told}).") from error
    if isinstance(data, DatasetDict):
        if place.split not in data:
            raise UserError(
                f"{where}: there is no such split, only {named(data)}; give path and split, as in "
                f"{{path: {place.path}, split: {next(iter(data), 'train')}}}."
            )
        data = data[place.split]
    names = {k: f.names for k, f in data.features.items() if isinstance(f, ClassLabel)}

    def records() -> Records:
        for number, record in enumerate(data, start=1):
            for column, classes in names.items():
                value = record[column]
                record[column] = None if value is None or value < 0 else classes[value]
            yield number, record

    return where, records()

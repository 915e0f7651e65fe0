"""The user's own tasks as a benchmark."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from kif_lightning.benchmarks.files import Records, named
from kif_lightning.benchmarks.limits import limited
from kif_lightning.benchmarks.orders import check_known, resolve_order
from kif_lightning.benchmarks.own.description import Place, TaskDescription, read_descriptions
from kif_lightning.benchmarks.rows import (
    Problems,
    distinct_outputs,
    hold,
    read_split,
    require_limits,
    rows_of,
    sha256_of,
    take,
)
from kif_lightning.benchmarks.table import Places
from kif_lightning.errors import MissingPartError, UserError
from kif_lightning.interfaces import Row, SourceTask, Split, Task
from kif_lightning.online import hub_answers

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
        self.layouts = {name: asdict(described[name].layout) for name in names}
        self.tasks: tuple[Task, ...] = tuple(
            limited(
                source_task(described[n]), train_rows=train_rows, test_rows=test_rows, seed=seed
            )
            for n in names
        )


def read_own_tasks(file: Path, *, tolerant: bool = False) -> list[SourceTask]:
    """All tasks of a yaml file, in its order."""
    listed, described = read_descriptions(file)
    return [source_task(described[name], tolerant=tolerant) for name in listed]


def source_task(task: TaskDescription, *, tolerant: bool = False) -> SourceTask:
    """All rows of a task; a missing test split is held out of train.

    ``tolerant``: rows that cannot be read, and a split of which none can be had, are told in the
    splits' ``problems``; there is no test split if none can be held out.
    """
    splits = {split: _split(task, split, tolerant) for split in task.places}
    if "test" not in splits:
        train = splits["train"]
        try:
            held_out = test_indices(task.name, train.rows, task.test_share, task.closed_answers)
        except UserError:
            if not tolerant:
                raise
        else:
            others = np.setdiff1d(np.arange(len(train.rows)), held_out, assume_unique=True)
            sha256 = _digest(train.sha256, task.test_share)
            splits |= {
                "train": replace(train, rows=take(train.rows, others), sha256=sha256),
                "test": Split(rows=take(train.rows, held_out), sha256=sha256),
            }
    return SourceTask(
        name=task.name,
        kind=task.kind,
        metric=task.metric,
        splits=splits,
        closed_answers=task.closed_answers,
    )


def test_indices(task: str, rows: Sequence[Row], share: float, closed_answers: bool) -> Places:
    """Which rows are held out for test, ascending; of each answer's inputs one at least stays.

    Answers too rare for the share lend theirs to each other: of those with the largest remainder
    one input more is held out, until the whole share is. An input of several answers counts for
    one of them.

    Raises:
        UserError: there are too few different inputs to have both.
    """
    code_of = {
        output: i for i, output in enumerate(distinct_outputs(rows) if closed_answers else ())
    }
    pairs = np.fromiter(
        ((_number(f"{task}/{row.input}"), code_of.get(row.output, 0)) for row in rows),
        np.dtype([("input", np.uint64), ("answer", np.int64)]),
        len(rows),
    )
    inputs, input_of = np.unique(pairs["input"], return_inverse=True)
    # Of an input with several answers the same one, whichever stands first.
    answers = np.full(len(inputs), len(code_of), np.int64)
    np.minimum.at(answers, input_of, pairs["answer"])
    held_out = np.zeros(len(inputs), np.bool_)
    starts = np.unique(np.sort(answers), return_index=True)[1][1:]
    groups = np.split(np.argsort(answers, kind="stable"), starts)
    for of_answer, number in zip(groups, _shares([len(g) for g in groups], share), strict=True):
        held_out[of_answer[:number]] = True
    if not held_out.any():
        raise UserError(
            f"Task {task} has {len(inputs)} different inputs, too few to hold {share:g} of them "
            "out for test: give it a test split or more rows."
        )
    return np.flatnonzero(held_out[input_of])


def _shares(sizes: Sequence[int], share: float) -> list[int]:
    """How many of each group, one less than all at most; in sum as near to the share as can be."""
    quotas = [share * size for size in sizes]
    numbers = [min(int(quota), size - 1) for quota, size in zip(quotas, sizes, strict=True)]
    missing = round(share * sum(sizes)) - sum(numbers)
    remainders = [quota - int(quota) for quota in quotas]
    for group in sorted(range(len(sizes)), key=lambda i: -remainders[i]):
        if missing > 0 and remainders[group] > 0 and numbers[group] < sizes[group] - 1:
            numbers[group] += 1
            missing -= 1
    return numbers


def _number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _split(task: TaskDescription, name: str, tolerant: bool) -> Split:
    try:
        split = _read(task, name, tolerant)
    except UserError as error:
        if not tolerant:
            raise
        return Split(rows=(), sha256="", problems=(str(error),), num_problems=1)
    # The rows are what the description makes of the file.
    described = (task.kind, task.metric, asdict(task.layout))
    return replace(split, sha256=_digest(split.sha256, described))


def _read(task: TaskDescription, name: str, tolerant: bool) -> Split:
    place = task.places[name]
    settings = repr(asdict(task.layout))
    if place.path is not None and not place.path.is_dir():
        return read_split(place.path, task.layout, settings=settings, tolerant=tolerant)
    where, version, records = _dataset_records(place, place.split or name)
    problems = Problems()
    rows, problems = hold(
        rows_of(
            records,
            task.layout,
            lambda number: f"{where}, row {number}",
            problems=problems if tolerant else None,
        ),
        problems,
        decides=[where, version, settings, tolerant],
    )
    if not rows and not tolerant:
        raise UserError(f"{where} holds no row.")
    return Split(
        rows=rows,
        sha256=sha256_of(rows),
        problems=tuple(problems.told),
        num_problems=problems.number,
    )


def _dataset_records(place: Place, split: str) -> tuple[str, str, Records]:
    """How messages call a data set's split, its fingerprint, and its records.

    Class numbers become their names.
    """
    import huggingface_hub
    from datasets import ClassLabel, DatasetDict, load_dataset, load_from_disk
    from datasets.exceptions import DatasetsError
    from datasets.utils.logging import CRITICAL, disable_progress_bar, set_verbosity

    # It logs what it raises, and shows bars of its own.
    set_verbosity(CRITICAL)
    disable_progress_bar()
    where = f"{place.hub or place.path}, split {split}"
    if place.hub and not huggingface_hub.constants.HF_HUB_OFFLINE and not hub_answers():
        raise UserError(
            f"{where} cannot be had, as the hub cannot be reached: connect, set HF_HUB_OFFLINE=1 "
            "if this data set was loaded here before, or name a folder saved by datasets."
        )
    try:
        if place.hub is not None:
            data: Any = load_dataset(place.hub, place.config, split=split, revision=place.revision)
        else:
            data = load_from_disk(str(place.path))
    # RuntimeError: a data set that is a script.
    # IndexError: a saved folder without rows.
    except (OSError, ValueError, LookupError, RuntimeError, DatasetsError) as error:
        told = " ".join(str(error).split())[:200]
        raise UserError(f"{where} cannot be had ({type(error).__name__}: {told}).") from error
    if isinstance(data, DatasetDict):
        if split not in data:
            raise UserError(
                f"{where}: there is no such split, only {named(data)}; give path and split, as in "
                f"{{path: {place.path}, split: {next(iter(data), 'train')}}}."
            )
        data = data[split]
    elif place.path is not None and place.split is not None:
        raise UserError(f"{where}: the folder is one data set without splits: leave 'split' out.")
    names = {k: f.names for k, f in data.features.items() if isinstance(f, ClassLabel)}

    def records() -> Records:
        for number, record in enumerate(data, start=1):
            for column, classes in names.items():
                value = record[column]
                record[column] = None if value is None or value < 0 else classes[value]
            yield number, record

    return where, data._fingerprint, records()

"""The data doctor at work: on files (``kif doctor``), and on a run's own rows before training."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import OmegaConf
from tqdm.auto import tqdm

from kif_lightning.assembly import Parts
from kif_lightning.benchmarks.doctor import TaskReport, examine, report_json
from kif_lightning.benchmarks.folder import (
    DEFAULT_TASK,
    KINDS,
    read_manifest,
    read_task,
    task_names,
)
from kif_lightning.benchmarks.own import read_own_tasks
from kif_lightning.benchmarks.own.description import METRIC_OF_KIND
from kif_lightning.benchmarks.rows import distinct_outputs
from kif_lightning.composing import composed
from kif_lightning.errors import MissingPartError, UserError, nearest_names, require_choice
from kif_lightning.interfaces import Row, SourceTask, Split, Task
from kif_lightning.metrics.text import normalise_answer
from kif_lightning.paths import cache_dir, option_names
from kif_lightning.storage import read_json, write_json

log = logging.getLogger(__name__)
VERSION = 2
"""Of what the doctor finds: another one makes the cache's reports void."""
LABEL_CHARACTERS, ROWS_A_LABEL = 60, 5
"""A task that nothing describes counts as classification if its answers are as short and few."""


class RowTokens:
    """How a backbone counts a row's tokens, and how many it takes.

    Args:
        backbone: with ``max_source_tokens`` and ``max_target_tokens``.
    """

    def __init__(self, backbone: Any) -> None:
        self.max_source_tokens: int = backbone.max_source_tokens
        self.max_target_tokens: int = backbone.max_target_tokens
        self._uncut = copy.copy(backbone)
        self._uncut.max_source_tokens = self._uncut.max_target_tokens = sys.maxsize

    def count(self, row: Row) -> tuple[int, int]:
        """Tokens of prompt and answer before any cut."""
        example = self._uncut.encode(row)
        return len(example.prompt_ids), len(example.answer_ids)


def named_backbone(option: str) -> Any:
    """The backbone of a config, whose tokenizer must be at hand.

    Args:
        option: its name, or ``NAME=FOLDER`` with a saved copy.

    Raises:
        UserError: there is none of that name, or it cannot be had.
    """
    name, _, copied = option.partition("=")
    known = option_names("backbone")
    if name not in known:
        raise UserError(f"--backbone={name}: {nearest_names(name, known)}.")
    config = composed([f"backbone={name}"])
    OmegaConf.resolve(config.backbone)
    if copied:
        if not (Path(copied) / "config.json").is_file():
            raise UserError(
                f"--backbone={option}: expected a folder with a saved model (config.json), got "
                f"{copied!r}."
            )
        config.backbone.path = copied
    backbone = instantiate(config.backbone)
    try:
        backbone.require_available()
    except MissingPartError as error:
        # Its advice is for a run's command line, which takes overrides.
        raise MissingPartError(
            what=error.what,
            bring=error.bring.replace("backbone.path=", f"--backbone={name}="),
            stand_in=f"--{error.stand_in}",
        ) from error
    return backbone


@dataclass(frozen=True)
class Described:
    """Tasks to examine, and the names of those of which nothing says what they are."""

    tasks: list[SourceTask]
    undescribed: list[str]


def read_tasks(path: Path, kind: str | None = None) -> Described:
    """The tasks of a yaml file, of a folder of tasks, or of a folder of such folders.

    Args:
        path: where they are.
        kind: of tasks that no manifest describes; None: guessed from their answers.

    Raises:
        UserError: there is no task, or a file may not be read.
    """
    if kind is not None:
        require_choice("--kind", kind, KINDS)
    with _telling_unreadable(path):
        return _read_tasks(path, kind)


@contextmanager
def _telling_unreadable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{error.filename or path} cannot be read ({error.strerror or error}): see to its "
            "permissions."
        ) from error


def _read_tasks(path: Path, kind: str | None) -> Described:
    if path.suffix in (".yaml", ".yml"):
        return Described(read_own_tasks(path, tolerant=True), [])
    if not path.is_dir():
        raise UserError(f"Expected a folder of tasks or a yaml file that describes them: {path}.")
    folders = [path] if task_names(path) else sorted(p for p in path.iterdir() if task_names(p))
    if not folders:
        yamls = " or ".join(str(file) for file in sorted(path.glob("*.y*ml")))
        raise UserError(
            f"{path} holds no task: expected <task>/train.jsonl and <task>/test.jsonl; a yaml file "
            "that describes CSV, Parquet or other files is to be named itself"
            f"{f', {yamls}' if yamls else ''}."
        )
    tasks, undescribed = [], []
    for folder in folders:
        described = read_manifest(folder)
        for place in (folder / name for name in task_names(folder)):
            description = {**DEFAULT_TASK, **described.get(place.name, {})}
            task = read_task(place, description, tolerant=True)
            name = task.name if folder == path else f"{folder.name}/{task.name}"
            if task.name not in described:
                task = _as_kind(task, kind)
                undescribed.append(name)
            tasks.append(replace(task, name=name))
    return Described(tasks, undescribed)


def open_tasks(folder: Path, names: Iterable[str]) -> list[str]:
    """Those of a folder's tasks that no manifest describes and whose answers look like free texts.

    Raises:
        UserError: a row may not be read.
    """
    described = read_manifest(folder)
    return [
        name
        for name in names
        if name not in described
        and _as_kind(read_task(folder / name, DEFAULT_TASK), None).kind == "generation"
    ]


def _as_kind(task: SourceTask, kind: str | None) -> SourceTask:
    """The task as what it is said to be, or looks like."""
    rows = task.splits["train"].rows
    answers = distinct_outputs(rows)
    if kind is None:
        few = len(answers) * ROWS_A_LABEL <= len(rows)
        short = all(len(answer) <= LABEL_CHARACTERS for answer in answers)
        kind = "classification" if few and short else "generation"
    lettered = all(len(normalise_answer(answer)) <= 1 for answer in answers)
    closed = kind == "classification" or (kind == "multiple_choice" and lettered)
    known: Any = kind
    return replace(task, kind=known, metric=METRIC_OF_KIND[kind], closed_answers=closed)


def examine_all(tasks: Iterable[SourceTask], tokens: RowTokens | None = None) -> dict[str, Any]:
    """The report of all tasks as plain JSON, with a progress bar on a terminal."""
    listed = list(tasks)
    bar = tqdm(listed, desc="examining", disable=not sys.stderr.isatty(), leave=False)
    reports: list[TaskReport] = [examine(task, count_tokens=tokens) for task in bar]
    return report_json(reports)


def examine_run(parts: Parts) -> dict[str, Any]:
    """The report of the very rows a run trains and tests on, cached by their fingerprint."""
    file = cache_dir() / "doctor" / f"{_fingerprint(parts)}.json"
    with suppress(UserError):  # absent or damaged
        kept: Any = read_json(file)
        if isinstance(kept, dict) and {"findings", "counts"} <= kept.keys():
            return kept
    report = examine_all(map(_as_source, _at_hand(parts)), RowTokens(parts.backbone))
    try:
        write_json(file, report)
    except OSError as error:
        log.warning(
            "What was found in the data cannot be kept in %s (%s) and will be looked for again: "
            "set KIF_CACHE to a folder that can be written.",
            file.parent,
            error.strerror,
        )
    return report


def _as_source(task: Task) -> SourceTask:
    rows: dict[str, Sequence[Row]] = {"train": task.train, "test": task.test}
    if task.dev:
        rows["dev"] = task.dev
    return SourceTask(
        name=task.name,
        kind=task.kind,
        metric=task.metric,
        splits={name: Split(rows=split, sha256="") for name, split in rows.items()},
        closed_answers=bool(task.labels),
    )


def _at_hand(parts: Parts) -> list[Task]:
    """The tasks of which there are rows."""
    return [task for task in parts.benchmark.tasks if task.at_hand]


def _fingerprint(parts: Parts) -> str:
    """Of everything that decides the report: rows, kinds, and how the backbone counts tokens."""
    tokens = RowTokens(parts.backbone)
    limits = [tokens.max_source_tokens, tokens.max_target_tokens]
    # The tokenizer by what it does: a local folder's can change under the same name.
    tasks = _at_hand(parts)
    probe = parts.backbone.encode(tasks[0].test[0]).prompt_ids
    digest = hashlib.sha256(json.dumps([VERSION, limits, parts.backbone.name, probe]).encode())
    for task in tasks:
        digest.update(json.dumps([task.name, task.kind, task.metric, task.labels]).encode())
        for rows in (task.train, task.test, task.dev):
            digest.update(f"{len(rows)} rows\n".encode())
            for row in rows:
                digest.update(repr((row.id, row.input, row.output)).encode())
    return digest.hexdigest()[:32]

"""The data doctor at work: on files (``kif doctor``), and on a run's own rows before training."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from tqdm.auto import tqdm

from kif_lightning.assembly import Parts
from kif_lightning.benchmarks.doctor import TaskReport, examine, report_json
from kif_lightning.benchmarks.folder import KINDS, read_folder, read_manifest, task_names
from kif_lightning.benchmarks.own import read_own_tasks
from kif_lightning.benchmarks.rows import distinct_outputs
from kif_lightning.errors import UserError, nearest_names, require_choice
from kif_lightning.interfaces import Row, SourceTask, Split, Task
from kif_lightning.paths import cache_dir, conf_dir
from kif_lightning.storage import read_json, write_json

log = logging.getLogger(__name__)
VERSION = 1
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


def named_backbone(name: str) -> Any:
    """The backbone of a config, whose tokenizer must be at hand.

    Raises:
        UserError: there is none of that name, or it cannot be had.
    """
    folder = Path(conf_dir()) / "backbone"
    known = [path.stem for path in folder.glob("*.yaml") if not path.stem.startswith("_")]
    if name not in known:
        raise UserError(f"--backbone={name}: {nearest_names(name, known)}.")
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        config = compose("config", overrides=[f"backbone={name}"])
    OmegaConf.resolve(config.backbone)
    backbone = instantiate(config.backbone)
    backbone.require_available()
    return backbone


@dataclass(frozen=True)
class Described:
    """Tasks to examine, and which of them had to be guessed to be classification."""

    tasks: list[SourceTask]
    guessed: list[str]


def read_tasks(path: Path, kind: str | None = None) -> Described:
    """The tasks of a yaml file, of a folder of tasks, or of a folder of such folders.

    Args:
        path: where they are.
        kind: of tasks that no manifest describes; None: guessed from their answers.

    Raises:
        UserError: there is no task.
    """
    if kind is not None:
        require_choice("--kind", kind, KINDS)
    if path.suffix in (".yaml", ".yml"):
        return Described(read_own_tasks(path, tolerant=True), [])
    if not path.is_dir():
        raise UserError(f"Expected a folder of tasks or a yaml file that describes them: {path}.")
    folders = [path] if task_names(path) else sorted(p for p in path.iterdir() if task_names(p))
    if not folders:
        described = " or ".join(str(file) for file in sorted(path.glob("*.y*ml")))
        raise UserError(
            f"{path} holds no task: expected <task>/train.jsonl and <task>/test.jsonl; a yaml file "
            "that describes CSV, Parquet or other files is to be named itself"
            f"{f', {described}' if described else ''}."
        )
    tasks, guessed = [], []
    for folder in folders:
        described = read_manifest(folder)
        for task in read_folder(folder, task_names(folder), tolerant=True):
            name = task.name if folder == path else f"{folder.name}/{task.name}"
            if task.name not in described:
                task = _as_kind(task, kind)
                guessed += [name] * (kind is None)
            tasks.append(replace(task, name=name))
    return Described(tasks, guessed)


def _as_kind(task: SourceTask, kind: str | None) -> SourceTask:
    """The task as what it is said to be, or looks like."""
    if kind is None:
        rows = task.splits["train"].rows
        answers = distinct_outputs(rows)
        few = len(answers) * ROWS_A_LABEL <= len(rows)
        short = all(len(answer) <= LABEL_CHARACTERS for answer in answers)
        kind = "classification" if few and short else "generation"
    metric = "exact_match" if kind in ("classification", "multiple_choice") else "rouge_l"
    known: Any = kind
    return replace(task, kind=known, metric=metric, closed_answers=kind == "classification")


def examine_all(tasks: Iterable[SourceTask], tokens: RowTokens | None = None) -> dict[str, Any]:
    """The report of all tasks as plain JSON, with a progress bar on a terminal."""
    listed = list(tasks)
    bar = tqdm(listed, desc="examining", disable=not sys.stderr.isatty(), leave=False)
    reports: list[TaskReport] = [examine(task, count_tokens=tokens) for task in bar]
    return report_json(reports)


def examine_run(parts: Parts) -> dict[str, Any]:
    """The report of the very rows a run trains and tests on, cached by their fingerprint."""
    file = cache_dir() / "doctor" / f"{_fingerprint(parts)}.json"
    if file.is_file():
        report: dict[str, Any] = read_json(file)
        return report
    report = examine_all(map(_as_source, parts.benchmark.tasks), RowTokens(parts.backbone))
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


def _fingerprint(parts: Parts) -> str:
    """Of everything that decides the report: rows, kinds, and how the backbone counts tokens."""
    tokens = RowTokens(parts.backbone)
    limits = [tokens.max_source_tokens, tokens.max_target_tokens]
    # The tokenizer by what it does: a local folder's can change under the same name.
    probe = parts.backbone.encode(parts.benchmark.tasks[0].test[0]).prompt_ids
    digest = hashlib.sha256(json.dumps([VERSION, limits, parts.backbone.name, probe]).encode())
    for task in parts.benchmark.tasks:
        digest.update(json.dumps([task.name, task.kind, task.metric, task.labels]).encode())
        digest.update(json.dumps(dict(task.sha256)).encode())
        for rows in (task.train, task.test, task.dev):
            digest.update(json.dumps([row.id for row in rows]).encode())
    return digest.hexdigest()[:32]

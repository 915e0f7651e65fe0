"""A benchmark read from a local folder: ``<data_dir>/<task>/{train,test}.jsonl``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from kif_lightning.benchmarks.orders import check_known, resolve_order
from kif_lightning.benchmarks.rows import limit_rows, read_rows, require_limits
from kif_lightning.errors import MissingPartError, UserError
from kif_lightning.interfaces import Task, TaskKind
from kif_lightning.seeding import generator

_METRIC_OF_MANIFEST = {"accuracy": "exact_match", "rouge_l": "rouge_l"}


class LocalBenchmark:
    """Tasks in a fixed order, rows from JSON-lines files with the keys id, input, output.

    A task's kind and metric come from ``tasks`` (the benchmark's yaml), else from a
    ``manifest.json`` in or beside the folder, else from ``default_task``.

    Args:
        name: the config's name.
        data_dir: the folder.
        orders: order name -> task names, as published.
        order: a name of ``orders``, or the task names themselves.
        train_rows: at most so many train rows a task (classification: class-balanced); None: all.
        test_rows: the same for test.
        seed: of the row limits.
        tasks: task name -> {kind, metric}.
        default_task: {kind, metric} of tasks named nowhere.
        force_metric: one metric for every task instead (SAPT: ``rouge_l`` on all of SuperNI).

    Raises:
        UserError: anything wrong with folder, order, limits or rows, naming the place.
    """

    stand_in = False

    def __init__(
        self,
        *,
        name: str,
        data_dir: str | None,
        orders: Mapping[str, Sequence[str]],
        order: str | Sequence[str],
        train_rows: int | None = None,
        test_rows: int | None = None,
        seed: int = 0,
        tasks: Mapping[str, Mapping[str, str]] | None = None,
        default_task: Mapping[str, str] | None = None,
        force_metric: str | None = None,
    ) -> None:
        self.name = name
        require_limits(train_rows, test_rows)
        folder = _existing_folder(name, data_dir)
        self.order_name, names = resolve_order(order, orders)
        check_known(names, _task_folders(folder), str(folder))
        from_manifest, from_yaml = _manifest_tasks(folder), tasks or {}
        default = dict(default_task or {"kind": "generation", "metric": "rouge_l"})
        self.tasks: tuple[Task, ...] = tuple(
            _read_task(
                folder / task_name,
                {**default, **from_manifest.get(task_name, {}), **from_yaml.get(task_name, {})},
                limits=(train_rows, test_rows),
                seed=seed,
                force_metric=force_metric,
            )
            for task_name in names
        )


def _existing_folder(name: str, data_dir: str | None) -> Path:
    if data_dir is None:
        raise MissingPartError(
            what=f"the rows of benchmark {name}",
            bring="give benchmark.data_dir=FOLDER (with <task>/train.jsonl and <task>/test.jsonl)",
            stand_in="benchmark=long_sequence_mini",
        )
    folder = Path(data_dir)
    if not folder.is_dir():
        raise UserError(f"benchmark.data_dir must be an existing folder, got {data_dir!r}.")
    if not _task_folders(folder):
        raise UserError(
            f"benchmark.data_dir={data_dir!r} holds no task: expected folders with train.jsonl and "
            "test.jsonl in it."
        )
    return folder


def _task_folders(folder: Path) -> list[str]:
    return sorted(path.parent.name for path in folder.glob("*/train.jsonl"))


def _manifest_tasks(folder: Path) -> dict[str, dict[str, str]]:
    """Kind and metric of each task from the data's manifest; empty where there is none."""
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
                "kind": entry["kind"],
                "metric": _METRIC_OF_MANIFEST.get(entry["metric"], entry["metric"]),
            }
            for name, entry in tasks.items()
            if "kind" in entry and "metric" in entry
        }
    return {}


def _read_task(
    folder: Path,
    description: Mapping[str, str],
    *,
    limits: tuple[int | None, int | None],
    seed: int,
    force_metric: str | None,
) -> Task:
    kind = description["kind"]
    if kind not in ("classification", "generation"):
        raise UserError(
            f"The kind of task {folder.name} must be classification or generation, got {kind!r}."
        )
    train, train_sha = read_rows(folder / "train.jsonl")
    test, test_sha = read_rows(folder / "test.jsonl")
    balanced = kind == "classification"
    labels = tuple(sorted({row.output for row in train})) if balanced else ()
    return Task(
        name=folder.name,
        kind=cast(TaskKind, kind),
        metric=force_metric or description["metric"],
        train=limit_rows(
            train,
            limits[0],
            balanced=balanced,
            generator=generator(seed, folder.name, "train rows"),
        ),
        test=limit_rows(
            test, limits[1], balanced=balanced, generator=generator(seed, folder.name, "test rows")
        ),
        labels=labels,
        sha256={"train": train_sha, "test": test_sha},
    )

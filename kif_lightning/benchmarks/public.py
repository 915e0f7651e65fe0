"""A published benchmark: its orders, and its rows from a local folder or from the hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from kif_lightning.benchmarks.folder import (
    DEFAULT_TASK,
    read_manifest,
    read_task,
    require_folder,
    task_names,
)
from kif_lightning.benchmarks.limits import limited
from kif_lightning.benchmarks.orders import check_known, resolve_order
from kif_lightning.benchmarks.rows import require_limits
from kif_lightning.errors import MissingPartError, UserError
from kif_lightning.interfaces import SourceTask, Task


class PublicBenchmark:
    """Tasks in a fixed order.

    Rows of a local folder have the keys id, input, output; a task's kind and metric come from
    ``tasks`` (the benchmark's yaml), else from a ``manifest.json`` in or beside the folder, else
    from ``default_task``. Rows of the hub are made as :mod:`kif_lightning.benchmarks.hub` tells.

    Args:
        name: the config's name.
        source: ``local``: the files of ``data_dir``; ``hub``: the public data sets.
        data_dir: the folder (local).
        orders: order name -> task names, as published.
        order: a name of ``orders``, or the task names themselves.
        train_rows: at most so many train rows a task (closed answers: balanced); None: all.
        test_rows: the same for test.
        seed: of the row limits.
        tasks: task name -> {kind, metric}.
        default_task: {kind, metric} of tasks named nowhere.
        force_metric: one metric for every task instead (SAPT: ``rouge_l`` on all of SuperNI).
        collection: which of the hub's recipes (hub).
        size: which of the published sizes (hub); None: ``1000_per_task``.
        draw_seed: of the rows drawn to that size, the same for runs of all seeds (hub); None: 0.
        mirror: a folder with copies of the data sets, laid out as on the hub (hub); None: the hub.

    Raises:
        UserError: anything wrong with folder, order, limits or rows, naming the place.
    """

    stand_in = False

    def __init__(
        self,
        *,
        name: str,
        source: Literal["local", "hub"] = "local",
        data_dir: str | None = None,
        orders: Mapping[str, Sequence[str]],
        order: str | Sequence[str],
        train_rows: int | None = None,
        test_rows: int | None = None,
        seed: int = 0,
        tasks: Mapping[str, Mapping[str, str]] | None = None,
        default_task: Mapping[str, str] | None = None,
        force_metric: str | None = None,
        collection: str = "long_sequence",
        size: str | None = None,
        draw_seed: int | None = None,
        mirror: str | None = None,
    ) -> None:
        self.name = name
        require_limits(train_rows, test_rows)
        if source not in ("local", "hub"):
            raise UserError(f"benchmark.source must be 'local' or 'hub', got {source!r}.")
        if source == "hub" and data_dir is not None:
            raise UserError(
                "benchmark.data_dir is for benchmark.source=local: leave one of the two out "
                "(copies of the hub's data sets: benchmark.mirror=FOLDER)."
            )
        for key, value in (("mirror", mirror), ("size", size), ("draw_seed", draw_seed)):
            if source == "local" and value is not None:
                raise UserError(
                    f"benchmark.{key} is for benchmark.source=hub: add it, or leave both."
                )
        self.order_name, names = resolve_order(order, orders)
        self.provenance: dict[str, Any] = {"source": source}
        if source == "hub":
            known = sorted({task for published in orders.values() for task in published})
            check_known(names, known, f"the hub's recipe of {name}")
            # Takes a second to import, and only a hub run needs it.
            from kif_lightning.benchmarks.hub import hub_origins, hub_tasks

            drawn: dict[str, Any] = {
                "size": "1000_per_task" if size is None else size,
                "draw_seed": 0 if draw_seed is None else draw_seed,
            }
            sources = hub_tasks(collection, names, **drawn, mirror=mirror)
            self.provenance |= {
                **drawn,
                "mirror": mirror is not None,
                "data_sets": hub_origins(collection, names, mirror=mirror),
            }
        else:
            sources = _local(name, data_dir, names, tasks or {}, default_task or DEFAULT_TASK)
        self.tasks: tuple[Task, ...] = tuple(
            limited(
                task,
                train_rows=train_rows,
                test_rows=test_rows,
                seed=seed,
                force_metric=force_metric,
            )
            for task in sources
        )


def _local(
    name: str,
    data_dir: str | None,
    names: Sequence[str],
    from_yaml: Mapping[str, Mapping[str, str]],
    default: Mapping[str, str],
) -> list[SourceTask]:
    if data_dir is None:
        raise MissingPartError(
            what=f"the rows of benchmark {name}",
            bring="give benchmark.data_dir=FOLDER (with <task>/train.jsonl and <task>/test.jsonl) "
            "or, with a network, benchmark.source=hub",
            stand_in="benchmark=long_sequence_mini",
        )
    folder = require_folder(data_dir)
    check_known(names, task_names(folder), str(folder))
    from_manifest = read_manifest(folder)
    return [
        read_task(
            folder / task, {**default, **from_manifest.get(task, {}), **from_yaml.get(task, {})}
        )
        for task in names
    ]

"""Cost of a task as their number grows to 200: seconds, memory, bytes on the disk.

A tiny random T5 learns 200 tiny generated tasks in one run of the package, evaluation left for the
end (``evaluation.matrix=final_row``). A task's cost must stay flat: tasks 151 to 200 against tasks
11 to 60. It counts from one learnt task's state on the disk to the next one's, without evaluation:
so the state saved after an evaluation, and whatever else stands between two tasks, is in it. With a
memory (``kif_m``) the rows kept, and the steps that replay them, grow by the method's definition:
told apart, without a target.

    python experiments/benchmarks/growth.py                         # 2 to 3 minutes on 2 cores
    python experiments/benchmarks/growth.py --methods kif kif_m     # longer: replay grows
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
from our_side import composed, save_random_t5
from side_by_side import entry, machine, spread, write_result
from transformers import AutoTokenizer

from kif_lightning import launch
from kif_lightning.backbones import bundled_folder
from kif_lightning.reporting.console import RunConsole
from kif_lightning.run_state import RunFolder, RunState

LABELS = ("good", "bad")
PAGE = os.sysconf("SC_PAGE_SIZE")
MOST_KIB = 64
"""A task may add so much to the process. Its scores, record and tokens are a few KiB, the rest is
how the allocator splits memory; a Trainer kept alive with its optimizer would be more: weights,
gradients and two moments are 96 KiB here.
"""


def save_model(folder: Path) -> Path:
    """A random T5, 2 + 2 layers of width 32, with the bundled tokenizer."""
    vocabulary = len(AutoTokenizer.from_pretrained(bundled_folder("t5_nano")))
    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    return save_random_t5(folder, "t5_small", vocab_size=vocabulary, **sizes)


def save_tasks(folder: Path, number: int, rows: int) -> list[str]:
    """Every task with the same numbers of rows and words."""
    names = [f"task{index:03d}" for index in range(number)]
    for name in names:
        (folder / name).mkdir(parents=True)
        for split, size in (("train", rows), ("test", 2)):
            lines = [
                json.dumps(
                    {
                        "id": f"{name}-{split}-{i}",
                        "input": f"is this {name} {LABELS[i % 2]} or not ? case {i} of {split}",
                        "output": LABELS[i % 2],
                    }
                )
                for i in range(size)
            ]
            (folder / name / f"{split}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    return names


class Watch:
    """Stands in for :meth:`RunFolder.save`: looks at clock, memory and disk after each boundary."""

    def __init__(self, save: Callable[..., None]) -> None:
        self.save = save
        self.seconds: list[float] = []
        self.resident_kib: list[int] = []
        self.state_bytes: list[int] = []
        self.memory_rows: list[int] = []
        self._last = perf_counter()

    def __call__(self, folder: RunFolder, state: RunState, parts: Any = None) -> None:
        self.save(folder, state, parts)
        if parts is None:
            return
        judged = state.phases[-2]["seconds"]["evaluate"] if len(state.phases) > 1 else 0.0
        self.seconds.append(perf_counter() - self._last - judged)
        self.resident_kib.append(resident_kib())
        files = (folder.path / "state").rglob("*")
        rewritten = [path for path in files if path.is_file() and path.suffix != ".jsonl"]
        self.state_bytes.append(sum(path.stat().st_size for path in rewritten))
        self.memory_rows.append(state.phases[-1]["memory_rows"])
        self._last = perf_counter()


def resident_kib() -> int:
    """What the process holds in memory now (Linux)."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * PAGE // 1024


def run(method: str, model: Path, data: Path, names: list[str], folder: Path) -> Watch:
    settings = [
        "backbone=t5_nano",
        "backbone.source=hub",
        f"backbone.path={model}",
        "benchmark=long_sequence",
        f"benchmark.data_dir={data}",
        f"benchmark.order=[{','.join(names)}]",
        f"method={method}",
        "evaluation.matrix=final_row",
        "optim.batch_size=4",
        f"run_dir={folder}",
    ]
    config = composed(*settings)
    watch, save = Watch(RunFolder.save), RunFolder.save
    RunFolder.save = lambda *given: watch(*given)  # type: ignore[method-assign]
    try:
        launch.run(config, RunConsole())
    finally:
        RunFolder.save = save  # type: ignore[method-assign]
    return watch


def windows(number: int) -> tuple[slice, slice]:
    """An early and a late quarter: tasks 11 to 60 and 151 to 200 of 200."""
    return slice(number // 20, number // 20 + number // 4), slice(number - number // 4, number)


def per_task(values: list[int], part: slice) -> float:
    """Growth a task: the median of a window's later half less that of its earlier one."""
    half = (part.stop - part.start) // 2
    earlier = values[part.start : part.start + half]
    later = values[part.stop - half : part.stop]
    return (median(later) - median(earlier)) / (part.stop - half - part.start)


def entries_of(method: str, watch: Watch, number: int) -> list[dict[str, Any]]:
    early, late = windows(number)
    whole = slice(early.start, number)
    seconds = [value / median(watch.seconds[early]) for value in watch.seconds[late]]
    bytes_a_task = per_task(watch.state_bytes, whole)
    flat = max(watch.memory_rows) == 0
    kept = "" if flat else f", {max(watch.memory_rows)} rows kept in the end"
    told = f"{method}, {number} tasks{kept}"
    return [
        entry(
            f"{told}: seconds of one of the last {number // 4} tasks as a share of an early one's",
            spread(seconds),
            at_most=1.1 if flat else None,
            seconds=[round(value, 4) for value in watch.seconds],
        ),
        entry(
            f"{told}: growth of the process a task",
            spread([per_task(watch.resident_kib, whole)]),
            at_most=MOST_KIB if flat else None,
            unit="KiB",
            resident_kib=watch.resident_kib,
        ),
        entry(
            f"{told}: growth of the state that a boundary rewrites, a task",
            spread([bytes_a_task]),
            at_most=8.0 if flat else None,
            unit="bytes",
            state_bytes=watch.state_bytes,
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--rows", type=int, default=16, help="train rows of a task")
    parser.add_argument("--methods", nargs="+", default=["kif"])
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    started_on = machine()
    entries: list[dict[str, Any]] = []
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = save_model(folder / "model")
        names = save_tasks(folder / "data", options.tasks, options.rows)
        for method in options.methods:
            watch = run(method, model, folder / "data", names, folder / method)
            entries += entries_of(method, watch, options.tasks)
    write_result("growth", entries, started_on=started_on, output=options.output)


if __name__ == "__main__":
    main()

"""Cost of a state's extension as its tasks grow to 100: seconds, by phase, and bytes on the disk.

A tiny random T5 learns one tiny generated task; then ``kif extend`` adds 99 more, one a call, each
from the folder that the call before wrote. An extension's cost must stay flat: tasks 91 to 100
against tasks 2 to 11. It counts whole, from reading the old state to the new one on the disk, but
for the evaluation (of the new task alone, as no other is at hand) and without a report. A state
keeps what was learnt of every task (name, scores, seconds, where its rows came from): its history
is all that may grow.

    python experiments/benchmarks/extending.py                # 2 to 5 minutes on 2 cores
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from shutil import rmtree
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from growth import per_task, save_model, save_tasks
from our_side import composed
from side_by_side import entry, machine, spread, write_result

from kif_lightning import assembly, extending, launch
from kif_lightning.packing import pack
from kif_lightning.reporting.console import RunConsole
from kif_lightning.runner import StreamRunner
from kif_lightning.storage import read_json

MOST_BYTES = 2048
"""A task may add so much to its state."""
WINDOW = 10
PHASES = {
    "read": [(extending, "read_state"), (assembly, "read_state")],
    "build": [(StreamRunner, "build")],
    "learn": [(StreamRunner, "_learn")],
    "evaluate": [(StreamRunner, "_judge")],
    "write": [(extending, "pack")],
}
"""What is timed; the rest is settings, data, the run's own files."""


class Clock:
    """Seconds of each phase of the present extension."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def timed(self, phase: str, original: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, its time added to the phase's."""

        def function(*args: Any, **kwargs: Any) -> Any:
            started = perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                self.seconds[phase] += perf_counter() - started

        return function

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within it the phases' functions are timed."""
        with ExitStack() as stack:
            for phase, places in PHASES.items():
                for owner, name in places:
                    original = getattr(owner, name)
                    setattr(owner, name, self.timed(phase, original))
                    stack.callback(setattr, owner, name, original)
            yield


def first_state(model: Path, data: Path, name: str, folder: Path) -> Path:
    """The state after one task."""
    run = folder / "run_001"
    settings = [
        "backbone=t5_nano",
        "backbone.source=hub",
        f"backbone.path={model}",
        "benchmark=long_sequence",
        f"benchmark.data_dir={data}",
        f"benchmark.order=[{name}]",
        "method=kif",
        "optim.batch_size=4",
        "report=false",
        f"run_dir={run}",
    ]
    launch.run(composed(*settings), RunConsole())
    return pack(run, folder / "state_001")


def extended(
    model: Path, data: Path, names: list[str], folder: Path
) -> tuple[list[dict[str, float]], list[int], list[int]]:
    """Seconds by phase, bytes of the state and of its history, of each extension."""
    seconds, sizes, histories = [], [], []
    state = first_state(model, data, names[0], folder)
    clock = Clock()
    with clock.listening():
        for number, name in enumerate(names[1:], 2):
            to, run = folder / f"state_{number:03d}", folder / f"run_{number:03d}"
            given = [
                "benchmark=long_sequence",
                f"benchmark.data_dir={data}",
                f"benchmark.order=[{name}]",
                f"backbone.path={model}",
                f"run_dir={run}",
                "report=false",
            ]
            clock.seconds.clear()
            started = perf_counter()
            extending.extend(state, to, overrides=given, console=RunConsole())
            whole = perf_counter() - started
            found = dict(clock.seconds)
            named = sum(found.values())
            seconds.append({**found, "rest": whole - named, "all": whole - found["evaluate"]})
            sizes.append(sum(path.stat().st_size for path in to.rglob("*") if path.is_file()))
            histories.append((to / "state.json").stat().st_size)
            rmtree(state)
            rmtree(run)
            state = to
    assert len(read_json(state / "state.json")["tasks"]) == len(names)
    return seconds, sizes, histories


def entries_of(
    seconds: list[dict[str, float]], sizes: list[int], histories: list[int]
) -> list[dict[str, Any]]:
    """The lines of the result."""
    early, late, number = seconds[:WINDOW], seconds[-WINDOW:], len(seconds) + 1
    usual = median(each["all"] for each in early)
    told = f"kif extend to {number} tasks, one a call"
    found = [
        entry(
            f"{told}: seconds of one of the last {WINDOW} as a share of an early one's",
            spread([median(each["all"] for each in late) / usual]),
            at_most=1.1,
            seconds=[round(each["all"], 4) for each in seconds],
        ),
        entry(
            f"{told}: growth of the state a task",
            spread([per_task(sizes, slice(0, len(sizes)))]),
            at_most=MOST_BYTES,
            unit="bytes",
            state_bytes=sizes,
            history_bytes=histories,
        ),
    ]
    phases = (*(phase for phase in PHASES if phase != "evaluate"), "rest")
    return found + [
        entry(
            f"{told}: seconds of the last {WINDOW}: {phase}",
            spread([each[phase] for each in late]),
            unit="s",
            early=median(each[phase] for each in early),
        )
        for phase in phases
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=100)
    parser.add_argument("--rows", type=int, default=8, help="train rows of a task")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    started_on = machine()
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = save_model(folder / "model")
        names = save_tasks(folder / "data", options.tasks, options.rows)
        measured = extended(model, folder / "data", names, folder)
    entries = entries_of(*measured)
    write_result("extending", entries, started_on=started_on, output=options.output)


if __name__ == "__main__":
    main()

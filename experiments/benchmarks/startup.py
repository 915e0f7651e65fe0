"""Seconds from the command to the first training step of the bundled demo, and of ``--help``.

Every measurement is a process of its own, as a user starts it. The demo is killed within its first
optimizer step, as soon as ``ContinualModule.on_before_optimizer_step`` has run: the gradients are
there and the importance is updated, the weights are not yet. Files are in the system's cache after
a first round that is not counted.

    python experiments/benchmarks/startup.py
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from time import perf_counter

from side_by_side import entry, in_turn, machine, spread, write_result

DEMO = ("+experiment=long_seq_t5", "trainer.accelerator=cpu")
SEEN = "first optimizer step"
WATCHED = f"""
import importlib.abc, importlib.machinery, runpy, sys

class Watch(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    "Hooks the module once it is imported, at the time it would be imported anyway."
    def find_spec(self, name, path, target=None):
        if name != "kif_lightning.module":
            return None
        sys.meta_path.remove(self)
        self.found = importlib.machinery.PathFinder.find_spec(name, path)
        return importlib.machinery.ModuleSpec(name, self, origin=self.found.origin)
    def create_module(self, spec):
        return None
    def exec_module(self, module):
        module.__file__ = self.found.origin
        self.found.loader.exec_module(module)
        step = module.ContinualModule.on_before_optimizer_step
        def watched(*args, **kwargs):
            step(*args, **kwargs)
            print({SEEN!r}, flush=True)
        module.ContinualModule.on_before_optimizer_step = watched

sys.meta_path.insert(0, Watch())
runpy.run_module("kif_lightning", run_name="__main__", alter_sys=True)
"""


def to_first_step(overrides: Sequence[str] = DEMO) -> float:
    """Seconds from the process' start until the hook before its first optimizer step has run."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", WATCHED, *overrides, f"run_dir={folder}/run"]
        started = perf_counter()
        process = subprocess.Popen(  # noqa: S603
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        said = []
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.strip() == SEEN:
                    return perf_counter() - started
                said.append(line)
        finally:
            process.kill()
            process.wait()
    raise RuntimeError(f"The demo ended before its first step: {''.join(said)[-2000:]}")


def to_help(command: Sequence[str]) -> float:
    """Seconds until it has answered."""
    started = perf_counter()
    subprocess.run(  # noqa: S603
        [sys.executable, *command, "--help"],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return perf_counter() - started


HELP = {
    "python -m kif_lightning": ("-m", "kif_lightning"),
    "kif": ("-c", "import sys; from kif_lightning.cli import app; sys.argv[0] = 'kif'; app()"),
}
"""Command -> what Python does for it; that of ``kif`` is its console script's content."""


def main() -> None:
    parser = argparse.ArgumentParser(description="From the command to the first step; --help.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="the JSON to write")
    arguments = parser.parse_args()
    started_on = machine()
    seconds = in_turn(
        {
            "demo": to_first_step,
            **{name: partial(to_help, command) for name, command in HELP.items()},
        },
        arguments.rounds,
    )
    entries = [
        entry(
            "seconds from the command to the first training step of the bundled demo",
            spread(seconds["demo"]),
            at_most=12,
            unit="s",
        ),
        *(
            entry(f"seconds of {name} --help", spread(seconds[name]), at_most=3, unit="s")
            for name in HELP
        ),
    ]
    write_result(
        "startup",
        entries,
        started_on=started_on,
        output=arguments.output,
        setting={"rounds": arguments.rounds},
    )


if __name__ == "__main__":
    main()

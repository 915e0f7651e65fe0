"""What the command line does, for Python and notebooks: typed, and without leaving the process.

A user's mistake raises :class:`~kif_lightning.errors.UserError`. docs/python_api.md has examples.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import pandas as pd
from omegaconf import DictConfig

from kif_lightning import assembly, extending, launch, packing
from kif_lightning.assembly import Parts, build_benchmark
from kif_lightning.benchmarks.doctor import Finding
from kif_lightning.checkup import examine_all, read_tasks
from kif_lightning.composing import composed
from kif_lightning.continual_state import memory_note
from kif_lightning.errors import UserError as UserError
from kif_lightning.exporting.writing import export as export
from kif_lightning.interfaces import Benchmark
from kif_lightning.learnt_model import load as load
from kif_lightning.metrics.transfer import FORMULAS
from kif_lightning.reporting import comparison
from kif_lightning.reporting.comparison.contents import Contents
from kif_lightning.reporting.finished_run import FinishedRun as Run

Place = Run | str | Path
"""A run, or a folder."""


def compose(*overrides: str) -> DictConfig:
    """The config of a run, as ``python -m kif_lightning`` makes it.

    Args:
        overrides: ``+experiment=NAME``, ``group=option`` and ``key=value``, as on the command line.

    Raises:
        UserError: one of them does not fit.
    """
    of_sweeps = [text for text in overrides if re.match(r"[+~]*(sweep|hydra)\b", text)]
    if of_sweeps:
        raise UserError(
            f"One call is one run, got {' '.join(of_sweeps)}: leave it out and write a loop, or "
            "use python -m kif_lightning."
        )
    return composed(overrides)


def build_stream(config: DictConfig) -> Benchmark:
    """The tasks of a run in the order they are learnt; ``tasks[0].train[0]`` is a row.

    Raises:
        UserError: data that cannot be had or read; all mistakes found, one a line.
    """
    _require_composed(config)
    return build_benchmark(config)


def build_parts(config: DictConfig) -> Parts:
    """What a run is made of, see :class:`kif_lightning.assembly.Parts`; no weights are loaded.

    Raises:
        UserError: a mistake in settings or data.
    """
    _require_composed(config)
    return assembly.build_parts(config)


def stream_table(stream: Benchmark) -> pd.DataFrame:
    """A row a task: name, kind, metric, numbers of rows, labels, prompt and answer of one row."""
    rows = [
        {
            "name": task.name,
            "kind": task.kind,
            "metric": task.metric,
            "train_rows": len(task.train),
            "test_rows": len(task.test),
            "labels": ", ".join(task.labels),
            "prompt": task.train[0].input if task.at_hand else None,
            "answer": task.train[0].output if task.at_hand else None,
        }
        for task in stream.tasks
    ]
    frame = pd.DataFrame(rows)
    frame["stand_ins"] = "stand-in data" if stream.stand_in else ""
    return frame


def run(*settings: str | DictConfig, folder: str | Path | None = None, quiet: bool = False) -> Run:
    """Run the stream, go on with an interrupted run, or read the finished one.

    Args:
        settings: overrides, or one config of :func:`compose`.
        folder: of the run; None: one named by the settings, under ``runs``.
        quiet: no progress bars, nothing said.

    Returns:
        The finished run.

    Raises:
        UserError: a mistake in settings or data.
        KeyboardInterrupt: it was interrupted; the same call goes on from the last step saved.
    """
    config = _config(settings)
    if config.plan:
        raise UserError("plan=true makes no run: give it to python -m kif_lightning.")
    if folder is not None:
        config.run_dir = str(folder)
    with _interruptible():
        cell = launch.run_cell(config, launch.new_console(quiet=quiet))
    if cell.asked_to_stop:
        raise KeyboardInterrupt("Interrupted while the finished run's report was made.")
    return Run.open(launch.run_path(config))


def compare(*runs: Place, show_differences: bool = False) -> pd.DataFrame:
    """Finished runs side by side: a row a run, every number in full, as summary.csv has them.

    Transfer metrics that none of the runs has are left out.

    Args:
        runs: runs, or folders of runs or that hold some.
        show_differences: runs of different protocols are told apart, not refused.

    Raises:
        UserError: fewer than two runs, or protocols that differ.
    """
    found = _compared(runs, None, show_differences)
    frame = pd.DataFrame(comparison.summary_rows(found))
    frame = frame.drop(columns=[name for name in FORMULAS if frame[name].isna().all()])
    frame.attrs["stand_ins"] = tuple(found["stand_ins"])
    return frame


def comparison_report(
    *runs: Place, to: str | Path, baseline: str | None = None, show_differences: bool = False
) -> Path:
    """Write the page, tables and figures of ``kif compare --out``; returns the page's path.

    Args:
        runs: as for :func:`compare`.
        to: the folder.
        baseline: a method; the others' paired differences from it are told.
        show_differences: as for :func:`compare`.

    Raises:
        UserError: as for :func:`compare`; no such baseline; the folder cannot be written.
    """
    return comparison.write_comparison(_compared(runs, baseline, show_differences), Path(to))


def doctor(place: str | Path, *, kind: str | None = None) -> pd.DataFrame:
    """What is wrong with the rows of tasks, a row a finding; empty: nothing was found.

    Args:
        place: a folder of ``<task>/{train,dev,test}.jsonl``, or a yaml of own tasks.
        kind: of tasks that no manifest describes.

    Raises:
        UserError: there are no tasks.
    """
    report = examine_all(read_tasks(Path(place), kind).tasks)
    columns = [field.name for field in fields(Finding)]
    return pd.DataFrame(report["findings"], columns=columns)


def pack(
    run: Place, to: str | Path, *, after: str | None = None, with_memory: bool = False
) -> Path:
    """Take a run's continual state out, see :func:`kif_lightning.packing.pack`."""
    folder = packing.pack(_folder(run), Path(to), after=after, with_memory=with_memory)
    _tell_memory(folder)
    return folder


def extend(
    state: str | Path,
    to: str | Path,
    *,
    tasks: str | Path | None = None,
    overrides: Sequence[str] = (),
    with_memory: bool = False,
    folder: str | Path | None = None,
    quiet: bool = False,
) -> Path | None:
    """Learn more tasks from where a state stands, see :func:`kif_lightning.extending.extend`.

    ``folder``: of the run behind it, for :meth:`Run.open`; None: one named by the settings.

    Raises:
        UserError: as there.
        KeyboardInterrupt: it was interrupted; the same call goes on from the last step saved.
    """
    with _interruptible():
        written = extending.extend(
            Path(state),
            Path(to),
            tasks=None if tasks is None else Path(tasks),
            overrides=overrides,
            with_memory=with_memory,
            run_dir=None if folder is None else Path(folder),
            console=launch.new_console(quiet=quiet),
        )
    if written is not None:
        _tell_memory(written)
    return written


def _config(settings: Sequence[str | DictConfig]) -> DictConfig:
    overrides = [one for one in settings if isinstance(one, str)]
    if len(overrides) == len(settings):
        return compose(*overrides)
    if len(settings) == 1 and isinstance(settings[0], DictConfig):
        return _require_composed(settings[0]).copy()
    kinds = ", ".join(type(one).__name__ for one in settings)
    raise UserError(
        f"Expected overrides (texts), or one config alone, got {kinds}: give the overrides to "
        "compose."
    )


def _require_composed(config: DictConfig) -> DictConfig:
    """A run's config.yaml, for one, leaves out what changes no result."""
    known = composed()
    is_config = isinstance(config, DictConfig)
    missing = [key for key in known if not is_config or key not in config]
    if missing:
        got = f"one without {', '.join(map(str, missing))}" if is_config else type(config).__name__
        raise UserError(f"Expected a config of kif_lightning.compose, got {got}: compose it.")
    return config


def _compared(runs: Sequence[Place], baseline: str | None, show_differences: bool) -> Contents:
    wrong = [type(one).__name__ for one in runs if not isinstance(one, Place)]
    if wrong:
        raise UserError(
            f"Expected runs or their folders one by one, as in compare(a, b), got a {wrong[0]}."
        )
    folders = [_folder(one) for one in runs]
    groups = comparison.read_runs(folders, show_differences=show_differences)
    return comparison.contents(groups, baseline=baseline)


def _folder(run: Place) -> Path:
    return run.folder if isinstance(run, Run) else Path(run)


def _tell_memory(state: Path) -> None:
    note = memory_note(state)
    if note is not None:
        warnings.warn(note.removeprefix("Warning: "), stacklevel=3)


@contextmanager
def _interruptible() -> Iterator[None]:
    """A command ends its process when it is asked to stop; a notebook must live on."""
    try:
        yield
    except SystemExit as stopped:
        raise KeyboardInterrupt(
            "Stopped before its end; the same call goes on from there."
        ) from stopped

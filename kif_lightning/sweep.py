"""Sweeps with any of Hydra's launchers: which cells failed, in whatever process they ran.

Each cell that begins leaves a note in a folder of this one sweep, and removes it when it succeeds:
what is left at the end has failed. Imports little, for it is loaded before the command is read.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any
from uuid import uuid4

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser

from kif_lightning.errors import UserError

PLUGINS = {"local": "hydra_joblib_launcher", "slurm": "hydra_submitit_launcher"}
"""What those options of the config group ``sweep`` need that choose a launcher."""
NOT_ENDED = (
    "began but did not end: it was stopped or killed, or still runs elsewhere; the same command "
    "goes on with it"
)
_log = logging.getLogger(__name__)


class SweepNotes:
    """Hydra's callback of a sweep; launchers carry it, pickled, into the process of every cell."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.common: set[str] = set()
        """The overrides that all cells share, as Hydra spells them: they tell none apart."""
        self.several_experiments = False

    def on_multirun_start(self, config: Any, **_: Any) -> None:
        """Choose the folder, in the main process."""
        self.folder = Path(config.hydra.sweep.dir).absolute() / f".sweep_{uuid4().hex[:12]}"
        given = OverridesParser.create().parse_overrides(config.hydra.overrides.task)
        self.common = {
            f"{override.get_key_element()}={override.get_value_element_as_str()}"
            for override in given
            if not override.is_sweep_override()
        }
        self.several_experiments = any(
            override.is_sweep_override()
            and override.key_or_group in ("experiment", "experiment_name", "run_root")
            for override in given
        )
        _present.set(self)

    def on_job_start(self, config: Any, **_: Any) -> None:
        """Make the folder known in the cell's process."""
        _present.set(self)

    def on_multirun_end(self, config: Any, **_: Any) -> None:
        """Say how to see the cells side by side, unless they are of several experiments.

        The folder holds all runs of the experiment, earlier sweeps' among them.
        """
        if self.several_experiments:
            return
        folder = Path(config.run_root) / config.experiment_name
        if not config.plan and len(list(folder.glob("*/results.json"))) > 1:
            sys.stdout.write(f"Compare the runs: kif compare {folder}\n")

    def _nothing(self, **_: Any) -> None:
        """Hydra calls every hook."""

    on_run_start = on_run_end = on_job_end = _nothing


_present: ContextVar[SweepNotes | None] = ContextVar("sweep_notes", default=None)


def require_plugin(arguments: Sequence[str]) -> None:
    """Raise UserError if a command line asks for a launcher that is not installed."""
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key.lstrip("+") != "sweep":
            continue
        for option in (name.strip() for name in value.strip("[]").split(",")):
            if option in PLUGINS and not _is_installed(PLUGINS[option]):
                raise UserError(
                    f"{argument} needs a launcher that is not installed: pip install "
                    f"'kif-lightning[sweeps]', or leave {option} out to run one cell after another."
                )


def _is_installed(plugin: str) -> bool:
    return importlib.util.find_spec("hydra_plugins") is not None and (
        importlib.util.find_spec(f"hydra_plugins.{plugin}") is not None
    )


def run_noted(
    run: Callable[[], object], *, find_folder: Callable[[], Path], keep_record: bool = True
) -> None:
    """Run one cell of a sweep: its failure is told and noted, and does not sink the others.

    Args:
        run: the cell.
        find_folder: gives the cell's run folder; it may fail like the rest of the cell.
        keep_record: whether ``<run folder>.failed.json`` shall tell of a failure until it succeeds.
    """
    from kif_lightning.ranks import is_first
    from kif_lightning.storage import write_json

    sweep, hydra = _present.get(), HydraConfig.get()
    if sweep is None or sweep.folder is None:
        raise RuntimeError("conf/config.yaml must name SweepNotes among hydra.callbacks.")
    writes = is_first()
    note = sweep.folder / f"{hydra.job.num}.json"
    cell = " ".join(o for o in hydra.overrides.task if o not in sweep.common)
    record: Path | None = None
    if writes:
        write_json(note, f"{cell}: {NOT_ENDED}")
    try:
        folder = find_folder()
        record = folder.with_name(f"{folder.name}.failed.json") if keep_record and writes else None
        cell = f"{cell} ({folder})"
        if writes:
            write_json(note, f"{cell}: {NOT_ENDED}")
        run()
    except Exception as error:
        if isinstance(error, UserError):
            _log.error("%s", error)
        else:
            # Hydra would keep the exception, and with it the model, until the sweep's end.
            _log.exception("This cell failed")
        told = f"{type(error).__name__}: {error}"
        with suppress(OSError):  # on a full disk the cell's first note stays, and counts as well
            if writes:
                write_json(note, f"{cell}: {error if isinstance(error, UserError) else told}")
            if record is not None:
                write_json(record, {"error": told})
    else:
        if writes:
            note.unlink(missing_ok=True)
        if record is not None:
            record.unlink(missing_ok=True)


@contextmanager
def failures_told() -> Iterator[None]:
    """Around Hydra's main: at the end of a sweep each failed cell is named, and the status is 1."""
    try:
        require_plugin(sys.argv[1:])
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
    try:
        yield
    except BaseException:  # a launcher's own failure or a request to stop: with its own status
        _tell_failures()
        raise
    if _tell_failures():
        sys.exit(1)


def _tell_failures() -> bool:
    sweep = _present.get()
    if sweep is None or sweep.folder is None or not sweep.folder.is_dir():
        return False
    notes = sorted(sweep.folder.glob("*.json"), key=lambda path: int(path.stem))
    told = [json.loads(note.read_text(encoding="utf-8")) for note in notes]
    shutil.rmtree(sweep.folder, ignore_errors=True)
    if told:
        cells = "1 cell" if len(told) == 1 else f"{len(told)} cells"
        sys.stderr.write("\n  ".join([f"{cells} of the sweep failed:", *told]) + "\n")
    return bool(told)

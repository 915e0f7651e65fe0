"""From a composed config to a run: settings, run folder, mistakes, exit status."""

from __future__ import annotations

import errno
import gc
import hashlib
import json
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf

from kif_lightning import ranks
from kif_lightning.assembly import build_benchmark, build_parts, build_probe, fixed
from kif_lightning.boundaries import FOLDER
from kif_lightning.checkup import examine_run
from kif_lightning.continual_state import digest_of, read_record
from kif_lightning.errors import UserError, collecting_errors, require_choice
from kif_lightning.interruption import EXIT_STATUS, Interrupted, Interruption
from kif_lightning.plan import show_plan
from kif_lightning.probe import require_same_probe
from kif_lightning.protocol import RunOptions
from kif_lightning.reporting.console import RunConsole
from kif_lightning.reporting.doctor_table import brief
from kif_lightning.run_lock import RunLock
from kif_lightning.run_state import RunFolder, after_name
from kif_lightning.runner import StreamRunner
from kif_lightning.sweep import run_noted
from kif_lightning.tracking import new_tracking

NOT_SETTINGS = (
    *("run_root", "run_dir", "rerun", "resume", "checkpoint"),
    *("plan", "examine_data", "logger", "keep_boundaries", "keep_states", "report"),
)
"""Keys that change where, what is shown and what is kept meanwhile, never what is computed."""
SWITCHES = (
    *("rerun", "plan", "report", "examine_data", "keep_boundaries", "keep_states", "save_model"),
    *("evaluation.untrained", "evaluation.next_task"),
    *("backbone.compile", "backbone.gradient_checkpointing"),
)
"""Keys that are true or false."""
WORDS = ("title", "paper", "published", "strength")
"""What a method's yaml says of itself, of which its numbers know nothing."""
OF_HELD_OUT = ("rows", "held_out_rows", "held_out_share")
"""Keys of ``evaluation`` that say nothing where answers are scored on test rows."""


def launch(config: DictConfig) -> None:
    """Run one cell. A user's mistake: exit status 2; within a sweep it is noted, others go on.

    A run that was asked to stop, and its whole sweep, ends with ``interruption.EXIT_STATUS``.
    """
    console = new_console()
    if _is_sweep():
        done: list[Cell] = []
        run_noted(
            lambda: done.append(run_cell(config, console)),
            find_folder=partial(run_path, config),
            keep_record=not config.plan,
        )
        if done and done[0].asked_to_stop and _others_follow():
            console.say(
                f"Asked to stop (exit status {EXIT_STATUS}): the same command goes on with the "
                "cells that are left, if any."
            )
            sys.exit(EXIT_STATUS)
    else:
        try:
            run_cell(config, console)
        except UserError as error:
            # Ranks that know each other fail together; before that each speaks for itself.
            if ranks.is_first() or ranks.world_size() == 1:
                logging.getLogger(__name__).error("%s", error)
            sys.exit(2)


def new_console(*, quiet: bool = False) -> RunConsole:
    """Where a run speaks: of several processes the first alone."""
    return RunConsole(quiet=quiet or not ranks.is_first())


def _is_sweep() -> bool:
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def _others_follow() -> bool:
    """Whether this process goes on with the sweep's next cell, as Hydra's own launcher does."""
    return str(HydraConfig.get().launcher["_target_"]).endswith(".BasicLauncher")


class Cell(NamedTuple):
    """A whole run."""

    results: dict[str, Any] | None
    """None: it was a plan."""
    asked_to_stop: bool
    """While its report was made: other cells are not to be begun."""


def run_cell(config: DictConfig, console: RunConsole) -> Cell:
    """Run one cell.

    Raises:
        SystemExit: it was asked to stop and did, before its end.
        UserError: a mistake.
    """
    quiet()
    with Interruption(console.say) as interruption, _telling_full_disks(config):
        try:
            results = run(config, console, interruption)
            return Cell(results, interruption.requested is not None)
        except Interrupted:
            console.say(
                f"Stopped before its end: {run_path(config)}. The same command goes on from there "
                f"(exit status {EXIT_STATUS})."
            )
            interruption.pass_on()
            sys.exit(EXIT_STATUS if ranks.is_first() else 0)
        finally:
            # A Trainer and its parts know each other: without this the model would stay in memory.
            gc.collect()


@contextmanager
def _telling_full_disks(config: DictConfig) -> Iterator[None]:
    """A write that found no room: one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"There is no room left for {error.filename or run_path(config)} ({error.strerror}): "
            "what was saved before is intact; free some space and give the same command again."
        ) from error


def run(
    config: DictConfig, console: RunConsole, interruption: Interruption | None = None
) -> dict[str, Any] | None:
    """Run, resume or show the run of a config; returns its results (None for a plan).

    Raises:
        UserError: a mistake; nothing has been written or deleted, but where it comes from training.
    """
    _check_switches(config)
    settings = run_settings(config)
    folder = RunFolder(run_path(config), keep_states=config.keep_states)
    if not config.plan and not config.rerun and folder.is_finished(settings):
        _compare_data(config, folder, console)
        console.say(f"Finished already: {folder.path} (rerun=true starts anew).")
        results = folder.results()
        console.finished(results)
        _tell_missed(config, folder, console)
        _report(config, folder, console)
        return results
    runner = new_runner(config, console, interruption)
    runner.require_startable()
    if _is_sweep() and runner.starts_ranks:
        # Each would begin with the sweep's first cell, whichever this one is.
        raise UserError(
            "A sweep's cells cannot start processes of their own, got trainer.devices="
            f"{config.trainer.devices}: give each cell a command of its own, or let SLURM start "
            "the processes (+sweep=slurm hydra.launcher.tasks_per_node=N)."
        )
    console.say(f"Run folder: {folder.path}")
    _tell_fixes(config, console)
    if config.examine_data and ranks.is_first():
        report = examine_run(runner.parts)
        runner.data_findings = [f for f in report["findings"] if f["severity"] != "note"]
        for line in brief(report, _whole_report(config)):
            console.say(line)
    if config.plan:
        show_plan(runner)
        return None
    # Everything the model must agree to is tried before the first file is written.
    runner.build()
    with ExitStack() as held:
        if ranks.is_first():
            folder.require_own()
            told = held.enter_context(RunLock(folder=folder.path))
            if told is not None:
                console.say(told)
            folder.open(settings, rerun=config.rerun)
        results = runner.run()
    console.final(results)
    console.say(f"Results: {folder.path / 'results.json'}")
    _report(config, folder, console, anew=True)
    return results


def _report(
    config: DictConfig, folder: RunFolder, console: RunConsole, *, anew: bool = False
) -> None:
    """Write the run's report where it is missing, and name it; its failure costs no run."""
    if not config.report or not ranks.is_first():
        return
    path = folder.path / "report.html"
    try:
        from kif_lightning.reporting.run_report import write_report  # matplotlib: a second

        if anew or not path.is_file():
            write_report(folder.path)
    except Exception as error:
        logging.getLogger(__name__).warning(
            "The run ended well, but its report could not be made (%s: %s): kif report %s tries "
            "again.",
            type(error).__name__,
            error,
            folder.path,
        )
    else:
        console.say(f"Report: {path}")


def _check_switches(config: DictConfig) -> None:
    """Any word but false would count as true: rerun=no would delete a run."""
    with collecting_errors() as mistakes:
        for key in SWITCHES:
            require_choice(key, OmegaConf.select(config, key), (True, False))
    if mistakes:
        raise UserError.joined(mistakes)


def _tell_missed(config: DictConfig, folder: RunFolder, console: RunConsole) -> None:
    """What is asked for now and was not when the run was made."""
    places = {f"logger={name}": "logs" if name == "csv" else str(name) for name in config.logger}
    if config.keep_states:
        origin = config.continue_from
        first = 1 if origin is None else len(read_record(Path(origin))["tasks"])
        places["keep_states=true"] = f"state/{after_name(first)}"
    if config.keep_boundaries:
        places["keep_boundaries=true"] = FOLDER
    for key in (key for key, place in places.items() if not (folder.path / place).is_dir()):
        console.say(
            f"{key} has no effect on a finished run: add rerun=true, or another run_dir=FOLDER."
        )


def _compare_data(config: DictConfig, folder: RunFolder, console: RunConsole) -> None:
    """Refuse to show a finished run for data that changed; data that are gone are only told of."""
    try:
        tasks = build_benchmark(config).tasks
        probe = build_probe(config)
    except UserError as error:
        console.say(f"Whether the data are still those of the run is not known: {error}")
        return
    folder.require_same_data({task.name: dict(task.sha256) for task in tasks})
    if probe is not None:
        require_same_probe(probe, folder.results(), folder.path)


def _whole_report(config: DictConfig) -> str:
    """Where all that was found can be read: ``kif doctor`` looks at files alone."""
    benchmark = config.benchmark
    files = benchmark.get("file") or benchmark.get("data_dir")
    if files is not None and benchmark.get("source") != "hub":
        return f"kif doctor {files}"
    return f"data_findings in {run_path(config) / 'results.json'}, once the run has ended"


def new_runner(
    config: DictConfig, console: RunConsole, interruption: Interruption | None = None
) -> StreamRunner:
    """The runner of a config; nothing is loaded or written yet."""
    folder = RunFolder(run_path(config), keep_states=config.keep_states)
    return StreamRunner(
        parts=build_parts(config),
        options=_options(config),
        folder=folder,
        console=console,
        tracking=new_tracking(config.logger, run_settings(config), folder.path, console.say),
        interruption=interruption,
    )


def run_settings(config: DictConfig) -> dict[str, Any]:
    """The resolved config without the keys that change no result."""
    resolved: Any = OmegaConf.to_container(config, resolve=True)
    settings = {key: value for key, value in resolved.items() if key not in NOT_SETTINGS}
    if not settings["probe"]:
        # Runs of before there were probes keep their folders.
        del settings["probe"]
    origin = settings.pop("continue_from")
    if origin is not None:
        # Its content counts, not where it lies.
        settings["continue_from"] = digest_of(Path(origin))
    method = {key: value for key, value in settings["method"].items() if key not in WORDS}
    evaluation = settings["evaluation"]
    if evaluation["rows"] == "test":
        # How runs from before there was a choice have it: they keep their folders.
        evaluation = {key: value for key, value in evaluation.items() if key not in OF_HELD_OUT}
    return {**settings, "method": method, "evaluation": evaluation}


def run_path(config: DictConfig) -> Path:
    """The run folder: a function of the settings, never of the time."""
    if config.run_dir is not None:
        return Path(config.run_dir)
    settings = run_settings(config)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    order = config.benchmark.order
    names = order if isinstance(order, ListConfig) else [order]
    order_name = "-".join(str(name) for name in names)
    parts = (
        config.backbone.name,
        config.benchmark.name,
        order_name[:40],
        config.method.name,
        f"seed{config.seed}",
        digest,
    )
    return Path(config.run_root) / config.experiment_name / "__".join(parts)


def _options(config: DictConfig) -> RunOptions:
    settings = run_settings(config)
    trainer: Any = OmegaConf.to_container(config.trainer, resolve=True)
    trainer["precision"] = fixed(config, "precision", trainer["precision"])
    return RunOptions(
        method=config.method.name,
        seed=config.seed,
        epochs=config.optim.epochs,
        batch_size=config.optim.batch_size,
        micro_batch_size=config.optim.micro_batch_size,
        length_grouping=_length_grouping(config),
        gradient_clip=fixed(config, "gradient_clip", config.optim.gradient_clip),
        fused=config.optim.fused,
        max_skipped_in_a_row=config.optim.max_skipped_in_a_row,
        loss_mean=config.method.fixes.loss_mean,
        lr_factor=config.method.fixes.lr_factor,
        evaluation_batch_size=config.evaluation.batch_size,
        evaluation_batch_tokens=config.evaluation.batch_tokens,
        evaluation_matrix=config.evaluation.matrix,
        max_new_tokens=config.evaluation.max_new_tokens,
        decode=config.evaluation.decode,
        evaluate_untrained=config.evaluation.untrained,
        evaluate_next_task=config.evaluation.next_task,
        save_model=config.save_model,
        evaluation_precision=config.evaluation.precision,
        resume=config.resume,
        checkpoint_every_steps=config.checkpoint.every_steps,
        checkpoint_every_minutes=config.checkpoint.every_minutes,
        keep_boundaries=config.keep_boundaries,
        settings=settings,
        method_settings=settings["method"],
        lora=settings["lora"],
        optim={
            key: config.optim[key]
            for key in ("lr", "weight_decay", "schedule_name", "warmup_steps")
        },
        trainer=trainer,
    )


def _length_grouping(config: DictConfig) -> Any:
    """The mean of micro-batches' means depends on which rows share one: they stay as drawn."""
    asked = config.optim.length_grouping
    means = config.method.fixes.loss_mean == "micro_batches"
    return "none" if means and asked == "within_step" else asked


def _tell_fixes(config: DictConfig, console: RunConsole) -> None:
    factor = config.method.fixes.lr_factor
    if factor != 1:
        console.say(
            f"Method {config.method.name} trains with {factor:g} times optim.lr: "
            f"{factor * config.optim.lr:g}."
        )
    if _length_grouping(config) != config.optim.length_grouping:
        console.say(
            f"Method {config.method.name} takes means of micro-batches, whose rows must stay as "
            f"drawn: optim.length_grouping={config.optim.length_grouping} is not used."
        )
    own = {
        "precision": config.trainer.precision,
        "gradient_clip": config.optim.gradient_clip,
        "truncation": config.backbone.truncation,
    }
    for key, setting in own.items():
        fixed_value = config.method.fixes[key]
        if fixed_value is not None and fixed_value != setting:
            console.say(
                f"Method {config.method.name} fixes {key}={fixed_value}; the run's own setting "
                f"{setting} is not used."
            )


def quiet() -> None:
    """Silence what repeats at each of the many Trainers and says nothing to the user."""
    for name in ("lightning.pytorch", "lightning.fabric", "httpx", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*GPU available but not used.*",
        ".*smaller than the logging interval.*",
        ".*Checkpoint directory.*",
        ".*LeafSpec.*",
        ".*is_gradient_checkpointing.*",
        ".*FSDPT5Block.* returned a view.*",  # which nobody changes in place
    ):
        warnings.filterwarnings("ignore", message=message)

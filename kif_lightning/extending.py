"""``kif extend``: a continual state learns more tasks in a run of its own; a new one comes out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kif_lightning import launch
from kif_lightning.benchmarks.folder import task_names
from kif_lightning.continual_state import ContinualState, read_state
from kif_lightning.errors import UserError
from kif_lightning.packing import pack
from kif_lightning.paths import conf_dir
from kif_lightning.reporting.console import RunConsole

GROUPS = ("benchmark", "logger", "trainer", "evaluation")
"""Groups of which another option may be taken; the rest is the state's own, key by key."""
FRESH = ("benchmark", "logger")
"""Of them, those that a state says nothing of."""
OF_MODEL = ("method", "backbone", "lora", "optim", "probe", "experiment", "sweep")
"""Keys that cannot be taken whole."""
EXPERIMENT = "extended"


def extend(
    state: Path,
    to: Path,
    *,
    tasks: Path | None = None,
    overrides: Sequence[str] = (),
    with_memory: bool = False,
    console: RunConsole,
) -> Path:
    """Learn more tasks; the state stays as it is, the new one is written once all are learnt.

    The run behind it has a folder of its own: the same call again goes on where it was cut.

    Args:
        state: the folder of a continual state.
        to: a new folder.
        tasks: a yaml of own tasks, or a folder of ``<task>/{train,test}.jsonl``; None: the
            overrides name a benchmark.
        overrides: ``key=value`` settings that differ from the state's.
        with_memory: also write raw rows of past tasks, if the method keeps some.
        console: where it speaks.

    Returns:
        The folder written.

    Raises:
        UserError: no state, a state that does not fit, nothing new to learn, bad data or settings.
        SystemExit: it was asked to stop; the same call goes on.
    """
    if to.exists():
        raise UserError(f"--to must be a new folder, got {to}, which exists: name another one.")
    if (tasks is None) != any(_key(text) == "benchmark" for text in overrides):
        raise UserError(
            "Expected the tasks to learn in one way: a yaml of own tasks, or a folder of "
            "<task>/{train,test}.jsonl, or benchmark=NAME; got "
            f"{'none' if tasks is None else 'two'} of them."
        )
    before = read_state(state)
    if with_memory and not before.keeps_memory:
        raise UserError(
            "--with-memory writes rows of past tasks, but the state's method keeps none: leave it "
            "out."
        )
    config = config_of(before, overrides, tasks=tasks)
    config.continue_from = str(state)
    config.experiment_name = EXPERIMENT
    launch.run_cell(config, console)
    return pack(launch.run_path(config), to, with_memory=with_memory)


def config_of(
    state: ContinualState, overrides: Sequence[str] = (), *, tasks: Path | None = None
) -> DictConfig:
    """The state's settings as a run's config, with what is given otherwise.

    Args:
        state: whose settings count.
        overrides: ``key=value``.
        tasks: where those to learn are, see :func:`extend`.

    Raises:
        UserError: a setting there is not, one that belongs to the state, a base model that lies in
            a folder which is not given.
    """
    given = [_key(text) for text in overrides]
    _check_keys(state, overrides)
    benchmark, place = _data(tasks)
    # Of data and loggers the state knows nothing: all that is said of them goes through Hydra.
    composed = [t for t, key in zip(overrides, given, strict=True) if key in GROUPS or _fresh(key)]
    others = [text for text in overrides if text not in composed]
    try:
        with initialize_config_dir(conf_dir(), version_base="1.3"):
            fresh: Any = OmegaConf.to_container(compose("config", [*benchmark, *composed]))
        groups = {name: fresh[name] for name in GROUPS if name in given or name in FRESH}
        evaluation = {**fresh["evaluation"], **state.config["evaluation"], "untrained": False}
        config = OmegaConf.create(
            {**fresh, **state.config, "evaluation": evaluation, **groups, "probe": fresh["probe"]}
        )
        OmegaConf.set_struct(config, True)
        config.merge_with_dotlist(others)
        config.benchmark.update(place)
    except (HydraException, OmegaConfBaseException) as error:
        told = str(error).partition("\n")[0]
        raise UserError(f"{' '.join(overrides)}: {told}; kif list names the choices.") from error
    return config


def _check_keys(state: ContinualState, overrides: Sequence[str]) -> None:
    """Refuse what would make it another model, and miss what the machine must tell."""
    keys = [_key(text) for text in overrides]
    refused = [
        text
        for text, key in zip(overrides, keys, strict=True)
        if "=" not in text or "/" in key or ("." not in key and key in OF_MODEL)
    ]
    if refused:
        raise UserError(
            f"{' '.join(refused)} is no setting that a state can go on with: expected key=value; "
            f"of the groups only {', '.join(GROUPS)} can be taken anew, other keys one by one "
            "(optim.epochs=3)."
        )
    weights = state.protocols[-1]["weights"]
    if weights.get("source") == "folder" and "backbone.path" not in keys:
        raise UserError(
            f"The state's base model was read from a folder named {weights['folder']}, which a "
            "state does not hold: add backbone.path=FOLDER, a copy of it, or backbone.path=null "
            "for the hub's."
        )


def _key(override: str) -> str:
    return override.lstrip("+").partition("=")[0]


def _fresh(key: str) -> bool:
    return key.partition(".")[0] in FRESH


def _data(tasks: Path | None) -> tuple[list[str], dict[str, Any]]:
    """The benchmark's option and its settings for tasks of a file or folder."""
    if tasks is None:
        return [], {}
    if not tasks.exists():
        raise UserError(
            f"Expected a yaml of own tasks or a folder of <task>/{{train,test}}.jsonl, but there "
            f"is no {tasks}."
        )
    if tasks.is_dir():
        place = {"data_dir": str(tasks), "order": task_names(tasks)}
        return ["benchmark=long_sequence"], place
    return ["benchmark=own"], {"file": str(tasks)}

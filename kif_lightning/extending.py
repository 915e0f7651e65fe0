"""``kif extend``: a continual state learns more tasks in a run of its own; a new one comes out."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kif_lightning import composing, launch, ranks
from kif_lightning.benchmarks.folder import DEFAULT_TASK, task_names
from kif_lightning.checkup import open_tasks
from kif_lightning.continual_state import ContinualState, read_state, require_new
from kif_lightning.errors import UserError
from kif_lightning.packing import pack
from kif_lightning.paths import option_names
from kif_lightning.reporting.console import RunConsole
from kif_lightning.state_settings import TAKEN, settings_of
from kif_lightning.storage import flat

GROUPS = ("benchmark", "logger", "trainer")
"""Groups of which another option may be taken; the rest is the state's own, key by key."""
FRESH = ("benchmark", "logger")
"""Of them, those that a state says nothing of."""
WHOLE = (
    *("method", "backbone", "lora", "optim", "evaluation", "checkpoint"),
    *("probe", "experiment", "sweep", "continue_from"),
)
"""Keys that cannot be taken whole."""
OF_MACHINE = ("accelerator", "devices", "num_nodes", "strategy")
"""Keys of the trainer that a state does not pass on: where it is extended, they may be others."""
EXPERIMENT = "extended"


def extend(
    state: Path,
    to: Path,
    *,
    tasks: Path | None = None,
    overrides: Sequence[str] = (),
    with_memory: bool = False,
    run_dir: Path | None = None,
    console: RunConsole,
) -> Path | None:
    """Learn more tasks; the state stays as it is, the new one is written once all are learnt.

    The run behind it has a folder of its own: the same call again goes on where it was cut.

    Args:
        state: the folder of a continual state.
        to: a new folder.
        tasks: a yaml of own tasks, or a folder of ``<task>/{train,test}.jsonl``; None: the
            overrides name a benchmark.
        overrides: ``key=value`` settings that differ from the state's.
        with_memory: also write raw rows of past tasks, if the method keeps some.
        run_dir: folder of the run behind it; None: one named by the settings.
        console: where it speaks.

    Returns:
        The folder written; None: it was a plan (``plan=true``).

    Raises:
        UserError: no state, a state that does not fit, nothing new to learn, bad data or settings.
        SystemExit: it was asked to stop; the same call goes on.
    """
    require_new(to)
    if (tasks is None) != any(_key(text) == "benchmark" for text in overrides):
        raise UserError(
            "Expected the tasks to learn in one way: a yaml of own tasks, or a folder of "
            "<task>/{train,test}.jsonl, or benchmark=NAME; got "
            f"{'none' if tasks is None else 'two'} of them."
        )
    before = read_state(state, with_parts=False)
    if with_memory and not before.keeps_memory:
        raise UserError(
            "--with-memory writes rows of past tasks, but the state's method keeps none: leave it "
            "out."
        )
    config = config_of(before, overrides, tasks=tasks)
    config.continue_from = str(state)
    if run_dir is not None:
        config.run_dir = str(run_dir)
    if before.keeps_memory and not with_memory:
        console.say(
            "Without --with-memory the new state will hold none of the rows of past tasks that the "
            "method keeps: it can answer and be exported, but learn no more tasks."
        )
    if launch.run_cell(config, console).results is None:
        return None
    ranks.on_first(lambda: pack(launch.run_path(config), to, with_memory=with_memory))
    return to


def config_of(
    state: ContinualState,
    overrides: Sequence[str] = (),
    *,
    tasks: Path | None = None,
    built: Sequence[str] = TAKEN,
) -> DictConfig:
    """The state's settings as a run's config, with what is given otherwise.

    Args:
        state: whose settings count.
        overrides: ``key=value``.
        tasks: where those to learn are, see :func:`extend`.
        built: dotted keys of which parts will be made.

    Raises:
        UserError: a setting there is not, one that belongs to the state, a base model that lies in
            a folder which is not given, code that the state must not run.
    """
    settings = settings_of(state, overrides, built=built)
    given = [_key(text) for text in overrides]
    benchmark, place = _data(tasks)
    _check_keys(state, overrides)
    if "benchmark.order" in given:
        place.pop("order", None)
    # Of data and loggers the state knows nothing: all that is said of them goes through Hydra.
    composed = [t for t, key in zip(overrides, given, strict=True) if key in GROUPS or _fresh(key)]
    others = [text for text in overrides if text not in composed]
    yamls = _yamls(state, [*benchmark, *composed])
    groups = {name: yamls[name] for name in GROUPS if name in given or name in FRESH}
    own = {
        "evaluation": {**yamls["evaluation"], **settings["evaluation"], "untrained": False},
        "trainer": _on_this_machine(settings["trainer"], yamls["trainer"]),
        "experiment_name": EXPERIMENT,
    }
    config = OmegaConf.create({**yamls, **settings, **own, **groups})
    OmegaConf.set_struct(config, True)
    for text in others:
        _set(config, text)
    _follow(config, settings, yamls, [_key(text) for text in others])
    config.benchmark.update(place)
    if "data_dir" in place:
        _require_described(Path(place["data_dir"]), config.benchmark.order)
    return config


def _require_described(folder: Path, order: str | Sequence[str]) -> None:
    """Free texts would count as labels, all of which a state holds."""
    wanted = [name for name in task_names(folder) if isinstance(order, str) or name in order]
    found = open_tasks(folder, wanted)
    if found:
        told = json.dumps({"tasks": dict.fromkeys(found, DEFAULT_TASK)})
        raise UserError(
            f"Nothing says what task {', '.join(found)} of {folder} is, and its answers are too "
            f"many or too long for labels: describe it in {folder / 'manifest.json'}, as {told}."
        )


def _on_this_machine(before: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, Any]:
    """The trainer's settings, but for what the machine has: that is not the state's to say."""
    kept = {key: value for key, value in before.items() if key not in OF_MACHINE}
    return {**kept, **{key: here[key] for key in OF_MACHINE if key in here}}


def _yamls(state: ContinualState, overrides: Sequence[str]) -> dict[str, Any]:
    """What the yamls say, unresolved but for the benchmark's."""
    method = state.config["method"]["name"]
    # Rows are drawn by the seed that the state's were drawn by, and so are found again.
    own = [
        f"seed={state.config['seed']}",
        *[f"method={method}"] * (method in option_names("method")),
    ]
    config = composing.composed([*own, *overrides])
    found: Any = OmegaConf.to_container(config)
    found["benchmark"] = OmegaConf.to_container(config.benchmark, resolve=True)
    return dict(found)


def _set(config: DictConfig, override: str) -> None:
    try:
        config.merge_with_dotlist([override])
    except OmegaConfBaseException as error:
        raise UserError(
            f"{override} is no setting of a run ({str(error).partition(chr(10))[0]}): "
            "python -m kif_lightning --cfg job shows all there are."
        ) from error


def _follow(
    config: DictConfig, before: Mapping[str, Any], yamls: Mapping[str, Any], changed: list[str]
) -> None:
    """Carry changed settings on to what takes its value from them, as ``optim.optimizer.lr``.

    A state holds values alone; which of them are one is written in the yamls (``${optim.lr}``).

    Args:
        config: with the changes; it is changed.
        before: the state's settings.
        yamls: the composed settings, unresolved.
        changed: keys.
    """
    sources = {
        key: value[2:-1]
        for key, value in flat(yamls).items()
        if isinstance(value, str) and re.fullmatch(r"\$\{[\w.]+\}", value)
    }
    old, missing, to_do = OmegaConf.create(dict(before)), object(), list(changed)
    while to_do:
        key = to_do.pop()
        for follower, source in sources.items():
            if key != source and not key.startswith(f"{source}."):
                continue
            target = f"{follower}{key.removeprefix(source)}"
            was = OmegaConf.select(old, key)
            if target not in changed and was == OmegaConf.select(old, target, default=missing):
                OmegaConf.update(config, target, OmegaConf.select(config, key))
                to_do.append(target)


def _check_keys(state: ContinualState, overrides: Sequence[str]) -> None:
    """Refuse what would make it another model, and miss what the machine must tell."""
    keys = [_key(text) for text in overrides]
    refused = [
        text
        for text, key in zip(overrides, keys, strict=True)
        if "=" not in text or "/" in key or ("." not in key and key in WHOLE)
    ]
    if refused:
        raise UserError(
            f"{' '.join(refused)} is no setting that a state can go on with: expected key=value; "
            f"of the groups only {', '.join(GROUPS)} can be taken anew, other keys one by one "
            "(optim.epochs=3)."
        )
    weights = state.protocols[-1]["weights"]
    known = state.config["backbone"]["path"] is not None or "backbone.path" in keys
    if weights.get("source") == "folder" and not known:
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
        names = task_names(tasks)
        if not names:
            raise UserError(
                f"Expected a folder of <task>/{{train,test}}.jsonl, but {tasks} holds none: give "
                "that, or a yaml of own tasks."
            )
        place = {"data_dir": str(tasks), "order": names}
        return ["benchmark=long_sequence"], place
    return ["benchmark=own"], {"file": str(tasks)}

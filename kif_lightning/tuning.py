"""``kif tune``: each method's learning rate and its one strength, chosen on held-out rows of train.

Every method gets the same number of trials, its defaults the first of them. A trial is a run like
any other, in a folder that its settings name: the same command goes on where it was cut, as the
same scores lead a seeded search the same way.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from kif_lightning.assembly import MOST_LR, build_benchmark
from kif_lightning.benchmarks.orders import permuted
from kif_lightning.composing import composed
from kif_lightning.errors import DivergedError, UserError, require_between, require_count
from kif_lightning.interruption import EXIT_STATUS
from kif_lightning.launch import run_cell, run_path
from kif_lightning.paths import option_names
from kif_lightning.reporting.console import RunConsole
from kif_lightning.reporting.search import Searched, Trial, publish

METRIC = "average_performance"
OBJECTIVE = "average_performance on held-out rows of train, not test"
REFUSED = ("sweep", "plan", "run_dir", "experiment_name", "evaluation.rows")
"""Overrides that a search has no use for, or sets itself."""
FIRST_DRAWN = 100
"""Number of the order of the trials, where none is given; the next one if it is that reported."""
FIRST_AT_RANDOM = 5
"""Trials before the sampler learns from those it has seen; the defaults are one of them."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """What is searched for one method: the first trial's config, and how it is reported."""

    method: str
    base: DictConfig
    order: str | list[str]
    reported_order: str | list[str]
    final_overrides: tuple[str, ...]
    searched: tuple[Searched, ...]


def tune(
    overrides: Sequence[str],
    *,
    num_trials: int = 12,
    order: str | None = None,
    lr_span: float = 10.0,
    console: RunConsole,
) -> list[Path]:
    """Search for every method in turn; returns the files that list the trials and the pick.

    Args:
        overrides: as a run takes them; ``method=a,b`` names several methods.
        num_trials: of each method.
        order: ``benchmark.order`` of the trials, another sequence than the overrides': scores on
            the order that is reported must not have been chosen on it. None: its own tasks in an
            order that is drawn.
        lr_span: the learning rate is searched from the default divided by it to that times it.
        console: where the pick is shown.

    Raises:
        UserError: a mistake in the arguments, no optuna, or a trial that told of a mistake or found
            no room; one that fails otherwise (a loss of NaN) is left out of the pick.
    """
    require_count("--trials", num_trials)
    require_between("--lr-span", lr_span, 1.0, 1e4, low_open=True)
    optuna = _optuna()
    searches = _searches(overrides, order, lr_span)
    return [_search(optuna, search, num_trials, console) for search in searches]


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise UserError("kif tune needs optuna: pip install 'kif-lightning[tuning]'.") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _searches(overrides: Sequence[str], order: str | None, lr_span: float) -> list[Search]:
    methods, others = _split(overrides)
    chosen = [[*others, *([f"method={method}"] if method else [])] for method in methods]
    of_search = _search_order(chosen[0], order)
    return [_of_method(own, of_search, lr_span) for own in chosen]


def _split(overrides: Sequence[str]) -> tuple[list[str | None], list[str]]:
    """The methods (None: the config's own), and the overrides that are for all of them."""
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise UserError(f"kif tune takes the overrides of a run: {error}") from error
    methods: list[str | None] = [None]
    others = []
    for override, text in zip(parsed, overrides, strict=True):
        key = override.key_or_group
        if key in REFUSED:
            raise UserError(
                f"kif tune runs trials one after another in folders of their own and scores them "
                f"on held-out rows: leave {text} out."
            )
        if override.is_sweep_override() and not (key == "method" and override.is_choice_sweep()):
            raise UserError(
                f"kif tune takes several values of 'method' alone, got {text}: give one value."
            )
        if key != "method":
            others.append(text)
        elif isinstance(value := override.value(), Glob):
            methods = [*value.filter(option_names("method"))]
        elif override.is_sweep_override():
            methods = [*override.sweep_string_iterator()]
        else:
            methods = [override.get_value_element_as_str()]
    return methods, others


def _search_order(own: list[str], order: str | None) -> str | list[str]:
    """The order of the trials: as given, or a drawn one of the reported order's own tasks."""
    reported = _task_names(own)
    if order is None:
        drawn = (permuted(reported, number) for number in range(FIRST_DRAWN, FIRST_DRAWN + 100))
        found = next((names for names in drawn if names != reported), None)
        if found is None:
            raise UserError(
                f"The search must run on another order than is reported, and of {reported[0]} "
                "alone there is none: give --order other tasks."
            )
        return found
    if _task_names([*own, f"benchmark.order={order}"]) == reported:
        raise UserError(
            f"The search must run on another order than is reported, got {', '.join(reported)} for "
            "both: leave --order out, or give another one."
        )
    return order


def _task_names(overrides: list[str]) -> list[str]:
    """Names of orders do not tell: two of them may hold the same sequence."""
    return [task.name for task in build_benchmark(composed(overrides)).tasks]


def _key(override: str) -> str:
    return override.lstrip("+").partition("=")[0]


def _of_method(own: list[str], order: str | list[str], lr_span: float) -> Search:
    reported = composed(own)
    given = {_key(text) for text in own}
    of_search = [
        *("evaluation.rows=held_out", "save_model=false"),
        *([f"benchmark.order={order}"] if isinstance(order, str) else []),
        f"experiment_name={reported.experiment_name}_tuning",
        *([] if "evaluation.matrix" in given else ["evaluation.matrix=final_row"]),
    ]
    base = composed([*own, *of_search])
    if not isinstance(order, str):
        base.benchmark.order = order
    require_between("optim.lr", base.optim.lr, 0, MOST_LR, low_open=True)
    lr = float(base.optim.lr)
    high = min(lr * lr_span, MOST_LR)
    searched = [Searched(key="optim.lr", default=lr, low=lr / lr_span, high=high, log=True)]
    if base.method.strength is not None:
        searched.append(_strength(base))
    return Search(
        method=base.method.name,
        base=base,
        order=order,
        reported_order=_names(reported.benchmark.order),
        final_overrides=tuple(text for text in own if _key(text) != "seed"),
        searched=tuple(searched),
    )


def _names(order: Any) -> str | list[str]:
    return order if isinstance(order, str) else [str(name) for name in order]


def _strength(config: DictConfig) -> Searched:
    """What the method's yaml declares; the default is within the range, wherever it was set."""
    declared = config.method.strength
    found: Any = OmegaConf.select(config, declared.key)
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise UserError(
            f"Method {config.method.name} declares {declared.key} as its strength, which is no "
            f"number of this config (got {found!r}): set method.strength=null, or the key that its "
            "parts have."
        )
    if declared.log:
        require_between(declared.key, found, 0, inf, low_open=True)  # what a log scale has
    return Searched(
        key=declared.key,
        default=float(found),
        low=min(declared.low, found),
        high=max(declared.high, found),
        log=declared.log,
    )


def _search(optuna: Any, search: Search, num_trials: int, console: RunConsole) -> Path:
    sampler = optuna.samplers.TPESampler(seed=search.base.seed, n_startup_trials=FIRST_AT_RANDOM)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.enqueue_trial({setting.key: setting.default for setting in search.searched})
    trials: list[Trial] = []
    for number in range(num_trials):
        asked = study.ask()
        settings = {
            s.key: asked.suggest_float(s.key, s.low, s.high, log=s.log) for s in search.searched
        }
        if number:  # the defaults stay as they are, to the last digit
            settings = {key: float(f"{value:.3g}") for key, value in settings.items()}
        told = ", ".join(f"{key}={value:g}" for key, value in settings.items())
        console.say(f"Trial {number} of {search.method} (0 to {num_trials - 1}): {told}")
        trials.append(_trial(number, search.base, settings, console))
        if trials[-1].value is None:
            study.tell(asked, state=optuna.trial.TrialState.FAIL)
        else:
            study.tell(asked, trials[-1].value)
    return _published(search, trials, console)


def _trial(
    number: int, base: DictConfig, settings: Mapping[str, float], console: RunConsole
) -> Trial:
    config = base.copy()
    config.report = False
    for key, setting in settings.items():
        OmegaConf.update(config, key, setting)
    value: float | None = None
    told: str | None = None
    try:
        done = run_cell(config, console)
        if done.asked_to_stop:
            sys.exit(EXIT_STATUS)  # the trial is whole: the same command takes it from its folder
        value = (done.results or {}).get("metrics", {}).get(METRIC)
        if value is None:
            raise UserError(
                f"{METRIC} was not measured, by which trials are chosen: leave out "
                "evaluation.matrix."
            )
    except Exception as error:
        if isinstance(error, UserError | OSError) and not isinstance(error, DivergedError):
            raise  # a mistake in the settings, a full disk, a folder in use: no trial's own failure
        told = f"{type(error).__name__}: {error}"
        console.say(f"This trial failed: {told}")
    path = str(run_path(config))
    return Trial(number=number, settings=dict(settings), run=path, value=value, error=told)


def _published(search: Search, trials: Sequence[Trial], console: RunConsole) -> Path:
    own = run_path(search.base)
    conditions = {
        "method": search.method,
        "objective": OBJECTIVE,
        "order": search.order,
        "reported_order": search.reported_order,
        "seed": search.base.seed,
        "sampler": f"TPE, {FIRST_AT_RANDOM} trials at random first, the defaults among them",
    }
    file = own.with_name(f"{own.name}.tuning.json")
    pick = publish(
        file,
        conditions=conditions,
        searched=search.searched,
        trials=trials,
        command=partial(_final_command, search),
        console=console,
    )
    if pick is None:
        raise UserError(f"All {len(trials)} trials of {search.method} failed: {trials[0].error}")
    return file


def _final_command(search: Search, pick: Trial) -> str:
    settings = [f"{key}={value!r}" for key, value in pick.settings.items()]
    words = [*search.final_overrides, *settings, "seed=1,2,3"]
    return f"python -m kif_lightning -m {shlex.join(words)}"

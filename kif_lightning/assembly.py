"""Builds the parts of a run from its config and reports all configuration mistakes at once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from hydra.utils import instantiate
from lightning.pytorch import Callback
from omegaconf import DictConfig, OmegaConf

from kif_lightning.adapters import FullAdapter, PeftAdapter
from kif_lightning.batches import LengthGrouping
from kif_lightning.benchmarks.held_out import held_out_tasks
from kif_lightning.callbacks import (
    FusionWithReplay,
    KnowledgeFusion,
    SelectBestStep,
)
from kif_lightning.callbacks.checkpoint import check_cadence
from kif_lightning.continual_state import ContinualState, read_state
from kif_lightning.continuing import continued
from kif_lightning.errors import (
    UserError,
    collecting_errors,
    nearest_names,
    require_between,
    require_choice,
    require_count,
)
from kif_lightning.identification import Identification
from kif_lightning.interfaces import (
    Adapter,
    Backbone,
    Benchmark,
    Decode,
    EvaluationMatrix,
    EvaluationRows,
    HasNeeds,
    Memory,
    Penalty,
    Rehearsal,
    Stream,
)
from kif_lightning.memory import MemoryRehearsal
from kif_lightning.metrics import TextScore
from kif_lightning.penalties import Distillation
from kif_lightning.probe import Probe
from kif_lightning.sharding import SHARDED, check_strategy

MOST_LR = 1e3
PRECISIONS = (None, "32-true", "bf16-mixed")
"""Of evaluation; None: as in training."""
KEEP_WEIGHTS = ("32-true", "32", 32, "bf16-mixed", "16-mixed")
"""Precisions of training that leave the weights as they are, for an evaluation in another."""
KNOW_SHARDS = (
    *(FullAdapter, PeftAdapter, MemoryRehearsal),
    *(KnowledgeFusion, FusionWithReplay, SelectBestStep),
)
"""The parts, of those that touch weights, that work where each rank holds a part of them."""
HELD_OUT_ROWS = "held-out rows of train, not test"
"""How results say that they are for choosing settings, not for reporting."""


@dataclass(kw_only=True)
class Parts:
    """Everything a run is made of; the pretrained weights are not loaded yet."""

    benchmark: Benchmark
    backbone: Backbone
    adapter: Adapter
    identification: Identification | None
    penalties: dict[str, Penalty]
    selection: SelectBestStep | None
    gradient: dict[str, Callback]
    boundary: dict[str, Callback]
    stream: Stream
    memory: Memory | None
    rehearsal: Rehearsal | None
    optimizer: Callable[..., Any]
    schedule: Callable[..., Any]
    metrics: dict[str, Callable[[], TextScore]]
    probe: Probe | None = None
    """Rows of no task, asked before the first one and after each."""
    evaluation_rows: EvaluationRows = "test"
    origin: ContinualState | None = None
    """What the run goes on from; None: from the pretrained weights."""
    new_data_stands_in: bool = False
    """Whether the rows to be learnt only stand for real ones, whatever was learnt before."""

    @property
    def num_learnt(self) -> int:
        """How many of the benchmark's tasks had been learnt before the run began."""
        return len(self.origin.tasks) if self.origin else 0

    @property
    def stand_in_parts(self) -> list[str]:
        """Which parts only stand for real ones, or did before: a copy of a model knows no more."""
        before = self.origin.stand_ins if self.origin else ()
        now = {
            "stand-in data": self.benchmark.stand_in,
            "stand-in model": self.backbone.stand_in,
        }
        return [told for told, stands_in in now.items() if stands_in or told in before]

    @property
    def stand_ins(self) -> list[str]:
        """What stands for something real, the rows that answers are scored on among it.

        Every result says so.
        """
        before = self.origin.stand_ins if self.origin else ()
        held_out = self.evaluation_rows == "held_out" or HELD_OUT_ROWS in before
        return self.stand_in_parts + [HELD_OUT_ROWS] * held_out

    def new_score(self, metric: str) -> TextScore:
        """A fresh metric object."""
        return self.metrics[metric]()


class _Collector:
    """Instantiates parts one by one and keeps the user's mistakes."""

    def __init__(self) -> None:
        self.errors: list[UserError] = []

    def part(self, config: Any) -> Any:
        if config is None:
            return None
        return self.attempt(lambda: instantiate(config))

    def mapping(self, config: Mapping[str, Any] | None) -> dict[str, Any]:
        return {name: self.part(entry) for name, entry in (config or {}).items()}

    def attempt(self, make: Callable[[], Any]) -> Any:
        with collecting_errors() as mistakes:
            try:
                made = make()
            except Exception as error:
                mistake = _user_error_in(error)
                # With a mistake noted the code may go astray: the mistake is what to tell.
                if mistake is None and not mistakes:
                    raise
                made = None
                mistakes.extend([] if mistake is None else [mistake])
        self.errors.extend(mistakes)
        return None if mistakes else made

    def raise_if_any(self) -> None:
        if self.errors:
            unique = {str(error): error for error in self.errors}
            raise UserError.joined(list(unique.values()))


def build_benchmark(config: DictConfig) -> Benchmark:
    """The tasks alone.

    Raises:
        UserError: all mistakes found, one a line.
    """
    collect = _Collector()
    benchmark: Benchmark = collect.attempt(lambda: _benchmark(config))
    origin: ContinualState | None = collect.attempt(lambda: _origin(config, with_parts=False))
    benchmark = _continued(benchmark, origin, collect)
    collect.raise_if_any()
    return benchmark


def build_learner(config: DictConfig) -> tuple[Backbone, Adapter]:
    """Backbone and adapter alone; no weights are loaded yet.

    Raises:
        UserError: as :func:`build_benchmark`.
    """
    collect = _Collector()
    collect.attempt(lambda: _check_evaluation(config))
    backbone = collect.part(_with_truncation(config))
    adapter = collect.part(config.method.adapter)
    collect.raise_if_any()
    return backbone, adapter


def build_probe(config: DictConfig) -> Probe | None:
    """The rows of no task alone; None without any.

    Raises:
        UserError: as :func:`build_benchmark`.
    """
    collect = _Collector()
    probe: Probe | None = collect.part(config.probe or None)
    collect.raise_if_any()
    return probe


def _benchmark(config: DictConfig) -> Benchmark:
    benchmark: Benchmark = instantiate(config.benchmark)
    evaluation = config.evaluation
    if evaluation.rows == "held_out":
        benchmark = copy.copy(benchmark)
        benchmark.tasks = held_out_tasks(
            benchmark.tasks,
            most_rows=evaluation.held_out_rows,
            most_share=evaluation.held_out_share,
        )
    return benchmark


def _origin(config: DictConfig, *, with_parts: bool = True) -> ContinualState | None:
    """The state to go on from; settings that only a whole stream can have are refused.

    Raises:
        UserError: no state there, or such a setting.
    """
    if config.continue_from is None:
        return None
    of_whole_streams = {
        "probe=none": bool(config.probe),
        "evaluation.untrained=false": config.evaluation.untrained,
        "keep_boundaries=false": config.keep_boundaries,
    }
    asked = [mend for mend, is_asked in of_whole_streams.items() if is_asked]
    if asked:
        raise UserError(
            f"A run that goes on from a state cannot look back at the stream's beginning: set "
            f"{' '.join(asked)}."
        )
    return read_state(Path(config.continue_from), with_parts=with_parts)


def _continued(benchmark: Any, origin: ContinualState | None, collect: _Collector) -> Any:
    """With the tasks learnt before in front, where the run goes on from a state."""
    if benchmark is None or origin is None:
        return benchmark
    return collect.attempt(lambda: continued(benchmark, origin))


def build_parts(config: DictConfig) -> Parts:
    """Instantiate every group of the config.

    Raises:
        UserError: all mistakes found, one a line.
    """
    collect = _Collector()
    collect.attempt(lambda: require_between("optim.lr", config.optim.lr, 0, MOST_LR, low_open=True))
    collect.attempt(lambda: require_count("optim.epochs", config.optim.epochs))
    collect.attempt(lambda: require_count("seed", config.seed, 0))
    cadence = config.checkpoint
    collect.attempt(lambda: check_cadence(cadence.every_steps, cadence.every_minutes))
    collect.attempt(lambda: require_choice("resume", config.resume, ("latest", "previous")))
    collect.attempt(lambda: _check_plain_settings(config))
    collect.attempt(lambda: _check_evaluation(config))
    method, strategy = config.method, config.trainer.get("strategy", "auto")
    precision = fixed(config, "precision", config.trainer.get("precision"))
    collect.attempt(lambda: check_strategy(strategy, precision))
    parts = Parts(
        benchmark=collect.attempt(lambda: _benchmark(config)),
        backbone=collect.part(_with_truncation(config)),
        adapter=collect.part(method.adapter),
        identification=collect.part(method.importance),
        penalties=collect.mapping(method.penalty),
        selection=collect.part(method.selection),
        gradient=collect.mapping(method.gradient),
        boundary=collect.mapping(method.boundary),
        stream=collect.part(method.stream),
        memory=collect.part(method.memory),
        rehearsal=collect.part(method.rehearsal),
        optimizer=collect.part(config.optim.optimizer),
        schedule=collect.part(config.optim.schedule),
        metrics={
            str(name): partial(instantiate, entry)
            for name, entry in config.evaluation.metrics.items()
        },
        probe=collect.part(config.probe or None),
        evaluation_rows=config.evaluation.rows,
        origin=collect.attempt(lambda: _origin(config)),
    )
    parts.new_data_stands_in = parts.benchmark is not None and parts.benchmark.stand_in
    parts.benchmark = _continued(parts.benchmark, parts.origin, collect)
    for name in parts.metrics:
        collect.attempt(partial(parts.new_score, name))
    if parts.backbone is not None:
        collect.attempt(parts.backbone.require_available)
    if parts.benchmark is not None:
        collect.attempt(lambda: _check_metrics(parts))
    if not collect.errors:
        collect.attempt(lambda: _try_optimizer(parts))
        collect.attempt(lambda: _check_needs(parts))
        if strategy == SHARDED:
            collect.attempt(lambda: _check_shards(parts))
        if config.backbone.compile:
            collect.attempt(lambda: _check_compiled(parts, strategy))
    if not collect.errors:
        collect.attempt(lambda: _check_declarations(parts, method))
    collect.raise_if_any()
    return parts


def _check_plain_settings(config: DictConfig) -> None:
    """Those of which no part is made."""
    require_choice("optim.length_grouping", config.optim.length_grouping, get_args(LengthGrouping))
    require_choice("optim.fused", config.optim.fused, (None, True, False))


def _check_evaluation(config: DictConfig) -> None:
    evaluation = config.evaluation
    require_choice("evaluation.matrix", evaluation.matrix, get_args(EvaluationMatrix))
    require_choice("evaluation.decode", evaluation.decode, get_args(Decode))
    require_choice("evaluation.rows", evaluation.rows, get_args(EvaluationRows))
    require_count("evaluation.batch_size", evaluation.batch_size)
    if evaluation.batch_tokens is not None:
        require_count("evaluation.batch_tokens", evaluation.batch_tokens)
    training = fixed(config, "precision", config.trainer.get("precision"))
    _check_evaluation_precision(evaluation.precision, training, config.backbone.dtype)


def _check_evaluation_precision(asked: str | None, training: Any, dtype: str) -> None:
    require_choice("evaluation.precision", asked, PRECISIONS)
    if asked is None:
        return
    if training not in KEEP_WEIGHTS:
        raise UserError(
            f"evaluation.precision={asked} needs trainer.precision=32-true, bf16-mixed or "
            f"16-mixed, which leave the weights as they are, got {training}: set "
            "evaluation.precision=null."
        )
    if asked == "32-true" and dtype != "float32":
        raise UserError(
            f"evaluation.precision=32-true needs backbone.dtype=float32, got {dtype}: set "
            "evaluation.precision=null."
        )


def fixed(config: DictConfig, key: str, default: Any) -> Any:
    """What the method insists on under ``method.fixes.<key>``, else the run's own setting."""
    value = config.method.fixes[key]
    return default if value is None else value


def _with_truncation(config: DictConfig) -> DictConfig:
    backbone = config.backbone.copy()
    backbone.truncation = fixed(config, "truncation", backbone.truncation)
    resolved = OmegaConf.create(OmegaConf.to_container(backbone, resolve=True))
    assert isinstance(resolved, DictConfig)
    return resolved


def _check_metrics(parts: Parts) -> None:
    scored_by = {f"Task {task.name}": task.metric for task in parts.benchmark.tasks}
    if parts.probe is not None:
        scored_by["The probe"] = parts.probe.task.metric
    for what, metric in scored_by.items():
        if metric not in parts.metrics:
            raise UserError(
                f"{what} is scored by {metric!r}, which evaluation.metrics does not have; "
                f"{nearest_names(metric, parts.metrics)}."
            )


def _check_needs(parts: Parts) -> None:
    """What a part needs of the others is there, and what is there is of use."""
    others: list[Any] = [*parts.penalties.values(), *parts.boundary.values(), parts.rehearsal]
    found = [(type(part).__name__, part.needs) for part in others if isinstance(part, HasNeeds)]
    for name, needs in found:
        if needs.memory and parts.memory is None:
            raise UserError(
                f"{name} works with rows of past tasks, but the method keeps none: use "
                "method/memory=share."
            )
        if needs.shared_weights and not parts.adapter.shared:
            raise UserError(
                f"{name} needs the same weights in every task, but {type(parts.adapter).__name__} "
                "brings new ones for each: use method/adapter=lora."
            )
        if needs.new_weights and parts.adapter.shared:
            raise UserError(
                f"{name} needs weights of each task's own, but {type(parts.adapter).__name__} has "
                "the same for all: use method/adapter=stacked_lora."
            )
        if needs.last_step and parts.selection is not None:
            raise UserError(
                f"{name} merges within the task and cannot go back to an earlier step: use "
                "method/selection=none."
            )
    if parts.stream.at_once and parts.origin is not None:
        raise UserError(
            "All tasks at once cannot go on from a state, which has learnt some already: use "
            "method/stream=sequential."
        )
    if parts.stream.at_once and (parts.memory is not None or parts.rehearsal is not None):
        raise UserError(
            "Nothing can be rehearsed where all tasks are learnt at once: use "
            "method/stream=sequential, or method/memory=none and method/rehearsal=none."
        )
    if parts.memory is not None and not any(needs.memory for _, needs in found):
        raise UserError(
            "The method keeps rows of past tasks, but nothing works with them: use "
            "method/memory=none, method/rehearsal=memory or method/boundary=fusion_with_replay."
        )


def _check_shards(parts: Parts) -> None:
    touching: list[Any] = [
        *(parts.adapter, parts.selection, parts.rehearsal),
        *(*parts.penalties.values(), *parts.gradient.values(), *parts.boundary.values()),
    ]
    # Not by isinstance: what a class derived from one of them does is not known.
    whole = [type(part).__name__ for part in touching if part and type(part) not in KNOW_SHARDS]
    if whole:
        raise UserError(
            f"{' and '.join(whole)} need whole weights, but with trainer=sharded each device holds "
            "a part of every weight: use trainer.strategy=ddp, or a method without them."
        )


def _check_compiled(parts: Parts, strategy: str) -> None:
    teachers = [p for p in parts.penalties.values() if isinstance(p, Distillation)]
    reasons = {
        "weights spread over devices (trainer=sharded)": strategy == SHARDED,
        "a callback that listens to layers (method/gradient)": bool(parts.gradient),
        "a penalty that runs the model with other weights (method/penalty)": bool(teachers),
        f"{type(parts.adapter).__name__}, which changes the model from task to task": (
            not isinstance(parts.adapter, FullAdapter | PeftAdapter)
        ),
    }
    found = [reason for reason, there in reasons.items() if there]
    if found:
        raise UserError(
            f"A compiled model cannot be trained with {' and '.join(found)}: use "
            "backbone.compile=false."
        )


def _check_declarations(parts: Parts, method: DictConfig) -> None:
    """What a method's yaml declares is true of the parts it has in this run."""
    true = {
        "needs_memory": parts.memory is not None,
        "needs_task_id": parts.adapter.needs_task_id,
        "grows_with_tasks": not parts.adapter.shared,
    }
    wrong = [f"method.{key}={str(value).lower()}" for key, value in true.items()
             if method[key] != value]  # fmt: skip
    if method.single_task_reference and not (true["needs_task_id"] and true["grows_with_tasks"]):
        wrong.append("method.single_task_reference=false")
    if wrong:
        raise UserError(
            f"With these parts {method.name} is another method than it declares: give it another "
            f"name and say so, method.name=NAME {' '.join(wrong)}."
        )


def _try_optimizer(parts: Parts) -> None:
    """What optimizer and schedule refuse, they refuse on one weight too."""
    try:
        optimizer = parts.optimizer([torch.nn.Parameter(torch.zeros(1))])
        parts.schedule(optimizer=optimizer, num_training_steps=1)
    except ValueError as error:
        raise UserError(f"The settings under optim do not work: {error}.") from error


def _user_error_in(error: BaseException | None) -> UserError | None:
    while error is not None:
        if isinstance(error, UserError):
            return error
        error = error.__cause__ or error.__context__
    return None

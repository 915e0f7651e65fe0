"""Knowledge fusion at the task boundary, as a Lightning callback."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from kif_lightning.errors import UserError, require_between
from kif_lightning.identification import Identification
from kif_lightning.interfaces import Boundary, LearningModule, Needs, Parameters
from kif_lightning.kif import SkillUnits, UnitClass, accumulate, classify, fuse_, min_max

Partition = Callable[[Mapping[str, Tensor]], SkillUnits]
Rule = Callable[[Tensor, Tensor], Tensor]


class KnowledgeFusion(Callback):
    """Snapshot at a task's start, fusion of old and new weights at its end (KIF: fusion).

    The module must offer ``trainable_parameters`` (exported name -> parameter) and
    ``identification``. The only state is the accumulated importance of the tasks so far; the first
    task is not fused, its importance becomes the accumulated one.

    Args:
        rule: (previous, current) normalised scores (U,) -> share of the previous weights (U,).
        units: trainable weights -> skill units.
        beta: share of the past in the accumulated importance, in [0, 1].
        top_percent: share of units that count as important in the reported classes, in (0, 100].
        offload_snapshot: keep the weights before the task in the CPU's memory.

    Raises:
        UserError: a value out of range, no rule or no units; a module that tracks no importance;
            other units than in the tasks before.
    """

    needs = Needs(shared_weights=True)

    def __init__(
        self,
        *,
        rule: Rule | None,
        units: Partition | None,
        beta: float = 0.7,
        top_percent: float = 20.0,
        offload_snapshot: bool = False,
    ) -> None:
        if rule is None or units is None:
            raise UserError(
                "Knowledge fusion needs a rule and units: choose method/rule=adaptive (or static, "
                "mean) and method/units=lora_rank (or matrix)."
            )
        require_between("fusion.beta", beta, 0.0, 1.0)
        require_between("fusion.top_percent", top_percent, 0.0, 100.0, low_open=True)
        self.rule = rule
        self.partition = units
        self.beta = beta
        self.top_percent = top_percent
        self.offload_snapshot = offload_snapshot
        self.boundary: Boundary | None = None
        self._unit_ids: tuple[str, ...] = ()
        self._accumulated: Tensor | None = None
        self.units: SkillUnits | None = None
        """The partition of the present task's weights."""
        self.snapshot: dict[str, Tensor] = {}
        """The weights before the present task; empty in the first one and between tasks."""
        self.keep: Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], None] | None = None
        """Called before each fusion with the weights before the task and the present ones; no
        part of the method, so it counts as none of its seconds."""

    def check(self, module: LearningModule) -> None:
        """Refuse a module without importance, and weights the units do not cover."""
        self._units_of(module)

    def _units_of(self, module: LearningModule) -> SkillUnits:
        if not isinstance(module.identification, Identification):
            raise UserError(
                "Knowledge fusion needs the importance of the units, but none is tracked: use "
                "method/importance=order2 (or order1)."
            )
        return self.partition(module.trainable_parameters)

    def check_state(self, module: LearningModule, state: Mapping[str, Any]) -> None:
        """Refuse the importance of other units than the module's."""
        before = tuple(state.get("unit_ids", ()))
        if before:
            require_same_units(before, self.partition(module.trainable_parameters).ids)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a task."""
        self.begin(learning(pl_module))

    def begin(self, module: LearningModule, snapshot: Mapping[str, Tensor] | None = None) -> None:
        """Partition the weights and, after the first task, keep the fused ones as they are now.

        Args:
            module: that learns.
            snapshot: the fused weights, where the module's have learnt from the task already.
        """
        self.units = self._units_of(module)
        if self._accumulated is None:
            return
        require_same_units(self._unit_ids, self.units.ids)
        parameters = module.trainable_parameters
        fused = parameters if snapshot is None else snapshot
        self.snapshot = {
            name: fused[name].detach().to("cpu" if self.offload_snapshot else p.device, copy=True)
            for name, p in parameters.items()
        }

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Identify, then fuse."""
        self.identify(learning(pl_module))
        self.fuse(learning(pl_module).trainable_parameters)

    def identify(self, module: LearningModule) -> None:
        """Score the units and set the weights of the past, without changing anything else."""
        assert self.units is not None
        started = time.perf_counter()
        score = module.identification.unit_scores(self.units)
        current = min_max(score)
        previous = weight = classes = None
        if self._accumulated is not None:
            previous = min_max(self._accumulated)
            weight = self.rule(previous, current)
            found = classify(previous, current, self.top_percent)
            classes = tuple(UnitClass(value).name.lower() for value in found.tolist())
        self._accumulated = accumulate(self._accumulated, score, self.beta)
        self._unit_ids = self.units.ids
        self.boundary = Boundary(
            unit_ids=self._unit_ids,
            score=score,
            current=current,
            accumulated=self._accumulated,
            previous=previous,
            weight=weight,
            classes=classes,
            seconds=time.perf_counter() - started,
        )

    def fuse(self, parameters: Parameters) -> None:
        """Fuse the weights before this task into the present ones; the first task is left as is."""
        assert self.units is not None
        assert self.boundary is not None, "identify() comes first"
        if self.boundary.weight is not None and self.keep is not None:
            self.keep(self.snapshot, parameters)
        started = time.perf_counter()
        if self.boundary.weight is not None:
            fuse_(self.units, self.boundary.weight, self.snapshot, parameters)
        self.snapshot = {}
        seconds = self.boundary.seconds + time.perf_counter() - started
        self.boundary = replace(self.boundary, seconds=seconds)

    def state_dict(self) -> dict[str, Any]:
        """The accumulated importance and the units it belongs to."""
        if self._accumulated is None:
            return {}
        return {"unit_ids": list(self._unit_ids), "accumulated": self._accumulated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
        self._unit_ids = tuple(state_dict.get("unit_ids", ()))
        accumulated = state_dict.get("accumulated")
        self._accumulated = None if accumulated is None else torch.as_tensor(accumulated).double()


def require_same_units(before: Sequence[str], now: Sequence[str]) -> None:
    """Raise UserError, naming the difference, unless both partitions hold the same units.

    Args:
        before: ids of the units that the accumulated importance is of.
        now: ids of the units of the present weights.
    """
    if tuple(before) == tuple(now):
        return
    known, present = set(before), set(now)
    apart = [
        f"{len(ids)} {where}, {ids[0]} among them"
        for where, ids in (
            ("are gone", [name for name in before if name not in present]),
            ("are new", [name for name in now if name not in known]),
        )
        if ids
    ]
    raise UserError(
        f"The accumulated importance is of {len(before)} units, the model has {len(now)} now "
        f"({'; '.join(apart) or 'in another order'}): adapter and units must stay the same."
    )


def learning(module: Any) -> LearningModule:
    """The module seen as what it offers to a method's parts."""
    learning: LearningModule = module
    return learning

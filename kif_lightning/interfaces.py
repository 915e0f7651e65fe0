"""The vocabulary of the layers above the mathematics: Protocols and frozen dataclasses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

TaskKind = Literal["classification", "generation"]
Parameters = Mapping[str, nn.Parameter]
"""Exported name (as in the saved adapter) -> trainable parameter."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One example, text to text; ``id`` is unique within its split."""

    id: str
    input: str
    output: str


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task of the stream.

    ``labels`` holds the distinct TRAIN outputs of a classification task, before any row limit: its
    longest one caps the generated tokens. It is empty for a generation task.
    """

    name: str
    kind: TaskKind
    metric: str
    train: tuple[Row, ...]
    test: tuple[Row, ...]
    labels: tuple[str, ...]
    sha256: Mapping[str, str]
    """split -> sha256 of its whole file."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """A tokenised row; ``answer_ids`` ends with the end token."""

    prompt_ids: list[int]
    answer_ids: list[int]


Batch = dict[str, Any]
"""Model inputs by name (N rows each), ready for the device."""


class Benchmark(Protocol):
    """A stream of tasks in a fixed order; ``stand_in`` marks rows made to stand for real ones."""

    name: str
    stand_in: bool
    order_name: str
    tasks: tuple[Task, ...]


class Backbone(Protocol):
    """A pretrained language model of one family: its tokens, its logits, its decoding.

    ``stand_in`` marks a model made to stand for a real one.
    """

    name: str
    stand_in: bool
    provenance: Mapping[str, Any]
    task_type: str
    public_name: str

    def require_available(self) -> None:
        """Raise UserError, soon, if the weights cannot be had here."""

    def load_model(self) -> nn.Module:
        """The pretrained weights; a new module each time."""

    def encode(self, row: Row) -> Example:
        """Token ids of prompt and answer, cut to the limits."""

    def training_batch(self, examples: Sequence[Example]) -> Batch:
        """Pad and stack for :meth:`answer_logits`."""

    def generation_batch(self, examples: Sequence[Example]) -> Batch:
        """Pad and stack the prompts for :meth:`generate`."""

    def answer_logits(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits (N, L, V) and labels (N, L) of the answer positions; -100 marks padding."""

    def generate(self, model: nn.Module, batch: Batch, max_new_tokens: int) -> list[str]:
        """Greedy answers, (N,) texts."""

    def protocol(self) -> dict[str, Any]:
        """What decides the prompt's tokens and the decoding, for the stamp."""

    def save_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer beside saved weights."""


class Adapter(Protocol):
    """Which weights learn, and how they are named, saved and restored."""

    def attach(self, model: nn.Module, backbone: Backbone) -> nn.Module:
        """Make the model trainable; called once, before the first task."""

    def begin_task(self, model: nn.Module, task_index: int) -> None:
        """Prepare for a task (a new LoRA, a fresh prompt); nothing for shared weights."""

    def trainable(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Exported name -> parameter that learns in the present task."""

    def state_dict(self, model: nn.Module) -> dict[str, Tensor]:
        """All learnt weights, under exported names."""

    def load_state_dict(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`state_dict` gave, exactly."""

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the standard form: a PEFT adapter folder, or the whole model."""


@dataclass(frozen=True, kw_only=True)
class LossContext:
    """What a penalty may look at in one micro-batch."""

    parameters: Parameters
    model: nn.Module
    batch: Batch
    logits: Tensor
    labels: Tensor


class Penalty(Protocol):
    """A term added to the loss once per optimizer step."""

    def __call__(self, context: LossContext) -> Tensor:
        """The term, a scalar, its coefficient included."""

    def begin_task(self, parameters: Parameters, task_index: int) -> None:
        """Called before the task's first step."""

    def end_task(self, parameters: Parameters, task_index: int) -> None:
        """Called after the task's boundary (fusion included)."""

    def state_dict(self) -> dict[str, Any]:
        """What the next task needs."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""


@dataclass(frozen=True, kw_only=True)
class Boundary:
    """What happened to every unit at one task boundary: (U,) vectors, float64 on the CPU.

    ``previous``, ``weight`` and ``classes`` are ``None`` after the first task: nothing to fuse.
    """

    unit_ids: tuple[str, ...]
    score: Tensor
    current: Tensor
    accumulated: Tensor
    previous: Tensor | None = None
    weight: Tensor | None = None
    classes: tuple[str, ...] | None = None
    seconds: float = 0.0


class LearningModule(Protocol):
    """What a method's parts may look at in the module that learns."""

    trainable_parameters: dict[str, nn.Parameter]
    identification: Any


@runtime_checkable
class ChecksModule(Protocol):
    """A part that can tell, before anything is written, that it does not fit the model."""

    def check(self, module: LearningModule) -> None:
        """Raise UserError if the part cannot work on this module."""


@runtime_checkable
class ReportsBoundary(Protocol):
    """A callback that can tell what it did at the last task boundary."""

    boundary: Boundary | None


@dataclass
class TrainingCounts:
    """What happened during one task's training."""

    optimizer_steps: int = 0
    skipped_steps: int = 0
    scaler_overflows: int = 0
    losses: list[float] = field(default_factory=list)


def count_weights(parameters: Mapping[str, Tensor]) -> int:
    """Number of scalar weights."""
    return sum(parameter.numel() for parameter in parameters.values())


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether every element is finite, with one device synchronisation.

    A norm beyond the dtype's range counts as not finite.
    """
    if not tensors:
        return True
    norms = [norm.float() for norm in torch._foreach_norm(list(tensors))]
    return bool(torch.isfinite(torch.stack(norms)).all())

"""The vocabulary of the layers above the mathematics: Protocols and frozen dataclasses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from kif_lightning.kif.shards import is_sharded, part
from kif_lightning.ranks import any_rank

Decode = Literal["generate", "rank_labels"]
"""How a task is answered: greedy text, or its train label of the highest probability."""
TaskKind = Literal["classification", "generation", "multiple_choice", "dialogue_state"]
EvaluationMatrix = Literal["full", "final_row", "diagonal", "diagonal_and_final_row"]
"""Which of the scores ``a[i][j]``, j <= i, are measured."""
EvaluationRows = Literal["test", "held_out"]
"""On which rows: the test split, or rows of train that are not trained on."""
Parameters = Mapping[str, nn.Parameter]
"""Exported name (as in the saved adapter) -> trainable parameter."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One example, text to text; ``id`` is unique within its split."""

    id: str
    input: str
    output: str


@dataclass(frozen=True)
class RowsElsewhere(Sequence[Row]):
    """Rows that a model was trained or scored on elsewhere: how many is known, no row is at hand.

    Args:
        number: of rows.
    """

    number: int

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: Any) -> Any:
        raise LookupError("These rows are not at hand: only how many there were is known.")


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task of the stream.

    ``labels`` holds the distinct TRAIN outputs where they are few words that all rows choose from
    (classification), before any row limit: the longest one caps the generated tokens. It is empty
    where answers are free.
    """

    name: str
    kind: TaskKind
    metric: str
    train: Sequence[Row]
    test: Sequence[Row]
    labels: tuple[str, ...]
    sha256: Mapping[str, str]
    """split -> sha256 of all that its rows are made from: the whole file, how it is laid out."""
    dev: Sequence[Row] = ()
    """The dev rows that came with the data, if any; held-out rows are a share of ``train``."""

    @property
    def at_hand(self) -> bool:
        """Whether its rows can be read; a task of an earlier run may be known by its name alone."""
        return not isinstance(self.test, RowsElsewhere)


@dataclass(frozen=True, kw_only=True)
class Split:
    """All rows of one split of a task, as its source has them: before limits and held-out rows."""

    rows: Sequence[Row]
    sha256: str
    problems: tuple[str, ...] = ()
    """What is wrong with the first rows that could not be read, where the reader was to go on."""
    num_problems: int = 0
    """How many rows could not be read."""


@dataclass(frozen=True, kw_only=True)
class SourceTask:
    """One task as its source has it: files, a hub data set, a generator."""

    name: str
    kind: TaskKind
    metric: str
    splits: Mapping[str, Split]
    """``train`` and ``test``; ``dev`` where there is one."""
    closed_answers: bool
    """Whether all rows choose from the same few answers (classification, lettered choices)."""


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
    provenance: Mapping[str, Any]
    """Where the rows come from and how they were drawn, for the stamp."""


@runtime_checkable
class HasLayouts(Protocol):
    """A benchmark that makes its rows of records with named columns, and can tell how."""

    layouts: Mapping[str, Mapping[str, Any]]
    """Task name -> how its prompts are made, in plain values."""


class Stream(Protocol):
    """How a benchmark's tasks are learnt: one after another, or all at once."""

    at_once: bool

    def training_tasks(self, tasks: Sequence[Task]) -> tuple[Task, ...]:
        """What is trained on, phase by phase; each phase ends with a task boundary."""

    def num_seen(self, phase: int, num_tasks: int) -> int:
        """How many of the benchmark's tasks have been learnt after the phase (0-based)."""


@dataclass(frozen=True, kw_only=True)
class PlainUse:
    """How a model of a family is used by transformers alone, without this package."""

    auto_class: str
    """Of transformers, that loads it."""
    rule: str
    """How a prompt is laid out, in words."""
    encode: str
    """Lines of Python that make the list ``ids`` from the text ``prompt`` with ``tokenizer``."""
    padding_side: Literal["left", "right"]
    repeats_prompt: bool
    """Whether what is generated begins with the prompt."""
    generation: Mapping[str, Any]
    """Token ids that begin, end and pad an answer, by GenerationConfig's names."""


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

    def encode(self, row: Row, max_target_tokens: int | None = None) -> Example:
        """Token ids of prompt and answer, cut to the limits; None: the backbone's own."""

    def encode_rows(
        self, rows: Sequence[Row], max_target_tokens: int | None = None
    ) -> list[Example]:
        """What :meth:`encode` gives for each row, in a few calls of the tokenizer."""

    def encoding_fingerprint(self) -> str | None:
        """Of everything beside a row that decides what :meth:`encode` gives: limits, vocabulary.

        None: it cannot be told.
        """

    def training_batch(self, examples: Sequence[Example]) -> Batch:
        """Pad and stack for :meth:`answer_logits`."""

    def generation_batch(self, examples: Sequence[Example]) -> Batch:
        """Pad and stack the prompts for :meth:`generate`."""

    def answer_logits(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits (N, L, V) and labels (N, L) of the answer positions; -100 marks padding."""

    def generate(
        self, model: nn.Module, batch: Batch, max_new_tokens: int, *, top_k: int | None = None
    ) -> list[str]:
        """Greedy answers, (N,) texts; with ``top_k`` drawn by torch's global generator."""

    def label_log_probabilities(
        self, model: nn.Module, batch: Batch, labels: Sequence[Sequence[int]]
    ) -> Tensor:
        """Each label's log p(label | prompt), summed over each label's tokens, (N, K) in float32.

        Args:
            model: the adapted model, not in training mode.
            batch: of :meth:`generation_batch`.
            labels: K lists of token ids, as ``answer_ids`` of :meth:`encode`: the end token too.
        """

    def protocol(self) -> dict[str, Any]:
        """What decides the prompt's tokens and the decoding, for the stamp."""

    def computation(self, model: nn.Module) -> dict[str, Any]:
        """How the adapted model computes (its weights' dtype, its attention), for the stamp."""

    def plain_use(self, model: nn.Module) -> PlainUse:
        """How others get from the model, adapted or not, the answers of :meth:`generate`."""

    def save_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer beside saved weights."""


class Adapter(Protocol):
    """Which weights learn, and how they are named, saved and restored."""

    shared: bool
    """Whether the same weights learn in every task; others are added to as tasks come."""
    needs_task_id: bool
    """Whether it answers by the task that a row is of."""

    def attach(self, model: nn.Module, backbone: Backbone) -> nn.Module:
        """Make the model trainable; called once, before the first task."""

    def begin_task(self, model: nn.Module, task_index: int) -> None:
        """Prepare for a task (a new LoRA, a fresh prompt); nothing for shared weights."""

    def use_task(self, model: nn.Module, task_index: int) -> None:
        """Answer rows of that task from now on; nothing for weights that do not ask which it is."""

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
    """What a penalty may look at in one pass: a micro-batch, or a part of one that is parted."""

    parameters: Parameters
    model: nn.Module
    batch: Batch
    logits: Tensor
    labels: Tensor
    answer_logits: Callable[[nn.Module, Batch], tuple[Tensor, Tensor]]
    """The backbone's: logits (N, L, V) and labels (N, L) of a model for a batch."""
    step_tokens: int
    """Target tokens of the whole optimizer step."""
    step_micro_batches: int
    """Of the optimizer step, times the parts of this one: shares of 1 over it add up to 1."""
    step_rows: int


class LearntTask(Protocol):
    """What may be computed from a task's own rows once it is learnt."""

    def row_losses(self, num_rows: int) -> Iterator[Tensor]:
        """-log p(answer | prompt) of so many seeded train rows, one by one, summed over tokens.

        Each is a scalar with its graph; dropout is off.
        """


class Penalty(Protocol):
    """A term added to the loss once per optimizer step.

    It is called for every micro-batch, or for each part of one that is parted, and counts
    ``1 / step_micro_batches`` each time.
    """

    def __call__(self, context: LossContext) -> Tensor:
        """The term, a scalar, its coefficient included."""

    def begin_task(self, parameters: Parameters, task_index: int) -> None:
        """Called before the task's first step."""

    def end_task(self, parameters: Parameters, task_index: int, learnt: LearntTask) -> None:
        """Called after the task's boundary (fusion included)."""

    def state_dict(self) -> dict[str, Any]:
        """What the next task needs."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""


class Memory(Protocol):
    """Rows of past tasks that a method keeps."""

    rows: dict[str, tuple[Row, ...]]
    """Task name -> its kept rows, in the order of learning."""

    def keep(self, task: Task) -> None:
        """Choose the rows of a task that has been learnt."""

    def budget(self, task: Task) -> int:
        """The most rows that :meth:`keep` keeps of the task."""

    def state_dict(self) -> dict[str, Any]:
        """The rows."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""


@dataclass(frozen=True, kw_only=True)
class RehearsalContext:
    """What a rehearsal may use before a task's first step; the model is as the last one left it."""

    task: Task
    past_tasks: Mapping[str, int]
    """Name -> number of train rows of each task already learnt."""
    memory_rows: tuple[Row, ...]
    backbone: Backbone
    model: nn.Module
    seed: int


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a part needs of the rest of its method."""

    memory: bool = False
    """Rows kept of past tasks."""
    shared_weights: bool = False
    """The same weights learn in every task."""
    new_weights: bool = False
    """Each task brings weights of its own."""
    last_step: bool = False
    """A task ends with its last step: no selection of an earlier one."""


@runtime_checkable
class HasNeeds(Protocol):
    """A part that does not go with everything."""

    needs: Needs


class Rehearsal(Protocol):
    """Examples that join a task's own in its training."""

    def examples(self, context: RehearsalContext) -> list[Example]:
        """Called once a task, before its first step."""


class FitRows(Protocol):
    """Trains the present trainable weights on given rows, with a fresh optimizer and schedule."""

    def __call__(self, rows: Sequence[Row], *, epochs: int, callbacks: Sequence[Any]) -> None:
        """Same optimizer, learning rate and batch as the task; importance is not measured."""


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
class ChecksState(Protocol):
    """A part that can tell, before anything is written, that a state is not of this model."""

    def check_state(self, module: LearningModule, state: Mapping[str, Any]) -> None:
        """Raise UserError if what :meth:`state_dict` once gave is of other weights or units."""


@runtime_checkable
class ActsAtBoundary(Protocol):
    """A callback with work to do after the task's fit, which a Lightning hook could not start."""

    def at_boundary(
        self, module: LearningModule, memory_rows: Sequence[Row], fit_rows: FitRows
    ) -> None:
        """Called by the runner; ``memory_rows`` are of past tasks alone."""


@runtime_checkable
class TakesOuterSteps(Protocol):
    """A callback that takes optimizer steps of its own within the task's fit."""

    outer_steps: int
    """Of the last task."""


@runtime_checkable
class ReportsBoundary(Protocol):
    """A callback that can tell what it did at the last task boundary."""

    boundary: Boundary | None


@runtime_checkable
class KeepsTaskState(Protocol):
    """A callback that learns something within a task which its ``state_dict`` does not hold.

    What it makes from the weights that a task begins with is no part of it: a resumed task begins
    with the same weights and calls ``on_train_start`` before it loads this.
    """

    def task_state(self) -> dict[str, Any]:
        """Everything that the rest of the task needs, taken between two optimizer steps.

        Nested dicts with string keys and lists of tensors, numbers, texts, truth values and None.
        """

    def load_task_state(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`task_state` gave; tensors come on the CPU."""


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

    A norm beyond the dtype's range counts as not finite. If some are spread over ranks, every rank
    must call, and all get the same answer.
    """
    if not tensors:
        return True
    finite = bool(finite_here(tensors))
    return not any_rank(not finite)[0] if any(map(is_sharded, tensors)) else finite


def finite_here(tensors: Sequence[Tensor]) -> Tensor:
    """:func:`all_finite` of this rank's parts alone, as one truth value that stays on the device.

    Args:
        tensors: at least one, all on one device.
    """
    norms = [norm.float() for norm in torch._foreach_norm([part(tensor) for tensor in tensors])]
    return torch.isfinite(torch.stack(norms)).all()

"""Streams the task order: the present task's training batches, any task's test batches."""

from __future__ import annotations

import itertools
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset, Sampler

from kif_lightning import ranks
from kif_lightning.errors import UserError, require_choice, require_count
from kif_lightning.interfaces import Backbone, Batch, Benchmark, Decode, Example, Row, Task
from kif_lightning.seeding import generator
from kif_lightning.tokenised import TokenisedRows, tokenised

LengthGrouping = Literal["none", "within_step", "across_steps"]
PASS_OVERHEAD = {"cpu": 128}
"""What a forward and backward pass costs beside its tokens, in tokens, by the device's type.

Measured on the CPU with 4 to 220 million weights (60 to 300).
"""
ELSEWHERE = 4096
"""On an accelerator, which takes hardly longer for thousands of tokens than for one."""
WINDOW_STEPS = 50
"""With ``across_steps``: so many steps' rows, drawn at random, are dealt out by length."""


@dataclass(frozen=True)
class MicroBatch:
    """The rows of one backward pass, and what it is a part of."""

    indices: tuple[int, ...]
    step_tokens: int
    """Target tokens of the whole optimizer step: the loss is a mean over these."""
    step_micro_batches: int
    step_rows: int
    weight: float = 1.0
    """0.0: a filler, which counts for nothing and only keeps a process in step with the others."""


class StepPlan(Sampler[MicroBatch]):
    """Which rows go into which optimizer step, known before the epoch starts.

    Knowing a step's target tokens ahead makes gradient accumulation exact: micro-batches weigh by
    their tokens, so accumulation changes nothing but rounding. Of several processes each has its
    share of a step's micro-batches and plans on its own; a step that does not deal out evenly gives
    some of them a filler, a row of the step at weight 0.

    Args:
        answer_tokens: of each row.
        lengths: tokens of each row, to group by: rows of similar length meet in a micro-batch of
            their step, where a process has several. None: rows come as they are drawn.
        across_steps: they meet in a step too.
        batch_size: rows of a step.
        micro_batch_size: rows of a micro-batch.
        seed: of the row order.
        purpose: tells this draw from others.
        rank: whose share it is.
        world_size: of so many.
    """

    def __init__(
        self,
        *,
        answer_tokens: Sequence[int],
        lengths: Sequence[int] | None = None,
        across_steps: bool = False,
        batch_size: int,
        micro_batch_size: int,
        seed: int,
        purpose: tuple[str, ...],
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.answer_tokens = answer_tokens
        self.lengths = lengths
        self.across_steps = across_steps
        self.batch_size = batch_size
        self.micro_batch_size = micro_batch_size
        self.seed = seed
        self.purpose = purpose
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.start = 0
        """Micro-batches to leave out at the beginning of the next iteration, and no later one."""

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each epoch; every epoch has an order of its own."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[MicroBatch]:
        # Read at the first batch: the position may be restored after the iteration began.
        start, self.start = self.start, 0
        yield from itertools.islice(self._all(), start, None)

    def _steps(self) -> Iterator[list[int]]:
        """Rows of each optimizer step; only the last may have fewer."""
        draw = generator(self.seed, *self.purpose, self.epoch)
        order = torch.randperm(len(self.answer_tokens), generator=draw).tolist()
        size, lengths = self.batch_size, self.lengths
        full = len(order) // size
        if lengths is not None and self.across_steps:
            order[: full * size] = self._by_length(order[: full * size], lengths, draw)
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            # With one micro-batch a process, one would have the short rows and another the long.
            if lengths is not None and len(rows) > self.micro_batch_size * self.world_size:
                rows.sort(key=lengths.__getitem__)
            yield rows

    def _by_length(
        self, order: list[int], lengths: Sequence[int], draw: torch.Generator
    ) -> list[int]:
        """Full steps of rows of similar length, the steps in random order."""
        size, window = self.batch_size, self.batch_size * WINDOW_STEPS
        near = [
            row
            for start in range(0, len(order), window)
            for row in sorted(order[start : start + window], key=lengths.__getitem__)
        ]
        places = torch.randperm(len(order) // size, generator=draw).tolist()
        return [row for place in places for row in near[place * size : (place + 1) * size]]

    def _all(self) -> Iterator[MicroBatch]:
        for rows in self._steps():
            tokens = sum(self.answer_tokens[i] for i in rows)
            parts = [
                tuple(rows[i : i + self.micro_batch_size])
                for i in range(0, len(rows), self.micro_batch_size)
            ]
            for first in range(0, len(parts), self.world_size):
                place = first + self.rank
                real = place < len(parts)
                yield MicroBatch(
                    parts[place] if real else (rows[0],),
                    tokens,
                    step_micro_batches=len(parts),
                    step_rows=len(rows),
                    weight=1.0 if real else 0.0,
                )

    def __len__(self) -> int:
        full, rest = divmod(len(self.answer_tokens), self.batch_size)
        return full * self._per_process(self.batch_size) + self._per_process(rest)

    def _per_process(self, step_rows: int) -> int:
        return -(-step_rows // (self.micro_batch_size * self.world_size))


class TrainingLoader(DataLoader[Any]):
    """Knows how many batches of its epoch it has handed out, and goes on after so many."""

    handed_out = 0

    def __iter__(self) -> Any:
        iterator = super().__iter__()  # draws from torch's global generator: now, not later
        return self._counting(iterator)

    def _counting(self, iterator: Iterator[Batch]) -> Iterator[Batch]:
        self.handed_out = self.plan.start
        for batch in iterator:
            self.handed_out += 1
            yield batch
        self.handed_out = 0

    @property
    def plan(self) -> StepPlan:
        """The order of its batches."""
        plan: Any = self.sampler
        return plan

    def state_dict(self) -> dict[str, int]:
        """The position in the present epoch."""
        return {"handed_out": self.handed_out}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after so many batches, also where the iteration has begun but given none yet."""
        self.plan.start = state["handed_out"]


class _TrainingBatches(Dataset[Batch]):
    """Padded micro-batches.

    Args:
        backbone: stacks the rows.
        examples: the rows.
        pass_overhead: what a forward and backward pass costs beside its tokens, in tokens: where
            padding costs more, a micro-batch comes as ``parts``, whose losses are to be added up.
            None: all its rows go through the model together.
    """

    def __init__(
        self, backbone: Backbone, examples: TokenisedRows, pass_overhead: int | None = None
    ) -> None:
        self.backbone = backbone
        self.examples = examples
        self.pass_overhead = pass_overhead

    def __getitem__(self, micro_batch: MicroBatch) -> Batch:
        examples = [self.examples[i] for i in micro_batch.indices]
        if self.pass_overhead is None:
            return self._batch(micro_batch, examples)
        lengths = [len(e.prompt_ids) + len(e.answer_ids) for e in examples]
        groups = length_groups(lengths, self.pass_overhead)
        parts = [
            self._batch(micro_batch, [examples[place] for place in group], len(groups))
            for group in groups
        ]
        return parts[0] if len(parts) == 1 else {"parts": parts}

    def _batch(
        self, micro_batch: MicroBatch, examples: Sequence[Example], num_parts: int = 1
    ) -> Batch:
        return {
            "inputs": self.backbone.training_batch(examples),
            "step_tokens": micro_batch.step_tokens,
            # The parts of a micro-batch count together as much as one that has none.
            "step_micro_batches": micro_batch.step_micro_batches * num_parts,
            "step_rows": micro_batch.step_rows,
            "weight": micro_batch.weight,
        }


def length_groups(lengths: Sequence[int], overhead: int) -> list[list[int]]:
    """Places of rows in groups of similar length; each group keeps their order.

    Of all partitions the one with the least ``sum over groups of (rows x longest + overhead)``;
    equal lengths are never parted.

    Args:
        lengths: tokens of each row.
        overhead: tokens that a group costs beside its own.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    best = {0: (0, 0)}
    """Of so many shortest rows: the least cost, and where the last group begins."""
    end = 0
    for width, equal in itertools.groupby(lengths[row] for row in order):
        end += sum(1 for _ in equal)
        cost, start = min((best[start][0] + (end - start) * width, start) for start in best)
        best[end] = (cost + overhead, start)
    groups = []
    while end > 0:
        start = best[end][1]
        groups.append(sorted(order[start:end]))
        end = start
    return groups[::-1]


class _EvaluationBatches(Dataset[Batch]):
    """Rows sorted by length, so that a batch is padded little; ``rows`` tells which they are.

    A batch has at most ``batch_size`` rows and, if there is a limit, ``batch_tokens`` tokens: of
    the padded prompts and all that may be generated.

    Batches are dealt to the processes in turn, the same number to each: a copy of the last one,
    which is the shortest, fills up with no ``rows`` to keep the answers of.
    """

    def __init__(
        self,
        backbone: Backbone,
        examples: TokenisedRows,
        *,
        batch_size: int,
        batch_tokens: int | None,
        max_new_tokens: int,
        labels: Sequence[str] = (),
        label_ids: Sequence[Sequence[int]] = (),
    ) -> None:
        self.labels, self.label_ids = labels, label_ids
        """What the answer is chosen from, and its tokens; none: it is generated."""
        self.backbone = backbone
        self.examples = examples
        self.max_new_tokens = max_new_tokens
        lengths = examples.prompt_lengths.tolist()
        left = sorted(range(len(examples)), key=lambda i: -lengths[i])
        self.batches = []
        while left:
            size = batch_size
            if batch_tokens is not None:
                # The first is the longest of those that are left.
                size = min(size, max(1, batch_tokens // (lengths[left[0]] + max_new_tokens)))
            self.batches.append(left[:size])
            left = left[size:]
        self.rank, self.world_size = ranks.rank(), ranks.world_size()

    def __len__(self) -> int:
        return -(-len(self.batches) // self.world_size)

    def __getitem__(self, index: int) -> Batch:
        place = index * self.world_size + self.rank
        real = place < len(self.batches)
        rows = self.batches[place if real else -1]
        return {
            "inputs": self.backbone.generation_batch([self.examples[i] for i in rows]),
            "rows": rows if real else (),
            "batch_index": place,
            "max_new_tokens": self.max_new_tokens,
            "labels": self.labels,
            "label_ids": self.label_ids,
        }


class ContinualDataModule(LightningDataModule):
    """The tasks of a benchmark, one after another; the runner says which is the present one.

    Args:
        benchmark: tasks in their order.
        training_tasks: what is trained on, phase by phase; None: the benchmark's tasks.
        backbone: tokenises and stacks.
        batch_size: rows of an optimizer step, of all processes together.
        micro_batch_size: rows of a forward pass; None: each process's share of ``batch_size``.
        length_grouping: ``within_step``: the same rows a step, but those of similar length go
            through the model together, where that saves more than a pass costs: for a loss that is
            a mean over the step's tokens the same gradient, up to rounding and to other draws of
            dropout; ``across_steps``: rows of similar length meet in a step; ``none``: padded as
            they are drawn.
        pass_overhead: what a forward and backward pass costs beside its tokens, in tokens; None:
            the rows of a micro-batch are never parted.
        evaluation_batch_size: prompts generated for together, at most.
        evaluation_batch_tokens: tokens of theirs, at most; None: no limit.
        max_new_tokens: cap of generation tasks (classification: the longest train label).
        decode: ``rank_labels``: a task with closed answers is answered by its train label of the
            highest probability, the first of equal ones; ``generate``: it is generated.
        num_held_out: seeded train rows kept from training, for selection by their loss.
        held_out_share: instead, a share of them, but one row at least; of each class the same share
            where answers are closed.
        look_at_dev: select by the data's own dev rows.
        seed: of row order and held-out draw.

    Raises:
        UserError: sizes below 1, a batch size that is no multiple of the micro-batch size, a task
            with no more train rows than are held out, or without the dev rows to look at; from a
            training loader, a batch size that does not deal out evenly to the processes.
    """

    def __init__(
        self,
        *,
        benchmark: Benchmark,
        training_tasks: Sequence[Task] | None = None,
        backbone: Backbone,
        batch_size: int,
        micro_batch_size: int | None,
        length_grouping: LengthGrouping = "none",
        pass_overhead: int | None = None,
        evaluation_batch_size: int,
        evaluation_batch_tokens: int | None = None,
        max_new_tokens: int,
        decode: Decode = "generate",
        num_held_out: int | None = None,
        held_out_share: float | None = None,
        look_at_dev: bool = False,
        seed: int,
    ) -> None:
        super().__init__()
        require_count("optim.batch_size", batch_size)
        if micro_batch_size is not None:
            require_count("optim.micro_batch_size", micro_batch_size)
        require_choice("optim.length_grouping", length_grouping, get_args(LengthGrouping))
        require_count("evaluation.batch_size", evaluation_batch_size)
        if evaluation_batch_tokens is not None:
            require_count("evaluation.batch_tokens", evaluation_batch_tokens)
        require_count("evaluation.max_new_tokens", max_new_tokens)
        require_choice("evaluation.decode", decode, get_args(Decode))
        if batch_size % (micro_batch_size or 1):
            raise UserError(
                f"optim.batch_size must be a multiple of optim.micro_batch_size, got {batch_size} "
                f"and {micro_batch_size}."
            )
        training_tasks = benchmark.tasks if training_tasks is None else tuple(training_tasks)
        self.training_tasks = training_tasks
        self.test_tasks = benchmark.tasks
        self.backbone = backbone
        self.batch_size = batch_size
        self._micro_batch_size = micro_batch_size
        self.length_grouping = length_grouping
        self.pass_overhead = pass_overhead
        self.evaluation_batch_size = evaluation_batch_size
        self.evaluation_batch_tokens = evaluation_batch_tokens
        self.max_new_tokens = max_new_tokens
        self.decode = decode
        self.held_out_rows = num_held_out or 0
        self.held_out_share = held_out_share
        self.look_at_dev = look_at_dev
        self.seed = seed
        self.task_index = 0
        self.memory_rows: tuple[Row, ...] = ()
        """Rows kept of the tasks before the present one."""
        self.rehearsed: tuple[Example, ...] = ()
        """Examples of past tasks that join the present one's own."""
        self._test_examples: dict[str, TokenisedRows] = {}
        self._label_ids: dict[str, list[list[int]]] = {}
        self._split: tuple[TokenisedRows, TokenisedRows] | None = None
        self._check_rows()

    def _check_rows(self) -> None:
        for task in self.training_tasks:
            held_out = self.num_held_out(task)
            if len(task.train) <= held_out:
                mend = "use more rows (benchmark.train_rows)"
                if self.held_out_share is None:
                    mend = (
                        "hold a share of them out instead (method.selection.num_held_out=null "
                        "method.selection.held_out_share=0.1)"
                    )
                raise UserError(
                    f"Task {task.name} has {len(task.train)} train rows, but {held_out} are to be "
                    f"held out: {mend}, or take method/selection=none."
                )
        without = [task.name for task in self.test_tasks if not task.dev]
        if self.look_at_dev and without:
            raise UserError(
                f"Steps are to be selected by dev rows, but the data has none of "
                f"{', '.join(without)}: use method/selection=held_out, which takes rows of train."
            )

    @property
    def micro_batch_size(self) -> int:
        """Rows of a forward pass."""
        if self._micro_batch_size is not None:
            return self._micro_batch_size
        return self.batch_size // self.accumulation(ranks.world_size()) // ranks.world_size()

    @property
    def accumulate_grad_batches(self) -> int:
        """Micro-batches of a full optimizer step in each of the processes that have joined."""
        return self.accumulation(ranks.world_size())

    def accumulation(self, world_size: int) -> int:
        """Micro-batches of a full optimizer step in each of so many processes.

        A Trainer knows their number before they have joined.
        """
        together = (self._micro_batch_size or 1) * world_size
        if self.batch_size % together:
            size = self._micro_batch_size
            raise UserError(
                "optim.batch_size must be a multiple of optim.micro_batch_size (null counts as 1) "
                "times the number of processes (trainer.devices times trainer.num_nodes), got "
                f"{self.batch_size}, {'null' if size is None else size} and {world_size}: change "
                "one of the three."
            )
        return 1 if self._micro_batch_size is None else self.batch_size // together

    @property
    def task(self) -> Task:
        """The present task."""
        return self.training_tasks[self.task_index]

    def begin_task(self, task_index: int, memory_rows: Sequence[Row] = ()) -> None:
        """Make a task the present one; nothing is rehearsed with it yet."""
        self.task_index = task_index
        self.memory_rows = tuple(memory_rows)
        self.rehearsed = ()
        self._split = None

    def training_rows(self) -> Sequence[Row]:
        """The present task's own rows that training may see."""
        held_out = self._held_out()
        if not held_out:
            return self.task.train
        return tuple(row for i, row in enumerate(self.task.train) if i not in held_out)

    def num_held_out(self, task: Task) -> int:
        """Train rows of a task kept from its training."""
        if self.held_out_share is None:
            return self.held_out_rows
        return max(1, round(self.held_out_share * len(task.train)))

    def num_training_rows(self, task: Task) -> int:
        """Rows of its own that training sees."""
        return len(task.train) - self.num_held_out(task)

    def dev_rows_in_test(self) -> dict[str, int]:
        """Task name -> how many of its dev rows have an input that its test rows have too."""
        found = {}
        for task in self.test_tasks:
            dev = Counter(row.input for row in task.dev)
            found[task.name] = sum(dev.pop(row.input, 0) for row in task.test)
        return found

    def optimizer_steps(self, task: Task, epochs: int) -> int:
        """Optimizer steps of a task."""
        return epochs * -(-self.num_training_rows(task) // self.batch_size)

    def train_dataloader(self) -> TrainingLoader:
        """Micro-batches of the present task and what is rehearsed with it."""
        examples = self._training_split()[0]
        if self.rehearsed:
            examples = examples.followed_by(TokenisedRows.of(self.rehearsed))
        return self._loader(examples, (self.task.name, "row order"))

    def rows_dataloader(self, rows: Sequence[Row], purpose: str) -> TrainingLoader:
        """Micro-batches of given rows, such as the memory's."""
        examples = tokenised(self.backbone, rows)
        return self._loader(examples, (self.task.name, purpose))

    def row_steps(self, rows: Sequence[Row], purpose: str) -> Iterator[list[Batch]]:
        """Micro-batches of each optimizer step over given rows, epoch after epoch without end.

        Of several processes each has its own share, as in training.
        """
        examples = tokenised(self.backbone, rows)
        loader = self._loader(examples, (self.task.name, purpose), parted=False)
        # A loader draws from torch's global generator at each start, in the midst of a training.
        loader.generator = torch.Generator()
        plan: Any = loader.sampler
        for epoch in itertools.count():
            plan.set_epoch(epoch)
            batches = iter(loader)
            for first in batches:
                here = -(-first["step_micro_batches"] // plan.world_size)
                others = itertools.islice(batches, here - 1)
                yield [first, *others]

    def sample_batches(self, num_rows: int, purpose: str) -> Iterator[Batch]:
        """So many seeded train rows of the present task, one a batch; in every process the same."""
        examples = self._training_split()[0]
        draw = generator(self.seed, self.task.name, purpose)
        chosen = torch.randperm(len(examples), generator=draw)[:num_rows].tolist()
        dataset = _TrainingBatches(self.backbone, examples)
        for i in chosen:
            yield dataset[MicroBatch((i,), int(examples.answer_lengths[i]), 1, 1)]

    def _loader(
        self, examples: TokenisedRows, purpose: tuple[str, ...], *, parted: bool = True
    ) -> TrainingLoader:
        self.accumulation(ranks.world_size())  # refuses what does not deal out evenly
        lengths = (examples.prompt_lengths + examples.answer_lengths).tolist()
        plan = StepPlan(
            answer_tokens=examples.answer_lengths.tolist(),
            lengths=None if self.length_grouping == "none" else lengths,
            across_steps=self.length_grouping == "across_steps",
            batch_size=self.batch_size,
            micro_batch_size=self.micro_batch_size,
            seed=self.seed,
            purpose=purpose,
            rank=ranks.rank(),
            world_size=ranks.world_size(),
        )
        parted = parted and self.length_grouping != "none"
        dataset = _TrainingBatches(self.backbone, examples, self.pass_overhead if parted else None)
        return TrainingLoader(dataset, sampler=plan, batch_size=None, collate_fn=_as_is)

    def selection_dataloader(self) -> DataLoader[Any]:
        """The held-out rows of the present task, or its dev rows; ``step_tokens`` of each batch.

        At each start it draws one number from torch's global generator, as any plain loader:
        kif_official's published numbers rest on it.
        """
        examples = self._training_split()[1]
        parts = [
            tuple(range(start, min(start + self.micro_batch_size, len(examples))))
            for start in range(0, len(examples), self.micro_batch_size)
        ]
        sampler = [
            MicroBatch(part, int(examples.answer_lengths[list(part)].sum()), 1, len(part))
            for part in parts
        ]
        dataset = _TrainingBatches(self.backbone, examples)
        return DataLoader(dataset, sampler=sampler, batch_size=None, collate_fn=_as_is)

    def evaluation_dataloaders(self, task_indices: Sequence[int]) -> list[DataLoader[Any]]:
        """Test batches of each task named; ``batch_index`` is the place among all processes'."""
        datasets = [self.evaluation_batches(self.test_tasks[i]) for i in task_indices]
        return [DataLoader(data, batch_size=None, collate_fn=_as_is) for data in datasets]

    def new_tokens_cap(self, task: Task) -> int:
        """Longest TRAIN label with its end token; ``max_new_tokens`` for generation tasks."""
        return max(map(len, self.label_ids(task)), default=self.max_new_tokens)

    def label_ids(self, task: Task) -> list[list[int]]:
        """Token ids of each train label, as training has them after the first train row's prompt.

        After a prompt that ends otherwise a label's first token may be another one, if a token
        spans the border; the rows of a task end alike.
        """
        if task.name not in self._label_ids:
            rows = [Row(id="", input=task.train[0].input, output=name) for name in task.labels]
            self._label_ids[task.name] = [e.answer_ids for e in self.backbone.encode_rows(rows)]
        return self._label_ids[task.name]

    def decode_of(self, task: Task) -> Decode:
        """How the task is really answered: one with free answers has no labels to rank."""
        return self.decode if task.labels else "generate"

    def test_examples(self, task: Task) -> TokenisedRows:
        """The test rows of a task, tokenised once."""
        if task.name not in self._test_examples:
            self._test_examples[task.name] = tokenised(self.backbone, task.test)
        return self._test_examples[task.name]

    def evaluation_batches(self, task: Task) -> _EvaluationBatches:
        """Test batches of a task, of the stream or not."""
        ranked: dict[str, Any] = {}
        if self.decode_of(task) == "rank_labels":
            # Long labels may be equal once they are cut: the first of them answers.
            first: dict[tuple[int, ...], str] = {}
            for label, ids in zip(task.labels, self.label_ids(task), strict=True):
                kept = first.setdefault(tuple(ids), label)
                if kept != label:
                    warnings.warn(
                        f"Labels {kept!r} and {label!r} of task {task.name} have the same tokens "
                        "(backbone.max_target_tokens cuts them): only the first can be the answer.",
                        stacklevel=2,
                    )
            ranked = {"labels": tuple(first.values()), "label_ids": [*map(list, first)]}
        return _EvaluationBatches(
            self.backbone,
            self.test_examples(task),
            batch_size=self.evaluation_batch_size,
            batch_tokens=self.evaluation_batch_tokens,
            max_new_tokens=self.new_tokens_cap(task),
            **ranked,
        )

    def _training_split(self) -> tuple[TokenisedRows, TokenisedRows]:
        """Examples of the present task: to train on, to select by."""
        if self._split is None:
            chosen = sorted(self._held_out())
            # All rows, whichever are held out: a file in the cache serves every draw.
            rows = tokenised(self.backbone, self.task.train)
            training = rows.take(np.delete(np.arange(len(rows)), chosen)) if chosen else rows
            held_out = rows.take(chosen)
            if self.look_at_dev:
                held_out = tokenised(self.backbone, self.task.dev)
            self._split = training, held_out
        return self._split

    def _held_out(self) -> set[int]:
        """Which train rows of the present task are kept from training."""
        task, number = self.task, self.num_held_out(self.task)
        if not number:
            return set()
        draw = generator(self.seed, task.name, "held-out rows")
        order = torch.randperm(len(task.train), generator=draw).tolist()
        if self.held_out_share is not None and task.labels:
            order = _evenly(order, [row.output for row in task.train])
        return set(order[:number])


def _evenly(order: Sequence[int], classes: Sequence[str]) -> list[int]:
    """Rows in another order, however many of which come first, every class has its share in them.

    Args:
        order: row numbers; it decides between rows of a class, and between classes of a size.
        classes: the class of each row.
    """
    sizes, seen = Counter(classes), Counter[str]()
    place = {}
    for i in order:
        place[i] = (seen[classes[i]] + 0.5) / sizes[classes[i]]
        seen[classes[i]] += 1
    return sorted(order, key=place.__getitem__)


def _as_is(batch: Any) -> Any:
    return batch

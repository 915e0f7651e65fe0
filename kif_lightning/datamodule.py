"""Streams the task order: the present task's training batches, any task's test batches."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, get_args

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from kif_lightning import ranks
from kif_lightning.batches import (
    EvaluationBatches,
    LengthGrouping,
    MicroBatch,
    StepPlan,
    TrainingBatches,
    TrainingLoader,
    as_is,
    labels_to_rank,
)
from kif_lightning.errors import UserError, require_choice, require_count
from kif_lightning.interfaces import Backbone, Batch, Benchmark, Decode, Example, Row, Task
from kif_lightning.seeding import generator
from kif_lightning.tokenised import TokenisedRows, tokenised


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
        for task in (task for task in self.training_tasks if task.at_hand):
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
        without = [task.name for task in self.test_tasks if task.at_hand and not task.dev]
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
        for task in (task for task in self.test_tasks if task.at_hand):
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
        dataset = TrainingBatches(self.backbone, examples)
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
        dataset = TrainingBatches(self.backbone, examples, self.pass_overhead if parted else None)
        return TrainingLoader(dataset, sampler=plan, batch_size=None, collate_fn=as_is)

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
        dataset = TrainingBatches(self.backbone, examples)
        return DataLoader(dataset, sampler=sampler, batch_size=None, collate_fn=as_is)

    def evaluation_dataloaders(self, task_indices: Sequence[int]) -> list[DataLoader[Any]]:
        """Test batches of each task named; ``batch_index`` is the place among all processes'."""
        datasets = [self.evaluation_batches(self.test_tasks[i]) for i in task_indices]
        return [DataLoader(data, batch_size=None, collate_fn=as_is) for data in datasets]

    def new_tokens_cap(self, task: Task) -> int:
        """Longest TRAIN label with its end token; ``max_new_tokens`` for generation tasks."""
        return max(map(len, self.label_ids(task)), default=self.max_new_tokens)

    def label_ids(self, task: Task) -> list[list[int]]:
        """Token ids of each train label, as training has them after the first train row's prompt.

        After a prompt that ends otherwise a label's first token may be another one, if a token
        spans the border; the rows of a task end alike.
        """
        if task.name not in self._label_ids:
            prompt = task.train[0].input if task.labels and task.at_hand else ""
            rows = [Row(id="", input=prompt, output=name) for name in task.labels]
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

    def evaluation_batches(self, task: Task) -> EvaluationBatches:
        """Test batches of a task, of the stream or not."""
        ranked: dict[str, Any] = {}
        if self.decode_of(task) == "rank_labels":
            ranked = labels_to_rank(task.name, task.labels, self.label_ids(task))
        return EvaluationBatches(
            self.backbone,
            self.test_examples(task),
            batch_size=self.evaluation_batch_size,
            batch_tokens=self.evaluation_batch_tokens,
            max_new_tokens=self.new_tokens_cap(task),
            rank=ranks.rank(),
            world_size=ranks.world_size(),
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

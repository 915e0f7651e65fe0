"""Which rows go into which batch: of training's optimizer steps, and of an evaluation."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from kif_lightning.interfaces import Backbone, Batch, Example
from kif_lightning.seeding import generator
from kif_lightning.tokenised import TokenisedRows

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


class TrainingBatches(Dataset[Batch]):
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


class EvaluationBatches(Dataset[Batch]):
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
        rank: int = 0,
        world_size: int = 1,
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
        self.rank, self.world_size = rank, world_size

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


def labels_to_rank(
    task: str, labels: Sequence[str], label_ids: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """What :class:`EvaluationBatches` takes to have a task's labels ranked.

    Long labels may be equal once they are cut: the first of them answers, and a warning tells.

    Args:
        task: its name, for the warning.
        labels: of the task.
        label_ids: the tokens of each.
    """
    first: dict[tuple[int, ...], str] = {}
    for label, ids in zip(labels, label_ids, strict=True):
        kept = first.setdefault(tuple(ids), label)
        if kept != label:
            warnings.warn(
                f"Labels {kept!r} and {label!r} of task {task} have the same tokens "
                "(backbone.max_target_tokens cuts them): only the first can be the answer.",
                stacklevel=3,
            )
    return {"labels": tuple(first.values()), "label_ids": [*map(list, first)]}


def as_is(batch: Any) -> Any:
    """How loaders of whole batches collate them."""
    return batch

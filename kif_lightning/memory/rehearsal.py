"""Examples of past tasks that join the present task's own in its training."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kif_lightning.errors import require_between, require_count
from kif_lightning.interfaces import Example, Needs, RehearsalContext, Row
from kif_lightning.modes import evaluating
from kif_lightning.seeding import derive_seed, generator

log = logging.getLogger(__name__)
_NO_LIMIT = 1 << 30


@dataclass(frozen=True, kw_only=True)
class MemoryRehearsal:
    """All rows of the memory, mixed with the task's own (experience replay).

    Args:
        times: how often each row comes in an epoch of the task.

    Raises:
        UserError: a value out of range.
    """

    needs = Needs(memory=True)
    times: int = 1

    def __post_init__(self) -> None:
        require_count("rehearsal.times", self.times)

    def examples(self, context: RehearsalContext) -> list[Example]:
        """The kept rows of past tasks, tokenised as any row."""
        return context.backbone.encode_rows(context.memory_rows) * self.times


@dataclass(frozen=True, kw_only=True)
class PseudoSamples:
    """The model writes rows of past tasks itself (after LFPT5, Qin and Joty, arXiv 2110.07298).

    A task's rows are learnt twice: as task (prompt -> answer) and as text to write (an order to
    write an example of the task -> prompt, a mark, answer). Before the next task the model draws
    ``share`` of each past task's rows that way; those that hold the mark between two texts are
    rehearsed, again in both forms. Differences from LFPT5: the weights are the method's adapter,
    not a soft prompt, and there is no consistency term.

    Args:
        share: pseudo rows a past task, of its train rows, in (0, 1].
        writing_share: train rows of a task that are learnt as text to write too, in (0, 1].
        max_tokens: of a written row; a longer prompt is cut at its end.
        top_k: draw each token from so many.
        batch_size: rows written together.

    Raises:
        UserError: a value out of range.
    """

    share: float = 0.02
    writing_share: float = 0.2
    max_tokens: int = 128
    top_k: int = 20
    batch_size: int = 32

    def __post_init__(self) -> None:
        require_between("rehearsal.share", self.share, 0.0, 1.0, low_open=True)
        require_between("rehearsal.writing_share", self.writing_share, 0.0, 1.0, low_open=True)
        require_count("rehearsal.max_tokens", self.max_tokens, 2)
        require_count("rehearsal.top_k", self.top_k)
        require_count("rehearsal.batch_size", self.batch_size)

    def examples(self, context: RehearsalContext) -> list[Example]:
        """Pseudo rows of past tasks in both forms, and the task's own as text to write."""
        written = self._written(context)
        rows = context.task.train
        number = max(1, round(self.writing_share * len(rows)))
        draw = generator(context.seed, context.task.name, "rows to write")
        chosen = torch.randperm(len(rows), generator=draw)[:number].tolist()
        wanted = set(chosen)
        picked = {i: row for i, row in enumerate(rows) if i in wanted}
        own = [(context.task.name, picked[i]) for i in chosen]
        return [
            *context.backbone.encode_rows([row for _, row in written]),
            *[self._as_text(context, task, row) for task, row in [*written, *own]],
        ]

    def _as_text(self, context: RehearsalContext, task: str, row: Row) -> Example:
        """A long input loses its end, never the mark and the answer."""
        kept = row.input
        while True:
            text = f"{kept}{MARK}{row.output}"
            order = Row(id=row.id, input=order_to_write(task), output=text)
            example = context.backbone.encode(order, _NO_LIMIT)
            length = len(example.answer_ids)
            if length <= self.max_tokens:
                return example
            if not kept:
                return context.backbone.encode(order, self.max_tokens)
            kept = kept[: min(len(kept) - 1, len(kept) * self.max_tokens // length)]

    def _written(self, context: RehearsalContext) -> list[tuple[str, Row]]:
        """(task, row) of what the model can still write of the past."""
        wanted = [
            task
            for task, size in context.past_tasks.items()
            for _ in range(max(1, round(self.share * size)))
        ]
        # The draws belong to this purpose: the run's other randomness stays as it is.
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed(context.seed, context.task.name, "pseudo samples"))
            texts = self._drawn(context, [order_to_write(task) for task in wanted])
        found = []
        for place, (task, text) in enumerate(zip(wanted, texts, strict=True)):
            prompt, _, answer = (part.strip() for part in text.partition(MARK.strip()))
            if prompt and answer:
                found.append((task, Row(id=f"{task}-{place}", input=prompt, output=answer)))
        if len(found) < len(wanted):
            log.warning(
                "Of %d rows of past tasks the model wrote %d with a prompt and an answer; the "
                "others are left out.",
                len(wanted),
                len(found),
            )
        return found

    @torch.no_grad()
    def _drawn(self, context: RehearsalContext, orders: Sequence[str]) -> list[str]:
        backbone, model = context.backbone, context.model
        device = next(model.parameters()).device
        prompts = backbone.encode_rows([Row(id="", input=order, output="") for order in orders])
        texts: list[str] = []
        with evaluating(model):
            for start in range(0, len(prompts), self.batch_size):
                batch = backbone.generation_batch(prompts[start : start + self.batch_size])
                batch = {name: tensor.to(device) for name, tensor in batch.items()}
                texts += backbone.generate(model, batch, self.max_tokens, top_k=self.top_k)
        return texts


MARK = " => "
"""Between the prompt and the answer of a row written as one text."""


def order_to_write(task: str) -> str:
    """The prompt that asks for an example of a task."""
    return f"write an example of {task}:"

"""Prompts to answers, batched by length as an evaluation does it, in the order of the prompts."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins import Precision
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.fabric.utilities import move_data_to_device
from torch import nn

from kif_lightning.batches import EvaluationBatches, labels_to_rank
from kif_lightning.checkup import RowTokens
from kif_lightning.errors import UserError
from kif_lightning.interfaces import Backbone, Batch, Row
from kif_lightning.mixed_precision import AUTOCAST_DTYPES, drop_casts_, keep_casts_
from kif_lightning.modes import evaluating
from kif_lightning.module import answer_texts
from kif_lightning.tokenised import TokenisedRows, tokenised

CHUNK_PROMPTS, CHUNK_CHARACTERS = 4096, 2**24
"""Prompts that are sorted by length together, and so the most that are in memory."""


class Answers(Iterator[str]):
    """One answer a prompt, in the prompts' order, each as soon as it and those before are there.

    Args:
        prompts: read as they are needed, so many at a time as are sorted together.
        backbone: tokenises and decodes.
        model: the adapted model.
        device: where the model is.
        precision: as of a Trainer, and cast as it does; ``...-true`` casts the model for good.
        batch_size: prompts answered together, at most.
        batch_tokens: their tokens, padding and what may be generated included, at most; None: any.
        max_new_tokens: of an answer.
        task: the name of the task, if one was named, for messages.
        labels: what the answer is chosen from; none: it is generated.
        prepare: called before each batch.

    Raises:
        UserError: one text instead of many; a prompt that is no text, or blank: of a list at once,
            else as they come.
    """

    def __init__(
        self,
        prompts: Iterable[str],
        *,
        backbone: Backbone,
        model: nn.Module,
        device: torch.device,
        precision: str = "32-true",
        batch_size: int,
        batch_tokens: int | None = None,
        max_new_tokens: int,
        task: str = "",
        labels: tuple[str, ...] = (),
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        if isinstance(prompts, str):
            raise UserError("Expected a list of prompts, got one text: put it in brackets.")
        self.backbone = backbone
        self.model = model
        self.device = device
        self.precision = _precision_plugin(precision, device)
        self.batch_size = batch_size
        self.batch_tokens = batch_tokens
        self.max_new_tokens = max_new_tokens
        self.task = task
        self.labels = labels
        self.prepare = prepare
        self.num_prompts = 0
        """So far."""
        self.num_cut = 0
        """How many of them were longer than ``backbone.max_source_tokens``."""
        self._ranked: dict[str, Any] | None = None
        checked = (_checked(prompt, number) for number, prompt in enumerate(prompts, start=1))
        # Of a list it is told before any is answered.
        self._texts = self._all(list(checked) if isinstance(prompts, list) else checked)

    def __next__(self) -> str:
        return next(self._texts)

    def close(self) -> None:
        """No more are wanted; what was prepared for answering is undone, as after the last one."""
        self._texts.close()

    def _all(self, prompts: Iterable[str]) -> Generator[str, None, None]:
        self.precision.convert_module(self.model)
        cast_to = AUTOCAST_DTYPES.get(self.precision.precision)
        if cast_to is not None:
            keep_casts_(self.model, cast_to)
        try:
            for rows in _chunks(prompts):
                yield from self._of_chunk(rows)
        finally:
            drop_casts_(self.model)

    def _of_chunk(self, rows: list[Row]) -> Iterator[str]:
        examples = tokenised(self.backbone, rows)
        self._count(rows, examples)
        batches = EvaluationBatches(
            self.backbone,
            examples,
            batch_size=self.batch_size,
            batch_tokens=self.batch_tokens,
            max_new_tokens=self.max_new_tokens,
            **self._labels_after(rows[0]),
        )
        found: dict[int, str] = {}
        place = 0
        for index in range(len(batches)):
            batch = batches[index]
            found.update(zip(batch["rows"], self._answered(batch), strict=True))
            while place in found:
                yield found.pop(place)
                place += 1

    def _answered(self, batch: Batch) -> list[str]:
        # Within one batch alone: what is set here must not last while the caller has the answers.
        casting = self.precision.forward_context()
        self.prepare()
        with torch.inference_mode(), evaluating(self.model), casting:
            inputs = move_data_to_device(batch["inputs"], self.device)
            return answer_texts(self.backbone, self.model, {**batch, "inputs": inputs})

    def _labels_after(self, first: Row) -> dict[str, Any]:
        """The labels' tokens as they follow the first prompt: those of a task end alike."""
        if not self.labels:
            return {}
        if self._ranked is None:
            rows = [Row(id="", input=first.input, output=label) for label in self.labels]
            ids = [example.answer_ids for example in self.backbone.encode_rows(rows)]
            self._ranked = labels_to_rank(self.task, self.labels, ids)
        return self._ranked

    def _count(self, rows: list[Row], examples: TokenisedRows) -> None:
        self.num_prompts += len(rows)
        tokens = RowTokens(self.backbone)
        limit = tokens.max_source_tokens
        # Only one that fills the limit may have been longer: few are tokenised a second time.
        full = np.flatnonzero(examples.prompt_lengths >= limit).tolist()
        self.num_cut += sum(tokens.count(rows[place])[0] > limit for place in full)


def cut_prompts(answers: Answers) -> str:
    """What is to be said of prompts that were longer than the model reads; empty: none was."""
    if not answers.num_cut:
        return ""
    backbone: Any = answers.backbone
    return (
        f"{answers.num_cut} of {answers.num_prompts} prompts were longer than "
        f"{backbone.max_source_tokens} tokens and were cut, as in training "
        f"(backbone.max_source_tokens, backbone.truncation={backbone.truncation})."
    )


def _precision_plugin(name: str, device: torch.device) -> Precision:
    """What a Trainer makes of a precision's name on the device."""
    # Named, so that none is looked for: this is one process, also within a cluster's job.
    here = LightningEnvironment()
    asked: Any = name
    fabric = Fabric(accelerator=device.type, devices=1, precision=asked, plugins=here)
    return fabric.strategy.precision


def _checked(prompt: object, number: int) -> str:
    if not isinstance(prompt, str) or not prompt.strip():
        raise UserError(
            f"Prompt {number} must be a text that is not blank, got {prompt!r:.40}: mend it or "
            "leave it out."
        )
    return prompt


def _chunks(prompts: Iterable[str]) -> Iterator[list[Row]]:
    chunk: list[Row] = []
    characters = 0
    for prompt in prompts:
        chunk.append(Row(id="", input=prompt, output=""))
        characters += len(prompt)
        if len(chunk) == CHUNK_PROMPTS or characters > CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk

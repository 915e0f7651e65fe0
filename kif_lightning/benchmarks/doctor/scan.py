"""One pass over the rows of a split: what later checks need, in a few bytes a row."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from kif_lightning.benchmarks.doctor.texts import LOST, SUSPECT, has_control, looks_damaged
from kif_lightning.interfaces import Row
from kif_lightning.seeding import generator

Numbers = NDArray[np.int64]
Flags = NDArray[np.bool_]

MOST_LABELS = 10_000
MOST_PROMPTS, PROMPT_CHARACTERS = 1000, 40
SAMPLE_ROWS = 2000
MOST_SUSPECTS = 500
"""A closer look at a text takes a hundred times longer than all else; so many rows get one."""
SPARE_BYTES = 8
"""Tokens that a backbone adds to a text's own: marks of start, end and mask."""


class TokenCounter(Protocol):
    """How a backbone counts a row's tokens, and how many it takes."""

    @property
    def max_source_tokens(self) -> int:
        """Longer prompts are cut."""

    @property
    def max_target_tokens(self) -> int:
        """Longer answers are cut."""

    def count(self, row: Row) -> tuple[int, int]:
        """Tokens of prompt and answer before any cut, with all that the backbone adds to them."""


@dataclass(kw_only=True)
class LongRows:
    """A seeded sample of the rows that have more bytes than a backbone takes tokens.

    A row of fewer bytes cannot be too long, so it need not be tokenised.
    """

    most_input_bytes: float
    most_output_bytes: float
    uniform: Iterator[float]
    number: int = 0
    sample: list[Row] = field(default_factory=list)

    def add(self, row: Row) -> None:
        """Keep the row with the same chance as every other (reservoir sampling)."""
        self.number += 1
        if len(self.sample) < SAMPLE_ROWS:
            self.sample.append(row)
        elif (slot := int(next(self.uniform) * self.number)) < SAMPLE_ROWS:
            self.sample[slot] = row


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What a pass over N rows found.

    ``ids``, ``inputs`` and ``outputs`` are hashes of the texts, (N,); ``whole`` is false for rows
    with a blank text, (N,); ``places`` tells for each check of single rows which ones fail it.
    """

    rows: Sequence[Row]
    ids: Numbers
    inputs: Numbers
    outputs: Numbers
    whole: Flags
    places: dict[str, Numbers]
    labels: Counter[str] | None
    """Rows of each answer, where answers are closed; of no more than the first 10,000."""
    prompts: Counter[str]
    """Rows of each beginning of inputs; of no more than the first 1,000."""
    bytes: int
    long_rows: LongRows
    num_suspects: int
    """Rows that may hold damaged text; a draw of at most 500 of them was looked at."""

    @cached_property
    def _repeats(self) -> tuple[Numbers, Numbers]:
        return repeats(self.inputs, self.outputs, self.whole)

    @property
    def duplicates(self) -> Numbers:
        """Rows that repeat an earlier one, input and output."""
        return self._repeats[0]

    @property
    def conflicts(self) -> Numbers:
        """Rows whose input has several outputs."""
        return self._repeats[1]

    def inputs_in(self, other: Scan, among: Flags | None = None) -> Numbers:
        """Rows whose input stands in the other split (among some of its rows)."""
        there = other.whole if among is None else other.whole & among
        return np.flatnonzero(self.whole & np.isin(self.inputs, other.inputs[there]))

    @property
    def num_inputs(self) -> int:
        """Distinct inputs of rows without a blank text."""
        return _num_distinct(self.inputs[self.whole])

    @property
    def num_outputs(self) -> int:
        """Distinct outputs of rows without a blank text."""
        return _num_distinct(self.outputs[self.whole])


def scan(
    rows: Sequence[Row], *, closed_answers: bool, name: str, counter: TokenCounter | None = None
) -> Scan:
    """Look at each row once.

    Args:
        rows: of a split.
        closed_answers: whether outputs are words of a few classes; these are not texts to mend.
        name: of task and split, seeds the draws of rows to look at more closely.
        counter: of the backbone whose limits matter, if any.
    """
    ids, inputs, outputs = array("q"), array("q"), array("q")
    places = {check: array("q") for check in ROW_CHECKS}
    labels: Counter[str] = Counter()
    prompts: Counter[str] = Counter()
    suspects = array("q")
    num_bytes = 0
    long_rows = LongRows(
        most_input_bytes=counter.max_source_tokens - SPARE_BYTES if counter else np.inf,
        most_output_bytes=counter.max_target_tokens - SPARE_BYTES if counter else np.inf,
        uniform=_uniform(name),
    )
    for place, row in enumerate(rows):
        text, answer = row.input, row.output
        ids.append(hash(row.id))
        inputs.append(hash(text))
        outputs.append(hash(answer))
        encoded, encoded_answer = text.encode(), answer.encode()
        num_bytes += len(encoded) + len(encoded_answer)
        blank_input, blank_output = not text or text.isspace(), not answer or answer.isspace()
        if blank_input or blank_output:
            if blank_input:
                places["blank_input"].append(place)
            if blank_output:
                places["blank_output"].append(place)
            continue
        if closed_answers:
            if answer in labels or len(labels) < MOST_LABELS:
                labels[answer] += 1
            free, free_encoded = text, encoded
        else:
            free, free_encoded = f"{text}\n{answer}", encoded + encoded_answer
        if has_control(free_encoded):
            places["control_character"].append(place)
        if not free.isascii():
            if LOST in free:
                places["lost_character"].append(place)
            if SUSPECT.search(free):
                suspects.append(place)
        prompt = text[:PROMPT_CHARACTERS]
        if prompt in prompts or len(prompts) < MOST_PROMPTS:
            prompts[prompt] += 1
        if (
            len(encoded) > long_rows.most_input_bytes
            or len(encoded_answer) > long_rows.most_output_bytes
        ):
            long_rows.add(row)
    for place in _some(_numbers(suspects), name):
        if looks_damaged(rows[place], closed_answers=closed_answers):
            places["mojibake"].append(place)
    found = {check: _numbers(held) for check, held in places.items()}
    whole = np.ones(len(ids), dtype=np.bool_)
    whole[found["blank_input"]] = whole[found["blank_output"]] = False
    return Scan(
        rows=rows,
        ids=_numbers(ids),
        inputs=_numbers(inputs),
        outputs=_numbers(outputs),
        whole=whole,
        places=found,
        labels=labels if closed_answers else None,
        prompts=prompts,
        bytes=num_bytes,
        long_rows=long_rows,
        num_suspects=len(suspects),
    )


ROW_CHECKS = ("blank_input", "blank_output", "mojibake", "lost_character", "control_character")


def repeats(first: Numbers, second: Numbers, among: Flags | None = None) -> tuple[Numbers, Numbers]:
    """Places, ascending, where a pair of values stands again, and where a first has many seconds.

    Args:
        first: (N,)
        second: (N,)
        among: (N,) which places count; None: all.
    """
    counted = np.arange(len(first)) if among is None else np.flatnonzero(among)
    first, second = first[counted], second[counted]
    order = np.lexsort((second, first))  # stable: equal pairs stay in the order of the rows
    same_first = first[order][1:] == first[order][:-1]
    same_pair = same_first & (second[order][1:] == second[order][:-1])
    group = np.concatenate([[0], np.cumsum(~same_first)])[: len(order)]
    mixed = np.zeros(len(order), dtype=np.bool_)  # by group, of which there are no more than rows
    mixed[group[1:][same_first & ~same_pair]] = True
    again, many = order[1:][same_pair], order[mixed[group]]
    return np.sort(counted[again]), np.sort(counted[many])


def _num_distinct(values: Numbers) -> int:
    ordered = np.sort(values)  # five times faster than numpy's unique
    return int(np.count_nonzero(ordered[1:] != ordered[:-1])) + (len(ordered) > 0)


def _some(places: Numbers, name: str) -> list[int]:
    """All, or a seeded draw of many, ascending."""
    if len(places) > MOST_SUSPECTS:
        draws = torch.randperm(len(places), generator=generator(0, name, "suspect rows"))
        places = places[np.sort(draws[:MOST_SUSPECTS].numpy())]
    drawn: list[int] = places.tolist()
    return drawn


def _uniform(name: str) -> Iterator[float]:
    """Draws from [0, 1)."""
    draws = generator(0, name, "long rows")
    while True:
        yield from torch.rand(1000, generator=draws, dtype=torch.float64).tolist()


def _numbers(held: array[int]) -> Numbers:
    return np.frombuffer(held, dtype=np.int64) if held else np.zeros(0, dtype=np.int64)

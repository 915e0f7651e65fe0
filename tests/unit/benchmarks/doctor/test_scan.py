"""Repeats and conflicts, against a count by hand in plain Python."""

from __future__ import annotations

import random
from collections import defaultdict

import numpy as np
import pytest

from kif_lightning.benchmarks.doctor.scan import repeats, scan
from tests.helpers.defects import row


def by_hand(pairs: list[tuple[int, int]], among: list[bool]) -> tuple[list[int], list[int]]:
    seen, seconds = set(), defaultdict(set)
    again = []
    for place, pair in enumerate(pairs):
        if among[place]:
            if pair in seen:
                again.append(place)
            seen.add(pair)
            seconds[pair[0]].add(pair[1])
    many = [p for p, pair in enumerate(pairs) if among[p] and len(seconds[pair[0]]) > 1]
    return again, many


@pytest.mark.parametrize("number", [0, 1, 2, 3, 10, 100])
@pytest.mark.parametrize("values", [1, 2, 30])
def test_repeats_and_conflicts_equal_a_count_by_hand(number: int, values: int) -> None:
    draws = random.Random(f"{number} {values}")
    for _ in range(20):
        pairs = [(draws.randrange(values), draws.randrange(2)) for _ in range(number)]
        among = [draws.random() < 0.8 for _ in range(number)]
        columns = np.array(pairs, dtype=np.int64).reshape(-1, 2)
        again, many = repeats(columns[:, 0], columns[:, 1], np.array(among, dtype=np.bool_))
        assert (again.tolist(), many.tolist()) == by_hand(pairs, among)


def test_blank_rows_neither_repeat_nor_contradict() -> None:
    rows = [row("a", "", "x"), row("b", "", "x"), row("c", "", "y"), row("d", "q", " ")]
    found = scan(rows, closed_answers=True, name="task/train")
    assert not len(found.duplicates)
    assert not len(found.conflicts)
    assert (found.num_inputs, found.num_outputs, found.labels) == (0, 0, {})
    assert not len(found.inputs_in(found))


def test_no_rows() -> None:
    found = scan([], closed_answers=False, name="task/train")
    assert not len(found.duplicates)
    assert (found.num_inputs, found.num_outputs, found.labels) == (0, 0, None)

"""Seeded draws."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator

import pytest

from kif_lightning.benchmarks.hub.drawing import (
    Drawn,
    Pair,
    all_of,
    draw,
    in_order,
    one_pool,
    train_and_dev,
)

ROWS = [(f"text {number}", "even" if number % 2 == 0 else "odd") for number in range(40)]


def drawn(rows: list[Pair], **options: object) -> list[Pair]:
    settings = {"seed": 0, "purpose": "p", "most": 10, **options}
    return in_order(all_of(draw(rows, **settings)))  # type: ignore[arg-type]


def test_the_draw_depends_on_rows_seed_and_purpose_and_not_on_their_order() -> None:
    first = drawn(ROWS)
    assert len(set(first)) == 10
    assert set(first) <= set(ROWS)
    assert drawn(ROWS[::-1]) == first
    assert drawn(ROWS, seed=1) != first
    assert drawn(ROWS, purpose="q") != first
    # A smaller draw is the beginning of a larger one.
    assert drawn(ROWS, most=3) == first[:3]


def test_every_row_is_drawn_as_often_as_another() -> None:
    counts = Counter(row for seed in range(400) for row in drawn(ROWS, seed=seed))
    # Mean 100, standard deviation 8.7: five of them either way.
    assert len(counts) == 40
    assert min(counts.values()) > 56
    assert max(counts.values()) < 144


def test_of_each_class_as_many_as_wanted_or_as_there_are() -> None:
    rows = [*ROWS, ("alone", "prime")]
    found = draw(rows, seed=0, purpose="p", most=5, classes=("even", "odd", "prime"))
    assert {name: len(some) for name, some in found.of_class.items()} == {
        "even": 5,
        "odd": 5,
        "prime": 1,
    }
    assert found.num_different == 41


def test_the_first_of_equal_inputs_counts_and_excluded_ones_do_not() -> None:
    rows = [("a", "1"), ("a", "2"), ("b", "1"), ("c", "1"), ("a", "1")]
    found = draw(rows, seed=0, purpose="p", most=9, without={"b"})
    assert sorted(in_order(all_of(found))) == [("a", "1"), ("c", "1")]
    assert found.num_different == 2


def test_a_part_is_read_until_it_and_every_class_suffice() -> None:
    def endless(answers: list[str]) -> Iterator[Pair]:
        for number in itertools.count():
            read.append(number)
            yield f"{number}", answers[min(number, len(answers) - 1)]

    read: list[int] = []
    draw(endless(["x", "y"] * 50), seed=0, purpose="p", most=3, classes=("x", "y"), part=20)
    assert len(read) == 20
    read.clear()
    draw(endless(["x"] * 50 + ["y"]), seed=0, purpose="p", most=3, classes=("x", "y"), part=20)
    assert len(read) == 53
    assert draw([], seed=0, purpose="p", most=3, part=20).num_different == 0


def many(counts: dict[str, int]) -> Drawn:
    rows = [(f"{name} {number}", name) for name, count in counts.items() for number in range(count)]
    return draw(rows, seed=0, purpose="p", most=1500, classes=tuple(counts))


@pytest.mark.parametrize(
    ("counts", "size", "train", "dev"),
    [
        ({"a": 1600, "b": 1600}, "1000_per_task", 1000, 500),
        ({"a": 1600, "b": 1600}, "1000_per_class", 2000, 500),
        ({"a": 1100, "b": 90}, "1000_per_class", 1090, 100),
        ({"a": 1100, "b": 90}, "1000_per_task", 1000, 190),
        ({"a": 120, "b": 130}, "1000_per_task", 250, 0),
    ],
)
def test_train_and_dev(counts: dict[str, int], size: str, train: int, dev: int) -> None:
    found = many(counts)
    train_rows, dev_rows = train_and_dev(found, size)
    assert (len(train_rows), len(dev_rows)) == (train, dev)
    assert not {*train_rows} & {*dev_rows}
    if size == "1000_per_class":
        assert Counter(answer for _, answer in train_rows) == {
            name: min(1000, count) for name, count in counts.items()
        }


@pytest.mark.parametrize(
    ("num_rows", "expected"),
    [
        # The last five are the published sizes of SuperNI's small tasks.
        (5000, (1000, 100, 100)),
        (1200, (1000, 100, 100)),
        (1175, (975, 100, 100)),
        (424, (338, 43, 43)),
        (200, (160, 20, 20)),
        (178, (142, 18, 18)),
        (158, (126, 16, 16)),
        (10, (8, 1, 1)),
        (2, (0, 1, 1)),
        (0, (0, 0, 0)),
    ],
)
def test_one_pool(num_rows: int, expected: tuple[int, int, int]) -> None:
    rows = [(f"{number}", "") for number in range(num_rows)]
    splits = one_pool(draw(rows, seed=0, purpose="p", most=1200))
    assert tuple(map(len, splits)) == expected
    assert len({row for split in splits for row in split}) == sum(expected)

"""The bundled stream: what stands in its rows, and what does not give the answers away."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from functools import cache
from random import Random
from typing import Any

import pytest

from kif_lightning.benchmarks import MiniBenchmark
from kif_lightning.benchmarks.mini.benchmark import POOL, draw_rows, sha256_of
from kif_lightning.benchmarks.mini.tasks import TASKS, MiniTask
from kif_lightning.errors import UserError
from kif_lightning.interfaces import Row

NAMES = [task.name for task in TASKS]
ORDERS = {"all": NAMES}
every_task = pytest.mark.parametrize("task", TASKS, ids=NAMES)
_ROWS: dict[str, dict[str, tuple[Row, ...]]] = {}


def rows_of(task: MiniTask) -> dict[str, tuple[Row, ...]]:
    if task.name not in _ROWS:
        _ROWS[task.name] = draw_rows(task)
    return _ROWS[task.name]


def stream(**settings: Any) -> MiniBenchmark:
    return MiniBenchmark(**{"name": "mini", "orders": ORDERS, "order": "all", **settings})


@every_task
def test_no_input_occurs_twice_and_labels_are_balanced(task: MiniTask) -> None:
    rows = rows_of(task)
    inputs = [row.input for split in rows.values() for row in split]
    assert len(set(inputs)) == len(inputs) == sum(POOL.values())
    for split, number in POOL.items():
        counts = Counter(row.output for row in rows[split])
        assert counts.keys() == set(task.labels)
        assert sum(counts.values()) == number
        assert max(counts.values()) - min(counts.values()) <= 1
        assert len({row.id for row in rows[split]}) == number


@every_task
def test_a_prompt_names_its_task_and_all_options(task: MiniTask) -> None:
    for row in rows_of(task)["test"][:20]:
        first = row.input.splitlines()[0]
        assert first == f"{task.instruction} Choose one: {', '.join(task.labels)}."
        assert row.input.endswith("\nAnswer:")


def test_rows_are_the_same_everywhere() -> None:
    # Results of different machines are only comparable on the same rows: a change of the grammars
    # changes these, and all published results with them.
    digest = {task.name: sha256_of(rows_of(task)["test"])[:12] for task in TASKS}
    assert digest == FROZEN


@cache
def words(row: Row) -> list[str]:
    """The prompt's own words, without the first line, which all rows of a task share."""
    return re.findall(r"[a-z]+", row.input.split("\n", 1)[1].lower())


def rule_accuracy(
    train: Sequence[Row], test: Sequence[Row], cue: Callable[[Row], Hashable]
) -> float:
    """How far one cue gets: for each of its values the commonest train label."""
    table: dict[Hashable, Counter[str]] = defaultdict(Counter)
    for row in train:
        table[cue(row)][row.output] += 1
    best = {value: counts.most_common(1)[0][0] for value, counts in table.items()}
    return sum(best.get(cue(row)) == row.output for row in test) / len(test)


def cues(train: Sequence[Row]) -> dict[str, Callable[[Row], Hashable]]:
    """A word's presence, the word at one place, the number of words."""
    found: dict[str, Callable[[Row], Hashable]] = {"length": lambda row: len(words(row))}
    for word in {word for row in train for word in words(row)}:
        found[f"has {word}"] = lambda row, word=word: word in words(row)  # type: ignore[misc]
    for place in range(-12, 20):
        found[f"word {place}"] = lambda row, place=place: (*words(row)[place:], "")[0]  # type: ignore[misc]
    return found


@every_task
def test_no_single_cue_solves_a_task(task: MiniTask) -> None:
    train, test = rows_of(task)["train"], rows_of(task)["test"]
    found = {name: rule_accuracy(train, test, cue) for name, cue in cues(train).items()}
    by_place = {name: value for name, value in found.items() if name.startswith("word ")}
    others = {name: value for name, value in found.items() if name not in by_place}
    # The README tells these bounds.
    assert max(others.values()) <= 0.65, max(others.items(), key=lambda item: item[1])
    assert max(by_place.values()) <= 0.81, max(by_place.items(), key=lambda item: item[1])


def test_the_search_for_cues_finds_one() -> None:
    rows = [
        Row(id=str(i), input=f"Task\nthe {word} is {i % 7}\nAnswer:", output=label)
        for i, (word, label) in enumerate([("fox", "A"), ("owl", "B")] * 20)
    ]
    accuracy = {name: rule_accuracy(rows, rows, cue) for name, cue in cues(rows).items()}
    assert accuracy["has fox"] == accuracy["word 1"] == accuracy["word -3"] == 1.0
    assert accuracy["length"] == 0.5


def test_inference_follows_its_own_rule() -> None:
    (mnli,) = [task for task in TASKS if task.name == "mini_mnli"]
    random = Random(0)
    for _ in range(200):
        draw = mnli.draw(random, "entailment").splitlines()
        first, second = (line.split(": ", 1)[1].rstrip(".") for line in draw)
        told, then = (" not " in first), (" not " in second)
        assert told == then
        # What happened with a detail happened; what did not happen did not with one either.
        assert first.startswith(second) if not told else second.startswith(first)


def test_limits_are_balanced_and_follow_the_seed() -> None:
    one, again, other = (stream(train_rows=30, test_rows=20, seed=s) for s in (1, 1, 2))
    assert one.tasks == again.tasks
    assert one.tasks[0].train != other.tasks[0].train
    assert one.tasks[0].sha256 == other.tasks[0].sha256, "the same data, another draw"
    counts = Counter(row.output for row in one.tasks[0].train)
    assert sorted(counts.values()) == [10, 10, 10]
    assert stream().stand_in


def test_tasks_come_in_the_order_asked_for() -> None:
    assert [task.name for task in stream().tasks] == NAMES
    own = stream(order=["mini_yelp", "mini_cb"])
    assert (own.order_name, [task.name for task in own.tasks]) == ("own", ["mini_yelp", "mini_cb"])


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"order": "order9"}, "no order of this benchmark"),
        ({"order": ["mini_yelp", "yelp"]}, "did you mean 'mini_yelp'"),
        ({"order": ["mini_yelp", "mini_yelp"]}, "a task once"),
        ({"train_rows": 0}, "benchmark.train_rows"),
        ({"test_rows": -3}, "benchmark.test_rows"),
    ],
)
def test_what_does_not_work_is_told(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        stream(**settings)


FROZEN: dict[str, str] = {
    "mini_mnli": "248836e8fca8",
    "mini_cb": "b24db0dd3374",
    "mini_wic": "327da9bd81ba",
    "mini_copa": "8ce7f6d143e8",
    "mini_qqp": "9c0b97c77140",
    "mini_boolqa": "6cec4db39595",
    "mini_rte": "10bc95c246b7",
    "mini_imdb": "9120a7c836ce",
    "mini_yelp": "ddc99b40fb28",
    "mini_amazon": "f3cd10c3de4c",
    "mini_sst2": "84019913c270",
    "mini_dbpedia": "33b767a4c156",
    "mini_agnews": "7b12fba1c500",
    "mini_multirc": "7c5b0594d212",
    "mini_yahoo": "cbeed5e6b3bb",
}

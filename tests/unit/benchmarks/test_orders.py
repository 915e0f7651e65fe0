"""Orders by name: published ones, drawn ones, own lists."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest

from kif_lightning.benchmarks import MiniBenchmark, OwnBenchmark, PublicBenchmark
from kif_lightning.benchmarks.orders import resolve_order
from kif_lightning.errors import UserError

ORDERS = {"order1": list("abcdefgh"), "order2": list("hgfedcba"), "short": ["a", "z"]}
ALL = sorted({*"abcdefgh", "z"})


def test_a_drawn_order_is_a_permutation_of_all_tasks_by_its_number_alone() -> None:
    drawn = {n: resolve_order(f"random_{n}", ORDERS) for n in range(6)}
    for number, (name, tasks) in drawn.items():
        assert name == f"random_{number}"
        assert sorted(tasks) == ALL
    for (_, one), (_, other) in combinations(drawn.values(), 2):
        assert one != other
    turned = {name: tasks[::-1] for name, tasks in reversed(ORDERS.items())}
    assert resolve_order("random_3", turned) == drawn[3], "as the yaml lists them does not matter"


def test_every_task_comes_first_equally_often() -> None:
    firsts = [resolve_order(f"random_{n}", ORDERS)[1][0] for n in range(900)]
    # 100 each on average, with a standard deviation of 9.4.
    assert {name: 60 < firsts.count(name) < 140 for name in ALL} == dict.fromkeys(ALL, True)


def test_published_orders_stay() -> None:
    assert resolve_order("short", ORDERS) == ("short", ["a", "z"])
    assert resolve_order(["z", "b"], ORDERS) == ("own", ["z", "b"])
    assert resolve_order("random_1", {"random_1": ["b", "a"]}) == ("random_1", ["b", "a"])


@pytest.mark.parametrize("wrong", ["random", "random_", "random_-1", "random_01", "random_x", "x"])
def test_a_mistake_is_told(wrong: str) -> None:
    with pytest.raises(UserError, match=r"is no order of this benchmark.*order1.*random_1"):
        resolve_order(wrong, ORDERS)


def test_benchmarks_have_them_whatever_the_runs_seed(tmp_path: Path, toy_data: Path) -> None:
    public = [
        PublicBenchmark(
            name="x",
            data_dir=str(toy_data),
            orders={"order1": ["colour", "shape"]},
            order="random_2",
            seed=seed,
        )
        for seed in (1, 2)
    ]
    names = ["mini_cb", "mini_imdb", "mini_yelp"]
    mini = [
        MiniBenchmark(name="x", orders={"one": names}, order="random_2", test_rows=2, seed=seed)
        for seed in (1, 2)
    ]
    for folder in ("a", "b", "c"):
        (tmp_path / f"{folder}.jsonl").write_text(
            "".join(f'{{"q": "say {i}", "a": "{i % 2}"}}\n' for i in range(10))
        )
    tasks = "".join(
        f"  {n}: {{kind: classification, train: {n}.jsonl, prompt: '{{q}}', answer: '{{a}}'}}\n"
        for n in "abc"
    )
    (tmp_path / "tasks.yaml").write_text(f"tasks:\n{tasks}")
    own = [
        OwnBenchmark(name="x", file=str(tmp_path / "tasks.yaml"), order="random_2", seed=seed)
        for seed in (1, 2)
    ]
    for pair in (public, mini, own):
        one, other = ([task.name for task in benchmark.tasks] for benchmark in pair)
        assert one == other
        assert pair[0].order_name == "random_2"
    assert sorted(task.name for task in mini[0].tasks) == names
    # Three tasks each: the same places, whatever they are called.
    places = [names.index(task.name) for task in mini[0].tasks]
    assert ["abc".index(task.name) for task in own[0].tasks] == places

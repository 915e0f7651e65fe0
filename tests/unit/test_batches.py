"""Which rows stand in which step, and which of them go through the model together."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import pytest

from kif_lightning.batches import WINDOW_STEPS, StepPlan, length_groups

TOKENS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]  # 11 rows


def plan(
    batch: int = 4, micro: int = 2, seed: int = 1, task: str = "colour", **share: Any
) -> StepPlan:
    return StepPlan(
        answer_tokens=TOKENS,
        batch_size=batch,
        micro_batch_size=micro,
        seed=seed,
        purpose=(task, "row order"),
        **share,
    )


def order(steps: StepPlan, epoch: int = 0) -> list[int]:
    steps.set_epoch(epoch)
    return [i for part in steps for i in part.indices]


def test_every_row_once_an_epoch_in_another_order() -> None:
    steps = plan()
    orders = [order(steps, epoch) for epoch in range(4)]
    assert all(sorted(found) == list(range(11)) for found in orders)
    assert len({tuple(found) for found in orders}) == 4


def test_order_is_a_function_of_seed_task_and_epoch() -> None:
    expected = order(plan(), 2)
    assert order(plan(), 2) == expected
    assert order(plan(seed=2), 2) != expected
    assert order(plan(task="shape"), 2) != expected
    # The split into steps and micro-batches changes no order.
    assert order(plan(batch=8, micro=8), 2) == expected


@pytest.mark.parametrize(
    ("batch", "micro", "sizes"),
    [
        (4, 2, [[2, 2], [2, 2], [2, 1]]),
        (4, 4, [[4], [4], [3]]),
        (8, 2, [[2, 2, 2, 2], [2, 1]]),
        (4, 1, [[1] * 4, [1] * 4, [1] * 3]),
        (11, 11, [[11]]),
        (16, 8, [[8, 3]]),
        (16, 16, [[11]]),
    ],
)
def test_steps_know_their_tokens_and_parts(batch: int, micro: int, sizes: list[Any]) -> None:
    steps = plan(batch, micro)
    rows = order(steps)
    parts = list(steps)
    assert [len(part.indices) for part in parts] == [size for step in sizes for size in step]
    assert len(steps) == len(parts)
    place = start = 0
    for step in sizes:
        tokens = sum(TOKENS[i] for i in rows[start : start + sum(step)])
        for part in parts[place : place + len(step)]:
            assert (part.step_tokens, part.step_micro_batches) == (tokens, len(step))
        place, start = place + len(step), start + sum(step)


@pytest.mark.parametrize(
    ("batch", "micro", "world", "rounds"),
    [  # rows of each process's micro-batches, step after step; 0: a filler
        (4, 2, 2, [[(2, 2)], [(2, 2)], [(2, 1)]]),
        (4, 1, 2, [[(1, 1), (1, 1)], [(1, 1), (1, 1)], [(1, 1), (1, 0)]]),
        (8, 2, 2, [[(2, 2), (2, 2)], [(2, 1)]]),  # fewer than in a full step, but as many on both
        (10, 5, 2, [[(5, 5)], [(1, 0)]]),
        (8, 1, 4, [[(1, 1, 1, 1), (1, 1, 1, 1)], [(1, 1, 1, 0)]]),
        (8, 2, 4, [[(2, 2, 2, 2)], [(2, 1, 0, 0)]]),
    ],
)
def test_processes_share_each_step(batch: int, micro: int, world: int, rounds: Any) -> None:
    alone = plan(batch, micro)
    alone.set_epoch(3)
    shares = []
    for rank in range(world):
        share = plan(batch, micro, rank=rank, world_size=world)
        share.set_epoch(3)
        shares.append(list(share))
        assert len(share) == len(shares[0]) == len(shares[-1])
    # Round by round the real ones are those of one process, in its order.
    dealt = list(zip(*shares, strict=True))
    real = [part for parts in dealt for part in parts if part.weight]
    assert real == list(alone)
    sizes = [tuple(int(p.weight) * len(p.indices) for p in parts) for parts in dealt]
    assert sizes == [size for step in rounds for size in step]
    for parts in dealt:
        about = {(p.step_tokens, p.step_micro_batches, p.step_rows) for p in parts}
        assert len(about) == 1
        of_step = {i for p in real if p.step_tokens == parts[0].step_tokens for i in p.indices}
        fillers = [p for p in parts if not p.weight]
        assert all(len(p.indices) == 1 and p.indices[0] in of_step for p in fillers)


def test_a_plan_starts_late_once() -> None:
    steps = plan()
    everything = list(steps)
    steps.start = 4
    assert list(steps) == everything[4:]
    assert list(steps) == everything
    asked = iter(steps)  # as a DataLoader does, before it is told where to start
    steps.start = 2
    assert list(asked) == everything[2:]


def partitions(places: list[int]) -> Iterable[list[list[int]]]:
    """Every way to put them into groups."""
    if not places:
        yield []
        return
    first, rest = places[0], places[1:]
    for others in partitions(rest):
        yield [[first], *others]
        for chosen in range(len(others)):
            joined_one = [[first, *g] if n == chosen else g for n, g in enumerate(others)]
            yield joined_one


@pytest.mark.parametrize(
    "lengths",
    [
        *([5], [7, 7, 7], [1, 9, 1, 9], [4, 4, 6, 6, 6, 9, 9]),
        *([3, 50, 4, 48, 5, 2], [10, 20, 30, 40, 50, 60]),
    ],
)
@pytest.mark.parametrize("overhead", [0, 1, 8, 40, 1000])
def test_length_groups_cost_least_of_all_partitions(lengths: list[int], overhead: int) -> None:
    def cost(groups: list[list[int]]) -> int:
        return sum(len(g) * max(lengths[i] for i in g) + overhead for g in groups)

    groups = length_groups(lengths, overhead)
    assert sorted(itertools.chain(*groups)) == list(range(len(lengths)))
    assert all(group == sorted(group) for group in groups)
    assert cost(groups) == min(map(cost, partitions(list(range(len(lengths))))))


def test_equal_lengths_are_never_parted() -> None:
    assert length_groups([6] * 5, 0) == [[0, 1, 2, 3, 4]]


LENGTHS = [(37 * i) % 101 + 1 for i in range(16 * WINDOW_STEPS + 7)]


def long_plan(across_steps: bool, **share: Any) -> StepPlan:
    steps = StepPlan(
        answer_tokens=[1] * len(LENGTHS),
        lengths=LENGTHS,
        across_steps=across_steps,
        batch_size=4,
        micro_batch_size=4,
        seed=1,
        purpose=("row order",),
    )
    for key, value in share.items():
        setattr(steps, key, value)
    return steps


def padding(steps: StepPlan) -> float:
    """Share of the padded tokens that are padding."""
    padded = sum(len(p.indices) * max(LENGTHS[i] for i in p.indices) for p in steps)
    return 1 - sum(LENGTHS) / padded


def test_across_steps_rows_of_similar_length_meet_in_random_order() -> None:
    steps = long_plan(across_steps=True)
    found = order(steps)
    assert sorted(found) == list(range(len(LENGTHS)))
    assert len(list(steps)) == len(steps)
    # Only the last step has fewer rows, or accumulation would fall out of step.
    assert [len(p.indices) for p in steps] == [4] * (len(LENGTHS) // 4) + [3]
    assert padding(steps) < 0.03 < 0.3 < padding(long_plan(across_steps=False))
    assert order(steps) == found
    assert order(steps, 1) != found
    # Short and long steps are spread over the epoch: its halves differ by chance alone.
    differences = []
    for epoch in range(12):
        steps.set_epoch(epoch)
        means = [sum(LENGTHS[i] for i in p.indices) / 4 for p in steps][:-1]
        half = len(means) // 2
        differences.append(sum(means[:half]) / half - sum(means[-half:]) / half)
    assert abs(sum(differences) / 12) < 5


def test_across_steps_a_resumed_epoch_goes_on_in_its_order() -> None:
    whole = list(long_plan(across_steps=True))
    assert list(long_plan(across_steps=True, start=10)) == whole[10:]


def test_within_steps_rows_stay_in_their_step() -> None:
    grouped = plan(8, 2, lengths=TOKENS)
    plain = plan(8, 2)
    found, expected = list(grouped), list(plain)
    assert len(found) == len(expected)
    for parts, others in zip((found[:4], found[4:]), (expected[:4], expected[4:]), strict=True):
        rows = [i for part in parts for i in part.indices]
        assert sorted(rows) == sorted(i for part in others for i in part.indices)
        assert [TOKENS[i] for i in rows] == sorted(TOKENS[i] for i in rows)
        assert {part.step_tokens for part in parts} == {part.step_tokens for part in others}


def test_where_the_whole_step_is_one_micro_batch_rows_keep_their_order() -> None:
    assert list(plan(8, 8, lengths=TOKENS)) == list(plan(8, 8))


def test_of_processes_with_one_micro_batch_each_none_has_all_long_rows() -> None:
    for rank in range(2):
        share: dict[str, Any] = {"rank": rank, "world_size": 2}
        assert list(plan(8, 4, lengths=TOKENS, **share)) == list(plan(8, 4, **share))
        assert list(plan(8, 2, lengths=TOKENS, **share)) != list(plan(8, 2, **share))

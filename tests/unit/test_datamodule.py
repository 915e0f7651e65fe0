"""Which rows stand in which step, split and batch."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import AutoTokenizer

from kif_lightning.batches import ELSEWHERE
from kif_lightning.benchmarks.streams import JointStream
from kif_lightning.benchmarks.table import SCHEMA, RowTable
from kif_lightning.datamodule import ContinualDataModule
from kif_lightning.errors import UserError
from kif_lightning.interfaces import Row, Task
from tests.helpers.streams import ToyBenchmark, tiny_backbone, toy_task


def data(tiny_t5: Path, **options: Any) -> ContinualDataModule:
    tasks = options.pop("tasks", (toy_task("colour"), toy_task("shape", train=12, test=7)))
    settings: dict[str, Any] = {
        "batch_size": 8,
        "micro_batch_size": 4,
        "evaluation_batch_size": 4,
        "max_new_tokens": 7,
        "num_held_out": 5,
        "seed": 1,
    }
    return ContinualDataModule(
        benchmark=ToyBenchmark(tasks), backbone=tiny_backbone(tiny_t5), **{**settings, **options}
    )


def prompts(examples: Iterable[Any]) -> list[tuple[int, ...]]:
    return [tuple(example.prompt_ids) for example in examples]


def read(batches: Iterable[Any]) -> list[list[tuple[int, ...]]]:
    """The prompts of each batch, without padding."""
    found = []
    for batch in batches:
        ids, masks = batch["inputs"]["input_ids"], batch["inputs"]["attention_mask"]
        rows = zip(ids, masks, strict=True)
        found.append([tuple(row[mask.bool()].tolist()) for row, mask in rows])
    return found


def joined(batches: Iterable[Any]) -> list[Any]:
    return list(itertools.chain.from_iterable(batches))


def ids(batches: Iterable[Any]) -> list[Any]:
    return [(batch["step_tokens"], batch["inputs"]["input_ids"].tolist()) for batch in batches]


@pytest.mark.parametrize("taken", [0, 1, 3, 5])
def test_a_loader_goes_on_where_another_stood(tiny_t5: Path, taken: int) -> None:
    loader = data(tiny_t5, num_held_out=0).train_dataloader()
    epochs = []
    for epoch in (1, 2):
        loader.plan.set_epoch(epoch)
        epochs.append(ids(loader))
        assert loader.state_dict() == {"handed_out": 0}
    loader.plan.set_epoch(1)
    stopped = iter(loader)
    for _ in range(taken):
        next(stopped)
    state = loader.state_dict()
    assert state == {"handed_out": taken}

    resumed = data(tiny_t5, num_held_out=0).train_dataloader()
    resumed.load_state_dict(state)
    resumed.plan.set_epoch(1)
    iter(resumed)  # Lightning makes an iterator that it takes nothing from
    going_on = iter(resumed)
    rest = []
    for number, batch in enumerate(going_on, start=1):
        rest.append(batch)
        assert resumed.state_dict() == {"handed_out": taken + number}
    assert ids(rest) == epochs[0][taken:]
    resumed.plan.set_epoch(2)
    assert ids(resumed) == epochs[1], "the next epoch is whole"


def test_a_loader_draws_as_a_plain_one_does(tiny_t5: Path) -> None:
    loader = data(tiny_t5).train_dataloader()
    states = []
    plain: DataLoader[Any] = DataLoader([1, 2], batch_size=None)  # type: ignore[arg-type]
    for each in (loader, plain):
        torch.manual_seed(4)
        batches = iter(each)
        states.append(torch.get_rng_state())
        next(batches)
        assert torch.equal(torch.get_rng_state(), states[-1]), "at the start, not later"
    torch.manual_seed(4)
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], torch.get_rng_state())


class Joined:
    """Stands for :mod:`kif_lightning.ranks` in one of several processes."""

    def __init__(self, number: int, of: int) -> None:
        self.rank, self.world_size = (lambda: number), (lambda: of)


def in_process(monkeypatch: pytest.MonkeyPatch, number: int, of: int) -> None:
    monkeypatch.setattr("kif_lightning.datamodule.ranks", Joined(number, of))


@pytest.mark.parametrize(("number_of_tests", "world"), [(6, 2), (9, 2), (1, 2), (13, 3), (3, 4)])
def test_processes_share_evaluation(
    tiny_t5: Path, monkeypatch: pytest.MonkeyPatch, number_of_tests: int, world: int
) -> None:
    loaded = data(tiny_t5, tasks=(toy_task(test=number_of_tests),), num_held_out=0)
    alone = list(loaded.evaluation_dataloaders([0])[0])
    assert [batch["batch_index"] for batch in alone] == list(range(len(alone)))
    shares = []
    for rank in range(world):
        in_process(monkeypatch, rank, world)
        (loader,) = loaded.evaluation_dataloaders([0])
        shares.append(list(loader))
        assert len(loader) == len(shares[-1]) == max(1, -(-len(alone) // world))
    for batches in zip(*shares, strict=True):
        for batch in batches:
            if batch["batch_index"] < len(alone):
                expected = alone[batch["batch_index"]]
                assert batch["rows"] == expected["rows"]
                assert torch.equal(batch["inputs"]["input_ids"], expected["inputs"]["input_ids"])
            else:
                assert batch["rows"] == ()
                assert len(batch["inputs"]["input_ids"]) > 0
    rows = [row for share in shares for batch in share for row in batch["rows"]]
    assert sorted(rows) == list(range(number_of_tests))
    indices = [batch["batch_index"] for batches in zip(*shares, strict=True) for batch in batches]
    assert indices == list(range(len(indices)))


def test_processes_share_endless_steps_and_not_the_sample(
    tiny_t5: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = toy_task("form").train[:17]  # 8 8 1 rows
    loaded = data(tiny_t5, micro_batch_size=2)
    alone = list(itertools.islice(loaded.row_steps(rows, "outer"), 7))
    sample = ids(loaded.sample_batches(4, "sample"))
    shares = []
    for rank in range(2):
        in_process(monkeypatch, rank, 2)
        shares.append(list(itertools.islice(loaded.row_steps(rows, "outer"), 7)))
        assert ids(loaded.sample_batches(4, "sample")) == sample
    assert [len(step) for step in shares[0]] == [2, 2, 1] * 2 + [2]
    for whole, *parts in zip(alone, *shares, strict=True):
        real = [b for batches in zip(*parts, strict=True) for b in batches if b["weight"]]
        assert ids(real) == ids(whole)


def test_a_batch_that_does_not_deal_out_is_told(
    tiny_t5: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, whole = data(tiny_t5), data(tiny_t5, micro_batch_size=None)
    in_process(monkeypatch, 0, 2)
    assert (loaded.micro_batch_size, loaded.accumulate_grad_batches) == (4, 1)
    assert (whole.micro_batch_size, whole.accumulate_grad_batches) == (4, 1)
    assert [loaded.accumulation(world) for world in (1, 2)] == [2, 1]
    in_process(monkeypatch, 0, 3)
    for each, size in ((loaded, "4"), (whole, "null")):
        told = rf"optim.batch_size .*micro_batch_size .*trainer.devices .*got 8, {size} and 3: "
        with pytest.raises(UserError, match=told):
            each.train_dataloader()
        with pytest.raises(UserError, match=told):
            each.rows_dataloader(each.task.train, "replayed rows")


def test_training_batches_carry_rows_tokens_and_parts(tiny_t5: Path) -> None:
    loaded = data(tiny_t5, num_held_out=0)
    loader = loaded.train_dataloader()
    batches = list(loader)
    assert len(loader) == len(batches) == 5  # 4 4 | 4 4 | 3
    assert loaded.optimizer_steps(loaded.task, epochs=2) == 6
    assert loaded.accumulate_grad_batches == 2
    assert all(batch["weight"] == 1.0 for batch in batches)
    for step in ([0, 1], [2, 3], [4]):
        labels = [batches[i]["inputs"]["labels"] for i in step]
        tokens = sum(int((part != -100).sum()) for part in labels)
        assert {batches[i]["step_tokens"] for i in step} == {tokens}
        assert {batches[i]["step_micro_batches"] for i in step} == {len(step)}
    assert sum(len(batch["inputs"]["input_ids"]) for batch in batches) == 19


def test_held_out_rows_are_disjoint_and_seeded(tiny_t5: Path) -> None:
    loaded = data(tiny_t5)
    training, held_out = (prompts(part) for part in loaded._training_split())
    all_rows = prompts([loaded.backbone.encode(row) for row in loaded.task.train])
    assert (len(training), len(held_out)) == (14, 5)
    assert sorted(training + held_out) == sorted(all_rows)
    assert not set(training) & set(held_out)
    assert loaded.num_training_rows(loaded.task) == 14
    assert prompts(data(tiny_t5)._training_split()[1]) == held_out
    assert prompts(data(tiny_t5, seed=2)._training_split()[1]) != held_out
    batches = list(loaded.selection_dataloader())
    assert joined(read(batches)) == held_out
    assert [len(batch["inputs"]["input_ids"]) for batch in batches] == [4, 1]
    for batch in batches:
        assert batch["step_tokens"] == int((batch["inputs"]["labels"] != -100).sum())
    assert not list(data(tiny_t5, num_held_out=None).selection_dataloader())


def held_out_rows(loaded: ContinualDataModule) -> set[str]:
    return {row.id for row in loaded.task.train} - {row.id for row in loaded.training_rows()}


@pytest.mark.parametrize(
    ("share", "number"), [(0.1, 4), (0.25, 10), (0.5, 20), (0.001, 1), (0.97, 39)]
)
@pytest.mark.parametrize("kind", ["classification", "generation"])
def test_a_share_is_held_out(tiny_t5: Path, share: float, number: int, kind: str) -> None:
    task = toy_task(train=40, kind=kind)
    loaded = data(tiny_t5, tasks=(task,), num_held_out=None, held_out_share=share)
    training, held_out = (prompts(part) for part in loaded._training_split())
    assert len(held_out) == number == loaded.num_held_out(task)
    assert len(training) == 40 - number == loaded.num_training_rows(task)
    assert len(held_out_rows(loaded)) == number
    assert loaded.optimizer_steps(task, epochs=3) == 3 * -(-(40 - number) // 8)
    again, other = (
        data(tiny_t5, tasks=(task,), num_held_out=None, held_out_share=share, seed=seed)
        for seed in (1, 3)
    )
    assert held_out_rows(again) == held_out_rows(loaded) != held_out_rows(other)


def of_classes(sizes: dict[str, int], labels: tuple[str, ...]) -> Task:
    outputs = [label for label, size in sizes.items() for _ in range(size)]
    rows = [Row(id=f"{i}", input=f"row {i}", output=out) for i, out in enumerate(outputs)]
    return replace(toy_task(), train=rows, labels=labels)


def held_out_by_class(tiny_t5: Path, task: Task, **options: Any) -> Counter[str]:
    loaded = data(tiny_t5, tasks=(task,), **options)
    output = {row.id: row.output for row in task.train}
    return Counter(output[i] for i in held_out_rows(loaded))


@pytest.mark.parametrize(
    ("sizes", "share", "expected"),
    [
        ({"good": 30, "bad": 30}, 0.1, {"good": 3, "bad": 3}),
        ({"good": 50, "bad": 10}, 0.1, {"good": 5, "bad": 1}),
        ({"good": 80, "bad": 16, "rare": 1}, 0.25, {"good": 20, "bad": 4}),
        ({"good": 4, "bad": 4, "round": 4}, 0.5, {"good": 2, "bad": 2, "round": 2}),
    ],
)
def test_each_class_gives_its_share(
    tiny_t5: Path, sizes: dict[str, int], share: float, expected: dict[str, int]
) -> None:
    for seed in range(5):
        options = {"num_held_out": None, "held_out_share": share, "seed": seed}
        assert held_out_by_class(tiny_t5, of_classes(sizes, tuple(sizes)), **options) == expected
    # Where answers are free they are no classes; a number of rows is drawn uniformly as well.
    draws = [{**options, "seed": seed} for seed in range(8)]
    free = [held_out_by_class(tiny_t5, of_classes(sizes, ()), **draw) for draw in draws]
    number = {"num_held_out": sum(expected.values()), "held_out_share": None}
    uniform = [
        held_out_by_class(tiny_t5, of_classes(sizes, tuple(sizes)), **{**draw, **number})
        for draw in draws
    ]
    assert free == uniform
    assert any(found != expected for found in free)


def test_no_class_of_one_row_goes_as_long_as_others_are_there(tiny_t5: Path) -> None:
    task = of_classes({"good": 3, "once": 1}, ("good", "once"))
    found = held_out_by_class(tiny_t5, task, num_held_out=None, held_out_share=0.25)
    assert found == {"good": 1}


def test_dev_rows_are_looked_at_and_all_train_rows_trained_on(tiny_t5: Path) -> None:
    dev = toy_task("form", train=7).train
    tasks = (replace(toy_task(), dev=dev), replace(toy_task("shape"), dev=dev[:2]))
    loaded = data(tiny_t5, tasks=tasks, num_held_out=None, look_at_dev=True)
    assert joined(read(loaded.selection_dataloader())) == prompts(
        [loaded.backbone.encode(row) for row in dev]
    )
    assert loaded.num_training_rows(loaded.task) == len(loaded._training_split()[0]) == 19
    assert loaded.training_rows() is loaded.task.train
    loaded.begin_task(1)
    assert len(joined(read(loaded.selection_dataloader()))) == 2


def test_dev_rows_that_are_test_rows_are_counted(tiny_t5: Path) -> None:
    one, two = toy_task(test=6), toy_task("shape", test=6)
    other_answer = replace(one.test[1], id="x", output="another")
    dev = (*one.test[:1], other_answer, other_answer, *two.test)
    tasks = (replace(one, dev=dev, test=(*one.test, one.test[0])), replace(two, dev=one.test))
    # Of the task's own test rows, by input alone; a row counts as often as dev has it.
    assert data(tiny_t5, tasks=tasks).dev_rows_in_test() == {"colour": 3, "shape": 0}


def test_tasks_without_dev_rows_are_named(tiny_t5: Path) -> None:
    tasks = (toy_task(), replace(toy_task("shape"), dev=toy_task().train), toy_task("form"))
    told = "the data has none of colour, form: use method/selection=held_out"
    with pytest.raises(UserError, match=told):
        data(tiny_t5, tasks=tasks, num_held_out=None, look_at_dev=True)
    joint = JointStream().training_tasks(tasks)
    with pytest.raises(UserError, match=told):
        data(tiny_t5, tasks=tasks, training_tasks=joint, num_held_out=None, look_at_dev=True)
    (joint_task,) = JointStream().training_tasks(tasks[1:2])
    loaded = data(tiny_t5, tasks=tasks[1:2], training_tasks=[joint_task], look_at_dev=True,
                  num_held_out=None)  # fmt: skip
    assert len(joined(read(loaded.selection_dataloader()))) == 19


def test_rows_of_an_arrow_table_are_as_good(tiny_t5: Path) -> None:
    task = toy_task(train=40)
    columns = {name: [getattr(row, name) for row in task.train] for name in SCHEMA.names}
    table = RowTable(pa.table(columns, SCHEMA))
    for options in ({"num_held_out": 5}, {"num_held_out": None, "held_out_share": 0.2}):
        rows, arrow = (
            data(tiny_t5, tasks=(replace(task, train=train),), **options)
            for train in (task.train, table)
        )
        assert [*map(list, rows._training_split())] == [*map(list, arrow._training_split())]
        assert rows.training_rows() == arrow.training_rows()


def test_present_task_decides_the_rows(tiny_t5: Path) -> None:
    loaded = data(tiny_t5)
    first = prompts(loaded._training_split()[0])
    loaded.begin_task(1)
    assert loaded.task.name == "shape"
    second = prompts(loaded._training_split()[0])
    assert len(second) == 7
    assert not set(first) & set(second)


def test_cap_is_the_longest_train_label_and_its_end_token(tiny_t5: Path) -> None:
    loaded = data(tiny_t5)
    tokenizer = AutoTokenizer.from_pretrained(tiny_t5)
    longest = max(
        len(tokenizer(label, add_special_tokens=False)["input_ids"]) for label in loaded.task.labels
    )
    assert longest > 1
    assert loaded.new_tokens_cap(loaded.task) == longest + 1
    generation = data(tiny_t5, tasks=(toy_task(kind="generation"),))
    assert generation.new_tokens_cap(generation.task) == 7


def test_evaluation_batches_are_sorted_and_cover_each_row_once(tiny_t5: Path) -> None:
    loaded = data(tiny_t5)
    loaders = loaded.evaluation_dataloaders([1, 0])
    for loader, index in zip(loaders, [1, 0], strict=True):
        task, batches = loaded.test_tasks[index], list(loader)
        rows = [row for batch in batches for row in batch["rows"]]
        assert sorted(rows) == list(range(len(task.test)))
        assert all(len(batch["rows"]) <= 4 for batch in batches)
        lengths = [len(loaded.backbone.encode(task.test[row]).prompt_ids) for row in rows]
        assert lengths == sorted(lengths, reverse=True) != sorted(lengths)
        for batch in batches:
            ids, mask = batch["inputs"]["input_ids"], batch["inputs"]["attention_mask"]
            for place, row in enumerate(batch["rows"]):
                expected = loaded.backbone.encode(task.test[row]).prompt_ids
                assert ids[place][mask[place].bool()].tolist() == expected
            assert batch["max_new_tokens"] == loaded.new_tokens_cap(task)


def test_row_steps_go_on_for_ever_in_their_micro_batches(tiny_t5: Path) -> None:
    loaded = data(tiny_t5)
    rows = toy_task("form").train  # 19 rows: 8 8 3
    expected = sorted(prompts([loaded.backbone.encode(row) for row in rows]))
    steps = list(itertools.islice(loaded.row_steps(rows, "outer"), 9))
    sizes = [[len(batch["inputs"]["input_ids"]) for batch in step] for step in steps]
    assert sizes == [[4, 4], [4, 4], [3]] * 3
    for step in steps:
        tokens = sum(int((batch["inputs"]["labels"] != -100).sum()) for batch in step)
        assert {batch["step_tokens"] for batch in step} == {tokens}
        assert {batch["step_micro_batches"] for batch in step} == {len(step)}
    flat = [batch for step in steps for batch in step]
    epochs = [joined(read(flat[i : i + 5])) for i in (0, 5, 10)]
    assert all(sorted(epoch) == expected for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3, "each epoch has an order of its own"
    few = itertools.islice(loaded.row_steps(rows[:1], "outer"), 3)
    assert [len(batch) for step in few for batch in read(step)] == [1, 1, 1]


def test_rows_come_in_an_order_of_seed_task_and_purpose(tiny_t5: Path) -> None:
    rows = toy_task("form").train

    def first(loaded: ContinualDataModule, purpose: str = "outer") -> Any:
        steps = itertools.islice(loaded.row_steps(rows, purpose), 3)
        return read([batch for step in steps for batch in step])

    torch.manual_seed(1)
    expected = first(data(tiny_t5))
    torch.manual_seed(2)
    assert first(data(tiny_t5)) == expected
    assert first(data(tiny_t5), "other") != expected
    assert first(data(tiny_t5, seed=2)) != expected
    second = data(tiny_t5)
    second.begin_task(1)
    assert first(second) != expected
    # The same rows in micro-batches, for a fit.
    micro = read(data(tiny_t5).rows_dataloader(rows, "outer"))
    assert [len(batch) for batch in micro] == [4, 4, 4, 4, 3]
    assert joined(micro) == joined(expected)
    assert joined(read(data(tiny_t5).rows_dataloader(rows, "other"))) != joined(expected)
    own = data(tiny_t5, num_held_out=0)
    as_rows = own.rows_dataloader(own.task.train, "replayed rows")
    assert read(own.train_dataloader()) != read(as_rows)


def test_sample_is_of_single_training_rows(tiny_t5: Path) -> None:
    loaded = data(tiny_t5)
    training, held_out = (prompts(part) for part in loaded._training_split())
    found = list(loaded.sample_batches(9, "sample"))
    assert all(len(rows) == 1 for rows in read(found))
    rows = joined(read(found))
    assert len(set(rows)) == 9
    assert set(rows) <= set(training)
    for batch in found:
        assert batch["step_tokens"] == int((batch["inputs"]["labels"] != -100).sum())
        assert batch["step_micro_batches"] == 1
    assert joined(read(data(tiny_t5).sample_batches(9, "sample"))) == rows
    assert joined(read(loaded.sample_batches(9, "other"))) != rows
    assert joined(read(data(tiny_t5, seed=2).sample_batches(9, "sample"))) != rows
    # More than there are: all, and no held-out row among them.
    everything = joined(read(loaded.sample_batches(99, "sample")))
    assert sorted(everything) == sorted(training)
    assert not set(everything) & set(held_out)
    # What is rehearsed is no row of the task's own.
    loaded.begin_task(1)
    loaded.rehearsed = (loaded.backbone.encode(toy_task("form").train[0]),)
    assert len(list(loaded.sample_batches(99, "sample"))) == 7


def test_rehearsed_examples_join_training_and_nothing_else(tiny_t5: Path) -> None:
    loaded = data(tiny_t5)
    loaded.begin_task(1)
    training, held_out = (prompts(part) for part in loaded._training_split())
    rows = toy_task("form").train[:3]
    rehearsed = [loaded.backbone.encode(row) for row in rows]
    loaded.begin_task(1, rows)
    loaded.rehearsed = tuple(rehearsed)
    assert loaded.memory_rows == rows
    batches = read(loaded.train_dataloader())
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert sorted(joined(batches)) == sorted([*training, *prompts(rehearsed)])
    assert joined(batches) != [*training, *prompts(rehearsed)], "mixed, not one after the other"
    assert joined(read(loaded.selection_dataloader())) == held_out
    loaded.begin_task(0)
    assert (loaded.memory_rows, loaded.rehearsed) == ((), ())


def test_what_is_trained_on_may_be_other_than_what_is_tested(tiny_t5: Path) -> None:
    joint = toy_task("joint", train=31, test=0)
    loaded = data(tiny_t5, training_tasks=[joint])
    assert loaded.task is joint
    assert sum(len(batch) for batch in read(loaded.train_dataloader())) == 26
    tested = [len(task.test) for task in loaded.test_tasks]
    loaders = loaded.evaluation_dataloaders([0, 1])
    assert [sum(len(b["rows"]) for b in loader) for loader in loaders] == tested == [6, 7]


def test_no_micro_batch_size_is_the_whole_batch(tiny_t5: Path) -> None:
    loaded = data(tiny_t5, micro_batch_size=None)
    assert (loaded.micro_batch_size, loaded.accumulate_grad_batches) == (8, 1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"micro_batch_size": 3}, "must be a multiple of optim.micro_batch_size, got 8 and 3"),
        ({"batch_size": 0}, "optim.batch_size"),
        ({"micro_batch_size": 16}, "optim.micro_batch_size"),
        ({"micro_batch_size": 0}, "optim.micro_batch_size"),
        ({"micro_batch_size": -1}, "optim.micro_batch_size"),
        ({"evaluation_batch_size": 0}, "evaluation.batch_size"),
        ({"max_new_tokens": 0}, "evaluation.max_new_tokens"),
        ({"decode": "rank"}, "evaluation.decode"),
        ({"num_held_out": 12}, "Task shape has 12 train rows, but 12 are to be held out"),
        ({"num_held_out": None, "held_out_share": 1.0}, "has 19 train rows, but 19 are to be held"),
    ],
)
def test_mistakes_are_told(tiny_t5: Path, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        data(tiny_t5, **wrong)


def test_rows_that_training_may_see(tiny_t5: Path) -> None:
    loaded = data(tiny_t5)
    training, held_out = (prompts(part) for part in loaded._training_split())
    seen = prompts([loaded.backbone.encode(row) for row in loaded.training_rows()])
    assert seen == training
    assert held_out
    assert not set(seen) & set(held_out)


def test_endless_batches_leave_the_global_draws_alone(tiny_t5: Path) -> None:
    loaded = data(tiny_t5)
    before = torch.get_rng_state()
    steps = loaded.row_steps(loaded.task.train[:9], "outer")
    for _ in range(5):
        next(steps)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_micro_batch_of_unequal_rows_comes_in_parts(tiny_t5: Path) -> None:
    task = toy_task("colour", train=8)
    long = tuple(
        replace(row, input=row.input + " and so on" * (20 if i % 2 else 0))
        for i, row in enumerate(task.train)
    )
    tasks = (replace(task, train=long),)
    settings: dict[str, Any] = {"tasks": tasks, "micro_batch_size": 8, "num_held_out": 0}
    whole = next(iter(data(tiny_t5, **settings).train_dataloader()))
    for overhead, expected in ((30, [4, 4]), (ELSEWHERE, None), (None, None)):
        loaded = data(tiny_t5, **settings, length_grouping="within_step", pass_overhead=overhead)
        batch = next(iter(loaded.train_dataloader()))
        if expected is None:
            assert read([batch]) == read([whole])
            continue
        parts = batch["parts"]
        assert [len(part["inputs"]["input_ids"]) for part in parts] == expected
        assert sorted(joined(read(parts))) == sorted(joined(read([whole])))
        assert sum(1 / part["step_micro_batches"] for part in parts) == 1
        assert {part["step_tokens"] for part in parts} == {whole["step_tokens"]}
        # Steps on the memory go row by row through the model as ever.
        step = next(loaded.row_steps(long, "outer steps"))
        assert [len(part["inputs"]["input_ids"]) for part in step] == [8]


@pytest.mark.parametrize("limit", [None, 30, 100])
def test_evaluation_batches_keep_within_their_tokens(tiny_t5: Path, limit: int | None) -> None:
    task = toy_task("colour", test=9)
    rows = tuple(
        replace(row, input=row.input + " and so on" * i) for i, row in enumerate(task.test)
    )
    loaded = data(
        tiny_t5,
        tasks=(replace(task, test=rows),),
        evaluation_batch_size=5,
        evaluation_batch_tokens=limit,
    )
    (loader,) = loaded.evaluation_dataloaders([0])
    batches = list(loader)
    assert sorted(joined(batch["rows"] for batch in batches)) == list(range(9))
    sizes = [batch["inputs"]["input_ids"].shape for batch in batches]
    if limit is None:
        assert [size[0] for size in sizes] == [5, 4]
    for (number, width), batch in zip(sizes, batches, strict=True):
        assert number <= 5
        assert limit is None or number == 1 or number * (width + batch["max_new_tokens"]) <= limit
    # No batch could take in the longest row of the next one as well.
    for (number, width), batch in zip(sizes[:-1], batches[:-1], strict=True):
        more = (number + 1) * (width + batch["max_new_tokens"])
        assert number == 5 or (limit is not None and more > limit)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"length_grouping": "by_mood"}, "optim.length_grouping"),
        ({"evaluation_batch_tokens": 0}, "evaluation.batch_tokens"),
    ],
)
def test_unknown_groupings_and_limits_are_refused(
    options: dict[str, Any], told: str, tiny_t5: Path
) -> None:
    with pytest.raises(UserError, match=told):
        data(tiny_t5, **options)


@pytest.mark.parametrize("rows_where", ["memory", "disk"])
def test_no_row_is_tokenised_twice(
    tiny_t5: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rows_where: str
) -> None:
    """Two tasks learnt, both evaluated after each, as a run does it."""
    if rows_where == "disk":
        monkeypatch.setattr("kif_lightning.tokenised.IN_MEMORY", 0)
        monkeypatch.setenv("KIF_CACHE", str(tmp_path))
    loaded = data(tiny_t5)
    seen: Counter[str] = Counter()
    encode_rows = loaded.backbone.encode_rows

    def spy(rows: Any, *limit: Any) -> Any:
        seen.update(row.id for row in rows)
        return encode_rows(rows, *limit)

    monkeypatch.setattr(loaded.backbone, "encode_rows", spy)
    for task_index in range(2):
        loaded.begin_task(task_index)
        train = loaded.train_dataloader()
        tests = loaded.evaluation_dataloaders(range(2))
        for loader in (train, train, loaded.selection_dataloader(), *tests):
            list(loader)
        list(loaded.sample_batches(3, "sample"))
    labels = seen.pop("")
    assert labels == 2 + 2, "each task's labels, for the cap of new tokens"
    tasks = loaded.test_tasks
    assert seen == Counter(row.id for task in tasks for row in (*task.train, *task.test))
    assert (tmp_path / "tokens").exists() == (rows_where == "disk")


def test_batches_from_the_disk_are_those_from_memory(
    tiny_t5: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KIF_CACHE", str(tmp_path))
    monkeypatch.setattr("kif_lightning.tokenised.BATCH_ROWS", 4)

    def everything() -> list[Any]:
        loaded = data(tiny_t5)
        loaded.rehearsed = tuple(loaded.backbone.encode(row) for row in toy_task("form").train[:3])
        loaders = [loaded.train_dataloader(), loaded.selection_dataloader()]
        return [ids(loader) for loader in loaders] + [
            read(loader) for loader in loaded.evaluation_dataloaders([0, 1])
        ]

    expected = everything()
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("kif_lightning.tokenised.IN_MEMORY", 0)
    assert everything() == expected
    assert everything() == expected, "and when they are there already"
    assert len(list((tmp_path / "tokens").iterdir())) == 3


def test_labels_to_rank_come_with_the_batches_of_tasks_that_have_some(tiny_t5: Path) -> None:
    tasks = (toy_task("colour"), toy_task("shape", kind="generation"))
    ranked = data(tiny_t5, tasks=tasks, decode="rank_labels")
    assert [ranked.decode_of(task) for task in tasks] == ["rank_labels", "generate"]
    closed, free = ([*loader] for loader in ranked.evaluation_dataloaders([0, 1]))
    # Tokens of a label are those that a train row with this answer has.
    trained = {row.output: ranked.backbone.encode(row).answer_ids for row in tasks[0].train}
    for batch in closed:
        assert batch["labels"] == tasks[0].labels == ("good", "round bad")
        assert batch["label_ids"] == [trained[label] for label in batch["labels"]]
    assert not any(batch["labels"] or batch["label_ids"] for batch in free)
    generated = data(tiny_t5, tasks=tasks)
    assert not any(batch["labels"] for batch in generated.evaluation_dataloaders([0])[0])


def test_of_labels_with_the_same_tokens_the_first_is_ranked(tiny_t5: Path) -> None:
    task = replace(toy_task(), labels=("round bad", "good", "round square", "round"))
    ranked = data(tiny_t5, tasks=(task,), decode="rank_labels")
    short: Any = replace(tiny_backbone(tiny_t5), max_target_tokens=2)  # one token and the end
    ranked.backbone = short
    ids = ranked.label_ids(task)
    assert ids[0] == ids[2] == ids[3] != ids[1]
    (loader,) = ranked.evaluation_dataloaders([0])
    for batch in loader:
        assert batch["labels"] == ("round bad", "good")
        assert batch["label_ids"] == ids[:2]

"""The user's own tasks: where rows come from, and the test split held out of train."""

from __future__ import annotations

import csv
import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kif_lightning.benchmarks import rows as rows_module
from kif_lightning.benchmarks.own import OwnBenchmark, benchmark, read_own_tasks
from kif_lightning.benchmarks.own.benchmark import test_indices as held_out
from kif_lightning.benchmarks.table import RowTable
from kif_lightning.errors import MissingPartError, UserError, collecting_errors
from kif_lightning.interfaces import Row, Task

Records = list[dict[str, Any]]
RECORDS: Records = [{"text": f"text {i}, ü", "label": i % 2} for i in range(20)]


def write_csv(path: Path, records: Records, delimiter: str = ",") -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(records)


def write_jsonl(path: Path, records: Records) -> None:
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")


def classed(records: Records) -> datasets.Dataset:
    """With class names for the labels."""
    features = {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    return datasets.Dataset.from_list(records, datasets.Features(features))


WRITERS: dict[str, Callable[[Path, Records], Any]] = {
    "a.csv": write_csv,
    "a.tsv": lambda path, records: write_csv(path, records, "\t"),
    "a.jsonl": write_jsonl,
    "a.parquet": lambda path, records: pq.write_table(pa.Table.from_pylist(records), path),
    "plain": lambda path, records: datasets.Dataset.from_list(records).save_to_disk(str(path)),
    "named": lambda path, records: classed(records).save_to_disk(str(path)),
    "splits": lambda path, records: datasets.DatasetDict(
        train=classed(records), other=classed(records[:1])
    ).save_to_disk(str(path)),
}


def own(folder: Path, tasks: str, **settings: Any) -> OwnBenchmark:
    file = folder / "tasks.yaml"
    file.write_text(tasks)
    return OwnBenchmark(name="own", file=str(file), **settings)


def toy(train: str, more: str = "", name: str = "toy") -> str:
    """A description, or one more task of it."""
    words = "" if train in ("named", "splits") or "hub" in train else "words: {0: no, 1: yes}, "
    start = "tasks:\n" if name == "toy" else ""
    return (
        f'{start}  {name}: {{kind: classification, train: {train}, {words}prompt: "Q: {{text}}", '
        f'answer: "{{label}}", {more}}}\n'
    )


@pytest.mark.parametrize("name", WRITERS)
def test_the_same_rows_from_every_kind_of_place(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name, RECORDS)
    WRITERS[name](tmp_path / f"test_{name}", RECORDS)
    (task,) = own(tmp_path, toy(name, f"test: test_{name}" if name != "splits" else SPLIT)).tasks
    first = 2 if name in ("a.csv", "a.tsv") else 1  # numbered by their lines
    expected = tuple(
        Row(id=f"toy-{i + first}", input=f"Q: text {i}, ü", output=("no", "yes")[i % 2])
        for i in range(20)
    )
    assert tuple(task.train) == expected
    assert tuple(task.test) == (expected[:1] if name == "splits" else expected)
    assert task.labels == ("no", "yes")
    assert all(len(sha256) == 64 for sha256 in task.sha256.values())


SPLIT = "test: {path: splits, split: other}"


def test_a_data_set_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(name: str, config: Any, *, split: str, revision: Any) -> datasets.Dataset:
        asked.append((name, config, split, revision))
        return classed(RECORDS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(benchmark, "hub_answers", lambda: True)
    test = "test: {hub: b/c, config: d, split: validation, revision: e1}"
    (task,) = own(tmp_path, toy("hub:a/b", test)).tasks
    assert asked == [("a/b", None, "train", None), ("b/c", "d", "validation", "e1")]
    assert Counter(row.output for row in task.test) == {"no": 10, "yes": 10}


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("no\nroute"),
        ValueError("Unknown split"),
        RuntimeError("Dataset scripts are no longer supported"),
        datasets.exceptions.DatasetNotFoundError("not there"),
        datasets.exceptions.DatasetGenerationError("broken"),
    ],
)
def test_a_data_set_that_cannot_be_had_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(benchmark, "hub_answers", lambda: True)
    with pytest.raises(UserError, match=r"a/b, split train cannot be had \(") as told:
        own(tmp_path, toy("hub:a/b"))
    assert str(error).split()[-1] in str(told.value)
    assert "\n" not in str(told.value)


def test_a_hub_that_does_not_answer_is_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: classed(RECORDS))
    monkeypatch.setattr(benchmark, "hub_answers", lambda: False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(UserError, match="a/b, split train cannot be had, as the hub"):
        own(tmp_path, toy("hub:a/b"))
    # Its client then looks into its cache alone.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert len(own(tmp_path, toy("hub:a/b")).tasks) == 1


def test_large_data_sets_are_kept_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KIF_CACHE", str(tmp_path / "cache"))
    WRITERS["named"](tmp_path / "named", RECORDS)
    held = own(tmp_path, toy("named")).tasks[0]
    monkeypatch.setattr(rows_module, "IN_MEMORY", 0)
    for _ in range(2):
        large = own(tmp_path, toy("named")).tasks[0]
        assert isinstance(large.train, RowTable)
        assert (tuple(large.train), tuple(large.test)) == (tuple(held.train), tuple(held.test))
        assert large.sha256 == held.sha256
    # Other records, another prompt: other rows.
    WRITERS["named"](tmp_path / "named", RECORDS[:10])
    assert len(own(tmp_path, toy("named")).tasks[0].train) == 8
    other = own(tmp_path, toy("named").replace("Q:", "What:")).tasks[0]
    assert other.train[0].input.startswith("What:")


def test_a_data_set_without_splits_takes_no_split(tmp_path: Path) -> None:
    WRITERS["plain"](tmp_path / "plain", RECORDS)
    with pytest.raises(UserError, match=r"plain, split train: .* leave 'split' out"):
        own(tmp_path, toy("{path: plain, split: train}"))


@pytest.mark.parametrize("place", ["a.csv", "named"])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Q: {text}", "What: {text}"),
        ('"{label}"', '"It is {label}"'),
        ("classification", "generation, metric: exact_match"),
        ("prompt:", "metric: rouge_l, prompt:"),
        ("prompt:", "test_share: 0.3, prompt:"),
    ],
)
def test_another_description_is_other_data(tmp_path: Path, place: str, old: str, new: str) -> None:
    WRITERS[place](tmp_path / place, RECORDS)
    first, again, other = (
        own(tmp_path, tasks).tasks[0].sha256
        for tasks in (toy(place), toy(place), toy(place).replace(old, new, 1))
    )
    assert first == again
    assert all(first[split] != other[split] for split in ("train", "test"))


def test_rows_of_data_sets_are_told_by_number(tmp_path: Path) -> None:
    classed([*RECORDS, {"text": "unlabelled", "label": -1}]).save_to_disk(str(tmp_path / "named"))
    with pytest.raises(UserError, match=r"split train, row 21: 'label' must hold a text.*nothing"):
        own(tmp_path, toy("named"))
    (task,) = read_own_tasks(tmp_path / "tasks.yaml", tolerant=True)
    assert ["row 21" in problem for problem in task.splits["train"].problems] == [True]
    assert task.splits["test"].problems == ()


def test_a_folder_that_is_no_data_set_or_lacks_the_split_is_told(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty, split train cannot be had"):
        own(tmp_path, toy("empty"))
    WRITERS["splits"](tmp_path / "splits", RECORDS)
    with pytest.raises(UserError, match="no such split, only train, other"):
        own(tmp_path, toy("splits", "test: splits"))


def test_a_row_is_told_with_file_line_and_key(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", RECORDS)
    with pytest.raises(UserError) as error:
        own(tmp_path, toy("a.csv").replace("{text}", "{txt}"))
    assert str(error.value) == (
        f"{tmp_path / 'a.csv'}, line 2: 'prompt' names the column 'txt'; there is only text, label."
    )


def test_mistakes_of_the_file_stay_mistakes_where_errors_are_collected(tmp_path: Path) -> None:
    # As the command line builds the parts of a run.
    with collecting_errors() as noted, pytest.raises(UserError, match="task toy: kind must be"):
        own(tmp_path, toy("a.csv").replace("classification", "class"))
    assert noted == []


def test_orders(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", RECORDS)
    two = toy("a.csv") + toy("a.csv", name="other")
    listed = own(tmp_path, two)
    assert (listed.order_name, [t.name for t in listed.tasks]) == ("listed", ["toy", "other"])
    assert [t.name for t in own(tmp_path, f"{two}order: [other]").tasks] == ["other"]
    chosen = own(tmp_path, two, order=["other", "toy"])
    assert (chosen.order_name, [t.name for t in chosen.tasks]) == ("own", ["other", "toy"])
    for order, part in ((["toi"], "did you mean 'toy'"), (["toy", "toy"], "once"), ("x", "listed")):
        with pytest.raises(UserError, match=part):
            own(tmp_path, two, order=order)
    assert [t.name for t in read_own_tasks(tmp_path / "tasks.yaml")] == ["toy", "other"]


def test_without_a_file_it_is_told_how_to_give_one() -> None:
    with pytest.raises(MissingPartError, match=r"give benchmark\.file=TASKS\.yaml"):
        OwnBenchmark(name="own", file=None)
    with pytest.raises(UserError, match=r"benchmark\.train_rows"):
        OwnBenchmark(name="own", file="a.yaml", train_rows=0)


def test_limits_are_seeded_and_balanced_after_test_rows_are_held_out(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", RECORDS * 5)
    first, again, other = (
        own(tmp_path, toy("a.csv"), train_rows=10, test_rows=2, seed=seed).tasks[0]
        for seed in (1, 1, 2)
    )
    assert [row.id for row in first.train] == [row.id for row in again.train]
    assert [row.id for row in first.train] != [row.id for row in other.train]
    assert Counter(row.output for row in first.train) == {"no": 5, "yes": 5}
    assert inputs(first.train).isdisjoint(inputs(first.test))


# The test split held out of train


def inputs(rows: Sequence[Row]) -> set[str]:
    return {row.input for row in rows}


def held(rows: Sequence[Row], share: float = 0.2, closed: bool = True, task: str = "t") -> set[str]:
    return {rows[i].input for i in held_out(task, rows, share, closed)}


def some_rows(counts: dict[str, int]) -> list[Row]:
    labels = [label for label, number in counts.items() for _ in range(number)]
    return [Row(id=str(i), input=f"input {i}", output=label) for i, label in enumerate(labels)]


@pytest.mark.parametrize("large", [False, True])
def test_without_a_test_split_a_share_of_train_is_held_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    monkeypatch.setattr(rows_module, "IN_MEMORY", 0 if large else 2**26)
    monkeypatch.setenv("KIF_CACHE", str(tmp_path / "cache"))
    write_csv(tmp_path / "a.csv", [*RECORDS, *RECORDS[:7]])
    found = own(tmp_path, toy("a.csv", "test_share: 0.3"), seed=1)
    (task,) = found.tasks
    assert found.provenance["test_held_out_of_train"] == {"toy": 0.3}
    ids = [[int(row.id.split("-")[1]) for row in split] for split in (task.train, task.test)]
    assert sorted(ids[0] + ids[1]) == list(range(2, 29)), "each row once, by its line"
    assert all(part == sorted(part) for part in ids), "in the file's order"
    assert inputs(task.train).isdisjoint(inputs(task.test)), "rows of one input stay together"
    assert Counter(row.output for row in {r.input: r for r in task.test}.values()) == {
        "no": 3, "yes": 3
    }  # fmt: skip
    assert task.sha256["train"] == task.sha256["test"]
    # Not a draw: another seed holds the same rows out.
    assert inputs(own(tmp_path, toy("a.csv", "test_share: 0.3"), seed=2).tasks[0].test) == inputs(
        task.test
    )


def test_a_given_test_split_leaves_train_whole(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", RECORDS)
    write_csv(tmp_path / "b.csv", RECORDS)
    found = own(tmp_path, toy("a.csv", "test: b.csv"))
    assert found.provenance["test_held_out_of_train"] == {}
    assert len(found.tasks[0].train) == len(found.tasks[0].test) == 20


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5, 0.9])
def test_closed_answers_are_held_out_in_their_shares(share: float) -> None:
    rows = some_rows({"a": 100, "b": 40, "rare": 1})
    by_input = {row.input: row.output for row in rows}
    counts = Counter(by_input[text] for text in held(rows, share))
    assert (counts["a"], counts["b"]) == (100 * share, 40 * share)
    assert counts["rare"] == 0, "what train has none of cannot be learnt"
    assert len(held(rows, share, closed=False)) == round(141 * share)


@pytest.mark.parametrize("closed", [True, False])
def test_the_order_of_rows_changes_nothing_and_added_rows_hardly_anything(closed: bool) -> None:
    # Some inputs have two answers.
    rows = [*some_rows({"a": 60, "b": 40}), Row(id="x", input="input 3", output="b")]
    first = held(rows, closed=closed)
    for seed in range(5):
        shuffled = random.Random(seed).sample(rows, len(rows))
        assert held(shuffled, closed=closed) == first
    more = [Row(id=f"n{i}", input=f"new {i}", output="ab"[i % 2]) for i in range(10)]
    for added in (more + rows, rows + more):
        assert len(first - held(added, closed=closed)) <= 3
    assert held(rows, closed=closed, task="another") != first


@pytest.mark.parametrize("inputs_there", [1, 2])
def test_too_few_inputs_are_told(inputs_there: int) -> None:
    rows = [Row(id=str(i), input=f"{i % inputs_there}", output="a") for i in range(20)]
    with pytest.raises(UserError, match=f"Task t has {inputs_there} different inputs, too few"):
        held_out("t", rows, 0.2, True)


def test_a_tolerant_reading_tells_that_no_test_could_be_held_out(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", [RECORDS[0], {"text": "x", "label": 7}])
    (tmp_path / "tasks.yaml").write_text(toy("a.csv"))
    (task,) = read_own_tasks(tmp_path / "tasks.yaml", tolerant=True)
    assert set(task.splits) == {"train"}
    (told,) = task.splits["train"].problems
    assert "line 3: 'label' is '7', for which words has no word; it knows 0, 1." in told
    assert task.splits["train"].num_problems == 1
    with pytest.raises(UserError, match="line 3"):
        read_own_tasks(tmp_path / "tasks.yaml")


def test_a_tolerant_reading_tells_of_a_missing_file_and_reads_the_others(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", RECORDS)
    (tmp_path / "tasks.yaml").write_text(toy("gone.csv") + toy("a.csv", name="other"))
    gone, other = read_own_tasks(tmp_path / "tasks.yaml", tolerant=True)
    assert set(gone.splits) == {"train"}
    train = gone.splits["train"]
    assert (tuple(train.rows), train.num_problems) == ((), 1)
    assert f"{tmp_path / 'gone.csv'}, but there is no such file" in train.problems[0]
    assert len(other.splits["train"].rows) == 16
    with pytest.raises(UserError, match="no such file"):
        read_own_tasks(tmp_path / "tasks.yaml")


def test_dev_is_read_where_it_is_named(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", RECORDS)
    write_csv(tmp_path / "b.csv", RECORDS)
    task: Task = own(tmp_path, toy("a.csv", "dev: b.csv")).tasks[0]
    assert len(task.dev) == 20
    assert own(tmp_path, toy("a.csv")).tasks[0].dev == ()
    assert benchmark.LISTED == "listed"


def test_rare_answers_lend_their_shares_to_each_other() -> None:
    rows = some_rows({f"answer {i}": 2 for i in range(150)})
    places = held_out("toy", rows, 0.2, True)
    assert len(places) == 60
    assert max(Counter(rows[i].output for i in places).values()) == 1


def test_a_saved_folder_without_rows_is_told(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": [], "label": []}).save_to_disk(str(tmp_path / "plain"))
    with pytest.raises(UserError, match=r"plain, split train"):
        own(tmp_path, toy("plain"))

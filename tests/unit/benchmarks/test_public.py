"""A benchmark read from a folder: what is wrong with it, its order, limits, kinds and metrics."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from kif_lightning.benchmarks import PublicBenchmark
from kif_lightning.errors import UserError

ORDERS = {"order1": ["colour", "shape"], "order2": ["shape", "colour"]}


def benchmark(folder: Path | None, **settings: Any) -> PublicBenchmark:
    given: dict[str, Any] = {"orders": ORDERS, "order": "order1", **settings}
    return PublicBenchmark(name="toy", data_dir=None if folder is None else str(folder), **given)


def write(folder: Path, task: str, outputs: list[str], test: list[str] | None = None) -> None:
    for split, texts in (("train", outputs), ("test", test or outputs)):
        path = folder / task / f"{split}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            "".join(
                json.dumps({"id": f"{split}{i}", "input": "?", "output": text}) + "\n"
                for i, text in enumerate(texts)
            )
        )


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"order": "order3"}, ["benchmark.order='order3'", "'order1'", "'order2'", "[task_a,"]),
        ({"order": []}, ["at least one task"]),
        ({"order": ["shape", "colour", "shape"]}, ["once", "shape"]),
        ({"order": ["color", "shap", "shape"]},
         ["'color'", "did you mean 'colour'", "'shap'", "did you mean 'shape'"]),
        ({"order": ["xyzzy"]}, ["'xyzzy'", "known: colour, shape"]),
        ({"train_rows": 0}, ["benchmark.train_rows", "at least 1", "got 0"]),
        ({"test_rows": -3}, ["benchmark.test_rows", "at least 1", "got -3"]),
        ({"tasks": {"shape": {"kind": "regression"}}}, ["shape", "classification", "'regression'"]),
    ],
)  # fmt: skip
def test_a_bad_setting_is_told(toy_data: Path, settings: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(UserError) as error:
        benchmark(toy_data, **settings)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(("key", "value"), [("size", "1000_per_task"), ("draw_seed", 0)])
def test_what_only_the_hub_has_is_refused(toy_data: Path, key: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"benchmark\.{key} is for benchmark\.source=hub"):
        benchmark(toy_data, **{key: value})


def test_no_folder_at_all() -> None:
    with pytest.raises(UserError, match=r" toy\. .*benchmark\.data_dir=FOLDER"):
        benchmark(None)


def test_a_folder_that_is_not_there_or_a_file_or_empty(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for folder in (tmp_path / "nowhere", file):
        with pytest.raises(UserError, match="must be an existing folder") as error:
            benchmark(folder)
        assert str(folder) in str(error.value)
    with pytest.raises(UserError, match="holds no task"):
        benchmark(tmp_path)


def test_a_task_without_its_test_file(tmp_path: Path) -> None:
    write(tmp_path, "colour", ["a"])
    (tmp_path / "colour" / "test.jsonl").unlink()
    with pytest.raises(UserError, match="no such file") as error:
        benchmark(tmp_path, order=["colour"])
    assert str(tmp_path / "colour" / "test.jsonl") in str(error.value)


def test_a_bad_row_is_named_with_file_and_line(tmp_path: Path) -> None:
    write(tmp_path, "colour", ["a", "b"])
    path = tmp_path / "colour" / "train.jsonl"
    path.write_text(path.read_text() + '{"id": "x", "output": "y"}\n')
    with pytest.raises(UserError) as error:
        benchmark(tmp_path, order=["colour"])
    assert f"{path}, line 3" in str(error.value)
    assert "'input'" in str(error.value)


def test_orders_by_name_and_by_list(toy_data: Path) -> None:
    second = benchmark(toy_data, order="order2")
    assert (second.order_name, [t.name for t in second.tasks]) == ("order2", ["shape", "colour"])
    own = benchmark(toy_data, order=["shape"])
    assert (own.order_name, [t.name for t in own.tasks]) == ("own", ["shape"])


def test_sha256_is_that_of_the_whole_files(toy_data: Path) -> None:
    task = benchmark(toy_data, train_rows=2).tasks[0]
    for split in ("train", "test"):
        data = (toy_data / "colour" / f"{split}.jsonl").read_bytes()
        assert task.sha256[split] == hashlib.sha256(data).hexdigest()


def ids(found: PublicBenchmark) -> list[tuple[str, ...]]:
    return [tuple(row.id for row in split) for t in found.tasks for split in (t.train, t.test)]


def test_limits_are_a_function_of_the_seed(tmp_path: Path) -> None:
    for task in ("colour", "shape"):
        write(tmp_path, task, ["a", "b"] * 20)
    limits = {"train_rows": 10, "test_rows": 10}
    first = ids(benchmark(tmp_path, seed=1, **limits))
    assert first == ids(benchmark(tmp_path, seed=1, **limits))
    other = ids(benchmark(tmp_path, seed=2, **limits))
    assert all(a != b for a, b in zip(first, other, strict=True))
    assert all(len(split) == 10 for split in first)
    # Each task and split has a draw of its own.
    assert len({tuple(re.sub(r"\D", "", name) for name in split) for split in first}) == 4


def test_a_limit_does_not_depend_on_the_order(tmp_path: Path) -> None:
    for task in ("colour", "shape"):
        write(tmp_path, task, ["a", "b"] * 20)
    both = benchmark(tmp_path, train_rows=10)
    alone = benchmark(tmp_path, train_rows=10, order=["shape"])
    assert both.tasks[1] == alone.tasks[0]


def test_classes_are_balanced_and_generation_is_not(tmp_path: Path) -> None:
    outputs = ["a"] * 30 + ["b"] * 8 + ["c"] * 2
    write(tmp_path, "colour", outputs)
    write(tmp_path, "shape", outputs)
    tasks = {"colour": {"kind": "classification", "metric": "exact_match"}}
    colour, shape = benchmark(tmp_path, train_rows=12, test_rows=15, tasks=tasks).tasks
    for split, expected in ((colour.train, [5, 5, 2]), (colour.test, [7, 6, 2])):
        counts = Counter(row.output for row in split)
        assert sorted(counts.values(), reverse=True) == expected
        assert counts["c"] == 2
    assert len(shape.train) == 12
    assert Counter(row.output for row in shape.train)["a"] > 5


def test_labels_are_all_train_outputs_whatever_the_limit(tmp_path: Path) -> None:
    write(tmp_path, "colour", ["b"] * 9 + ["rare", "a"], test=["only in test"])
    kinds = {"default_task": {"kind": "classification", "metric": "exact_match"}}
    task = benchmark(tmp_path, order=["colour"], train_rows=1, **kinds).tasks[0]
    assert task.labels == ("a", "b", "rare")
    assert len(task.train) == 1
    assert benchmark(tmp_path, order=["colour"]).tasks[0].labels == ()


def kinds_of(found: PublicBenchmark) -> list[tuple[str, str]]:
    return [(task.kind, task.metric) for task in found.tasks]


MANIFEST = {"tasks": {"shape": {"kind": "classification", "metric": "accuracy"}}}


@pytest.mark.parametrize("place", ["inside", "beside", "collection"])
def test_yaml_before_manifest_before_default(tmp_path: Path, place: str) -> None:
    folder = tmp_path / "data"
    for task in ("colour", "shape", "size"):
        write(folder, task, ["a", "b"])
    target = folder if place == "inside" else tmp_path
    manifest = {"collections": {"data": MANIFEST}} if place == "collection" else MANIFEST
    (target / "manifest.json").write_text(json.dumps(manifest))
    order = ["colour", "shape", "size"]
    default = {"kind": "generation", "metric": "rouge_l"}
    found = benchmark(folder, order=order, default_task=default)
    plain, described = ("generation", "rouge_l"), ("classification", "exact_match")
    assert kinds_of(found) == [plain, described, plain]
    tasks = {"shape": {"kind": "generation", "metric": "own"}, "colour": {"metric": "other"}}
    found = benchmark(folder, order=order, default_task=default, tasks=tasks)
    assert kinds_of(found) == [("generation", "other"), ("generation", "own"), plain]


def test_without_any_description_a_task_is_generation_by_rouge(toy_data: Path) -> None:
    assert set(kinds_of(benchmark(toy_data))) == {("generation", "rouge_l")}


def test_force_metric_wins_and_leaves_the_kind(toy_data: Path) -> None:
    tasks = {"shape": {"kind": "classification", "metric": "exact_match"}}
    found = benchmark(toy_data, tasks=tasks, force_metric="rouge_l")
    assert kinds_of(found) == [("generation", "rouge_l"), ("classification", "rouge_l")]


def test_a_damaged_manifest_is_named(tmp_path: Path) -> None:
    write(tmp_path, "colour", ["a"])
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest\.json must be JSON"):
        benchmark(tmp_path, order=["colour"])

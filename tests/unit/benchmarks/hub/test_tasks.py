"""Tasks drawn from copies of data sets: sizes, what is kept, what is refused."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import IterableDataset

from kif_lightning.benchmarks.hub import hub_origins, hub_tasks, source, tasks
from kif_lightning.benchmarks.hub.recipes import COLLECTIONS, LONG_SEQUENCE
from kif_lightning.benchmarks.rows import sha256_of
from kif_lightning.errors import MissingPartError, UserError
from kif_lightning.interfaces import SourceTask
from tests.helpers.mirrors import save_json_lines, save_parquet_set

Record = dict[str, Any]


def sentences(prefix: str, counts: tuple[int, int]) -> list[Record]:
    """So many of each class, classes by turns while both last."""
    rows = [
        {"sentence": f"{prefix} {label} {number} ", "label": label}
        for label, count in enumerate(counts)
        for number in range(count)
    ]
    return sorted(rows, key=lambda row: int(row["sentence"].split()[-1]))


def save_sst2(mirror: Path, train: list[Record], test: list[Record], **options: Any) -> Path:
    return save_parquet_set(
        mirror / "nyu-mll" / "glue", {"sst2": {"train": train, "validation": test}}, **options
    )


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of sst2: repeated rows, and rows of train that are in test too."""
    folder = tmp_path_factory.mktemp("mirror")
    train, test = sentences("train", (1700, 900)), sentences("test", (600, 30))
    save_sst2(folder, [*train, *train[:50], *test], test)
    return folder


def sst2(mirror: Path, cache: Path, size: str = "1000_per_task", draw_seed: int = 0) -> SourceTask:
    (task,) = hub_tasks(
        "long_sequence",
        ["sst2"],
        size=size,
        draw_seed=draw_seed,
        mirror=str(mirror),
        cache=cache,
    )
    return task


def inputs(task: SourceTask, split: str) -> list[str]:
    return [row.input for row in task.splits[split].rows]


@pytest.mark.parametrize(
    ("size", "train", "dev"),
    [("1000_per_task", None, 500), ("1000_per_class", {"Bad": 1000, "Good": 900}, 500)],
)
def test_the_published_sizes(
    mirror: Path, tmp_path: Path, size: str, train: dict[str, int] | None, dev: int
) -> None:
    task = sst2(mirror, tmp_path, size)
    counts = {
        split: Counter(row.output for row in task.splits[split].rows)
        for split in ("train", "dev", "test")
    }
    assert counts["test"] == {"Bad": 500, "Good": 30}
    assert counts["dev"].total() == dev
    if train is not None:
        assert counts["train"] == train
    else:
        # Of all alike: 1700 of 2600 are bad; 15 is the standard deviation.
        assert counts["train"].total() == 1000
        assert abs(counts["train"]["Bad"] - 654) < 75
    texts = [text for split in counts for text in inputs(task, split)]
    assert len(set(texts)) == len(texts)
    assert (task.name, task.kind, task.metric, task.closed_answers) == (
        "sst2",
        "classification",
        "exact_match",
        True,
    )
    for split in task.splits.values():
        assert len({row.id for row in split.rows}) == len(split.rows)
        assert split.sha256 == sha256_of(split.rows)


def test_a_set_with_fewer_rows_gives_all_and_no_dev(tmp_path: Path) -> None:
    save_sst2(tmp_path, sentences("train", (20, 30)), sentences("test", (3, 4)))
    task = sst2(tmp_path, tmp_path / "cache")
    assert {name: len(split.rows) for name, split in task.splits.items()} == {
        "train": 50,
        "test": 7,
    }


def test_the_draw_seed_decides_the_rows(mirror: Path, tmp_path: Path) -> None:
    first, again = sst2(mirror, tmp_path / "a"), sst2(mirror, tmp_path / "b")
    other = sst2(mirror, tmp_path / "a", draw_seed=1)
    for name, split in first.splits.items():
        assert list(split.rows) == list(again.splits[name].rows)
        assert split.sha256 == again.splits[name].sha256 != other.splits[name].sha256
        assert {*inputs(first, name)} != {*inputs(other, name)}


def refuse_loading(*_: Any, **__: Any) -> None:
    raise AssertionError("a data set was read")


def test_drawn_rows_are_kept(mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = sst2(mirror, tmp_path)
    (folder,) = (tmp_path / "hub").iterdir()
    assert sorted(file.name for file in folder.iterdir()) == [
        "dev.arrow",
        "provenance.json",
        "test.arrow",
        "train.arrow",
    ]
    told = json.loads((folder / "provenance.json").read_text())
    assert told["repository"] == "nyu-mll/glue"
    assert (told["from"], told["size"], told["draw_seed"]) == ("mirror", "1000_per_task", 0)
    with monkeypatch.context() as patch:
        patch.setattr(source, "load_dataset", refuse_loading)
        again = sst2(mirror, tmp_path)
        with pytest.raises(AssertionError, match="was read"):
            sst2(mirror, tmp_path, size="1000_per_class")
    assert list(again.splits["train"].rows) == list(first.splits["train"].rows)
    assert again.splits["dev"].sha256 == first.splits["dev"].sha256


@pytest.mark.parametrize("damage", ["no provenance", "no JSON", "no table", "cut table"])
def test_damaged_rows_are_drawn_anew(tmp_path: Path, damage: str) -> None:
    save_sst2(tmp_path, sentences("train", (20, 30)), sentences("test", (3, 4)))
    first = sst2(tmp_path, tmp_path / "cache")
    (folder,) = (tmp_path / "cache" / "hub").iterdir()
    expected = {name: list(split.rows) for name, split in first.splits.items()}
    del first
    if damage == "no provenance":
        (folder / "provenance.json").unlink()
    elif damage == "no JSON":
        (folder / "provenance.json").write_text('{"sha256": ')
    elif damage == "no table":
        (folder / "train.arrow").unlink()
    else:
        (folder / "train.arrow").write_bytes((folder / "train.arrow").read_bytes()[:700])
    again = sst2(tmp_path, tmp_path / "cache")
    assert {name: list(split.rows) for name, split in again.splits.items()} == expected
    assert list((tmp_path / "cache" / "hub").iterdir()) == [folder]


def test_what_cannot_be_replaced_is_told(tmp_path: Path) -> None:
    save_sst2(tmp_path, sentences("train", (5, 5)), sentences("test", (3, 4)))
    sst2(tmp_path, tmp_path / "cache")
    (folder,) = (tmp_path / "cache" / "hub").iterdir()
    shutil.rmtree(folder)
    folder.write_text("a file")
    with pytest.raises(UserError, match="holds no whole rows and cannot be replaced"):
        sst2(tmp_path, tmp_path / "cache")


def test_rows_of_a_faster_process_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_sst2(tmp_path, sentences("train", (20, 30)), sentences("test", (3, 4)))
    drawn = tasks._drawn

    def meanwhile(*arguments: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(tasks, "_drawn", drawn)
            sst2(tmp_path, tmp_path / "cache")
        (file,) = (tmp_path / "cache").rglob("provenance.json")
        written.append(file.stat().st_ino)
        return drawn(*arguments)

    written: list[int] = []
    monkeypatch.setattr(tasks, "_drawn", meanwhile)
    assert len(sst2(tmp_path, tmp_path / "cache").splits["train"].rows) == 50
    (file,) = (tmp_path / "cache").rglob("provenance.json")
    assert [file.stat().st_ino] == written


def test_others_may_read_the_kept_rows(tmp_path: Path) -> None:
    save_sst2(tmp_path, sentences("train", (5, 5)), sentences("test", (3, 4)))
    before = os.umask(0o022)
    try:
        sst2(tmp_path, tmp_path / "cache")
    finally:
        os.umask(before)
    (folder,) = (tmp_path / "cache" / "hub").iterdir()
    assert folder.stat().st_mode & 0o777 == 0o755


def test_ids_begin_with_the_whole_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "films-of-sst2"
    monkeypatch.setitem(COLLECTIONS, "long_sequence", {name: LONG_SEQUENCE["sst2"]})
    save_sst2(tmp_path, sentences("train", (5, 5)), sentences("test", (3, 4)))
    (task,) = hub_tasks(
        "long_sequence",
        [name],
        size="1000_per_task",
        draw_seed=0,
        mirror=str(tmp_path),
        cache=tmp_path / "cache",
    )
    assert all(row.id.rpartition("-")[0] == name for row in task.splits["train"].rows)


def test_origins_tell_the_revision_where_it_is_known(tmp_path: Path) -> None:
    def origin(name: str, collection: str, mirror: Path | None) -> dict[str, str | None]:
        path = None if mirror is None else str(mirror)
        return hub_origins(collection, [name], mirror=path)[name]

    glue: dict[str, str | None] = {"repository": "nyu-mll/glue", "config": "sst2"}
    pinned = {**glue, "revision": "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"}
    assert origin("sst2", "long_sequence", None) == pinned
    save_sst2(tmp_path, sentences("train", (5, 5)), sentences("test", (3, 4)))
    assert origin("sst2", "long_sequence", tmp_path) == {**glue, "revision": None}
    save_json_lines(tmp_path / "tasks" / "task1572_samsum_summary.json", [{}])
    cloned = origin("task1572", "superni", tmp_path)
    assert cloned["repository"] == "allenai/natural-instructions"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([1, 2], "must hold a JSON object with a list 'Instances', got [1, 2]"),
        ({"Definition": "d", "Instances": {"a": 1}}, "must hold a JSON object with a list"),
        ({"Definition": "d", "Instances": ["text"]}, "instance 1 must be a JSON object"),
        ({"Definition": "d"}, "cannot be read"),
        ({"Definition": 3, "Instances": [{"input": "a", "output": "b"}]}, "must hold a text"),
        ({"Definition": "d", "Instances": [{"input": ["a"], "output": "b"}]}, "must hold a text"),
    ],
)
def test_a_cloned_file_of_another_form_is_refused(tmp_path: Path, content: Any, told: str) -> None:
    file = save_json_lines(tmp_path / "tasks" / "task1572_samsum_summary.json", [content])
    with pytest.raises(UserError) as caught:
        hub_tasks(
            "superni",
            ["task1572"],
            size="1000_per_task",
            draw_seed=0,
            mirror=str(tmp_path),
            cache=tmp_path / "cache",
        )
    assert str(file) in str(caught.value)
    assert told in str(caught.value)


def test_a_changed_copy_is_read_again(tmp_path: Path) -> None:
    save_sst2(tmp_path, sentences("train", (20, 30)), sentences("test", (3, 4)))
    before = sst2(tmp_path, tmp_path / "cache")
    save_sst2(tmp_path, sentences("train", (20, 31)), sentences("test", (3, 4)))
    after = sst2(tmp_path, tmp_path / "cache")
    assert len(after.splits["train"].rows) == len(before.splits["train"].rows) + 1


def test_nothing_half_written_is_left_behind(
    mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise UserError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("kif_lightning.benchmarks.hub.tasks.write_arrow", fail)
        with pytest.raises(UserError, match="disk is full"):
            sst2(mirror, tmp_path)
    assert list((tmp_path / "hub").iterdir()) == []


def test_several_tasks_come_in_the_order_asked_for(tmp_path: Path) -> None:
    sets = {
        config: {"train": rows, "validation": sentences("test", (2, 2))}
        for config, rows in (("sst2", sentences("train", (2, 2))),)
    }
    pairs = [{"question1": f"a{n}", "question2": "b", "label": n % 2} for n in range(8)]
    sets["qqp"] = {"train": pairs[:4], "validation": pairs[4:]}
    save_parquet_set(tmp_path / "nyu-mll" / "glue", sets)
    made = hub_tasks(
        "long_sequence",
        ["qqp", "sst2"],
        size="1000_per_class",
        draw_seed=0,
        mirror=str(tmp_path),
        cache=tmp_path / "cache",
    )
    assert [task.name for task in made] == ["qqp", "sst2"]


def pieces(mirror: Path, seed: int) -> list[str]:
    """Where each row of 10 pieces comes from, in the order they are read."""
    recipe = replace(LONG_SEQUENCE["sst2"], part=10)
    made = source.Source(task="sst2", recipe=recipe, mirror=mirror)
    return [text.split("Text: ")[1].split()[0] for text, _ in made.rows("train", seed=seed)]


def test_a_large_set_is_read_in_pieces_from_anywhere_in_it(tmp_path: Path) -> None:
    rows = [{"sentence": f"{n // 10} {n}", "label": n % 2} for n in range(100)]
    save_sst2(tmp_path, rows, rows, rows_of_group=10)
    first = pieces(tmp_path, 0)
    assert Counter(first) == {str(n): 10 for n in range(10)}
    # Each piece is read at once, which is what spares the download of the others.
    order = list(dict.fromkeys(first))
    assert first == [piece for piece in order for _ in range(10)]
    assert pieces(tmp_path, 0) == first
    assert list(dict.fromkeys(pieces(tmp_path, 1))) != order != sorted(order)


def broken(change: Callable[[list[Record]], list[Record]]) -> Callable[[Path], None]:
    def save(mirror: Path) -> None:
        save_sst2(mirror, change(sentences("train", (5, 5))), change(sentences("test", (5, 5))))

    return save


def save_in_other_order(mirror: Path) -> None:
    save_sst2(
        mirror,
        sentences("train", (5, 5)),
        sentences("test", (5, 5)),
        classes={"label": ["positive", "negative"]},
    )


def save_other_config(mirror: Path) -> None:
    rows = sentences("train", (5, 5))
    save_parquet_set(mirror / "nyu-mll" / "glue", {"cola": {"train": rows, "validation": rows}})


def save_without_test(mirror: Path) -> None:
    rows = sentences("train", (5, 5))
    save_parquet_set(mirror / "nyu-mll" / "glue", {"sst2": {"train": rows, "test": rows}})


def save_damaged(mirror: Path) -> None:
    save_sst2(mirror, sentences("train", (5, 5)), sentences("test", (5, 5)))
    (file,) = mirror.rglob("train-*.parquet")
    file.write_bytes(file.read_bytes()[:200])


@pytest.mark.parametrize(
    ("save", "told"),
    [
        (lambda mirror: None, ["has no folder nyu-mll/glue", "task sst2", "hf download"]),
        (
            broken(lambda rows: [{"text": r["sentence"], "label": r["label"]} for r in rows]),
            ["glue, config sst2, split validation", "is no sentence", "only text, label"],
        ),
        (
            broken(lambda rows: [r for r in rows if r["label"] == 0]),
            ["glue, config sst2, split validation", "answer Good in column 'label', got none"],
        ),
        (
            broken(lambda rows: [*rows, {"sentence": "hidden", "label": -1}]),
            ["split validation, row 11 read", "'label' is -1; expected a class from 0 to 1"],
        ),
        (
            broken(lambda rows: [{**r, "sentence": n} for n, r in enumerate(rows)]),
            ["'sentence' must hold a text, got int 0"],
        ),
        (
            broken(lambda rows: [{**r, "label": [r["label"]]} for r in rows]),
            ["'label' is [0]; expected a class from 0 to 1"],
        ),
        (save_in_other_order, ["expected the classes negative, positive", "positive, negative"]),
        (save_other_config, ["config sst2", "cannot be read", "sst2"]),
        (save_without_test, ["split validation", "cannot be read"]),
        (save_damaged, ["config sst2", "cannot be read"]),
    ],
)
def test_a_copy_that_lacks_something_is_refused(
    tmp_path: Path, save: Callable[[Path], None], told: list[str]
) -> None:
    (tmp_path / "mirror").mkdir()
    save(tmp_path / "mirror")
    with pytest.raises(UserError) as caught:
        sst2(tmp_path / "mirror", tmp_path / "cache")
    message = str(caught.value)
    assert all(part in message for part in [str(tmp_path / "mirror"), *told]), message
    assert message.count("\n") == 0


def test_class_names_that_are_right_pass(tmp_path: Path) -> None:
    save_sst2(
        tmp_path,
        sentences("train", (5, 5)),
        sentences("test", (5, 5)),
        classes={"label": ["negative", "positive"]},
    )
    assert len(sst2(tmp_path, tmp_path / "cache").splits["train"].rows) == 10


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"collection": "mine"}, "'long_sequence' or 'superni', got 'mine'"),
        ({"size": "500"}, "benchmark.size must be '1000_per_task' or '1000_per_class'"),
        ({"draw_seed": -1}, "benchmark.draw_seed must be a whole number"),
        ({"names": ["sst3"]}, "no recipe for task 'sst3' of long_sequence: did you mean 'sst2'"),
        ({"mirror": "/nowhere"}, "benchmark.mirror must be an existing folder, got '/nowhere'"),
        (
            {"collection": "superni", "names": ["task181"], "size": "1000_per_class"},
            "is for tasks of classes",
        ),
    ],
)
def test_wrong_settings_are_refused(change: dict[str, Any], told: str) -> None:
    right: dict[str, Any] = {
        "collection": "long_sequence",
        "names": ["sst2"],
        "size": "1000_per_task",
        "draw_seed": 0,
        "mirror": None,
    }
    settings = right | change
    with pytest.raises(UserError, match=told):
        hub_tasks(settings.pop("collection"), settings.pop("names"), **settings)


def test_a_superni_task_that_is_too_small_is_refused(tmp_path: Path) -> None:
    file = "train/task1572_samsum_summary_train.jsonl"
    line = {"id": "a", "definition": "Sum up.", "inputs": "Hi.", "targets": "A greeting."}
    save_json_lines(tmp_path / "Muennighoff" / "natural-instructions" / file, [line])
    with pytest.raises(UserError, match="too few different rows"):
        hub_tasks(
            "superni",
            ["task1572"],
            size="1000_per_task",
            draw_seed=0,
            mirror=str(tmp_path),
            cache=tmp_path / "cache",
        )


def test_without_network_one_sentence_names_the_first_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(source, "hub_answers", lambda: bool(asked.append(1)))
    monkeypatch.setattr(source, "load_dataset", refuse_loading)
    with pytest.raises(MissingPartError) as caught:
        hub_tasks(
            "long_sequence",
            ["mnli", "cb"],
            size="1000_per_task",
            draw_seed=0,
            mirror=None,
            cache=tmp_path,
        )
    message = str(caught.value)
    assert "the data set nyu-mll/glue of task mnli" in message
    assert "benchmark.mirror=FOLDER" in message
    assert "benchmark=long_sequence_mini" in message
    assert "cb" not in message
    assert asked == [1]


def on_hub(monkeypatch: pytest.MonkeyPatch, answers: Callable[[], Any]) -> list[Any]:
    """Stand for the hub: what it was asked for."""
    asked: list[Any] = []

    def load(path: str, config: str | None, **options: Any) -> IterableDataset:
        asked.append((path, config, options))
        return answers()

    monkeypatch.setattr(source, "hub_answers", lambda: len(asked) < 2)
    monkeypatch.setattr(source, "load_dataset", load)
    return asked


def test_the_hub_is_asked_for_the_pinned_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rows() -> IterableDataset:
        return IterableDataset.from_generator(lambda: iter(sentences(f"{len(asked)}", (4, 4))))

    asked = on_hub(monkeypatch, rows)
    monkeypatch.setattr(source, "hub_answers", lambda: True)
    settings: dict[str, Any] = {"size": "1000_per_task", "draw_seed": 0, "mirror": None}
    (task,) = hub_tasks("long_sequence", ["sst2"], cache=tmp_path, **settings)
    assert {name: len(split.rows) for name, split in task.splits.items()} == {"train": 8, "test": 8}
    for (path, config, options), split in zip(asked, ["validation", "train"], strict=True):
        assert (path, config, options["split"]) == ("nyu-mll/glue", "sst2", split)
        assert options["revision"] == "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"
        assert options["streaming"]
    # What was drawn once needs the hub no more.
    monkeypatch.setattr(source, "hub_answers", lambda: False)
    (again,) = hub_tasks("long_sequence", ["sst2"], cache=tmp_path, **settings)
    assert list(again.splits["train"].rows) == list(task.splits["train"].rows)


@pytest.mark.parametrize(("reachable", "error"), [(True, UserError), (False, MissingPartError)])
def test_a_failing_hub_is_told_apart_from_a_lost_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reachable: bool, error: type[UserError]
) -> None:
    def fail() -> None:
        monkeypatch.setattr(source, "hub_answers", lambda: reachable)
        raise ConnectionError("reset by peer")

    on_hub(monkeypatch, fail)
    with pytest.raises(UserError) as caught:
        hub_tasks(
            "long_sequence",
            ["sst2"],
            size="1000_per_task",
            draw_seed=0,
            mirror=None,
            cache=tmp_path,
        )
    assert type(caught.value) is error
    assert "nyu-mll/glue" in str(caught.value)

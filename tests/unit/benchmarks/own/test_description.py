"""A yaml file of the user's tasks: every key, and every mistake in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kif_lightning.benchmarks.own.description import Place, TaskDescription, read_descriptions
from kif_lightning.errors import UserError

GOOD = """
tasks:
  toy:
    kind: classification
    train: toy.csv
    prompt: "Q: {text}"
    answer: "{label}"
"""
CHOICES = GOOD.replace("classification", "multiple_choice").replace(
    "Q: {text}", "Q: {text} {choices}"
)


def described(folder: Path, content: str | bytes) -> tuple[list[str], dict[str, TaskDescription]]:
    file = folder / "tasks.yaml"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_descriptions(file)


def toy(folder: Path, more: str = "", start: str = GOOD) -> TaskDescription:
    indented = "".join(f"    {line}\n" for line in more.splitlines())
    return described(folder, start + indented)[1]["toy"]


def refusals(folder: Path, content: str | bytes) -> list[str]:
    with pytest.raises(UserError) as error:
        described(folder, content)
    lines = str(error.value).split("\n")
    assert all(str(folder / "tasks.yaml") in line and line.isprintable() for line in lines)
    return [line.removeprefix(f"{folder / 'tasks.yaml'}") for line in lines]


def test_the_least_that_describes_a_task(tmp_path: Path) -> None:
    order, tasks = described(tmp_path, GOOD)
    assert order == ["toy"]
    task = tasks["toy"]
    assert (task.name, task.kind, task.metric, task.test_share) == (
        "toy", "classification", "exact_match", 0.2
    )  # fmt: skip
    assert task.places == {"train": Place(path=tmp_path / "toy.csv")}
    assert (task.layout.prompt.text, task.layout.answer.text) == ("Q: {text}", "{label}")
    assert (task.layout.words, task.layout.choices, task.layout.id) == ({}, [], None)


@pytest.mark.parametrize(
    ("kind", "metric", "closed"),
    [
        ("classification", "exact_match", True),
        ("generation", "rouge_l", False),
        ("dialogue_state", "joint_goal_accuracy", False),
    ],
)
def test_kinds_have_metrics(tmp_path: Path, kind: str, metric: str, closed: bool) -> None:
    task = toy(tmp_path, start=GOOD.replace("classification", kind))
    assert (task.kind, task.metric, task.closed_answers) == (kind, metric, closed)
    assert toy(tmp_path, "metric: mine").metric == "mine"


def test_choices_are_lettered_or_texts(tmp_path: Path) -> None:
    task = toy(tmp_path, "choices: [a, b]", CHOICES)
    assert (task.metric, task.layout.choices, task.closed_answers) == (
        "exact_match",
        ["a", "b"],
        True,
    )
    task = toy(tmp_path, "choices: all\nanswer_as: text", CHOICES)
    assert (task.layout.choices, task.layout.answer_as, task.closed_answers) == (
        ["all"],
        "text",
        False,
    )


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ("hub:glue", {"hub": "glue"}),
        ("'hub: owner/name'", {"hub": "owner/name"}),
        ("{hub: glue, config: cola, split: validation, revision: 0123}",
         {"hub": "glue", "config": "cola", "split": "validation", "revision": "0123"}),
        ("{hub: glue, config: null}", {"hub": "glue"}),
        ("{path: saved, split: validation}", {"path": "saved", "split": "validation"}),
        ("/elsewhere/dev.jsonl", {"path": "/elsewhere/dev.jsonl"}),
    ],
)  # fmt: skip
def test_places(tmp_path: Path, value: str, place: dict[str, Any]) -> None:
    expected: dict[str, Any] = {**place}
    if "path" in place:
        expected["path"] = tmp_path / place["path"]
    assert toy(tmp_path, f"dev: {value}").places["dev"] == Place(**expected)


def test_scalars_are_texts_as_they_are_written(tmp_path: Path) -> None:
    content = (
        GOOD.replace("toy:", "2024-01-01:") + "    words: {0: no, 01: Yes, true: on, 1.50: 3}\n"
    )
    order, tasks = described(tmp_path, content.encode("utf-8-sig"))
    assert order == ["2024-01-01"]
    words = tasks["2024-01-01"].layout.words
    assert words == {"0": "no", "01": "Yes", "true": "on", "1.50": "3"}


def test_defaults_are_shared_and_a_task_overrides_them(tmp_path: Path) -> None:
    content = """
defaults: {kind: generation, prompt: "{q}", answer: "{a}", id: key, test_share: 0.5}
order: [second, first]
tasks:
  first: {train: a.csv}
  second: {train: b.csv, kind: classification, id: null}
  unused: {train: c.csv}
"""
    order, tasks = described(tmp_path, content)
    assert order == ["second", "first"]
    assert {n: (t.kind, t.layout.id, t.test_share) for n, t in tasks.items()} == {
        "first": ("generation", "key", 0.5),
        "second": ("classification", None, 0.5),
        "unused": ("generation", "key", 0.5),
    }


def test_a_block_of_yaml_leaves_no_line_feed_in_the_answer(tmp_path: Path) -> None:
    task = toy(tmp_path, start=GOOD.replace('"{label}"', "|\n      {label}"))
    assert task.layout.answer.text == "{label}"


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("", "tasks.yaml), got NoneType"),
        ("- a", "tasks.yaml), got list"),
        ("tasks: [", "must be yaml, but it does not parse"),
        (GOOD.replace('"Q: {text}"', "Q: {text}"), "A text with a colon or a brace wants quotes"),
        (b"tasks: \xff", "must be yaml"),
        ("tasks: {}", "expected 'tasks' with a name"),
        ("tasks: [toy]", "expected 'tasks' with a name"),
        ("task: {}\ntasks: {a: {}}", "'task' is no key here; did you mean 'tasks'?"),
        (f"{GOOD}\ntasks: {{}}", "'tasks' is there twice, in lines 2 and 9"),
        (GOOD + GOOD.partition("tasks:")[2], "'toy' is there twice, in lines 3 and 9"),
        (f"{GOOD}\ndefaults: 3", "'defaults' must hold keys"),
        (f"{GOOD}\norder: toy", "'order' must be a list of tasks, got 'toy'"),
        (f"{GOOD}\norder: []", "'order' must be a list of tasks, got []"),
        (f"{GOOD}\norder: [[toy]]", "'order' must be a list of tasks"),
        (f"{GOOD}\norder: [tou]", "'order' names 'tou'; did you mean 'toy'?"),
        (f"{GOOD}\norder: [toy, toy]", "'order' names 'toy' twice"),
        ("tasks: {toy: toy.csv}", "task toy: expected its description, got 'toy.csv'"),
        (GOOD.replace("toy:", "a/b:"), "task a/b: a task's name may hold letters"),
        (GOOD.replace("toy:", ".hidden:"), "a task's name may hold letters"),
        (GOOD.replace("toy:", "? [a]\n  :"), "must be yaml"),
        ("a: &a [*a]\ntasks: {}", "must be yaml"),
    ],
)
def test_a_wrong_file_is_told(tmp_path: Path, content: str | bytes, part: str) -> None:
    told = refusals(tmp_path, content)
    assert any(part in line for line in told), told


def test_no_file_is_told(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.yaml"):
        with pytest.raises(UserError, match="Expected a yaml file") as error:
            read_descriptions(path)
        assert str(path) in str(error.value)


def test_a_folder_with_the_file_in_it_is_told(tmp_path: Path) -> None:
    (tmp_path / "tasks.yaml").write_text(GOOD)
    with pytest.raises(UserError, match="did you mean") as error:
        read_descriptions(tmp_path)
    assert str(tmp_path / "tasks.yaml") in str(error.value)


def test_splits_of_a_saved_folder_are_other_rows(tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "dataset_dict.json").write_text("{}")
    places = toy(tmp_path, start=GOOD.replace("toy.csv", "saved\n    test: saved")).places
    assert places["train"] == places["test"] == Place(path=tmp_path / "saved")
    same = GOOD.replace("toy.csv", "saved\n    test: {path: saved, split: train}")
    assert "'train' and 'test' are the same rows" in refusals(tmp_path, same)[0]


@pytest.mark.parametrize("other", ["data/../toy.csv", "./toy.csv", "link.csv"])
def test_one_file_by_two_names_is_the_same(tmp_path: Path, other: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "toy.csv").touch()
    (tmp_path / "link.csv").symlink_to(tmp_path / "toy.csv")
    for split, hint in (("test", True), ("dev", False)):
        (told,) = refusals(tmp_path, GOOD.replace("toy.csv", f"toy.csv\n    {split}: {other}"))
        assert f"'train' and '{split}' are the same rows" in told
        assert ("leave 'test' out" in told) == hint


def test_a_saved_data_set_without_splits_is_the_same_rows_for_all(tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    (told,) = refusals(tmp_path, GOOD.replace("toy.csv", "saved\n    test: saved"))
    assert "'train' and 'test' are the same rows" in told


def test_a_file_has_no_split(tmp_path: Path) -> None:
    (told,) = refusals(tmp_path, GOOD.replace("toy.csv", "{path: toy.csv, split: train}"))
    assert "'train': a file has no splits of its own: leave 'split' out." in told


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ("kind:", "metrc: a\n    kind:", "'metrc' is no key here; did you mean 'metric'"),
        ("kind: classification", "kind: regression", "kind must be 'classification' or"),
        ("kind: classification", "kind: [a]", "kind must be 'classification' or"),
        ("train: toy.csv", "train:", "'train' is missing; expected kind, train, prompt, answer"),
        ("toy.csv", "[a.csv, b.csv]", "'train' must be a file, a saved folder, hub:owner/name"),
        ("toy.csv", "{file: a.csv}", "'train' must be a file"),
        ("toy.csv", "{path: a, hub: b}", "'train' must be a file"),
        ("toy.csv", "{path: a, config: b}", "'train': 'config' is no key here; known: path, split"),
        ("toy.csv", "{hub: a, splt: b}", "'train': 'splt' is no key here; did you mean 'split'"),
        ("toy.csv", "{path: [a]}", "'path' must be a text, got ['a']"),
        ("toy.csv", "'hub:'", "'train' names neither a file nor a data set"),
        ("toy.csv", "''", "'train' names neither a file nor a data set"),
        ("toy.csv", "toy.csv\n    test: toy.csv", "'train' and 'test' are the same rows"),
        ("toy.csv", "hub:a/b\n    dev: {hub: a/b, split: train}", "'train' and 'dev' are the same"),
        ('"{label}"', "{label}", "'answer' must be a text in quotes, as in \"{label}\""),
        ('"{label}"', "label", "'answer' must name a column in braces"),
        ('"Q: {text}"', "Q", "'prompt' must name a column in braces"),
        ('"Q: {text}"', "[a]", "'prompt' must be a text in quotes"),
        ("{text}", "{text", "prompt='Q: {text' is no template"),
        ("{text}", "{text.x}", "expected a column's name alone in each pair of braces"),
        ("kind", "metric: [a]\n    kind", "'metric' must be a text"),
        ("kind", "id: {a: b}\n    kind", "'id' must be a text"),
        ("kind", "test_share: 20%\n    kind", "test_share must be a number, got '20%'"),
        ("kind", "test_share: 1\n    kind", "test_share must lie in (0, 0.9]"),
        ("kind", "test_share: nan\n    kind", "test_share must lie in (0, 0.9]"),
        (
            "kind",
            "test: a.csv\n    test_share: 0.1\n    kind",
            "'test_share' is for a task without",
        ),
        ("kind", "words: [a]\n    kind", "'words' must map values to answer words"),
        ("kind", "words: {a: [b]}\n    kind", "'words' must map each value to one text"),
        ("kind", "words: {a: }\n    kind", "'words' must map each value to one text"),
        ("kind", "choices: [a, b]\n    kind", "'choices' goes with kind: multiple_choice only"),
        ("classification", "multiple_choice", "'choices' is missing"),
        ("kind", "answer_as: letter\n    kind", "'answer_as' goes with 'choices' only"),
    ],
)
def test_a_wrong_task_is_told(tmp_path: Path, old: str, new: str, part: str) -> None:
    assert old in GOOD
    (told,) = refusals(tmp_path, GOOD.replace(old, new, 1))
    assert told.startswith(", task toy: ")
    assert part in told


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ("kind", "choices: {a: b}\n    kind", "'choices' must be columns, or one with a list, got"),
        ("kind", "choices: [a, [b]]\n    kind", "'choices' must be columns"),
        ("kind", f"choices: {list(range(27))}\n    kind", "must be at most 26 columns, got 27"),
        ("kind", "choices: a\n    answer_as: b\n    kind", "answer_as must be 'letter' or 'text'"),
        ("kind", "choices: a\n    words: {1: a}\n    kind", "'words' does not go with 'choices'"),
        ('"{label}"', '"{label}{b}"\n    choices: a', "'answer' must be one column alone"),
        ('"{label}"', '"It is {label}"\n    choices: a', "'answer' must be one column alone"),
        (" {choices}", "\n    choices: [a, b]", "'prompt' shows no choices"),
    ],
)  # fmt: skip
def test_a_wrong_choice_is_told(tmp_path: Path, old: str, new: str, part: str) -> None:
    assert old in CHOICES
    content = CHOICES.replace(old, new, 1)
    if old == " {choices}":
        content = CHOICES.replace(old, "", 1) + "    choices: [a, b]\n"
    (told,) = refusals(tmp_path, content)
    assert told.startswith(", task toy: ")
    assert part in told


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    told = refusals(
        tmp_path,
        """
order: [second, third]
tasks:
  first: {kind: class, train: [a], prompt: {text}, test_share: 2, wrods: {}}
  second: {kind: generation, train: a.csv, prompt: "x", answer: "{"}
""",
    )
    of_first = [line for line in told if ", task first: " in line]
    assert len(of_first) == 6
    for key in ("kind", "'train'", "'prompt'", "'answer' is missing", "test_share", "'wrods'"):
        assert sum(line.startswith((f", task first: {key}",)) for line in of_first) == 1, key
    assert len([line for line in told if ", task second: " in line]) == 2
    assert sum("'order' names 'third'" in line for line in told) == 1
    assert len(told) == 9

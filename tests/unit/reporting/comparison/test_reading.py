"""Runs side by side: what is shown, and which runs may not stand side by side."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from kif_lightning.cli import app
from kif_lightning.errors import UserError
from kif_lightning.reporting.comparison import (
    HEADER,
    MUST_MATCH,
    contents,
    markdown,
    protocols,
    read_runs,
    show_comparison,
    summary,
)
from kif_lightning.reporting.console import RunConsole
from kif_lightning.reporting.results import results_record
from kif_lightning.reporting.run_record import read_run


def record(method: str, *, stand_ins: tuple[str, ...] = (), **protocol: Any) -> dict[str, Any]:
    matrix = [[80.0, None], [30.0 if method == "plain" else 70.0, 60.0]]
    return results_record(
        score_matrix=matrix,
        untrained=None,
        tasks=[{"name": "one"}, {"name": "two"}],
        phases=[],
        stand_ins=stand_ins,
        protocol={**dict.fromkeys(MUST_MATCH, 1), "method": method, "seed": 1, **protocol},
        cost={"seconds": {"total": 90.0}},
    )


def folder(path: Path, results: dict[str, Any]) -> Path:
    path.mkdir()
    (path / "results.json").write_text(json.dumps(results))
    return path


def shown(*folders: Path) -> str:
    output = io.StringIO()
    show_comparison(contents(read_runs(folders)), RunConsole(Console(file=output, width=160)))
    return output.getvalue()


def test_each_task_at_first_and_at_the_end(tmp_path: Path) -> None:
    text = shown(
        folder(tmp_path / "a", record("plain")), folder(tmp_path / "b", record("protected"))
    )
    lines = {line.strip().split("  ")[0]: line.split() for line in text.splitlines()}
    assert lines["1 one"] == "1 one 80.0 -> 30.0 80.0 -> 70.0".split()
    assert lines["2 two"] == "2 two 60.0 -> 60.0 60.0 -> 60.0".split()
    assert lines["average_performance"][1:] == ["45.0", "65.0"]
    assert lines["backward_transfer"][1:] == ["-50.0", "-10.0"]
    assert lines["minutes"][1:] == ["1.5", "1.5"]
    assert "stand-in" not in text


def test_stand_ins_are_in_the_title(tmp_path: Path) -> None:
    stamp = ("stand-in data", "stand-in model")
    folders = [
        folder(tmp_path / name, record(name, stand_ins=stamp)) for name in ("plain", "protected")
    ]
    assert "on stand-in data and stand-in model" in shown(*folders)


@pytest.mark.parametrize("key", [key for key in MUST_MATCH if key != "backbone"])
def test_another_protocol_is_refused(key: str, tmp_path: Path) -> None:
    folders = [
        folder(tmp_path / "a", record("plain")),
        folder(tmp_path / "b", record("protected", **{key: 2})),
    ]
    told = "tasks" if key == "order" else key
    with pytest.raises(UserError, match=rf"different: {told}\)"):
        read_runs(folders)


def test_scores_on_held_out_rows_stand_apart_from_those_on_test_rows(tmp_path: Path) -> None:
    before = folder(tmp_path / "before", record("plain"))  # from before there was a choice
    test = folder(tmp_path / "test", record("protected", evaluation_rows="test"))
    held_out = [
        folder(tmp_path / name, record(name, evaluation_rows="held_out")) for name in ("c", "d")
    ]
    read_runs([before, test])
    read_runs(held_out)
    for other in (before, test):
        with pytest.raises(UserError, match=r"different: evaluation_rows\)"):
            read_runs([other, held_out[0]])


def test_rows_that_meet_by_length_are_another_protocol(tmp_path: Path) -> None:
    """Within a step the grouping changes rounding alone; earlier results do not name it."""
    groupings = {"a": {}, "b": {"length_grouping": "none"}, "c": {"length_grouping": "within_step"}}
    folders = [folder(tmp_path / name, record(name, **key)) for name, key in groupings.items()]
    assert len(read_runs(folders)) == 3
    across = folder(tmp_path / "d", record("d", length_grouping="across_steps"))
    with pytest.raises(UserError, match=r"different: length_grouping\)"):
        read_runs([*folders, across])


@pytest.mark.parametrize(("later", "alike"), [("generate", True), ("rank_labels", False)])
def test_runs_from_before_there_was_a_choice_generated(
    later: str, alike: bool, tmp_path: Path
) -> None:
    before = record("plain", order=["one", "two"])
    del before["protocol"]["decode"]
    decode = {"one": later, "two": "generate"}
    now = record("protected", order=["one", "two"], decode=decode)
    folders = [folder(tmp_path / "a", before), folder(tmp_path / "b", now)]
    if alike:
        shown(*folders)
    else:
        with pytest.raises(UserError, match=r"different: decode\)"):
            read_runs(folders)


def test_two_runs_of_one_method_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    same = record("plain")
    folders = [folder(tmp_path / name, copy.deepcopy(same)) for name in ("a", "b")]
    assert [group.label for group in read_runs(folders)] == [str(path) for path in folders]


def test_what_a_method_fixes_is_part_of_the_method(tmp_path: Path) -> None:
    folders = [
        folder(tmp_path / name, record(name, prompt_and_decoding={"truncation": cut, "limit": 9}))
        for name, cut in (("plain", "middle"), ("protected", "right"))
    ]
    assert len(read_runs(folders)) == 2


@pytest.mark.parametrize(("split", "alike"), [("dev", True), ("test", False)])
def test_dev_files_decide_no_number(tmp_path: Path, split: str, alike: bool) -> None:
    old, new = (
        {"one": {"train": "a", "test": "b"}},
        {"one": {"train": "a", "test": "b", split: "c"}},
    )
    folders = [
        folder(tmp_path / name, record(name, data_sha256=sha256))
        for name, sha256 in (("plain", old), ("protected", new))
    ]
    if alike:
        assert len(read_runs(folders)) == 2
        return
    with pytest.raises(UserError, match="data_sha256"):
        read_runs(folders)


def dev_run(method: str, dev: str, *, selects: bool, overlap: int = 3, **more: Any) -> Any:
    selection = {"rows": "dev", "dev_rows_in_test": {"one": overlap, "two": 0}}
    return record(
        method,
        data_sha256={"one": {"train": "a", "test": "b", "dev": dev}},
        selection=selection if selects else None,
        **more,
    )


def test_dev_files_that_steps_were_selected_by_must_be_the_same(tmp_path: Path) -> None:
    old = folder(tmp_path / "a", dev_run("plain", "old", selects=True))
    new = folder(tmp_path / "b", dev_run("protected", "new", selects=True))
    unselected = folder(tmp_path / "c", dev_run("other", "new", selects=False))
    same = folder(tmp_path / "d", dev_run("protected", "old", selects=True))
    with pytest.raises(UserError, match=r"different: data_sha256 of dev\)"):
        read_runs([old, unselected, new])
    assert len(read_runs([old, unselected, same])) == 3


def test_selection_by_dev_rows_is_told(tmp_path: Path) -> None:
    needs = {"method_settings": {"needs_task_id": True}}
    runs = [
        dev_run("plain", "x", selects=True),
        dev_run("plain", "x", selects=True, overlap=4, seed=2),
        dev_run("protected", "x", selects=True, overlap=0, **needs),
        dev_run("other", "x", selects=False),
    ]
    for place, run in enumerate(runs):
        folder(tmp_path / str(place), run)
    rows = {row[0]: row[HEADER.index("told")] for row in summary(contents(read_runs([tmp_path])))}
    assert rows == {
        "plain": "dev rows (3 in test) / dev rows (4 in test)",
        "protected": "task id, dev rows (0 in test)",
        "other": "",
    }


def test_a_stamp_is_prepared_once_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    prepare = protocols._comparable

    def counting(protocol: Any) -> dict[str, Any]:
        asked.append(protocol)
        return prepare(protocol)

    monkeypatch.setattr(protocols, "_comparable", counting)
    for seed in range(5):
        folder(tmp_path / str(seed), record("plain", seed=seed))
    read_runs([tmp_path])
    assert len(asked) == 5


def seeded(method: str, seed: int, learnt: list[float], end: list[float], **more: Any) -> Any:
    """A run of two tasks that scored so when just learnt and at the end."""
    return results_record(
        score_matrix=[[learnt[0], None], end],
        untrained=None,
        tasks=[{"name": "one"}, {"name": "two"}],
        phases=[],
        stand_ins=(),
        protocol={**dict.fromkeys(MUST_MATCH, 1), "method": method, "seed": seed, **more},
        cost={
            "seconds": {"total": 60.0 * seed},
            "trainable_weights": 1000,
            "learnt_weights": 2000 if method == "own" else 1000,
            "memory_rows": 4,
        },
    )


REFERENCE = {"method_settings": {"single_task_reference": True, "needs_task_id": True}}


def test_the_summary_is_over_seeds_and_joins_the_single_task_scores(tmp_path: Path) -> None:
    runs = [
        seeded("plain", 1, [80], [40, 60]),
        seeded("plain", 2, [90], [50, 70]),
        seeded("own", 1, [85], [85, 75], **REFERENCE),
        seeded("own", 2, [80], [80, 90], **REFERENCE),
    ]
    for place, run in enumerate(runs):
        folder(tmp_path / str(place), run)
    text = markdown(contents(read_runs([tmp_path]))).splitlines()  # the best first
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text]
    # AP 50 and 60; BWT -40 and -40; FWT: mean(80-85, 60-75) = -10, mean(90-80, 70-90) = -5.
    assert dict(zip(cells[0], cells[3], strict=True)) == {
        "method": "plain",
        "told": "",
        "seeds": "1, 2",
        "AP": "55.0 ± 7.1",
        "forgetting": "40.0 ± 0.0",
        "BWT": "-40.0 ± 0.0",
        "FWT": "-7.5 ± 3.5",
        "trained weights": "1,000",
        "memory rows": "4",
        "seconds": "90 ± 42",
    }
    reference_row = dict(zip(cells[0], cells[2], strict=True))
    assert reference_row["FWT"] == "", "it would be compared with itself"
    assert reference_row["told"] == "task id"
    assert reference_row["trained weights"] == "1,000 (2,000 kept)"


def test_a_memory_that_knows_the_seed_is_no_other_method(tmp_path: Path) -> None:
    for seed in (1, 2):
        settings = {"memory": {"share": 0.02, "seed": seed}}
        run = seeded("kept", seed, [80], [40, 60], method_settings=settings)
        folder(tmp_path / str(seed), run)
    (group,) = read_runs([tmp_path])
    assert (group.label, len(group.runs)) == ("kept", 2)
    other = seeded("kept", 3, [80], [40, 60], method_settings={"memory": {"share": 0.5}})
    folder(tmp_path / "3", other)
    assert len(read_runs([tmp_path])) == 2


def test_without_a_reference_of_the_seed_fwt_is_absent(tmp_path: Path) -> None:
    folders = [
        folder(tmp_path / "a", seeded("plain", 1, [80], [40, 60])),
        folder(tmp_path / "b", seeded("own", 2, [85], [85, 75], **REFERENCE)),
    ]
    rows = {row[0]: row for row in summary(contents(read_runs(folders)))}
    assert rows["plain"][HEADER.index("FWT")] == ""


def test_a_reference_of_another_protocol_supplies_no_fwt(tmp_path: Path) -> None:
    folder(tmp_path / "a", seeded("plain", 1, [80], [40, 60]))
    folder(tmp_path / "b", seeded("plain", 1, [80], [40, 60], epochs=9))
    folder(tmp_path / "c", seeded("own", 1, [85], [85, 75], epochs=9, **REFERENCE))
    found = contents(read_runs([tmp_path], show_differences=True))
    rows = {row[0]: row[HEADER.index("FWT")] for row in summary(found)}
    assert rows == {"plain [A]": "", "plain [B]": "-10.0", "own [B]": ""}


def test_two_references_that_scored_differently_supply_no_fwt(tmp_path: Path) -> None:
    folder(tmp_path / "a", seeded("plain", 1, [80], [40, 60]))
    for place, end in enumerate(([85, 75], [85, 75], [85, 70])):
        settings = {**REFERENCE["method_settings"], "place": place}
        folder(tmp_path / str(place), seeded("own", 1, [85], end, method_settings=settings))
        found = contents(read_runs([tmp_path]))
        fwt = {row[0]: row[HEADER.index("FWT")] for row in summary(found)}["plain"]
        assert fwt == ("" if place == 2 else "-10.0")
        assert ("No FWT where several references" in "".join(found["notes"])) == (place == 2)


def test_tasks_learnt_at_once_have_no_way_only_an_end(tmp_path: Path) -> None:
    joint = record("joint")
    joint["score_matrix"] = [[55.0, 66.0]]
    joint["metrics"] = {"average_performance": 60.5}
    text = shown(folder(tmp_path / "a", record("plain")), folder(tmp_path / "b", joint))
    lines = {line.strip().split("  ")[0]: line.split() for line in text.splitlines()}
    assert lines["1 one"] == "1 one 80.0 -> 30.0 55.0".split()


def test_an_unfinished_run_in_a_folder_of_runs_is_left_out_and_told(tmp_path: Path) -> None:
    for name in ("a", "b"):
        folder(tmp_path / name, record(name))
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "config.yaml").write_text("seed: 1")
    assert [group.label for group in read_runs([tmp_path])] == ["a", "b"]
    result = CliRunner().invoke(app, ["compare", str(tmp_path)])
    assert result.exit_code == 0
    assert f"Left out, not finished: {tmp_path / 'c'}" in result.output
    with pytest.raises(UserError, match=r"no results\.json in"):
        read_runs([tmp_path / "c"])


def test_runs_of_one_method_are_labelled_by_what_differs(tmp_path: Path) -> None:
    for place, tau in enumerate((0.1, 0.5)):
        settings = {"rule": {"tau": tau, "kind": "soft"}, "needs_task_id": False}
        run = seeded("soft", 1, [80], [40, 60], method_settings=settings)
        folder(tmp_path / str(place), run)
    labels = [group.label for group in read_runs([tmp_path])]
    assert labels == ["soft (rule.tau=0.1)", "soft (rule.tau=0.5)"]


def test_the_command_tells_mistakes_in_a_sentence(tmp_path: Path) -> None:
    done = folder(tmp_path / "a", record("plain"))
    for arguments, told in (
        ([done], "at least two different"),
        ([done, done], "at least two different"),
        ([done, tmp_path / "no"], "no results.json"),
    ):
        result = CliRunner().invoke(app, ["compare", *map(str, arguments)])
        assert result.exit_code == 2
        assert told in result.output
        assert "Traceback" not in result.output
    other = folder(tmp_path / "b", record("protected"))
    both = CliRunner().invoke(app, ["compare", str(done), str(other)])
    assert both.exit_code == 0
    assert "80.0 -> 30.0" in both.output


def test_a_class_tells_runs_apart_where_nothing_else_does(tmp_path: Path) -> None:
    def run(name: str, units: str, tau: float) -> Path:
        settings = {"units": {"_target_": units}, "rule": {"_target_": "Adaptive", "tau": tau}}
        return folder(tmp_path / name, record("kif_like", method_settings=settings))

    runs = [run("a", "rank", 0.1), run("b", "matrix", 0.1), run("c", "rank", 0.2)]
    labels = [group.label for group in read_runs(runs)]
    assert len(set(labels)) == 3
    assert "units._target_=matrix" in labels[1]


def test_two_methods_never_share_a_label(tmp_path: Path) -> None:
    """The argument tells more plainly than the class, but the first two have the same one."""
    for place, (name, strength) in enumerate((("P", 1), ("Q", 1), ("P", 2))):
        settings = {"part": {"_target_": name, "strength": strength}}
        folder(tmp_path / str(place), record("m", method_settings=settings))
    assert [group.label for group in read_runs([tmp_path])] == [
        "m (part._target_=P, part.strength=1)",
        "m (part._target_=Q, part.strength=1)",
        "m (part.strength=2)",
    ]


def test_a_setting_that_is_null_is_not_one_that_is_absent(tmp_path: Path) -> None:
    for place, settings in enumerate(({"memory": None}, {})):
        folder(tmp_path / str(place), record("m", method_settings=settings))
    labels = [group.label for group in read_runs([tmp_path])]
    assert labels == ["m (memory=None)", "m (memory=absent)"]


def test_costs_that_differ_between_seeds_are_all_told(tmp_path: Path) -> None:
    for seed, rows in ((1, 4), (2, 7), (3, 4)):
        run = seeded("kept", seed, [80], [40, 60])
        run["cost"] |= {"memory_rows": rows, "learnt_weights": 1000 * rows}
        folder(tmp_path / str(seed), run)
    (row,) = summary(contents(read_runs([tmp_path])))
    assert row[HEADER.index("memory rows")] == "4 / 7"
    assert row[HEADER.index("trained weights")] == "1,000 (4,000 kept) / 1,000 (7,000 kept)"


@pytest.mark.parametrize(
    ("results", "told"),
    [
        ({}, r"got None in .*b/results\.json"),
        ([], r"b/results\.json is damaged"),
        ({**record("b"), "protocol": None}, r"b/results\.json is damaged \(no usable protocol\)"),
        ({**record("b"), "tasks": None}, r"b/results\.json is damaged \(no usable tasks\)"),
        ({**record("b"), "tasks": [{}]}, r"b/results\.json is damaged \(no usable tasks\)"),
    ],
)
def test_results_of_something_else_are_named(results: Any, told: str, tmp_path: Path) -> None:
    folders = [folder(tmp_path / "a", record("plain")), folder(tmp_path / "b", results)]
    with pytest.raises(UserError, match=told):
        read_runs(folders)


@pytest.mark.parametrize("cost", [{}, {"cost": None}])
def test_a_run_that_does_not_tell_its_cost_is_compared(
    cost: dict[str, Any], tmp_path: Path
) -> None:
    run = record("untold")
    del run["cost"]
    text = shown(folder(tmp_path / "a", record("plain")), folder(tmp_path / "b", {**run, **cost}))
    minutes = next(line for line in text.splitlines() if line.strip().startswith("minutes"))
    assert minutes.split() == ["minutes", "1.5"]


def test_settings_tell_more_plainly_than_their_class(tmp_path: Path) -> None:
    def run(name: str, selection: dict[str, Any] | None) -> Path:
        return folder(tmp_path / name, record("kif_like", method_settings={"selection": selection}))

    runs = [run("a", None), run("b", {"_target_": "SelectBestStep", "patience": 3})]
    assert [group.label for group in read_runs(runs)] == [
        "kif_like (selection=None)",
        "kif_like (selection.patience=3)",
    ]


def test_runs_whose_scores_at_the_end_were_not_measured_come_last(tmp_path: Path) -> None:
    """evaluation.matrix=diagonal."""
    diagonal = results_record(
        score_matrix=[[80.0, None], [None, 60.0]],
        untrained=None,
        tasks=[{"name": "one"}, {"name": "two"}],
        phases=[],
        stand_ins=(),
        protocol={**dict.fromkeys(MUST_MATCH, 1), "method": "unknown", "seed": 1},
        cost={"seconds": {"total": 90.0}},
    )
    assert diagonal["metrics"] == {}
    other = {**copy.deepcopy(diagonal), "protocol": {**diagonal["protocol"], "method": "other"}}
    runs = [
        folder(tmp_path / "a", diagonal),
        folder(tmp_path / "b", other),
        folder(tmp_path / "c", record("plain")),
    ]
    assert "80.0 ->" in shown(*runs)
    rows = {row[0]: row[HEADER.index("AP")] for row in summary(contents(read_runs(runs)))}
    assert list(rows.items()) == [("plain", "45.0"), ("unknown", ""), ("other", "")]


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [  # (precision, evaluation_precision); a result from before there was a choice has no second
        (("32-true", None), ("32-true", "32-true"), True),
        (("32-true", None), ("bf16-mixed", None), True),  # as ever: a method may fix it
        (("32-true", "32-true"), ("bf16-mixed", "bf16-mixed"), True),
        (("32-true", "32-true"), ("bf16-mixed", "32-true"), True),
        (("32-true", "32-true"), ("32-true", "bf16-mixed"), False),
        (("32-true", None), ("32-true", "bf16-mixed"), False),
        (("bf16-mixed", None), ("bf16-mixed", "32-true"), False),
    ],
)
def test_answers_come_in_one_precision_or_in_that_of_training(
    one: tuple[str, str | None], other: tuple[str, str | None], alike: bool, tmp_path: Path
) -> None:
    folders = []
    for place, (training, evaluation) in enumerate((one, other)):
        told = {} if evaluation is None else {"evaluation_precision": evaluation}
        run = record(f"method{place}", precision=training, **told)
        folders.append(folder(tmp_path / str(place), run))
    if alike:
        assert len(read_runs(folders)) == 2
        return
    with pytest.raises(UserError, match=r"different: evaluation_precision\)"):
        read_runs(folders)


def test_a_setting_that_a_part_takes_over_is_told_once(tmp_path: Path) -> None:
    for tau in (0.1, 0.5):
        rule = {"tau": tau}
        settings = {"rule": rule, "boundary": {"fusion": {"rule": rule}}}
        folder(tmp_path / str(tau), record("m", method_settings=settings))
    labels = [group.label for group in read_runs([tmp_path])]
    assert labels == ["m (rule.tau=0.1)", "m (rule.tau=0.5)"]


def test_a_run_with_a_probe_is_no_second_run_of_the_same(tmp_path: Path) -> None:
    plain = record("m", method_settings={}, seed=1)
    folder(tmp_path / "a", plain)
    folder(tmp_path / "b", record("m", method_settings={}, seed=1, probe={"name": "general"}))
    labels = [group.label for group in read_runs([tmp_path])]
    assert labels == ["m (probe=absent)", "m (probe=general)"]


def test_the_folder_of_a_comparison_holds_no_run(tmp_path: Path) -> None:
    runs = [folder(tmp_path / name, record(name)) for name in "ab"]
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "comparison.json").write_text("{}")
    assert len(read_runs([*runs, tmp_path / "c"])) == 2
    with pytest.raises(UserError, match=r"name one of the runs in it \(a, b\) first"):
        read_run(tmp_path)

"""Result folders of other code as runs of ours: what is read, what is told, beside which runs."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from kif_lightning.errors import UserError
from kif_lightning.metrics.transfer import FORMULAS, PEER_FORMULAS
from kif_lightning.reporting.comparison import (
    HEADER,
    MUST_MATCH,
    contents,
    read_runs,
    show_comparison,
    summary,
)
from kif_lightning.reporting.console import RunConsole
from kif_lightning.reporting.importing import Names, import_run, named_pairs
from kif_lightning.reporting.results import results_record

Scores = dict[str, float]
TASKS = ("SST-2", "news", "Copa-x-y")
EXACT: list[Scores] = [
    {"SST-2": 90.0},
    {"SST-2": 80.0, "news": 60.0},
    {"SST-2": 70.0, "news": 62.0, "Copa-x-y": 50.0},
]


def write_run(
    outputs: Path,
    *,
    tasks: tuple[str, ...] = TASKS,
    exact: list[Scores] = EXACT,
    rouge: str = "predict_eval_rougeL_for_",
) -> Path:
    """As O-LoRA and SAPT write it: sums over all and over categories stand beside the tasks."""
    for place, (task, scores) in enumerate(zip(tasks, exact, strict=True), start=1):
        content: dict[str, Any] = {"epoch": 1.0, "predict_exact_match": 11.1, "train_samples": 9}
        for name, score in (*scores.items(), ("SC", 1.5)):
            content[f"predict_exact_match_for_{name}"] = score
            content[f"{rouge}{name}"] = score / 2 + 1
            content[f"predict_rouge1_for_{name}"] = 99.0
        folder = outputs / f"{place}-{task}"
        folder.mkdir(parents=True)
        (folder / "all_results.json").write_text(json.dumps(content))
    return outputs


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    return write_run(tmp_path / "outputs")


def change(outputs: Path, folder: str, **values: Any) -> None:
    """Set keys of a results file, or remove them (None)."""
    path = outputs / folder / "all_results.json"
    content = json.loads(path.read_text()) | values
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def test_the_record_is_one_of_ours(outputs: Path, tmp_path: Path) -> None:
    target = tmp_path / "runs" / "theirs"
    record = import_run(outputs, target, method="theirs", metric="exact_match")
    assert json.loads((target / "results.json").read_text()) == record
    assert record["schema_version"] == 2
    assert record["score_matrix"] == [[90.0, None, None], [80.0, 60.0, None], [70.0, 62.0, 50.0]]
    assert record["metrics"] == pytest.approx(
        {
            "average_performance": (70 + 62 + 50) / 3,
            "forgetting_rate": ((90 - 70) + (60 - 62)) / 2,
            "backward_transfer": ((70 - 90) + (62 - 60)) / 2,
        }
    )
    assert record["formulas"] == {name: FORMULAS[name] for name in record["metrics"]}
    assert record["peer_variants"]["backward_transfer_sapt"] == {
        "value": pytest.approx(((70 - 90) + (62 - 60)) / 3),
        "formula": PEER_FORMULAS["backward_transfer_sapt"],
    }
    assert record["peer_variants"].keys() == PEER_FORMULAS.keys()
    assert [task["name"] for task in record["tasks"]] == list(TASKS)
    assert (record["cost"], record["untrained"], record["stand_ins"]) == ({}, None, [])


def test_what_is_not_known_is_absent(outputs: Path, tmp_path: Path) -> None:
    bare = import_run(outputs, tmp_path / "bare", method="theirs")["protocol"]
    assert bare.keys() == {"imported", "method", "order", "metrics"}
    assert "from" not in bare["imported"]
    told = import_run(
        outputs,
        tmp_path / "told",
        method="theirs",
        backbone="t5_large",
        benchmark="long_sequence",
        seed=42,
        source="paper, table 1",
    )["protocol"]
    assert (told["backbone"], told["benchmark"], told["seed"]) == ("t5_large", "long_sequence", 42)
    assert told["imported"]["from"] == "paper, table 1"


@pytest.mark.parametrize("prefix", ["predict_eval_rougeL_for_", "predict_rougeL_for_"])
def test_rouge_l_under_either_name_and_a_metric_for_each_task(prefix: str, tmp_path: Path) -> None:
    outputs = write_run(tmp_path / "outputs", rouge=prefix)
    record = import_run(
        outputs, tmp_path / "run", method="theirs", metric_of=Names(single={"news": "exact_match"})
    )
    assert record["score_matrix"][2] == [36.0, 62.0, 26.0]
    kinds = ["rouge_l", "exact_match", "rouge_l"]
    assert [task["metric"] for task in record["tasks"]] == kinds
    assert list(record["protocol"]["metrics"].values()) == kinds
    keys = record["protocol"]["imported"]["metric"]
    assert keys["news"] == "predict_exact_match_for_news"
    assert keys["SST-2"] == f"{prefix}SST-2"


def test_scores_of_tasks_to_come_are_kept(outputs: Path, tmp_path: Path) -> None:
    change(outputs, "1-SST-2", **{"predict_exact_match_for_Copa-x-y": 33})
    record = import_run(outputs, tmp_path / "run", method="theirs", metric="exact_match")
    assert record["score_matrix"][0] == [90.0, None, 33.0]


def test_folders_count_by_number_not_by_letter(tmp_path: Path) -> None:
    tasks = tuple(f"t{i}" for i in range(11))  # 10-t9 sorts before 2-t1
    exact = [dict.fromkeys(tasks[: i + 1], 50.0) for i in range(11)]
    outputs = write_run(tmp_path / "outputs", tasks=tasks, exact=exact)
    (outputs / "logs").mkdir()
    record = import_run(outputs, tmp_path / "run", method="theirs", metric="exact_match")
    assert record["protocol"]["order"] == list(tasks)


@pytest.mark.parametrize("value", [True, "90", None, [1], -0.1, 100.1, float("nan"), float("inf")])
def test_a_score_that_is_no_percentage(value: Any, outputs: Path, tmp_path: Path) -> None:
    path = outputs / "2-news" / "all_results.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"predict_exact_match_for_SST-2": value}))
    with pytest.raises(UserError, match=r"2-news/all_results\.json: predict_exact_match_for_SST-2"):
        import_run(outputs, tmp_path / "run", method="theirs", metric="exact_match")
    assert not (tmp_path / "run").exists()


def test_a_seen_task_without_a_score(outputs: Path, tmp_path: Path) -> None:
    change(outputs, "3-Copa-x-y", predict_exact_match_for_news=None)
    with pytest.raises(UserError) as told:
        import_run(outputs, tmp_path / "run", method="theirs", metric="exact_match")
    sentence = str(told.value)
    assert "3-Copa-x-y/all_results.json has no predict_exact_match_for_news" in sentence
    assert "known: Copa-x-y, SC, SST-2" in sentence.replace("Known", "known")


def test_a_task_just_learnt_without_a_score(outputs: Path, tmp_path: Path) -> None:
    change(outputs, "2-news", predict_exact_match_for_news=None)
    with pytest.raises(UserError, match=r"2-news/all_results\.json has no predict_exact_match_for"):
        import_run(outputs, tmp_path / "run", method="theirs", metric="exact_match")


def test_a_metric_the_files_do_not_have(tmp_path: Path) -> None:
    outputs = write_run(tmp_path / "outputs", rouge="predict_bleu_for_")
    with pytest.raises(UserError, match=r"has no predict_eval_rougeL_for_SST-2 or .*no such score"):
        import_run(outputs, tmp_path / "run", method="theirs")


@pytest.mark.parametrize(
    ("content", "told"),
    [("{", "is missing or damaged"), ("[1]", "must hold a JSON object"), (None, "is missing")],
)
def test_a_damaged_file(content: str | None, told: str, outputs: Path, tmp_path: Path) -> None:
    path = outputs / "2-news" / "all_results.json"
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=rf"2-news/all_results\.json {told}"):
        import_run(outputs, tmp_path / "run", method="theirs")


def test_folders_that_are_no_whole_run(outputs: Path, tmp_path: Path) -> None:
    def refused(told: str, folder: Path = outputs) -> None:
        with pytest.raises(UserError, match=told):
            import_run(folder, tmp_path / "run", method="theirs")

    refused(r"Expected a folder that holds <k>-<task>/all_results\.json, got", tmp_path / "none")
    refused(r"Expected a folder that holds <k>-<task>/all_results\.json, got", outputs / "2-news")
    (outputs / "task_order.txt").write_text("SST-2,news,Copa-x-y,yahoo")
    refused("task_order.txt says SST-2, news, Copa-x-y, yahoo, but the folders are")
    (outputs / "task_order.txt").write_text("SST-2,news,Copa-x-y\n")
    import_run(outputs, tmp_path / "whole", method="theirs")
    (outputs / "2-news").rename(outputs / "4-news")
    refused("got 3-Copa-x-y where number 2 is due")
    (outputs / "4-news").rename(outputs / "1-news")
    refused("got 1-news where number 2 is due|got 1-SST-2 where number 2 is due")
    (outputs / "1-news").rename(outputs / "2-SST-2")
    refused("got 2-SST-2 where number 2 is due")


def test_names_that_nothing_bears(outputs: Path, tmp_path: Path) -> None:
    def refused(told: str, **options: Any) -> None:
        with pytest.raises(UserError, match=told):
            import_run(outputs, tmp_path / "run", method="theirs", **options)

    refused("must be 'exact_match' or 'rouge_l', got 'accuracy'", metric="accuracy")
    refused("got 'f1'", metric_of=Names(single={"news": "f1"}))
    mistyped = Names(single={"newz": "rouge_l"})
    refused("No task 'newz' to give a metric; did you mean 'news'", metric_of=mistyped)
    refused("No task 'sst2' to give a rename", rename=Names(single={"sst2": "SST-2"}))
    for twice in (Names(single={"SST-2": "news"}), Names(listed={"SST-2": "news"})):
        refused("rename must keep tasks apart, got news more than once", rename=twice)


def test_a_file_may_name_tasks_of_other_runs(outputs: Path, tmp_path: Path) -> None:
    def pairs(values: dict[str, str], *more: str) -> Names:
        (tmp_path / "names.json").write_text(json.dumps(values))
        return named_pairs("--rename", [str(tmp_path / "names.json"), *more])

    record = import_run(
        outputs,
        tmp_path / "run",
        method="theirs",
        rename=pairs({"SST-2": "sst2", "yahoo": "news", "MNLI": "mnli"}, "Copa-x-y=copa"),
        metric_of=pairs({"SST-2": "exact_match", "MNLI": "exact_match"}),
    )
    assert record["protocol"]["order"] == ["sst2", "news", "copa"]
    assert record["protocol"]["metrics"] == {
        "sst2": "exact_match",
        "news": "rouge_l",
        "copa": "rouge_l",
    }
    with pytest.raises(UserError, match="No task 'MNLI' to give a rename"):
        import_run(outputs, tmp_path / "b", method="m", rename=pairs({}, "MNLI=mnli"))


def test_an_earlier_import_alone_is_written_over(outputs: Path, tmp_path: Path) -> None:
    target = tmp_path / "run"
    target.mkdir()
    import_run(outputs, target, method="first")
    (target / "report.html").write_text("of the first")
    assert import_run(outputs, target, method="second")["protocol"]["method"] == "second"
    assert not (target / "report.html").exists()
    (target / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds something else than an imported run \(notes"):
        import_run(outputs, target, method="third")
    (target / "notes.txt").unlink()
    for other in ({"protocol": ["imported"]}, {"protocol": None}, {"protocol": {"method": "ours"}}):
        (target / "results.json").write_text(json.dumps(other))
        with pytest.raises(UserError, match="holds something else"):
            import_run(outputs, target, method="third")
        assert json.loads((target / "results.json").read_text()) == other
    with pytest.raises(UserError, match="holds something else"):
        import_run(outputs, target / "results.json", method="third")


def test_named_pairs(tmp_path: Path) -> None:
    names = tmp_path / "names.json"
    names.write_text('{"MNLI": "mnli", "SST-2": "sst2"}')
    assert named_pairs("--rename", [str(names), "BoolQA=boolqa"]) == Names(
        single={"BoolQA": "boolqa"}, listed={"MNLI": "mnli", "SST-2": "sst2"}
    )
    assert named_pairs("--rename", []) == Names()
    with pytest.raises(UserError, match="each task once"):
        named_pairs("--rename", [str(names), "MNLI=other"])
    for entry in ("=a", "a=", "none.json"):
        with pytest.raises(UserError, match=f"--rename .*THEIRS=OURS.*'{entry}'"):
            named_pairs("--rename", [entry])
    with pytest.raises(UserError, match="each task once as THEIRS=OURS, got 'a=b'"):
        named_pairs("--rename", ["a=b", "a=c"])
    names.write_text('{"a": 1}')
    with pytest.raises(UserError, match="must hold a JSON object of names"):
        named_pairs("--rename", [str(names)])


NAMES = Names(single={"SST-2": "sst2", "Copa-x-y": "copa"})


def imported(tmp_path: Path, name: str, **options: Any) -> Path:
    if not (tmp_path / "outputs").exists():
        write_run(tmp_path / "outputs")
    settings: dict[str, Any] = {"method": "theirs", "metric": "exact_match", "rename": NAMES}
    import_run(tmp_path / "outputs", tmp_path / name, **(settings | options))
    return tmp_path / name


def own(tmp_path: Path, name: str, **protocol: Any) -> Path:
    order = ["sst2", "news", "copa"]
    record = results_record(
        score_matrix=[[95.0, None, None], [90.0, 65.0, None], [85.0, 64.0, 55.0]],
        untrained=None,
        tasks=[{"name": task} for task in order],
        phases=[],
        stand_ins=("stand-in model",),
        protocol={
            **dict.fromkeys(MUST_MATCH, 1),
            "method": name,
            "seed": 1,
            "order": order,
            "metrics": dict.fromkeys(order, "exact_match"),
            **protocol,
        },
        cost={"seconds": {"total": 90.0}},
    )
    (tmp_path / name).mkdir()
    (tmp_path / name / "results.json").write_text(json.dumps(record))
    return tmp_path / name


def test_an_imported_run_beside_one_of_ours(tmp_path: Path) -> None:
    folders = [imported(tmp_path, "a"), own(tmp_path, "b")]
    output = io.StringIO()
    show_comparison(contents(read_runs(folders)), RunConsole(Console(file=output, width=200)))
    lines = {line.strip().split("  ")[0]: line.split() for line in output.getvalue().splitlines()}
    assert lines["1 sst2"] == "1 sst2 90.0 -> 70.0 95.0 -> 85.0".split()
    assert lines["minutes"] == ["minutes", "1.5"]
    assert lines["theirs (imported)"][:4] == ["theirs", "(imported)", "imported", "60.7"]
    assert "on stand-in model" in output.getvalue()
    assert (
        "Imported runs do not tell, so not compared: benchmark, data_sha256, rows, backbone, "
        "weights, lora, optim, prompt_and_decoding, decode, epochs, effective_batch."
        in output.getvalue()
    )


def test_runs_of_ours_alone_tell_nothing_of_it(tmp_path: Path) -> None:
    output = io.StringIO()
    groups = read_runs([own(tmp_path, "a"), own(tmp_path, "b")])
    show_comparison(contents(groups), RunConsole(Console(file=output, width=200)))
    assert "mported" not in output.getvalue()


@pytest.mark.parametrize(
    ("options", "differing"),
    [
        ({"rename": None}, r"tasks, metrics\).*kif import --rename"),
        ({"metric": "rouge_l"}, r"metrics\)"),
        ({"benchmark": "superni"}, r"benchmark\)"),
    ],
)
def test_what_both_tell_must_agree(options: Any, differing: str, tmp_path: Path) -> None:
    folders = [own(tmp_path, "b"), imported(tmp_path, "a", **options)]
    for given in (folders, folders[::-1]):
        with pytest.raises(UserError, match=rf"different: {differing}"):
            read_runs(given)


def test_an_imported_run_hides_no_difference_of_others(tmp_path: Path) -> None:
    theirs = imported(tmp_path, "a")
    folders = [theirs, own(tmp_path, "b"), own(tmp_path, "c", epochs=2)]
    with pytest.raises(UserError, match=r"c was measured .* than .*b \(different: epochs\)"):
        read_runs(folders)
    one = imported(tmp_path, "d", benchmark="superni")
    other = imported(tmp_path, "e", benchmark="long_sequence")
    with pytest.raises(UserError, match=r"different: benchmark\)"):
        read_runs([theirs, one, other])


def test_imported_runs_are_labelled_as_such_and_told_apart(tmp_path: Path) -> None:
    a, b = imported(tmp_path, "a"), imported(tmp_path, "b")
    labels = [group.label for group in read_runs([a, b])]
    assert labels == [f"{a} (imported)", f"{b} (imported)"]
    seeded = [imported(tmp_path, f"s{seed}", seed=seed) for seed in (1, 2)]
    (group,) = read_runs(seeded)
    assert (group.label, len(group.runs)) == ("theirs (imported)", 2)
    assert len(read_runs([*seeded, a])) == 3, "a seed that is not known tells no runs apart"
    other = imported(tmp_path, "c", seed=3, source="a rerun")
    labels = [group.label for group in read_runs([*seeded, other])]
    assert labels == ["theirs (imported) (from=None)", "theirs (imported) (from=a rerun)"]


def test_an_imported_run_of_our_method_is_not_joined_with_ours(tmp_path: Path) -> None:
    folders = [own(tmp_path, "same"), imported(tmp_path, "a", method="same", seed=2)]
    assert [group.label for group in read_runs(folders)] == ["same", "same (imported)"]


def test_our_single_task_scores_are_no_yardstick_for_an_imported_run(tmp_path: Path) -> None:
    reference = {"method_settings": {"single_task_reference": True}}
    folders = [
        imported(tmp_path, "a", seed=1),
        own(tmp_path, "single", **reference),
        own(tmp_path, "b"),
    ]
    cells = {row[0]: row for row in summary(contents(read_runs(folders)))}
    assert cells["theirs (imported)"][HEADER.index("FWT")] == ""
    assert cells["b"][HEADER.index("FWT")] == "0.0"


def test_an_imported_run_on_the_console(outputs: Path, tmp_path: Path) -> None:
    output = io.StringIO()
    record = import_run(outputs, tmp_path / "run", method="theirs", metric="exact_match")
    RunConsole(Console(file=output, width=120)).finished(record)
    assert "3 Copa-x-y" in output.getvalue()
    assert "60.67" in output.getvalue()

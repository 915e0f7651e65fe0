"""What is written of a comparison: every number is the runs', whatever they are called."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from kif_lightning.cli import app
from kif_lightning.errors import UserError
from kif_lightning.metrics.transfer import FORMULAS
from kif_lightning.reporting.comparison import (
    contents,
    markdown,
    read_runs,
    report,
    write_comparison,
)
from kif_lightning.reporting.comparison.figures import FIGURES, drawn
from kif_lightning.reporting.comparison.published import TABLE, published_results
from kif_lightning.reporting.comparison.tables import (
    latex,
    latex_text,
    markdown_page,
    runs_table,
    summary,
)
from kif_lightning.reporting.figures.style import styled
from kif_lightning.storage import read_json
from tests.helpers.compared_runs import compared_run

HOSTILE = "<script>alert(1)</script>|a_b & 100% $x$ {~^\\#}"
STAND_INS = ("stand-in data", "stand-in model")


def files(folder: Path) -> dict[str, bytes]:
    """But for the names of clip paths: matplotlib makes them of memory addresses."""
    return {
        str(path.relative_to(folder)): re.sub(rb"#?\bp[0-9a-f]{10}\b", b"", path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods, two backbones, two orders, two seeds; one method's name is an attack."""
    root = tmp_path_factory.mktemp("runs")
    for method, gain in (("plain", 0), (HOSTILE, 10)):
        for backbone in ("small", "large"):
            for order in (("one", "two"), ("two", "one")):
                for seed in (1, 2):
                    name = f"{len(list(root.iterdir()))}"
                    rows = {task: [50.0 + gain + seed, 20.0 + gain] for task in order}
                    compared_run(
                        root / name, rows, method=method, seed=seed, backbone=backbone,
                        weights={"sha256": backbone}, optim={"lr": 1 if backbone == "small" else 2},
                        order_name=f"from_{order[0]}", stand_ins=STAND_INS,
                    )  # fmt: skip
    return root


@pytest.fixture(scope="module")
def written(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = contents(read_runs([runs]), baseline="plain", published=True)
    folder = tmp_path_factory.mktemp("out")
    assert write_comparison(found, folder) == folder / "comparison.html"
    return folder


def test_every_figure_is_there_in_every_format(written: Path) -> None:
    names = {path.name for path in (written / "figures").iterdir()}
    assert names == {f"{f.name}.{ending}" for f in FIGURES for ending in ("png", "svg", "pdf")}
    for path in (written / "figures").glob("*.svg"):
        assert "on stand-in data and stand-in model" in path.read_text(), path.name


def test_the_csv_holds_every_runs_numbers_in_full(written: Path, runs: Path) -> None:
    with (written / "summary.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 16
    for line in lines:
        found = json.loads((Path(line["folder"]) / "results.json").read_text())
        protocol = found["protocol"]
        for key in ("method", "backbone", "benchmark"):
            assert line[key] == protocol[key]
        assert (line["order"], int(line["seed"])) == (protocol["order_name"], protocol["seed"])
        told = {name: float(line[name]) for name in FORMULAS if line[name]}
        assert told == found["metrics"]
        assert float(line["seconds_total"]) == found["cost"]["seconds"]["total"]
        assert line["stand_ins"] == "; ".join(STAND_INS)


def test_hostile_names_stay_text(written: Path) -> None:
    page = (written / "comparison.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "default-src 'none'" in page
    # Names of XML's own spaces in the pictures are no addresses to load from.
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!#|data:image)[^"']*""", page)
    for table in (written / "table.md").read_text().splitlines():
        assert "<script" not in table
    cells = [line for line in (written / "table.md").read_text().splitlines() if "alert" in line]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in cells if " ± " in line} >= {13}


def test_stand_ins_are_told_on_every_table_of_ours_and_on_no_published_one(written: Path) -> None:
    told = "on stand-in data and stand-in model"
    assert told in (written / "comparison.html").read_text()
    captions = re.findall(r"\\caption\{(.*)\}", (written / "table.tex").read_text())
    assert len(captions) == 4
    assert [told in caption for caption in captions] == [True, True, True, False]
    assert captions[3].startswith("PUBLISHED by others, not measured here. ")
    titles = re.findall(r"^\*\*(.*)\*\*$", (written / "table.md").read_text(), re.MULTILINE)
    assert len(titles) == 4
    assert [told in title for title in titles] == [True, True, True, False]


def test_everything_can_be_made_again_from_the_numbers(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "OTHER_FORMATS", ())
    write_comparison(read_json(written / "comparison.json"), tmp_path / "again")
    again, first = files(tmp_path / "again"), files(written)
    assert len(again) == len(FIGURES) + 5
    assert again == {name: first[name] for name in again}


def test_means_are_within_a_backbone_and_an_order(runs: Path) -> None:
    found = contents(read_runs([runs]))
    assert len(found["groups"]) == 8
    rows = [row[:3] for row in summary(found)]
    assert [row[1:] for row in rows[:4]] == [
        ["small", "from_one"], ["small", "from_one"], ["small", "from_two"], ["small", "from_two"],
    ]  # fmt: skip
    assert [row[0] for row in rows[:2]] == [HOSTILE, "plain"], "the best first"
    for group in found["groups"]:
        gain = 0 if group["label"] == "plain" else 10
        # (50 + seed + 20) / 2: 35.5 and 36 for the seeds 1 and 2
        assert group["metrics"]["average_performance"]["average"] == 35.75 + gain
    assert found["by_backbone"]["optim.lr"] == {"small": "1", "large": "2"}
    study = {(s["backbone"], s["label"]): s for s in found["order_study"]}
    assert study["large", "plain"]["orders"] == {"from_one": 35.75, "from_two": 35.75}


def test_what_belongs_to_a_backbone_may_differ_with_it_alone(tmp_path: Path) -> None:
    rows = {"one": [0.0, 100.0]}
    fast = {"optim": {"lr": 0.1}, "epochs": 3}
    compared_run(tmp_path / "a", rows)
    compared_run(tmp_path / "b", rows, backbone="large", **fast)
    found = contents(read_runs([tmp_path]))
    assert found["by_backbone"] == {
        "optim.lr": {"small": "0.001", "large": "0.1"},
        "epochs": {"small": "1", "large": "3"},
    }
    compared_run(tmp_path / "c", rows, method="other", **fast)
    with pytest.raises(UserError, match=r"different: optim, epochs\).*--show-differences"):
        read_runs([tmp_path])
    asked_otherwise = {"backbone": "large", "decode": {"one": "rank_labels"}}
    compared_run(tmp_path / "d", rows, **asked_otherwise)
    with pytest.raises(UserError, match=r"different: decode\)"):
        read_runs([tmp_path / "a", tmp_path / "d"])


def test_orders_of_other_tasks_are_refused(tmp_path: Path) -> None:
    compared_run(tmp_path / "a", {"one": [1.0], "two": [1.0]})
    compared_run(tmp_path / "b", {"one": [1.0]}, order_name="short")
    with pytest.raises(UserError, match=r"different: tasks, "):
        read_runs([tmp_path])


def test_differences_are_shown_on_request_and_never_averaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {"one": [0.0, 100.0]}
    compared_run(tmp_path / "runs" / "a", rows, method="soft")
    compared_run(tmp_path / "runs" / "b", rows, method="soft", seed=2, optim={"lr": 0.5})
    compared_run(tmp_path / "runs" / "c", rows, seed=2)
    with pytest.raises(UserError, match="different: optim"):
        read_runs([tmp_path / "runs"])
    found = contents(read_runs([tmp_path / "runs"], show_differences=True))
    assert [g["label"] for g in found["groups"]] == ["soft [A]", "soft [B]", "plain [A]"]
    assert {g["label"]: g["seeds"] for g in found["groups"]} == {
        "soft [A]": [1], "soft [B]": [2], "plain [A]": [2],
    }  # fmt: skip
    assert found["differences"] == {"optim.lr": {"A": "0.001", "B": "0.5"}}
    told = "NOT THE SAME PROTOCOL"
    for text in (markdown(found), markdown_page(found), latex(found)):
        assert told in text
    with styled():
        for figure in FIGURES:
            picture = drawn(figure, found)
            assert picture is None or told in str(picture.get_suptitle())
    monkeypatch.setattr(report, "FIGURES", ())
    shown = CliRunner().invoke(
        app,
        ["compare", str(tmp_path / "runs"), "--show-differences", "--out", str(tmp_path / "out")],
    )
    assert shown.exit_code == 0, shown.output
    assert told in shown.output
    assert "0.001" in shown.output
    assert told in (tmp_path / "out" / "comparison.html").read_text()


def test_runs_that_agree_have_no_letters(tmp_path: Path) -> None:
    for method in ("plain", "other"):
        compared_run(tmp_path / method, {"one": [50.0]}, method=method)
    found = contents(read_runs([tmp_path], show_differences=True))
    assert (found["variants"], found["differences"]) == ({}, {})
    assert [group["label"] for group in found["groups"]] == ["other", "plain"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a_b & 5%", r"a\_b \& 5\%"),
        ("{x} #1 $", r"\{x\} \#1 \$"),
        ("~^\\", r"\textasciitilde{}\textasciicircum{}\textbackslash{}"),
        ("a\nb ± <c>", r"a b $\pm$ \textless{}c\textgreater{}"),
    ],
)
def test_latex_is_escaped(text: str, expected: str) -> None:
    assert latex_text(text) == expected


def test_latex_rows_have_as_many_cells_as_columns(written: Path) -> None:
    text = (written / "table.tex").read_text()
    for columns, body in re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tab", text, re.DOTALL):
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert rows
        assert {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows} == {len(columns)}


@pytest.mark.parametrize("name", ["[a] b", "*b"])
def test_a_latex_row_is_no_option_of_the_line_before(name: str, tmp_path: Path) -> None:
    for method in ("plain", name):
        compared_run(tmp_path / method, {"one": [50.0]}, method=method)
    text = latex(contents(read_runs([tmp_path])))
    assert f"\n{{}}{name} &" in text
    assert not re.search(r"\n[\[*]", text)


def test_published_results_stand_apart_with_their_source() -> None:
    found = published_results(["long_sequence"], ["order1"])
    by_source = {(f["source"][:8], f["method"]): f for f in found}
    assert by_source["GainLoRA", "O-LoRA"]["metrics"] == {
        "average_performance": 71.21, "forgetting_rate": 4.03,
    }  # fmt: skip
    assert "secondary copy" in by_source["GainLoRA", "O-LoRA"]["read_from"]
    assert by_source["Recurren", "MIGU"]["metrics"] == {"average_performance": 76.5}
    assert published_results(["long_sequence"], ["own"]) == [], "it may hold any tasks"
    drawn = published_results(["long_sequence"], ["random_7"])
    assert drawn == [f for f in found if f["orders"] == "not told"] != []
    few = published_results(["long_sequence"], ["standard1"])
    assert {f["orders"] for f in few} == {
        "standard1, standard2, standard3",
        "the 4 tasks of the standard orders",
    }
    assert not any("standard" in f["orders"] or "4 tasks" in f["orders"] for f in found)
    assert all(f["source"] and f["model"] and f["read_from"] for f in found)
    assert {f["orders"] for f in published_results(["superni"], ["order2"])} == {
        "order2", "not told",
    }  # fmt: skip
    assert published_results(["long_sequence_mini"], ["order1"]) == []
    assert "[?]" not in TABLE.read_text()


def test_a_published_result_enters_no_ranking(tmp_path: Path) -> None:
    for method in ("plain", "other"):
        compared_run(tmp_path / method, {"one": [50.0]}, method=method, benchmark="long_sequence")
    with_them = contents(read_runs([tmp_path]), published=True)
    without = contents(read_runs([tmp_path]))
    assert with_them["published"]
    assert {**with_them, "published": None} == without
    page = markdown_page(with_them)
    assert "**PUBLISHED by others, not measured here**" in page
    assert "arXiv 2502.17510" in page
    secondary = "from a secondary copy: look it up before citing"
    assert f"OA-Adapter ({secondary}; definition of BWT not checked)" in page
    assert f"FOREVER (3 seeds) ({secondary})" in page


def figure(name: str, found: Any) -> Any:
    with styled():
        picture = drawn(next(figure for figure in FIGURES if figure.name == name), found)
        assert picture is not None
        picture.draw_without_rendering()
        return picture


def test_a_backbone_whose_methods_share_no_order_is_told(tmp_path: Path) -> None:
    orders = {"first": ("one", "two"), "second": ("two", "one")}
    runs = [("plain", "small", "first"), ("other", "small", "second")]
    runs += [(method, "large", "first") for method in ("plain", "other")]
    for place, (method, backbone, order) in enumerate(runs):
        rows = {task: [50.0] for task in orders[order]}
        more = {"method": method, "backbone": backbone, "order_name": order}
        compared_run(tmp_path / str(place), rows, **more)
    (axes,) = figure("average_performance_by_backbone", contents(read_runs([tmp_path]))).axes
    told = [text.get_text() for text in axes.texts]
    assert any("not drawn: small, no order of all its methods" in text for text in told)


def test_a_heat_map_of_many_tasks_counts_them_from_one(tmp_path: Path) -> None:
    for method in ("plain", "other"):
        rows = {f"task{n}": [50.0] for n in range(60)}
        compared_run(tmp_path / method, rows, method=method, answers=False)
    picture = figure("final_scores_by_task", contents(read_runs([tmp_path])))
    ticks = [label.get_text() for label in picture.axes[0].get_xticklabels()]
    assert ticks == ["1", "10", "20", "30", "40", "50", "60"]
    label = picture.axes[1].yaxis.label.get_window_extent()
    assert 0 <= label.y0 < label.y1 <= picture.bbox.height, "nothing of it is cut off"


def test_a_figure_of_an_earlier_comparison_is_not_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paired = tuple(figure for figure in FIGURES if figure.name == "paired_differences")
    monkeypatch.setattr(report, "FIGURES", paired)
    for method in ("plain", "other"):
        compared_run(tmp_path / "runs" / method, {"one": [50.0], "two": [1.0]}, method=method)
    groups = read_runs([tmp_path / "runs"])
    out = tmp_path / "out"
    write_comparison(contents(groups, baseline="plain"), out)
    assert (out / "figures" / "paired_differences.png").is_file()
    write_comparison(contents(groups), out)
    assert not (out / "figures" / "paired_differences.png").exists()


def test_nothing_is_written_unless_asked_for_and_how_is_told(tmp_path: Path) -> None:
    for method in ("plain", "other"):
        compared_run(tmp_path / method, {"one": [50.0]}, method=method)
    before = files(tmp_path)
    shown = CliRunner().invoke(app, ["compare", str(tmp_path)])
    assert shown.exit_code == 0
    assert "--out FOLDER" in shown.output
    assert files(tmp_path) == before


def test_two_hundred_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "OTHER_FORMATS", ())
    for number in range(200):
        method, seed, order = number % 20, number // 20 % 5, number // 100
        names = [f"task{n}" for n in range(15)]
        rows = {task: [float(method + seed)] for task in (names if order else names[::-1])}
        compared_run(
            tmp_path / "runs" / str(number), rows, method=f"m{method:02d}", seed=seed,
            order_name=f"order{order}", answers=False,
        )  # fmt: skip
    found = contents(read_runs([tmp_path / "runs"]))
    assert len(found["groups"]) == 40
    best = next(g for g in found["groups"] if g["label"] == "m19")
    assert best["metrics"]["average_performance"]["average"] == 19 + 2
    write_comparison(found, tmp_path / "out")
    assert len((tmp_path / "out" / "summary.csv").read_text().splitlines()) == 201
    lines = (tmp_path / "out" / "figures" / "average_as_tasks_arrive.svg").read_text()
    assert "12 methods of lower AP" in lines


ODD = "a\x07\ud800\uffff"


def test_characters_that_no_figure_may_have_cost_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(report, "OTHER_FORMATS", ())
    for method in ("plain", ODD):
        for place, order in enumerate((("one", "two"), ("two", "one"))):
            for backbone in ("small", ODD):
                more = {"method": method, "backbone": backbone, "order_name": f"{place}{ODD}"}
                folder = tmp_path / "runs" / str(len(list(tmp_path.rglob("results.json"))))
                compared_run(folder, {task: [50.0] for task in order}, **more)
    write_comparison(contents(read_runs([tmp_path / "runs"]), baseline="plain"), tmp_path / "out")
    assert not caplog.records
    files = sorted((tmp_path / "out" / "figures").glob("*.svg"))
    assert [path.stem for path in files] == sorted(figure.name for figure in FIGURES)
    for path in files:
        ElementTree.fromstring(path.read_text())  # noqa: S314


def test_a_figure_that_fails_costs_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: object) -> Any:
        raise ZeroDivisionError("nothing there")

    one, other = FIGURES[0], FIGURES[4]
    monkeypatch.setattr(report, "OTHER_FORMATS", ())
    monkeypatch.setattr(report, "FIGURES", (replace(one, draw=fails), other))
    for method in ("plain", "other"):
        compared_run(tmp_path / method, {"one": [50.0]}, method=method)
    page = write_comparison(contents(read_runs([tmp_path])), tmp_path / "out").read_text()
    assert "could not be drawn (ZeroDivisionError: nothing there)" in page
    assert sorted(files(tmp_path / "out")) == sorted(
        [*("comparison.html", "comparison.json", *report.TABLES), f"figures/{other.name}.svg"]
    )


def page_of(folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> str:
    monkeypatch.setattr(report, "FIGURES", ())
    return write_comparison(contents(read_runs([folder], **options)), folder / "out").read_text()


def test_scores_of_held_out_rows_are_no_test_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {"one": [50.0]}
    held_out = {"evaluation_rows": "held_out"}
    told = ("stand-in data", "held-out rows of train, not test")
    for method in ("plain", "other"):
        compared_run(tmp_path / method, rows, method=method, stand_ins=told, **held_out)
    page = page_of(tmp_path, monkeypatch)
    assert "<strong>Scored on held-out rows of train, not on test.</strong>" in page
    assert "<strong>Measured on stand-in data.</strong>" in page
    compared_run(tmp_path / "test", rows)
    page = page_of(tmp_path, monkeypatch, show_differences=True)
    assert "<strong>Some were scored on held-out rows of train, not on test.</strong>" in page


def test_folders_are_told_apart_by_their_last_parts(tmp_path: Path) -> None:
    for name in ("x/a/run", "y/a/run"):
        compared_run(tmp_path / name, {"one": [50.0]}, method=name)
    table = runs_table(contents(read_runs([tmp_path])))
    place = table.header.index("folder")
    assert [row[place] for row in table.rows] == ["x/a/run", "y/a/run"]
    for method in ("plain", "other"):
        compared_run(tmp_path / "flat" / method, {"one": [50.0]}, method=method)
    flat = runs_table(contents(read_runs([tmp_path / "flat"])))
    assert [row[place] for row in flat.rows] == ["other", "plain"]

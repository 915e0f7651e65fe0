from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from kif_lightning.errors import UserError
from kif_lightning.reporting import figures, page
from kif_lightning.reporting.figures import RunFigure
from kif_lightning.reporting.figures.style import svg
from kif_lightning.reporting.page import MOST_ROWS, PageTable, picture
from kif_lightning.reporting.run_report import write_report
from kif_lightning.reporting.run_tables import described
from tests.helpers.fake_runs import fake_run


class Page(HTMLParser):
    """Tags with their attributes, and the tables as cells."""

    VOID = frozenset({"meta", "img", "br", "link", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.words = ""
        self._rows: list[list[str]] = []
        self._caption = self._open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self._rows, self._caption = [], ""
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("th", "td"):
            self._rows[-1].append("")
        if tag in ("th", "td", "caption"):
            self._open = tag

    def handle_endtag(self, tag: str) -> None:
        if tag in ("th", "td", "caption"):
            self._open = ""
        elif tag == "table":
            self.tables[self._caption] = self._rows

    def handle_data(self, data: str) -> None:
        self.words += data
        if self._open == "caption":
            self._caption += data
        elif self._open:
            self._rows[-1][-1] += data


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They have their own tests, and take seconds."""
    monkeypatch.setattr(figures, "RUN_FIGURES", ())


def read(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


def edited(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> Path:
    path = folder / "results.json"
    results = json.loads(path.read_text())
    edit(results)
    path.write_text(json.dumps(results))
    return folder


def table(found: Page, beginning: str) -> list[list[str]]:
    (rows,) = [rows for caption, rows in found.tables.items() if caption.startswith(beginning)]
    return [[cell.strip() for cell in row] for row in rows]


def test_every_number_is_the_records(tmp_path: Path) -> None:
    folder = fake_run(tmp_path, num_tasks=4, method="the_method", seed=7)
    results = json.loads((folder / "results.json").read_text())
    found = read(folder)
    for name, value in results["metrics"].items():
        assert f"{value:.2f}" in found.words
        assert f"{name} = {results['formulas'][name]}" in found.words
    names, matrix = [t["name"] for t in results["tasks"]], results["score_matrix"]
    header, *rows = table(found, "Score matrix")
    assert header == ["after", *names]
    shown = [[None if cell == "" else float(cell) for cell in row[1:]] for row in rows]
    assert shown == matrix
    for j, row in enumerate(table(found, "Each task, in percent")[1:]):
        learnt, best, end, change = row[3:]
        assert row[0] == f"{j + 1} {names[j]}"
        assert (float(learnt), float(end)) == (matrix[j][j], matrix[-1][j])
        assert change == ("" if j == 3 else f"{matrix[-1][j] - matrix[j][j]:+.1f}")
        before = [matrix[i][j] for i in range(j, 3)]
        assert best == (f"{max(before):.1f}" if before else "")
    for place, row in enumerate(table(found, "Each phase of training")[1:]):
        phase = results["phases"][place]
        steps, skipped, loss = row[2:5]
        assert (row[0], int(row[1])) == (f"{place + 1} {phase['name']}", phase["train_rows"])
        assert (int(steps), int(skipped)) == (phase["optimizer_steps"], phase["skipped_steps"])
        assert float(loss) == pytest.approx(phase["last_loss"], rel=1e-3)
        assert [float(cell) for cell in row[5:]] == list(phase["seconds"].values())
    assert "the_method" in found.words
    assert (
        json.loads(re.search(r'\{\s*"benchmark".*?\n\}', found.words, re.S)[0])
        == (  # type: ignore[index]
            results["protocol"]
        )
    )


def test_the_fusion_audit_by_hand(tmp_path: Path) -> None:
    folder = fake_run(tmp_path, num_tasks=2)
    path = folder / "importance" / "02_task_b_fusion.json"
    record = json.loads(path.read_text())
    record |= {
        "unit_ids": ["a", "b", "c", "d"],
        "weight": [0.0, 1.0, 0.5, 0.25],
        "classes": ["task_shared", "unimportant", "unimportant", "current_specific"],
    }
    path.write_text(json.dumps(record))
    rows = table(read(folder), "Fusion at each boundary")
    # Entropies 0, 0, 1 and 0.811278 bits.
    assert rows[2] == ["task_b", "4", "1", "0", "1", "2", "0.438", "0.453"]
    assert rows[1][2:] == [""] * 6, "the first task is fused with nothing"


def test_broken_answers_are_shown_with_prompt_and_time(tmp_path: Path) -> None:
    folder = fake_run(tmp_path, num_tasks=2, test_rows=1)
    rows = {"id": "row-1", "reference": "gold"}
    for phase, name, answer, score in ((1, "task_a", "gold", 100.0), (2, "task_b", "lead", 0.0)):
        path = folder / "predictions" / f"after_{phase:02d}_{name}__on_01_task_a.jsonl"
        path.write_text(json.dumps({**rows, "prediction": answer, "score": score}))
    prompts = folder / "test_rows" / "01_task_a.jsonl"
    prompts.write_text(json.dumps({"id": "row-1", "input": "What glitters? " * 60}))
    found = read(folder)
    assert table(found, "Answers to the same")[1] == ["1 task_a", "1", "1", "0", "0"]
    for words in ("row-1", "What glitters?", "gold", "lead", "after task 2 task_b"):
        assert words in found.words
    assert "What glitters? " * 60 in found.words, "the whole prompt is there too"
    prompts.unlink()
    assert "did not keep its prompts" in read(folder).words


HOSTILE = "</pre><script>alert(1)</script><img src=http://x.test/a onerror=alert(2)>{{ 7*7 }}&"


def test_hostile_texts_are_only_texts(tmp_path: Path) -> None:
    folder = fake_run(tmp_path, num_tasks=2, test_rows=1)
    for phase, name, score in ((1, "task_a", 100.0), (2, "task_b", 0.0)):
        row = {"id": HOSTILE, "prediction": HOSTILE, "reference": HOSTILE, "score": score}
        path = folder / "predictions" / f"after_{phase:02d}_{name}__on_01_task_a.jsonl"
        path.write_text(json.dumps(row))
    prompt = {"id": HOSTILE, "input": HOSTILE + "\ud800"}  # half a pair: no file can hold it
    (folder / "test_rows" / "01_task_a.jsonl").write_text(json.dumps(prompt))

    def everywhere(results: dict[str, Any]) -> None:
        results["protocol"] |= {"method": HOSTILE, "backbone": HOSTILE, "order": [HOSTILE]}
        results["protocol"]["method_settings"] = {"rule": {"_target_": HOSTILE, HOSTILE: HOSTILE}}
        results["stand_ins"] = [HOSTILE]
        results["phases"][1]["last_loss"] = 1.0
        finding = {"severity": HOSTILE, "task": HOSTILE, "check": HOSTILE, "message": HOSTILE}
        results["data_findings"] = [finding]
        results["probe"] = {
            "name": HOSTILE,
            "rows": 1,
            "metric": HOSTILE,
            "stand_in": False,
            "untrained": {"score": 1.0, "loss": 1.0},
            "after": [],
        }

    found = read(edited(folder, everywhere))
    assert found.words.count(HOSTILE) > 12
    assert not {"script", "img", "iframe", "object", "link", "base"} & {
        tag for tag, _ in found.tags
    }
    assert not [key for _, attributes in found.tags for key in attributes if key.startswith("on")]


def test_hostile_task_names_in_tables(tmp_path: Path) -> None:
    folder = fake_run(tmp_path, num_tasks=2, matrix=[[50.0, None], [40.0, 60.0]], fuses=False)

    def rename(results: dict[str, Any]) -> None:
        for key in ("tasks", "phases"):
            results[key][0]["name"] = "<script>alert(1)</script>"

    found = read(edited(folder, rename))
    assert table(found, "Score matrix")[0][1] == "<script>alert(1)</script>"
    assert "script" not in {tag for tag, _ in found.tags}


def test_nothing_is_loaded_and_the_policy_says_so(tmp_path: Path) -> None:
    found = read(fake_run(tmp_path))
    (policy,) = [a["content"] for t, a in found.tags if a.get("http-equiv")]
    assert policy is not None
    assert policy.split("; ")[:3] == [
        "default-src 'none'",
        "style-src 'unsafe-inline'",
        "img-src data:",
    ]
    loads = {"src", "href", "srcset", "action", "data", "poster"}
    for _, attributes in found.tags:
        for key in loads & attributes.keys():
            assert (attributes[key] or "").startswith(("#", "data:"))
    assert "@import" not in write_report(tmp_path).read_text()


def test_links_lead_somewhere_and_headings_have_an_order(tmp_path: Path) -> None:
    found = read(fake_run(tmp_path))
    ids = [a["id"] for _, a in found.tags if "id" in a]
    assert len(set(ids)) == len(ids)
    links = [a["href"] for tag, a in found.tags if tag == "a"]
    assert links
    assert {f"#{one}" for one in ids} >= set(links)
    levels = [int(tag[1]) for tag, _ in found.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    cells = [a for tag, a in found.tags if tag == "th"]
    assert all(a.get("scope") in ("col", "row") for a in cells)


def test_stand_ins_are_told_at_every_result(tmp_path: Path) -> None:
    words = "on stand-in data and stand-in model"
    assert read(fake_run(tmp_path / "with")).words.count(words) >= 6
    assert "stand-in" not in read(fake_run(tmp_path / "without", stand_ins=())).words


def test_what_a_run_of_an_earlier_version_lacks_is_said(tmp_path: Path) -> None:
    matrix: Any = [[50.0, None], [40.0, 60.0]]
    folder = fake_run(tmp_path, num_tasks=2, matrix=matrix, fuses=False, steps=0)
    words = read(edited(folder, lambda results: results.pop("data_findings"))).words
    for missing in ("kept no loss curves", "kept no answers", "identifies no skill units"):
        assert missing in words
    assert "this run did not look" in words


def test_an_imported_run_has_a_report(tmp_path: Path) -> None:
    def imported(results: dict[str, Any]) -> None:
        order = [task["name"] for task in results["tasks"]]
        results["protocol"] = {"imported": {"what": "scores"}, "method": "theirs", "order": order}
        results["cost"] = {}
        results["tasks"] = [{"name": n, "metric": "rouge_l"} for n in order]
        results["phases"] = [{"name": name} for name in order]

    matrix: Any = [[50.0, 0.0], [40.0, 60.0]]
    folder = fake_run(tmp_path, num_tasks=2, matrix=matrix, fuses=False, steps=0)
    words = read(edited(folder, imported)).words
    assert "under which protocol is not known" in words
    assert "What this run cost is not known" in words


def test_tasks_learnt_at_once(tmp_path: Path) -> None:
    found = read(fake_run(tmp_path, joint=True, fuses=False))
    assert "single phase" in found.words
    assert [caption for caption in found.tables if caption.startswith("Score matrix")] == []
    assert table(found, "Each task")[0] == ["task", "metric", "test rows", "at the end"]


def test_absent_metrics_of_a_joint_run_have_the_true_reason(tmp_path: Path) -> None:
    words = read(fake_run(tmp_path, joint=True, fuses=False)).words
    assert words.count("all tasks were learnt at once, nothing came before or after") == 4
    assert "it needs" not in words


def test_the_rate_that_trained_and_what_the_method_insists_on(tmp_path: Path) -> None:
    fixes = {"precision": None, "gradient_clip": 1.5, "loss_mean": "step_tokens", "lr_factor": 100}
    folder = fake_run(tmp_path, method="kif")
    assert re.search(r"lr 0\.002\n", read(folder).words)
    words = read(
        edited(folder, lambda r: r["protocol"].update(method_settings={"fixes": fixes}))
    ).words
    assert "lr 0.2 (0.002 x 100)" in words
    assert re.search(r"fixes\s*gradient_clip=1.5, lr_factor=100\n", words)


def test_the_method_is_told_by_the_run_alone(tmp_path: Path) -> None:
    words = read(fake_run(tmp_path, method="kif")).words
    assert re.search(r"Method\s*kif\n", words)


@pytest.mark.parametrize("stand_ins", [(), ("stand-in data",)])
def test_scores_for_choosing_settings_are_no_test_results(
    tmp_path: Path, stand_ins: tuple[str, ...]
) -> None:
    held_out = "held-out rows of train, not test"
    folder = fake_run(tmp_path, stand_ins=(*stand_ins, held_out), num_tasks=2)
    found = read(edited(folder, lambda r: r["protocol"].update(evaluation_rows="held_out")))
    assert "Scored on held-out rows of train" in found.words
    assert ("the machinery works" in found.words) == bool(stand_ins)
    assert f"Measured on {held_out}" not in found.words
    assert table(found, "Each task")[0][2] == "held-out rows"
    assert "Answers to the same held-out rows" in " ".join(found.tables)
    assert "Test row" not in found.words
    headings = re.findall(r'<h2 id="(\w+)">(.*)</h2>', (folder / "report.html").read_text())
    assert [name for name, text in headings if held_out in text] == ["numbers", "scores", "answers"]
    on_parts = [name for name, text in headings if "stand-in data" in text]
    assert len(on_parts) == (5 if stand_ins else 0)


def test_when_scores_were_taken_is_said(tmp_path: Path) -> None:
    folder = fake_run(tmp_path)
    assert "scored along the way" in read(folder).words
    edited(folder, lambda r: r["protocol"].update(evaluation_matrix="final_row"))
    assert "scored at the end" in read(folder).words


def test_findings_and_absent_metrics_are_told(tmp_path: Path) -> None:
    finding = {"severity": "error", "task": "task_a", "message": "3 rows of test are in train"}
    folder = edited(fake_run(tmp_path), lambda results: results.update(data_findings=[finding]))
    words = read(folder).words
    assert "3 rows of test are in train" in words
    assert "Forward transfer (FWT): kif compare gives it" in words


def test_the_probe_is_shown_where_there_is_one(tmp_path: Path) -> None:
    looks = [{"score": 51.5, "loss": 2.25}, {"score": 40.25, "loss": None}]
    probe = {
        "name": "own",
        "rows": 64,
        "metric": "exact_match",
        "stand_in": True,
        "untrained": {"score": 60.0, "loss": 2.0},
        "after": looks,
    }
    folder = fake_run(tmp_path, num_tasks=2)
    assert "General ability" not in read(folder).words
    rows = table(read(edited(folder, lambda r: r.update(probe=probe))), "Probe own (stand-in)")
    assert re.search(
        r'id="probe">.*and stand-in probe</small>', (folder / "report.html").read_text()
    )
    assert rows[1:] == [
        ["untrained", "60.0", "", "2"],
        ["1 task_a", "51.5", "-8.5", "2.25"],
        ["2 task_b", "40.2", "-11.2", "not finite"],
    ]


def test_a_hundred_tasks_stay_small_and_say_what_is_left_out(tmp_path: Path) -> None:
    folder = fake_run(tmp_path, num_tasks=100, test_rows=2, steps=2, unit_ids=["a", "b"])
    found = read(folder)
    assert (folder / "report.html").stat().st_size < 500_000
    assert "too wide for a page" in found.words
    assert len(table(found, "Each task")) == 101
    rows = [[str(n)] for n in range(MOST_ROWS + 5)]
    assert PageTable(caption="", header=["a"], rows=rows).left_out == 5


def failing(_: object) -> Figure:
    raise ZeroDivisionError("nothing there\nsecond line")


def bars(_: object) -> Figure:
    figure = Figure()
    axes = figure.subplots()
    axes.bar([1, 2], [3, 4])
    axes.set_title("<script>a title</script>")
    return figure


@pytest.mark.parametrize("twice", [False, True])
def test_figures_stand_in_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, twice: bool
) -> None:
    def one(name: str, draw: Any) -> RunFigure:
        return RunFigure(name=name, title=f"Title {name}", caption=f"Caption {name}", draw=draw)

    drawings = {"first": bars, "second": bars if twice else failing, "third": lambda _: None}
    several = tuple(one(name, draw) for name, draw in drawings.items())
    monkeypatch.setattr(figures, "RUN_FIGURES", several)
    found = read(fake_run(tmp_path))
    pictures = [a for tag, a in found.tags if tag == "svg"]
    assert [a["aria-label"] for a in pictures] == [
        f"Title {name}. Caption {name}" for name in ("first", "second")[: 1 + twice]
    ]
    ids = [a["id"] for _, a in found.tags if "id" in a]
    assert len(set(ids)) == len(ids), "figures alike do not share ids"
    used = set(re.findall(r"url\(#([^)]+)\)", (tmp_path / "report.html").read_text()))
    assert used
    assert used <= set(ids)
    assert "script" not in {tag for tag, _ in found.tags}
    assert "left nothing to draw of: Title third" in found.words
    assert ("could not be drawn (ZeroDivisionError: nothing there)" in found.words) != twice


def test_a_large_figure_stands_as_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    about = RunFigure(name="name", title='"> a title', caption="A caption.", draw=bars)
    figure = bars(None)
    assert picture(figure, svg(figure), about, "elsewhere")["as_pixels"] is False
    monkeypatch.setattr(page, "MOST_SVG_BYTES", 100)
    shown = picture(figure, svg(figure), about, "elsewhere")
    assert shown["as_pixels"]
    (image,) = [attributes for _, attributes in Page(shown["picture"]).tags]
    assert image["alt"] == '"> a title. A caption.'
    assert (image["src"] or "").startswith("data:image/png;base64,iVBOR")


def test_the_same_run_gives_the_same_file(tmp_path: Path) -> None:
    folder = fake_run(tmp_path)
    assert write_report(folder).read_bytes() == write_report(folder).read_bytes()


def test_what_cannot_be_is_told_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no results\.json"):
        write_report(tmp_path)
    folder = fake_run(tmp_path / "run")
    (folder / "report.html").mkdir()
    with pytest.raises(UserError, match="report cannot be written to"):
        write_report(folder)
    assert not list(folder.glob(".*.tmp"))


def test_parts_are_described_as_they_are_set() -> None:
    rule = {"_target_": "package.module.AdaptiveRule", "tau": 0.15}
    assert described(rule) == "AdaptiveRule(tau=0.15)"
    assert described({"_target_": "a.Stream"}) == "Stream"
    fusion = {"_target_": "a.Fusion", "_partial_": True, "rule": rule, "beta": 0.7}
    assert described({"fusion": fusion}) == "Fusion(AdaptiveRule(tau=0.15), beta=0.7)"
    assert described({"precision": None}) == described(None) == described("name") == ""

"""All figures of a run together: what each tells, and their files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import pytest
from matplotlib.figure import Figure

from kif_lightning.errors import UserError
from kif_lightning.reporting import figures
from kif_lightning.reporting.figures import RUN_FIGURES, save_figures
from kif_lightning.reporting.figures.style import FORMATS, save, styled, svg
from kif_lightning.reporting.run_record import read_run
from tests.helpers.fake_runs import fake_run, llama_units

ALL = [
    *("score_matrix", "trajectories", "average_performance", "forgetting", "importance"),
    *("fusion_classes", "fusion_weights", "fusion_where", "training_curve", "cost"),
]


def drawn(folder: Path, **settings: Any) -> dict[str, str]:
    """Name -> SVG of the figures that the run has."""
    record = read_run(fake_run(folder, **settings))
    with styled():
        figures = {one.name: one.draw(record) for one in RUN_FIGURES}
        return {name: svg(figure) for name, figure in figures.items() if figure is not None}


def test_every_figure_says_what_it_is_and_on_what(tmp_path: Path) -> None:
    found = drawn(tmp_path, num_tasks=3)
    assert list(found) == ALL
    titles = {one.name: one.title for one in RUN_FIGURES}
    for name, text in found.items():
        assert titles[name].replace("'", "&apos;") in text or titles[name] in text, name
        told = "kif, t5_nano, made_up, order1, seed 1 on stand-in data and stand-in model"
        assert told in text, name


def test_the_real_thing_is_not_called_a_stand_in(tmp_path: Path) -> None:
    for text in drawn(tmp_path, num_tasks=1, stand_ins=()).values():
        assert "stand-in" not in text
        assert "kif, t5_nano, made_up" in text


def test_held_out_rows_are_told_where_they_were_scored_alone(tmp_path: Path) -> None:
    held_out = "held-out rows of train, not test"
    found = drawn(tmp_path, num_tasks=3, stand_ins=("stand-in data", held_out))
    assert [name for name, text in found.items() if held_out in text] == ALL[:4]
    assert all("stand-in data" in text for text in found.values())


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"num_tasks": 1}, ["score_matrix", "importance", "training_curve", "cost"]),
        ({"joint": True}, ["score_matrix", "importance", "training_curve", "cost"]),
        ({"fuses": False, "steps": 0}, [*ALL[:4], "cost"]),
        ({"num_tasks": 2}, ALL),
        ({"num_tasks": 41, "fuses": False}, [*ALL[:4], "training_curve", "cost"]),
    ],
)
@pytest.mark.filterwarnings("error")
def test_which_figures_a_run_has(
    tmp_path: Path, settings: dict[str, Any], names: list[str]
) -> None:
    assert list(drawn(tmp_path, **settings)) == names


def test_names_with_signs_are_shown_as_they_are(tmp_path: Path) -> None:
    record = read_run(fake_run(tmp_path, num_tasks=2, fuses=False))
    for task, phase in zip(record.results["tasks"], record.results["phases"], strict=True):
        task["name"] = phase["name"] = "a$x$<b>&_1"
    with styled():
        figure = RUN_FIGURES[0].draw(record)
        assert figure is not None
        assert "a$x$&lt;b&gt;&amp;_1" in svg(figure)


@pytest.mark.filterwarnings("error")
def test_names_that_no_font_has_break_nothing(tmp_path: Path) -> None:
    record = read_run(fake_run(tmp_path, num_tasks=2, fuses=False))
    for task, phase in zip(record.results["tasks"], record.results["phases"], strict=True):
        task["name"] = phase["name"] = "a\x1b\n\ud800\uffff\u4e2d"
    record.results["protocol"]["method"] = "b\x00"
    with styled():
        for one in RUN_FIGURES:
            figure = one.draw(record)
            if figure is not None:
                ElementTree.fromstring(svg(figure))  # noqa: S314
                save(figure, tmp_path / f"{one.name}.png")
        figure = RUN_FIGURES[0].draw(record)
        assert figure is not None
        assert f"a{4 * chr(0xFFFD)}\u4e2d" in svg(figure)


def test_a_figure_that_fails_costs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(_: object) -> Figure:
        raise ZeroDivisionError("nothing there\nat all")

    bad = replace(RUN_FIGURES[0], name="bad", draw=fails)
    monkeypatch.setattr(figures, "RUN_FIGURES", (bad, RUN_FIGURES[0]))
    record = read_run(fake_run(tmp_path / "run", num_tasks=1, fuses=False))
    paths = save_figures(record, tmp_path / "figures", ["svg"])
    assert [path.name for path in paths] == ["score_matrix.svg"]
    assert "bad of" in caplog.text
    assert "(ZeroDivisionError: nothing there)." in caplog.text


def test_fifteen_tasks_of_a_large_model_stay_small(tmp_path: Path) -> None:
    settings = {"num_tasks": 15, "unit_ids": llama_units(32, 8), "steps": 500}
    found = drawn(tmp_path, **settings)
    assert list(found) == ALL
    assert sum(len(text) for text in found.values()) < 2_000_000


def test_the_same_run_gives_the_same_files(tmp_path: Path) -> None:
    record = read_run(fake_run(tmp_path / "run", num_tasks=1, fuses=False))
    before = dict(matplotlib.rcParams)
    one, other = (save_figures(record, tmp_path / name, FORMATS) for name in ("one", "other"))
    names = ["score_matrix", "training_curve", "cost"]
    assert [path.name for path in one] == [f"{name}.{end}" for name in names for end in FORMATS]
    for first, second in zip(one, other, strict=True):
        assert first.read_bytes() == second.read_bytes(), first.name
        start = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[first.suffix[1:]]
        assert first.read_bytes().startswith(start)
    assert dict(matplotlib.rcParams) == before


def test_an_unknown_format_is_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    record = read_run(fake_run(tmp_path / "run", num_tasks=1, fuses=False))
    with pytest.raises(UserError, match="must be 'png' or 'svg' or 'pdf', got 'bmp'"):
        save_figures(record, tmp_path / "figures", ["png", "bmp"])
    assert not (tmp_path / "figures").exists()

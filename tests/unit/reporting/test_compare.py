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
from kif_lightning.reporting.compare import MUST_MATCH, read_runs, show_comparison
from kif_lightning.reporting.console import RunConsole
from kif_lightning.reporting.results import results_record


def record(method: str, *, stand_ins: tuple[str, ...] = (), **protocol: Any) -> dict[str, Any]:
    matrix = [[80.0, None], [30.0 if method == "plain" else 70.0, 60.0]]
    return results_record(
        score_matrix=matrix,
        untrained=None,
        tasks=[{"name": "one"}, {"name": "two"}],
        stand_ins=stand_ins,
        protocol={**dict.fromkeys(MUST_MATCH, 1), "method": method, **protocol},
        cost={"seconds": {"total": 90.0}},
    )


def folder(path: Path, results: dict[str, Any]) -> Path:
    path.mkdir()
    (path / "results.json").write_text(json.dumps(results))
    return path


def shown(*folders: Path) -> str:
    output = io.StringIO()
    show_comparison(read_runs(folders), RunConsole(Console(file=output, width=160)))
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


@pytest.mark.parametrize("key", MUST_MATCH)
def test_another_protocol_is_refused(key: str, tmp_path: Path) -> None:
    folders = [
        folder(tmp_path / "a", record("plain")),
        folder(tmp_path / "b", record("protected", **{key: 2})),
    ]
    with pytest.raises(UserError, match=rf"different: {key}\)"):
        read_runs(folders)


def test_two_runs_of_one_method_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    same = record("plain")
    folders = [folder(tmp_path / name, copy.deepcopy(same)) for name in ("a", "b")]
    assert [label for label, _ in read_runs(folders)] == [str(path) for path in folders]


def test_what_a_method_fixes_is_part_of_the_method(tmp_path: Path) -> None:
    folders = [
        folder(tmp_path / name, record(name, prompt_and_decoding={"truncation": cut, "limit": 9}))
        for name, cut in (("plain", "middle"), ("protected", "right"))
    ]
    assert len(read_runs(folders)) == 2


def test_a_metric_that_only_one_run_has_is_shown(tmp_path: Path) -> None:
    richer = record("protected")
    richer["formulas"]["extra"] = "a formula"
    richer["metrics"]["extra"] = 12.5
    text = shown(folder(tmp_path / "a", record("plain")), folder(tmp_path / "b", richer))
    assert "12.5" in text
    assert "extra = a formula" in text


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

"""The Python API on real runs: docs/python_api.md as it stands, and held against the commands."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import kif_lightning as kl
from kif_lightning.callbacks import TaskProgress

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "python_api.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The page's blocks, run one after another in an empty folder; gives what they defined."""
    folder = tmp_path_factory.mktemp("session")
    before = Path.cwd()
    os.chdir(folder)
    found: dict[str, Any] = {"folder": folder}
    try:
        for block in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL):
            exec(compile(block, "docs/python_api.md", "exec"), found)  # noqa: S102
        yield found
    finally:
        os.chdir(before)


def test_the_page_runs(session: dict[str, Any]) -> None:
    assert session["model"].tasks == ("mini_imdb", "mini_cb", "mini_sst2")
    assert session["run"].metrics.keys() >= {"average_performance", "backward_transfer"}
    assert (session["folder"] / "states" / "2" / "state.json").is_file()


def test_all_names_of_the_page_are_there() -> None:
    names = set(re.findall(r"\bkl\.(\w+)", PAGE))
    assert len(names) > 10
    for name in names:
        assert getattr(kl, name)
    for module, name in re.findall(r"`(kif_lightning\.[\w.]+)\.(\w+)", PAGE):
        assert hasattr(__import__(module, fromlist=[name]), name)


def test_it_is_the_run_of_the_command_line(session: dict[str, Any]) -> None:
    """The command finds the run finished, with the same settings; its numbers are those shown."""
    done = subprocess.run(
        [sys.executable, "-m", "kif_lightning", *session["settings"], "run_dir=runs/kif"],
        cwd=session["folder"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Finished already" in done.stdout
    assert f"{session['run'].metrics['average_performance']:.2f}" in done.stdout


def test_the_same_call_reads_the_finished_run(
    session: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = session["folder"] / "runs" / "kif"
    before = (folder / "results.json").read_bytes()
    again = kl.run(*session["settings"], "method=kif", folder=folder)
    said = capsys.readouterr().out
    assert "Finished already" in said
    assert "stand-in data and stand-in model" in said
    assert (folder / "results.json").read_bytes() == before
    assert again.results == json.loads(before)


def test_frames_hold_what_the_folder_has(session: dict[str, Any]) -> None:
    run = session["run"]
    folder = session["folder"] / "runs" / "kif"
    answers = run.predictions(after="mini_cb", on="mini_imdb")
    assert answers["score"].mean() == pytest.approx(run.score_matrix().loc["mini_cb", "mini_imdb"])
    written = json.loads(next((folder / "importance").glob("02_*.json")).read_text())
    assert list(run.units(after=2)["weight"]) == written["weight"]
    assert len(run.losses()) == sum(p["optimizer_steps"] for p in run.results["phases"])
    assert set(run.tasks()["stand_ins"]) == {"stand-in data, stand-in model"}


def test_an_interrupted_call_goes_on_to_the_same_end(
    session: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by the notebook's stop button; another run in between disturbs nothing."""
    real = TaskProgress.on_train_batch_end
    interrupted: list[int] = []

    def press(self: TaskProgress, *args: Any, **kwargs: Any) -> None:
        real(self, *args, **kwargs)
        if not interrupted:
            interrupted.append(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(TaskProgress, "on_train_batch_end", press)
    handler = signal.getsignal(signal.SIGINT)
    call = [*session["settings"], "method=kif", "report=false"]
    with pytest.raises(KeyboardInterrupt):
        kl.run(*call, folder=tmp_path / "run", quiet=True)
    assert signal.getsignal(signal.SIGINT) is handler
    with pytest.raises(kl.UserError, match=r"no results\.json"):
        kl.Run.open(tmp_path / "run")
    with pytest.raises(kl.UserError, match=r"optim\.lr"):
        kl.run(*call, "optim.lr=-1", folder=tmp_path / "other", quiet=True)
    run = kl.run(*call, folder=tmp_path / "run", quiet=True)
    assert run.score_matrix().equals(session["run"].score_matrix())
    assert run.losses().equals(session["run"].losses())


def test_a_quiet_run_says_nothing(
    session: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    order = "benchmark.order=[mini_cb]"
    kl.run(*session["settings"], order, "report=false", folder=tmp_path / "run", quiet=True)
    heard = capfd.readouterr()
    assert "train" not in heard.err
    assert heard.out == ""

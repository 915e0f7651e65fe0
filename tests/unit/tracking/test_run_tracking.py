from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from kif_lightning.errors import UserError
from kif_lightning.interruption import EXIT_STATUS, Interrupted
from kif_lightning.reporting.figures import RunFigure
from kif_lightning.tracking import RunTracking, pictures, trackers
from kif_lightning.tracking.trackers import TensorBoardTracker
from tests.helpers.fake_runs import fake_run
from tests.unit.tracking.test_identity import identity


class Recorder:
    """Notes what it is told."""

    logger = None

    def __init__(
        self, told: list[Any], name: str, *, identity: Any, broken: str = "", sees: bool = True
    ) -> None:
        self.told, self.name, self.broken, self.shows_images = told, name, broken, sees
        told.append((name, identity.stand_ins))

    def start(self) -> None:
        if self.broken == "start":
            raise UserError("no room")

    def finish(self, results: Any, adapter: Path | None) -> None:
        if self.broken == "finish":
            raise OSError("no artifact")
        self.told.append((self.name, len(results["metrics"])))

    def image(self, key: str, pixels: Any, caption: str) -> None:
        if self.broken == "image":
            raise OSError("no picture")
        self.told.append((self.name, key))

    def close(self, status: str, exit_status: int) -> None:
        if self.broken == "close":
            raise ConnectionError("no network")
        self.told.append((self.name, status, exit_status))


def tracking(
    told: list[Any], *, a: str = "", b: str = "", sees: bool = True, folder: Path = Path()
) -> RunTracking:
    def new(name: str, broken: str) -> Any:
        return lambda identity: Recorder(told, name, identity=identity, broken=broken, sees=sees)

    known = replace(identity("order1"), folder=folder)
    return RunTracking(identity=known, new_trackers=[new("a", a), new("b", b)])


@pytest.mark.parametrize(
    ("error", "status", "exit_status"),
    [
        (None, "success", 0),
        (RuntimeError("x"), "failed", 1),
        (UserError("x"), "failed", 1),
        (SystemExit(3), "failed", 1),
        (Interrupted(), "interrupted", EXIT_STATUS),
        (KeyboardInterrupt(), "interrupted", 130),
    ],
)
def test_all_are_told_how_the_run_ended(
    error: BaseException | None, status: str, exit_status: int
) -> None:
    told: list[Any] = []
    with suppress(type(error) if error else ()), tracking(told).running(["stand-in data"]):
        if error is not None:
            raise error
    assert told[:2] == [("a", ("stand-in data",)), ("b", ("stand-in data",))]
    assert told[2:] == [("b", status, exit_status), ("a", status, exit_status)]


def test_what_has_been_opened_is_closed_where_another_cannot_be() -> None:
    told: list[Any] = []
    with pytest.raises(UserError, match="no room"), tracking(told, b="start").running([]):
        pytest.fail("it must not run")
    assert told[2:] == [("a", "failed", 1)]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of those that were drawn; one cannot be."""
    drawn: list[str] = []

    def new(name: str) -> RunFigure:
        def draw(_: Any) -> Figure:
            drawn.append(name)
            if name == "broken":
                raise ZeroDivisionError("no data")
            return Figure(figsize=(1, 1))

        return RunFigure(name=name, title="", caption="", draw=draw)

    monkeypatch.setattr(pictures, "RUN_FIGURES", tuple(map(new, ("first", "broken", "last"))))
    return drawn


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    begins = "Not told to the run's loggers: "
    messages = [record.getMessage() for record in caplog.records]
    return [text.removeprefix(begins) for text in messages if text.startswith(begins)]


@pytest.mark.parametrize(
    ("broken", "lost"),
    [
        ("finish", "the final results (Recorder) (OSError: no artifact)."),
        ("image", "the figure last (Recorder) (OSError: no picture)."),
        ("close", "how the run ended, success (Recorder) (ConnectionError: no network)."),
    ],
)
def test_what_cannot_be_told_at_the_end_costs_neither_the_run_nor_another_tracker(
    broken: str,
    lost: str,
    figures: list[str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    told: list[Any] = []
    run = tracking(told, a=broken, folder=fake_run(tmp_path / "run"))
    with run.running([]):
        run.finished()
    others = [line[1] for line in told[2:] if line[0] == "b"]
    assert others[1:] == ["figures/first", "figures/last", "success"]
    assert figures == ["first", "broken", "last"]
    assert "the figure broken (ZeroDivisionError: no data)." in warned(caplog)
    assert lost in warned(caplog)
    assert len(warned(caplog)) == (3 if broken == "image" else 2)


def test_a_run_that_cannot_be_read_back_is_whole_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[Any] = []
    run = tracking(told, folder=tmp_path)
    with run.running([]):
        run.finished()
    assert told[2:] == [("b", "success", 0), ("a", "success", 0)]
    assert len(warned(caplog)) == 1


def test_a_tracker_that_does_not_close_hides_no_failure() -> None:
    with pytest.raises(Interrupted), tracking([], a="close", b="close").running([]):
        raise Interrupted


def test_nothing_is_drawn_where_no_tracker_shows_it(figures: list[str], tmp_path: Path) -> None:
    run = tracking([], sees=False, folder=fake_run(tmp_path / "run"))
    with run.running([]):
        run.finished()
    assert figures == []


def test_without_trackers_nothing_is_asked_for() -> None:
    none = RunTracking()
    with none.running([]):
        none.started(lambda: pytest.fail("the stamp is not needed"))
        none.finished()
    assert none.loggers == []


def test_a_missing_tensorboard_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: Any, **__: Any) -> None:
        raise ModuleNotFoundError("neither is there")

    monkeypatch.setattr(trackers, "_OnSteps", absent)
    with pytest.raises(UserError, match=r"kif-lightning\[tensorboard\]"):
        TensorBoardTracker(name="t", identity=identity("order1"))

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest

from kif_lightning.errors import UserError
from kif_lightning.interruption import EXIT_STATUS, Interrupted
from kif_lightning.tracking import RunTracking, trackers
from kif_lightning.tracking.trackers import TensorBoardTracker
from tests.unit.tracking.test_identity import identity


class Recorder:
    """Notes what it is told."""

    logger = None

    def __init__(self, told: list[Any], name: str, *, identity: Any, broken: bool = False) -> None:
        self.told, self.name, self.broken = told, name, broken
        told.append((name, identity.stand_ins))

    def start(self) -> None:
        if self.broken:
            raise UserError("no room")

    def close(self, status: str, exit_status: int) -> None:
        self.told.append((self.name, status, exit_status))


def tracking(told: list[Any], *, broken: str = "") -> RunTracking:
    def new(name: str) -> Any:
        return lambda identity: Recorder(told, name, identity=identity, broken=name == broken)

    return RunTracking(identity=identity("order1"), new_trackers=[new("a"), new("b")])


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
    with pytest.raises(UserError, match="no room"), tracking(told, broken="b").running([]):
        pytest.fail("it must not run")
    assert told[2:] == [("a", "failed", 1)]


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

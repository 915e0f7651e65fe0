"""What is shown of a continual state."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from kif_lightning.continual_state import ContinualState, write_state
from kif_lightning.reporting.console import RunConsole
from kif_lightning.reporting.state_table import show_state
from tests.helpers.states import past, state

PROTOCOL = {"kif_lightning": "0.1.0", "device": "cpu"}


def shown(folder: Path, **changes: Any) -> str:
    config = {"seed": 1, "method": {"name": "on"}, "backbone": {"name": "tiny"}}
    made = state(config=config, protocols=(PROTOCOL,), **changes)
    digest = write_state(made, folder)
    said = io.StringIO()
    console = RunConsole(Console(file=said, width=200, soft_wrap=True))
    show_state(replace(made, digest=digest), folder, console)
    return said.getvalue()


def test_the_scores_are_put_together_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of all scores for each cell would be slow after hundreds of tasks."""
    asked = []
    whole: Any = ContinualState.score_matrix

    def counted(self: ContinualState) -> Any:
        asked.append(1)
        return whole.fget(self)

    monkeypatch.setattr(ContinualState, "score_matrix", property(counted))
    shown(tmp_path / "s", tasks=tuple(past(f"task{i}") for i in range(5)))
    assert len(asked) == 1


def test_scores_when_learnt_and_last_of_all(tmp_path: Path) -> None:
    tasks = (past("colour", on_0=50.0), past("[shape]"), past("size", on_0=25.0, on_2=100.0))
    text = shown(tmp_path / "s", tasks=tasks)
    rows = [line.split() for line in text.splitlines()]
    assert ["1", "colour", "exact_match", "50.0", "25.0", "3", "16", "+", "6"] in rows
    assert ["2", "[shape]", "exact_match", "-", "-", "16", "+", "6"] in rows
    assert ["3", "size", "exact_match", "100.0", "100.0", "3", "16", "+", "6"] in rows
    assert "-: not evaluated" in text
    assert text.startswith(f"State {tmp_path / 's'} - on stand-in data")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"keeps_memory": False, "memory": None}, "the method keeps none"),
        ({"memory": None}, "left out: it can learn no more tasks"),
        ({}, "1 raw rows of past tasks within"),
    ],
)
def test_whether_the_memory_is_in_it(tmp_path: Path, changes: Any, told: str) -> None:
    assert told in shown(tmp_path / "s", **changes)


def test_which_tasks_only_stand_for_real_ones(tmp_path: Path) -> None:
    tasks = (past("colour"), replace(past("shape"), stand_in=True))
    lines = shown(tmp_path / "s", tasks=tasks).splitlines()
    assert [("1 colour" in line, "(stand-in data)" in line) for line in lines[2:4]] == [
        (True, False),
        (False, True),
    ]

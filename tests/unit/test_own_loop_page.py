"""The example of docs/own_loop.md, run from the page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "own_loop.md"


def test_the_example_runs_and_prints_what_the_page_says(capsys: Any) -> None:
    text = PAGE.read_text(encoding="utf-8")
    (source,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (told,) = re.findall(r"```\n(loss on.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(source, str(PAGE), "exec"), names)  # noqa: S102
    printed = capsys.readouterr().out.splitlines()
    lines = told.splitlines()
    assert [line.split(":")[0] for line in printed] == [line.split(":")[0] for line in lines]
    for way in ("plain", "fused"):
        shown = [float(v) for v in told.split(f"{way}: ")[1].splitlines()[0].split()]
        # Other machines round otherwise, and 150 steps carry it on.
        assert names[way] == pytest.approx(shown, abs=0.05)
    assert sum(names["fused"]) < sum(names["plain"])
    assert all(names["fused"][task] < names["plain"][task] for task in (0, 1))

"""What a manifest says of a folder's tasks, and what is no manifest."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from kif_lightning.benchmarks.folder import read_manifest
from kif_lightning.errors import UserError

GOOD = {"kind": "generation", "metric": "rouge_l"}
FOREIGN = [
    [],
    "text",
    {"tasks": ["a"]},
    {"tasks": None},
    {"tasks": {"a": "text"}},
    {"collections": ["data"]},
    {"collections": {"data": "text"}},
    {"collections": {"data": {"tasks": ["a"]}}},
    {"tasks": {"a": {**GOOD, "metric": ["accuracy"]}}},
    {"tasks": {"a": {**GOOD, "kind": None}}},
    {"tasks": {"a": {**GOOD, "closed_answers": "no"}}},
    {"tasks": {"a": {**GOOD, "closed_answers": 1}}},
]


@pytest.mark.parametrize("content", [*map(json.dumps, FOREIGN), "{", "[" * 99_999, "\ud800"])
def test_no_manifest_of_tasks_is_refused_inside_and_told_beside(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (tmp_path / "manifest.json").write_bytes(content.encode(errors="surrogatepass"))
    with caplog.at_level(logging.WARNING):
        assert read_manifest(folder) == {}
    assert str(tmp_path / "manifest.json") in caplog.text
    (tmp_path / "manifest.json").rename(folder / "manifest.json")
    with pytest.raises(UserError) as error:
        read_manifest(folder)
    assert str(error.value).startswith(str(folder / "manifest.json"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("manifest", "expected"),
    [
        ({"name": "an extension", "version": 3}, {}),
        ({"tasks": {"a": GOOD, "b": {"rows": 3}}}, {"a": GOOD}),
        ({"collections": {"other": {}}, "tasks": {"a": GOOD}}, {"a": GOOD}),
        (
            {"tasks": {"a": {**GOOD, "metric": "accuracy", "closed_answers": False, "x": 1}}},
            {"a": {"kind": "generation", "metric": "exact_match", "closed_answers": False}},
        ),
    ],
)
def test_what_it_says(tmp_path: Path, manifest: Any, expected: dict[str, Any]) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert read_manifest(tmp_path) == expected

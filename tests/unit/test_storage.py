"""Atomic files and states: what comes back is what was kept, or an error that names the file."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

import kif_lightning.storage
from kif_lightning.errors import UserError
from kif_lightning.storage import (
    load_state,
    read_json,
    replacing,
    replacing_folder,
    save_state,
    write_json,
    write_json_lines,
    write_text,
)


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def test_two_processes_may_fill_the_same_folder(tmp_path: Path) -> None:
    with replacing_folder(tmp_path / "s") as first, replacing_folder(tmp_path / "s") as second:
        (first / "a").write_text("first")
        (second / "b").write_text("second")
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["a"]
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def same(found: Any, expected: Any) -> bool:
    """Equal in structure and, for tensors, in dtype, shape and every bit."""
    if isinstance(expected, Tensor):
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        return bits(found) == bits(expected)
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        return all(same(found[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(same, found, expected))
    return type(found) is type(expected) and found == expected


def state() -> dict[str, Any]:
    wide = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    return {
        "float32": torch.tensor([1 / 3, float("nan"), float("-inf"), -0.0, 1e-42]),
        "nested": {
            "bfloat16": wide.bfloat16(),
            "float64": wide.double() / 3,
            "list": [torch.tensor([1, -(1 << 62)]), {"deep": torch.tensor(2.5)}, "text", []],
        },
        "not contiguous": wide.T,
        "one storage": [wide[0], wide[0], wide[:, 1]],
        "no dimension": torch.tensor(7, dtype=torch.int64),
        "no element": torch.zeros(0, 3),
        "bool": torch.tensor([True, False]),
        "parameter": nn.Parameter(torch.ones(2)),
        "plain": {"none": None, "int": 1 << 60, "float": 0.1, "ü": "雨\n", "empty": {}, "t": True},
        "a/b": torch.zeros(1),
        "a": {"b": torch.ones(1)},
    }


def test_a_state_goes_round_bit_for_bit(tmp_path: Path) -> None:
    save_state(tmp_path / "deep" / "state", state())
    found = load_state(tmp_path / "deep" / "state")
    assert same(found, {**state(), "parameter": torch.ones(2)})
    assert not found["parameter"].requires_grad


def test_the_comparison_itself_sees_a_bit() -> None:
    assert not same({"x": torch.tensor([0.0])}, {"x": torch.tensor([-0.0])})
    assert not same({"x": 1}, {"x": True})


def test_no_pickle_and_nothing_else_is_written(tmp_path: Path) -> None:
    save_state(tmp_path / "state", state())
    names = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*"))
    files = ("contents.json", "state.json", "tensors.safetensors")
    assert names == ["state", *(f"state/{name}" for name in files)]
    json.loads((tmp_path / "state" / "state.json").read_text())


def test_a_state_without_tensors(tmp_path: Path) -> None:
    save_state(tmp_path / "state", {"a": [1, None]})
    assert load_state(tmp_path / "state") == {"a": [1, None]}


def test_saving_again_replaces_the_whole_state(tmp_path: Path) -> None:
    save_state(tmp_path / "state", {"old": torch.ones(3)})
    save_state(tmp_path / "state", {"new": torch.zeros(2)})
    assert same(load_state(tmp_path / "state"), {"new": torch.zeros(2)})


@pytest.mark.parametrize("bad", [object(), {1, 2}], ids=["object", "set"])
def test_a_state_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, bad: Any) -> None:
    save_state(tmp_path / "state", {"x": torch.ones(3), "n": 1})
    with pytest.raises((TypeError, ValueError)):
        save_state(tmp_path / "state", {"x": torch.zeros(3), "n": bad})
    assert same(load_state(tmp_path / "state"), {"x": torch.ones(3), "n": 1})
    save_state(tmp_path / "state", {"n": 2})
    assert load_state(tmp_path / "state") == {"n": 2}, "what the failure left is in nobody's way"


def test_numbers_as_keys_and_floats_that_json_lacks(tmp_path: Path) -> None:
    optimizer = {0: {"step": torch.tensor(3.0)}, 1: {"lr": 0.1, "betas": (0.9, 0.999)}}
    floats = [float("inf"), float("-inf"), 1.5]
    save_state(tmp_path / "state", {"optimizer": optimizer, "floats": floats, "nan": float("nan")})
    found = load_state(tmp_path / "state")
    assert same(found["optimizer"][0], optimizer[0])
    assert found["optimizer"][1] == {"lr": 0.1, "betas": [0.9, 0.999]}
    assert found["floats"] == floats
    assert math.isnan(found["nan"])


def test_a_full_disk_is_told_as_such_and_leaves_the_old_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_state(tmp_path / "state", {"x": torch.ones(3)})

    def full(*_: Any) -> None:
        raise SafetensorError("Error while serializing: No space left on device (os error 28)")

    monkeypatch.setattr(kif_lightning.storage, "save_file", full)
    with pytest.raises(OSError, match="No space left") as error:
        save_state(tmp_path / "state", {"x": torch.zeros(3)})
    assert error.value.errno == errno.ENOSPC
    assert same(load_state(tmp_path / "state"), {"x": torch.ones(3)})
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


@pytest.mark.parametrize("name", ["state.json", "tensors.safetensors"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-3]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\xff\xfe garbage"),
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()[:-1] + b"~"),
    ],
    ids=["truncated", "empty", "garbage", "missing", "one byte"],
)
def test_a_damaged_state_is_named(tmp_path: Path, name: str, damage: Callable[[Path], Any]) -> None:
    save_state(tmp_path / "state", {"x": torch.ones(50), "n": 1})
    damage(tmp_path / "state" / name)
    with pytest.raises(UserError, match="missing or damaged") as error:
        load_state(tmp_path / "state")
    assert str(tmp_path / "state" / name) in str(error.value)


@pytest.mark.parametrize("bad", [{"a": object()}, {"a": float("nan")}, [float("inf")]])
def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path: Path, bad: Any) -> None:
    path = tmp_path / "results.json"
    write_json(path, {"a": 1})
    with pytest.raises((TypeError, ValueError)):
        write_json(path, bad)
    assert read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_lines_that_cannot_be_written_leave_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    write_json_lines(path, [{"a": "ü\n"}, {"b": 2}])
    with pytest.raises(TypeError):
        write_json_lines(path, [{"a": 1}, {"a": object()}])
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"a": "ü\n"}, {"b": 2}]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "config.yaml"
    write_text(path, "old")

    def full(_: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_text(path, "new")
    assert path.read_text() == "old"
    monkeypatch.undo()
    write_text(path, "newer")
    assert [file.name for file in path.parent.iterdir()] == ["config.yaml"]
    assert path.read_text() == "newer"


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "shared.json"
    with replacing(path) as first:
        first.write(b"first")
        with replacing(path) as second:
            second.write(b"second")
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name == "nt", reason="has no such modes")
def test_others_may_read_what_the_umask_lets_them(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a", "")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("content", [None, b"", b'{"a": ', b"\xff"])
def test_reading_damaged_json_names_the_file(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "results.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_json(path)
    assert str(path) in str(error.value)

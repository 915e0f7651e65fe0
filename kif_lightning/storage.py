"""Atomic files, and nested states of tensors and plain values as safetensors + JSON (no pickle)."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from kif_lightning.errors import UserError

_TENSOR = "__tensor__"


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of ``path`` once it is whole and on the disk, or never."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own, for others may write the same file; not mkstemp, which lets none read it.
    temporary = path.with_name(f".{uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing."""
    with replacing(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; NaN is refused."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_json_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line, atomically."""
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    write_text(path, "\n".join(lines) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        UserError: missing or damaged, naming the file.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is missing or damaged ({error}).") from error


def save_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Write nested dicts and lists of tensors and JSON values as a folder, whole or not at all."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    tensors: dict[str, Tensor] = {}
    plain = _take_out(dict(state), "", tensors)
    save_file(tensors, str(temporary / "tensors.safetensors"))
    with (temporary / "tensors.safetensors").open("rb") as file:
        os.fsync(file.fileno())
    write_json(temporary / "state.json", plain)
    if folder.exists():
        shutil.rmtree(folder)
    temporary.rename(folder)


def load_state(folder: Path) -> dict[str, Any]:
    """Read what :func:`save_state` wrote.

    Raises:
        UserError: missing or damaged, naming the file.
    """
    plain = read_json(folder / "state.json")
    try:
        tensors = load_file(str(folder / "tensors.safetensors"))
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder / 'tensors.safetensors'} is missing or damaged.") from error
    return _put_back(plain, tensors)


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Nested dicts as dotted keys; lists stay values."""
    if not isinstance(value, dict):
        return {path: value}
    found: dict[str, Any] = {}
    for key, item in value.items():
        found.update(flat(item, f"{path}.{key}" if path else str(key)))
    return found


def _take_out(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        path = f"{len(tensors)}{path}"  # keys may hold a slash: the number keeps names apart
        tensors[path] = value.detach().cpu().contiguous().clone()
        return {_TENSOR: path}
    if isinstance(value, Mapping):
        return {key: _take_out(item, f"{path}/{key}", tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_take_out(item, f"{path}/{i}", tensors) for i, item in enumerate(value)]
    return value


def _put_back(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, dict):
        if value.keys() == {_TENSOR}:
            return tensors[value[_TENSOR]]
        return {key: _put_back(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [_put_back(item, tensors) for item in value]
    return value

"""Atomic files, and nested states of tensors and plain values as safetensors + JSON (no pickle)."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import zlib
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

_TENSOR, _ITEMS, _FLOAT = "__tensor__", "__items__", "__float__"
TENSORS, PLAIN, CONTENTS = "tensors.safetensors", "state.json", "contents.json"


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
        _fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A new folder to fill, which takes the place of ``folder`` once it is whole, or never."""
    temporary = folder.with_name(f".{folder.name}.{uuid4().hex}.tmp")  # its own, as above
    temporary.mkdir(parents=True)
    try:
        with _os_errors(folder):
            yield temporary
        for path in (*temporary.rglob("*"), temporary):
            _fsync(path)
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
        _fsync(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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
    """Write nested dicts and lists of tensors and plain values as a folder, whole or not at all.

    Plain values are what JSON knows, numbers as keys, NaN and infinity; tuples come back as lists.
    The folder's contents.json, written last, holds size and CRC-32 of the other files.

    Raises:
        OSError: the disk is full, or cannot be written.
    """
    with replacing_folder(folder) as temporary:
        tensors: dict[str, Tensor] = {}
        plain = _take_out(dict(state), "", tensors)
        save_file(tensors, str(temporary / TENSORS))
        write_json(temporary / PLAIN, plain)
        write_json(temporary / CONTENTS, {n: _digest(temporary / n) for n in (TENSORS, PLAIN)})


def check_state(folder: Path) -> None:
    """Compare every file of a saved state with what was written.

    Raises:
        UserError: missing or damaged, naming the file.
    """
    contents = read_json(folder / CONTENTS)
    for name in (TENSORS, PLAIN):
        path = folder / name
        try:
            found = _digest(path)
        except OSError as error:
            raise UserError(f"{path} is missing or damaged ({error}).") from error
        if not isinstance(contents, dict) or contents.get(name) != found:
            raise UserError(
                f"{path} is missing or damaged (its size or CRC-32 is not what was written)."
            )


def own_folder(folder: str | os.PathLike[str], keys: set[str]) -> Path:
    """The absolute path to write a state to, if there is none, or an empty one, or its like.

    Args:
        folder: where :func:`save_state` shall write.
        keys: what the state holds; an earlier state of the same keys may be replaced.

    Raises:
        UserError: something else is there, which would be lost, or one works within it.
    """
    place = Path(folder).resolve()
    held = {path.name for path in place.iterdir()} if place.is_dir() else set()
    earlier = held == {TENSORS, PLAIN, CONTENTS} and read_json(place / PLAIN).keys() == keys
    free = not held and (place.is_dir() or not place.exists())
    if place == Path.cwd() or not (earlier or free):
        raise UserError(
            f"Expected a folder that is new, empty, or of an earlier save, got {place}, which "
            "holds other things, is a file or the working folder: name another."
        )
    return place


def load_state(folder: Path) -> dict[str, Any]:
    """Read what :func:`save_state` wrote.

    Raises:
        UserError: missing or damaged, naming the file.
    """
    check_state(folder)
    plain = read_json(folder / PLAIN)
    try:
        tensors = load_file(str(folder / TENSORS))
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder / TENSORS} is missing or damaged.") from error
    return _put_back(plain, tensors)


def _digest(path: Path) -> dict[str, int]:
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            crc = zlib.crc32(chunk, crc)
    return {"bytes": path.stat().st_size, "crc32": crc}


def _fsync(path: Path) -> None:
    """To the disk; a rename is there only with its folder, which not every system lets one open."""
    if os.name == "posix":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _os_errors(path: Path) -> Iterator[None]:
    """Libraries in Rust hide the system's errors in texts: a full disk is to be told as such."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


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
        items = [(key, _take_out(item, f"{path}/{key}", tensors)) for key, item in value.items()]
        by_text = all(isinstance(key, str) for key in value)
        return dict(items) if by_text else {_ITEMS: [list(item) for item in items]}
    if isinstance(value, list | tuple):
        return [_take_out(item, f"{path}/{i}", tensors) for i, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        return {_FLOAT: str(value)}
    return value


def _put_back(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, dict):
        if value.keys() == {_TENSOR}:
            return tensors[value[_TENSOR]]
        if value.keys() == {_ITEMS}:
            return {key: _put_back(item, tensors) for key, item in value[_ITEMS]}
        if value.keys() == {_FLOAT}:
            return float(value[_FLOAT])
        return {key: _put_back(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [_put_back(item, tensors) for item in value]
    return value

"""Offline wandb runs read back from their files, whose package has no reader of its own."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import wandb
from wandb.proto import wandb_internal_pb2

BLOCK, HEADER, FULL, LAST = 32768, 7, 1, 4


@dataclass
class WandbRun:
    """What one file holds."""

    folder: Path
    run: Any = None
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    axes: dict[str, str] = field(default_factory=dict)
    """Name or pattern of a metric -> the metric that is its axis."""
    artifacts: list[Any] = field(default_factory=list)
    exit_code: int | None = None
    """None: the file ends without a word of the end."""

    def at(self, key: str, **where: Any) -> Any:
        """The one value of the key in a line with these values."""
        wanted = where.items()
        (found,) = [line[key] for line in self.history if key in line and wanted <= line.items()]
        return found

    def table(self, key: str, **where: Any) -> tuple[list[str], list[list[Any]]]:
        """Columns and rows of a table."""
        path = self.folder / "files" / self.at(key, **where)["path"]
        content = json.loads(path.read_text())
        return content["columns"], content["data"]


def wandb_runs(folder: Path) -> list[WandbRun]:
    """Every offline run below a folder, in the order of their starts."""
    wandb.teardown()  # its process writes on after a run's finish() has returned
    paths = sorted(folder.glob("**/offline-run-*/run-*.wandb"), key=lambda p: p.stat().st_ctime_ns)
    return [_read(path) for path in paths]


def _read(path: Path) -> WandbRun:
    found = WandbRun(folder=path.parent)
    for record in _records(path.read_bytes()):
        kind = record.WhichOneof("record_type")
        content = getattr(record, kind)
        if kind == "run":
            found.run = content
            _update(found.config, content.config.update)
        elif kind == "config":
            _update(found.config, content.update)
        elif kind == "summary":
            _update(found.summary, content.update)
        elif kind == "history":
            found.history.append(_update({}, content.item))
        elif kind == "metric":
            found.axes[content.name or content.glob_name] = content.step_metric
        elif kind == "artifact":
            found.artifacts.append(content)
        elif kind == "exit":
            found.exit_code = content.exit_code
    return found


def _update(target: dict[str, Any], items: Any) -> dict[str, Any]:
    for item in items:
        *path, last = item.nested_key or [item.key]
        place = target
        for name in path:
            place = place.setdefault(name, {})
        place[last] = json.loads(item.value_json)
    return target


def _records(data: bytes) -> Iterator[Any]:
    """LevelDB's log: blocks of chunks (CRC, length, kind), a record being one or several."""
    place, parts = HEADER, b""
    while place + HEADER <= len(data):
        room = BLOCK - place % BLOCK
        if room < HEADER:
            place += room
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        place += HEADER
        parts += data[place : place + length]
        place += length
        if kind in (FULL, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record

"""A corrected copy of tasks; what it is made from is never touched."""

from __future__ import annotations

import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np

from kif_lightning.benchmarks.doctor.scan import Flags, Numbers, Scan, repeats, scan
from kif_lightning.benchmarks.doctor.texts import is_damaged_row, mended_row
from kif_lightning.errors import UserError
from kif_lightning.interfaces import Row, SourceTask, Split
from kif_lightning.storage import write_json


@dataclass(frozen=True, kw_only=True, eq=False)
class MendedRows(Sequence[Row]):
    """Rows mended as they are looked at.

    Args:
        rows: (N,) the original ones.
        closed_answers: whether outputs are label words, which stay as they are.
        kept: (N,) which rows are in the copy.
        new_ids: place in ``rows`` -> id in the copy.
    """

    rows: Sequence[Row]
    closed_answers: bool
    kept: Flags
    new_ids: Mapping[int, str] = field(default_factory=dict)

    @cached_property
    def _places(self) -> Numbers:
        return np.flatnonzero(self.kept)

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Row, ...]: ...

    def __getitem__(self, index: int | slice) -> Row | tuple[Row, ...]:
        if isinstance(index, slice):
            return tuple(self[place] for place in range(*index.indices(len(self))))
        place = int(self._places[index])
        return self._mended(place, self.rows[place])

    def __iter__(self) -> Iterator[Row]:
        for place, row in enumerate(self.rows):
            if self.kept[place]:
                yield self._mended(place, row)

    def _mended(self, place: int, row: Row) -> Row:
        row = mended_row(row, closed_answers=self.closed_answers)
        return replace(row, id=self.new_ids[place]) if place in self.new_ids else row


def fix(task: SourceTask) -> tuple[SourceTask, dict[str, int]]:
    """The task mended, and for each check how many rows were dropped or changed for it.

    Control characters are removed and damaged encoding is repaired; then rows are dropped that are
    unreadable or blank, repeat an earlier one of their split, contradict another one of train
    (closed answers), are of train or dev and stand in test, or are of dev and stand in train.
    Reused ids get a number behind them. Label words are never changed. The splits' sha256 are
    empty, for they are of files; a dev split of which nothing is left is left out.

    Raises:
        UserError: nothing would be left of train or test.
    """
    counts: Counter[str] = Counter()
    splits: dict[str, MendedRows] = {}
    kept: dict[str, Flags] = {}
    scans: dict[str, Scan] = {}
    for name, split in task.splits.items():
        counts["unreadable_row"] += split.num_problems
        before = _scanned(task, split.rows)
        counts["control_character"] += len(before.places["control_character"])
        # The scan looks closely at some rows only.
        counts["mojibake"] += sum(
            whole and is_damaged_row(row, closed_answers=task.closed_answers)
            for row, whole in zip(split.rows, before.whole.tolist(), strict=True)
        )
        mended = MendedRows(
            rows=split.rows,
            closed_answers=task.closed_answers,
            kept=np.ones(len(split.rows), dtype=np.bool_),
        )
        kept[name] = mended.kept.copy()
        splits[name], scans[name] = mended, _scanned(task, mended)

    def drop(split: str, check: str, places: Numbers) -> None:
        counts[check] += int(kept[split][places].sum())
        kept[split][places] = False

    for name, found in scans.items():
        for check in ("blank_input", "blank_output"):
            drop(name, check, found.places[check])
        drop(name, "duplicate_rows", found.duplicates)
        if name == "train" and task.closed_answers:
            drop(name, "conflicting_rows", found.conflicts)
    for name, other in (("train", "test"), ("dev", "test"), ("dev", "train")):
        if name in scans and other in scans:
            check = "_".join([*sorted((name, other), key=_ORDER.index), "overlap"])
            drop(name, check, scans[name].inputs_in(scans[other], among=kept[other]))
    copies = {}
    for name, mended in splits.items():
        new_ids = _new_ids(mended.rows, scans[name], kept[name])
        counts["reused_id"] += len(new_ids)
        if kept[name].any():
            rows = replace(mended, kept=kept[name], new_ids=new_ids)
            copies[name] = Split(rows=rows, sha256="")
        elif name != "dev":
            raise UserError(
                f"Task {task.name}: no row of {name} would be left by the fix; see what is wrong "
                "with its rows and mend them by hand."
            )
    return replace(task, splits=copies), {check: n for check, n in counts.items() if n}


_ORDER = ("train", "dev", "test")


def _scanned(task: SourceTask, rows: Sequence[Row]) -> Scan:
    return scan(rows, closed_answers=task.closed_answers, name=task.name)


def _new_ids(rows: Sequence[Row], found: Scan, kept: Flags) -> dict[int, str]:
    """Place -> id, for kept rows whose id an earlier kept one has."""
    again, _ = repeats(found.ids, found.ids, kept)
    if not len(again):
        return {}
    taken, numbers, new = set(found.ids.tolist()), Counter[str](), {}
    wanted = set(again.tolist())
    for place, row in enumerate(rows):
        if place in wanted:
            while True:
                numbers[row.id] += 1
                name = f"{row.id}-{numbers[row.id] + 1}"
                if hash(name) not in taken:
                    break
            taken.add(hash(name))
            new[place] = name
    return new


def write_fixed(
    tasks: Iterable[SourceTask], out: Path, *, original: Path | None = None
) -> dict[str, dict[str, int]]:
    """Write the fixed tasks as a folder of ``<task>/<split>.jsonl`` and ``manifest.json``.

    A task named ``<collection>/<task>`` stands in the folder of its collection.

    The folder appears whole or not at all.

    Args:
        tasks: are read, mended and written one by one.
        out: must not exist, or be empty.
        original: the folder that the tasks come from, if any.

    Returns:
        For each task what :func:`fix` counted.

    Raises:
        UserError: ``out`` holds something, lies in ``original`` or cannot be written; a task of
            which nothing would be left.
    """
    if original is not None and out.resolve().is_relative_to(original.resolve()):
        raise UserError(
            f"The corrected copy must not lie in the folder it is made from, got {out}: name a "
            "folder elsewhere."
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"The corrected copy needs a new or an empty folder, but there is {out}.")
    counts: dict[str, dict[str, int]] = {}
    described: dict[str, dict[str, Any]] = defaultdict(dict)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
            copy = Path(temporary) / "copy"
            for task in tasks:
                fixed, counts[task.name] = fix(task)
                for name, split in fixed.splits.items():
                    _write_rows(copy / task.name / f"{name}.jsonl", split.rows)
                collection, _, name = task.name.rpartition("/")
                described[collection][name] = {
                    "kind": task.kind,
                    "metric": task.metric,
                    "closed_answers": task.closed_answers,
                }
            manifest: dict[str, Any] = {"tasks": described.pop("", {})}
            if described:
                held = {collection: {"tasks": tasks} for collection, tasks in described.items()}
                manifest["collections"] = held
            write_json(copy / "manifest.json", manifest)
            if out.exists():
                out.rmdir()
            copy.rename(out)
    except OSError as error:
        raise UserError(
            f"The corrected copy cannot be written to {out} ({error.strerror}): name a folder that "
            "can be."
        ) from error
    return counts


def _write_rows(path: Path, rows: Iterable[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            record = {"id": row.id, "input": row.input, "output": row.output}
            file.write(f"{json.dumps(record, ensure_ascii=False)}\n")

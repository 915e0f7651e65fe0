"""Prompts of a file or of standard input: whole, one a line or a row, or built of columns."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from kif_lightning.benchmarks.files import SUFFIXES, Record, place, read_lines, read_records
from kif_lightning.benchmarks.files import named as listed
from kif_lightning.benchmarks.own import Layout
from kif_lightning.benchmarks.own.layout import text_of
from kif_lightning.benchmarks.rows import rows_of
from kif_lightning.errors import UserError
from kif_lightning.interfaces import Row

STANDARD_INPUT = "standard input"


@dataclass(frozen=True, kw_only=True)
class PromptFile:
    """The prompts of a file, read anew each time: a row's ``output`` is empty.

    Args:
        path: where they are; by its suffix, rows of named columns, else lines.
        name: what messages call it.
        layout: how prompts of the task are built of columns, where they are.
        built: whether all prompts are to be built so; else a row that has not all the columns, but
            an ``input``, is asked that as it stands.
        hint: added where a row has no prompt.
    """

    path: Path
    name: str
    layout: Layout | None = None
    built: bool = False
    hint: str = ""

    def __iter__(self) -> Iterator[Row]:
        """The rows; raises UserError at the first that has no prompt, naming its place."""
        rows = self.path.suffix.lower() in SUFFIXES
        records = read_records(self.path) if rows else read_lines(self.path)
        try:
            yield from rows_of(records, self._row, lambda number: place(self.path, number))
        except UserError as error:
            raise UserError(str(error).replace(str(self.path), self.name)) from error
        except OSError as error:
            raise UserError(f"{self.name} cannot be read ({error.strerror or error}).") from error

    def count(self) -> int:
        """How many prompts there are, all of them read.

        Raises:
            UserError: there is none, or one that is wrong.
        """
        number = sum(1 for _ in self)
        if not number:
            raise UserError(
                f"There is no prompt in {self.name}: expected one a line, or rows with an 'input'."
            )
        return number

    def _row(self, record: Record, number: int) -> Row:
        column = (self.layout.id if self.layout else None) or "id"
        known = text_of(record, column, "id") if column in record else str(number)
        return Row(id=known, input=self._prompt(record), output="")

    def _prompt(self, record: Record) -> str:
        if self.layout is not None and (self.built or self._has_columns(record)):
            return self.layout.prompt_of(record)
        prompt = record.get("input")
        if not isinstance(prompt, str) or not prompt.strip():
            got = f"got {prompt!r:.40}" if "input" in record else f"got {listed(record)}"
            raise UserError(f"expected the whole prompt in 'input', {got}{self.hint}.")
        return prompt

    def _has_columns(self, record: Record) -> bool:
        assert self.layout is not None
        return "input" not in record or all(c in record for c in self.layout.asks_for)


@contextmanager
def prompt_file(
    source: Path | None, *, layout: Layout | None = None, built: bool = False, hint: str = ""
) -> Iterator[PromptFile]:
    """The prompts of ``source``; None: of standard input.

    What is no file of a known suffix is copied to a temporary one, so that it can be read twice:
    its first line tells rows in JSON from plain lines.

    Args:
        source: a file, or a pipe.
        layout: see :class:`PromptFile`.
        built: the same.
        hint: the same.

    Raises:
        UserError: there is no such file, or it cannot be read.
    """
    if source is not None and source.suffix.lower() in SUFFIXES and source.is_file():
        yield PromptFile(path=source, name=str(source), layout=layout, built=built, hint=hint)
        return
    name = STANDARD_INPUT if source is None else str(source)
    with tempfile.TemporaryDirectory() as folder:
        path = _copied(source, Path(folder))
        yield PromptFile(path=path, name=name, layout=layout, built=built, hint=hint)


def _copied(source: Path | None, folder: Path) -> Path:
    if source is None:
        return _copy(sys.stdin.buffer, folder)
    try:
        with source.open("rb") as file:
            return _copy(file, folder)
    except OSError as error:
        raise UserError(
            f"The prompts in {source} cannot be read ({error.strerror or error}): give a file of "
            f"lines, or one named {', '.join(SUFFIXES)}."
        ) from error


def _copy(source: BinaryIO, folder: Path) -> Path:
    path = folder / "prompts"
    with path.open("wb") as file:
        shutil.copyfileobj(source, file)
    with path.open("rb") as file:
        # A byte order mark may precede it; no line of JSON is as short as to need more.
        start = file.read(2**16).removeprefix(b"\xef\xbb\xbf").lstrip()
    return path.rename(path.with_suffix(".jsonl" if start.startswith(b"{") else ".txt"))

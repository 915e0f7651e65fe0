"""Prompts of a file or of standard input: whole, one a line or a row, or built of columns."""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from kif_lightning.benchmarks.files import (
    SUFFIXES,
    Record,
    Records,
    place,
    read_json_lines,
    read_lines,
    read_records,
)
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
        path: where they are.
        name: what messages call it.
        read: the file's records, of named columns.
        layout: how prompts of the task are built of columns, where they are.
        built: whether all prompts are to be built so; else a row that has not all the columns, but
            an ``input``, is asked that as it stands.
        hint: added where a row has no prompt.
    """

    path: Path
    name: str
    read: Callable[[Path], Records]
    layout: Layout | None = None
    built: bool = False
    hint: str = ""

    def __iter__(self) -> Iterator[Row]:
        """The rows; raises UserError at the first that has no prompt, naming its place."""
        try:
            yield from rows_of(
                self.read(self.path), self._row, lambda number: place(self.path, number)
            )
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

    Where the suffix does not tell the format, the first line tells rows in JSON from plain lines.

    Args:
        source: a file, or a pipe.
        layout: see :class:`PromptFile`.
        built: the same.
        hint: the same.

    Raises:
        UserError: there is no such file, it cannot be read, or it is a JSON array.
    """
    name = STANDARD_INPUT if source is None else str(source)
    with _file_of(source) as path:
        read = read_records if path.suffix.lower() in SUFFIXES else _reader_by_start(path, name)
        yield PromptFile(path=path, name=name, read=read, layout=layout, built=built, hint=hint)


@contextmanager
def _file_of(source: Path | None) -> Iterator[Path]:
    """The file itself; of a pipe, which can be read but once, a temporary copy."""
    with ExitStack() as until_read:
        try:
            if source is not None and source.is_file():
                path = source
            else:
                folder = until_read.enter_context(tempfile.TemporaryDirectory())
                path = Path(folder) / ("prompts" if source is None else source.name)
                given = nullcontext(sys.stdin.buffer) if source is None else source.open("rb")
                with given as pipe, path.open("wb") as file:
                    shutil.copyfileobj(pipe, file)
            path.open("rb").close()
        except OSError as error:
            raise UserError(
                f"The prompts in {source or STANDARD_INPUT} cannot be read "
                f"({error.strerror or error}): give a file of lines, or one named "
                f"{', '.join(SUFFIXES)}."
            ) from error
        yield path


def _reader_by_start(path: Path, name: str) -> Callable[[Path], Records]:
    with path.open("rb") as file:
        # A byte order mark may precede it; no line of JSON is as short as to need more.
        start = file.read(2**16).removeprefix(b"\xef\xbb\xbf").lstrip()
    if re.match(rb'\[\s*[{"]', start):
        raise UserError(
            f"{name} begins as a JSON array: expected JSON lines, an object with 'input' on each "
            "(jq -c '.[]' writes an array of objects so), or plain text."
        )
    return read_json_lines if start.startswith(b"{") else read_lines

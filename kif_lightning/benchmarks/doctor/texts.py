"""Damage within a text, and its repair."""

from __future__ import annotations

import re
from dataclasses import replace

import ftfy
from ftfy.chardata import CHARMAP_ENCODINGS

from kif_lightning.interfaces import Row

_CONTROLS = bytes([*range(9), 11, 12, *range(14, 32), 127])
CONTROL = re.compile(f"[{re.escape(_CONTROLS.decode())}]")
"""C0 controls but tab, line feed and carriage return; C1 controls are damaged encoding."""
LOOKED_AT, MOST_LOOKS = 500, 4
"""Characters of a part of a long text, and how many parts."""
LOST = "\ufffd"
"""What stands where a character was lost for good."""


def _read_as(first: int, last: int) -> str:
    """What bytes become that were UTF-8 and were read in a single-byte encoding."""
    characters = bytes(range(first, last + 1))
    read = "".join(characters.decode(encoding, "ignore") for encoding in CHARMAP_ENCODINGS)
    return "".join(sorted(set(read) - {LOST}))


_C1 = "\x80-\x9f"
_FIRST, _NEXT = re.escape(_read_as(0xC2, 0xF4)), re.escape(_read_as(0x80, 0xBF))
_SPACED = "".join(_read_as(b, b) for b in (0xC2, 0xC3, 0xC5, 0xCE, 0xD0, 0xD9, 0xE2, 0xE3, 0xF0))
SUSPECT = re.compile(f"[{_FIRST}{_C1}](?:(?<=[{_C1}])|[{_NEXT}]|(?<=[{re.escape(_SPACED)}]) )")
"""Without a match there is nothing to repair, and looking closer takes 50 times longer.

A first byte of UTF-8 and a following one (or the space that a no-break space has become), or a C1
control.
"""


def has_control(encoded: bytes) -> bool:
    """Whether a text, given as UTF-8, holds a control character."""
    return len(encoded.translate(None, _CONTROLS)) < len(encoded)


def is_damaged(text: str) -> bool:
    """Whether its encoding is damaged in a way that can be repaired."""
    return not text.isascii() and _repaired(text) != text


def is_damaged_row(row: Row, *, closed_answers: bool) -> bool:
    """Whether a text of the row is damaged; the words of closed answers are no texts."""
    return is_damaged(row.input) or (not closed_answers and is_damaged(row.output))


def looks_damaged(row: Row, *, closed_answers: bool) -> bool:
    """As :func:`is_damaged_row`, but of a long text only some parts are looked at."""
    return _damaged_in_part(row.input) or (not closed_answers and _damaged_in_part(row.output))


def _damaged_in_part(text: str) -> bool:
    if len(text) <= LOOKED_AT:
        return is_damaged(text)
    end = 0
    for _ in range(MOST_LOOKS):
        suspect = SUSPECT.search(text, end)
        if suspect is None:
            return False
        start = max(0, suspect.start() - LOOKED_AT // 4)
        end = start + LOOKED_AT
        if is_damaged(text[start:end]):
            return True
    return False


def mended_text(text: str) -> str:
    """The text without control characters, its encoding repaired."""
    while True:
        mended = _repaired(CONTROL.sub("", text))
        if mended == text:
            return text
        text = mended  # a repair may bring a control character to light, and the reverse


def mended_row(row: Row, *, closed_answers: bool) -> Row:
    """The row with both texts mended; the words of closed answers stay as they are."""
    output = row.output if closed_answers else mended_text(row.output)
    mended = mended_text(row.input)
    if mended == row.input and output == row.output:
        return row
    return replace(row, input=mended, output=output)


def _repaired(text: str) -> str:
    return ftfy.fix_encoding(text) if SUSPECT.search(text) else text


def shown(row_id: str, text: str, start: int = 0) -> str:
    """A row as an example: its id and some of its text, around a place in it."""
    first = max(0, start - 20)
    cut = text[first : first + 60]
    return f"{row_id}: {'...' if first else ''}{cut!r}{'...' if first + 60 < len(text) else ''}"

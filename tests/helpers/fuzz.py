"""Seeded data files, whole and damaged, each with what must be read of it.

What is expected is decided here by the documented rules, without the reader's code: strict UTF-8;
one JSON object a line, its keys different, no NaN; CSV and TSV with quotes as in RFC 4180, lines
ended by line feeds; id, input and output are texts, input not blank.
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kif_lightning.interfaces import Row

LONGEST = 2**15
"""Bytes of a line; the test sets the reader's limit to it."""
COLUMNS = ("id", "input", "output")

Outcome = Row | int
"""A row, or the number of the line (Parquet: row) that must be refused."""


@dataclass(frozen=True)
class FuzzedFile:
    """``expected`` is None where a damaged Parquet file may be refused or be read as ``whole``."""

    suffix: str
    content: bytes
    expected: list[Outcome] | None
    what: str
    whole: tuple[Row, ...] = ()


def fuzzed_file(rng: random.Random) -> FuzzedFile:
    """The next file of the generator."""
    return rng.choices((_json_lines, _csv, _parquet), (5, 4, 1))[0](rng)


# ---------------------------------------------------------------------------------- texts


_PIECES = (
    *(
        "good",
        "bad",
        "Where?",
        "Ü",
        "雨",
        "😀",
        "é",
        "\u2028",
        "\x85",
        "\ufeff",
        "\x00",
        "\x7f",
        '"',
    ),
    *(
        "'",
        ",",
        "\t",
        "\\",
        "\n",
        "\r",
        "\r\n",
        "{",
        "}",
        "[",
        "]",
        ":",
        " ",
        "  ",
        "NaN",
        "\\ud800",
    ),
)


def _text(rng: random.Random, without: str = "") -> str:
    text = "x" + "".join(rng.choices(_PIECES, k=rng.randrange(8)))
    return "".join(c for c in text if c not in without)


def _row(rng: random.Random, without: str = "") -> Row:
    output = "" if rng.random() < 0.1 else _text(rng, without)
    return Row(id=_text(rng, without), input=_text(rng, without), output=output)


def _nested(rng: random.Random, depth: int = 3) -> Any:
    if depth == 0 or rng.random() < 0.3:
        return rng.choice([None, True, 1, -2.5e300, 0.1, _text(rng), 10**30])
    if rng.random() < 0.5:
        return [_nested(rng, depth - 1) for _ in range(rng.randrange(4))]
    return {f"k{i}": _nested(rng, depth - 1) for i in range(rng.randrange(4))}


# ---------------------------------------------------------------------------------- JSON lines


def _object(rng: random.Random, row: Row) -> str:
    """A row as a JSON line, in one of the ways that mean the same."""
    pairs = [("id", row.id), ("input", row.input), ("output", row.output)]
    if rng.random() < 0.3:
        pairs += [("extra", _nested(rng)), ("more\n", {"id": 1, "input": None})]  # type: ignore[list-item]
    rng.shuffle(pairs)
    separators = rng.choice([(",", ":"), (", ", ": "), (" ,\t", " : ")])
    text = json.dumps(dict(pairs), ensure_ascii=rng.random() < 0.5, separators=separators)
    if rng.random() < 0.1:
        depth = rng.choice([1, 5, 100])
        text = text[:-1] + ', "deep": ' + "[" * depth + "]" * depth + "}"
    return rng.choice(["", "", " ", "\t "]) + text + rng.choice(["", "", " ", "\t"])


def _bad_json(rng: random.Random, text: str) -> bytes:
    """A line that must be refused, made of a good one."""
    body = text.strip(" \t")
    inner = body[1:]
    given = json.loads(body)
    key = rng.choice(COLUMNS)
    digits = "1" * 5000
    made: list[Callable[[], str | bytes]] = [
        lambda: body[: rng.randrange(1, len(body))],
        lambda: json.dumps({**given, key: rng.choice([None, 1, 1.5, True, [], {}, ["x"]])}),
        lambda: json.dumps({k: v for k, v in given.items() if k != key}),
        lambda: json.dumps({**given, "input": rng.choice(["", " ", "\n\t", "\u3000"])}),
        lambda: json.dumps(list(given.values())),
        lambda: rng.choice(
            ["1", '"text"', "null", "true", "NaN", "-Infinity", "[", "{", "{}", "]"]
        ),
        lambda: "{" + f'"n": {rng.choice(["NaN", "Infinity", "-Infinity"])}, ' + inner,
        lambda: "{" + f'"{key}": "first", ' + inner,
        lambda: "{" + '"m": {"t\\n": 1, "t\\n": 2}, ' + inner,
        lambda: body + rng.choice([" ", "", ","]) + body,
        lambda: body + rng.choice([",", ";", "}", "\x0b", "\x0c", "\u00a0", "\x00", "\ufeff"]),
        lambda: rng.choice([",", "\x0c", "\u2003", "\x00", "\ufeff\ufeff"]) + body,
        lambda: "{" + '"deep": ' + "[" * 10_000 + "]" * 10_000 + ", " + inner,
        lambda: "[" * 10_000,
        lambda: '{"a":' * 10_000,
        lambda: "{" + f'"half": "{rng.choice(SURROGATES)}", ' + inner,
        lambda: "{" + f'"{rng.choice(SURROGATES)}": "half", ' + inner,
        lambda: "{" + f'"digits": {digits}, ' + inner,
        lambda: "{" + '"bare": "\t", ' + inner,
        lambda: "{" + "'quotes': 1, " + inner,
        lambda: "{" + '"number": 01, ' + inner,
        lambda: "{" + f'"long": "{"x" * LONGEST}", ' + inner,
        lambda: rng.choice(NOT_UTF8) + body.encode(),
        lambda: body[:-1].encode() + b', "raw": "' + rng.choice(NOT_UTF8) + b'"}',
    ]
    bad = rng.choice(made)()
    return bad.encode() if isinstance(bad, str) else bad


SURROGATES = ("\\ud800", "\\uDC00", "\\uDfFf", "\\ud83d \\ude00", "\\ude00\\ud83d", "\\\\\\ud800")
NOT_UTF8 = (
    b"\xff",
    b"\xc3(",
    b"\xe9",
    b"\x80",
    b"\xed\xa0\x80",
    b"\xf8\x88\x80\x80\x80",
    b"\xc0\xaf",
)


def _json_lines(rng: random.Random) -> FuzzedFile:
    end = rng.choice([b"\n", b"\n", b"\r\n"])
    lines: list[bytes] = []
    expected: list[Outcome] = []
    for number in range(1, rng.randrange(14)):
        row = _row(rng)
        text = _object(rng, row)
        kind = rng.choices(("good", "blank", "wrong"), (8, 1, rng.choice([0, 0, 1, 4])))[0]
        if kind == "blank":
            lines.append(rng.choice([b"", b" ", b"\t", b"\r"]))
        elif kind == "wrong":
            lines.append(_bad_json(rng, text))
            expected.append(number)
        else:
            lines.append(text.encode())
            expected.append(row)
    mark = rng.choice([b"", b"", b"\xef\xbb\xbf"])
    content = mark + end.join(lines) + rng.choice([b"", end])
    if lines[:1] and lines[0].startswith(b"\xef\xbb\xbf") and not mark:
        # What is one mark too many in other lines is the file's own here.
        expected = json_outcomes(content)
    suffix = rng.choice([".jsonl", ".jsonl", ".ndjson", ".json", ".JSONL"])
    what, damaged = _damaged(rng, content)
    return FuzzedFile(
        suffix, damaged, expected if damaged == content else json_outcomes(damaged), f"JSON, {what}"
    )


def json_outcomes(content: bytes) -> list[Outcome]:
    """By Python's parser, line by line."""
    found: list[Outcome] = []
    lines = content.split(b"\n")
    for number, line in enumerate(lines, start=1):
        whole = line + b"\n" if number < len(lines) else line
        if len(whole) > LONGEST:
            found.append(number)
            continue
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line.strip(b" \t\r"):
            continue
        row = _json_row(line)
        found.append(number if row is None else row)
    return found


def _json_row(line: bytes) -> Row | None:
    try:
        value = json.loads(
            line.decode("utf-8", "strict"), object_pairs_hook=_pairs, parse_constant=_refuse
        )
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not all(isinstance(value.get(c), str) for c in COLUMNS):
        return None
    return _made(value)


def _made(value: dict[str, str]) -> Row | None:
    return Row(**{c: value[c] for c in COLUMNS}) if value["input"].strip() else None


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("a key twice")
    return dict(pairs)


def _refuse(constant: str) -> None:
    raise ValueError(constant)


# ---------------------------------------------------------------------------------- CSV and TSV


def _cell(rng: random.Random, text: str, delimiter: str) -> str:
    needed = not text or any(c in text for c in f'{delimiter}"\r\n')
    return '"' + text.replace('"', '""') + '"' if needed or rng.random() < 0.2 else text


def _csv(rng: random.Random) -> FuzzedFile:
    suffix, delimiter = rng.choice([(".csv", ","), (".csv", ","), (".tsv", "\t"), (".CSV", ",")])
    end = rng.choice(["\n", "\n", "\r\n"])
    columns = [*COLUMNS, *(["other", "a\nb"] if rng.random() < 0.3 else [])]
    rng.shuffle(columns)
    header = delimiter.join(
        _cell(rng, f"{name}{rng.choice(['', ' '])}", delimiter) for name in columns
    )
    wrong_header = rng.random() < 0.06
    if wrong_header:
        doubled, empty = [*columns, rng.choice(["id", " output "])], ["", *columns]
        names = rng.choice([doubled, empty, ["id;input;output"], ["id", " "]])
        header = delimiter.join(_cell(rng, name, delimiter) for name in names)
    texts = [header, *([""] if rng.random() < 0.1 else [])]
    expected: list[Outcome] = [1] if wrong_header else []
    line = 1 + len(texts) + ("a\nb" in columns and not wrong_header)
    closed = True
    share = rng.choice([0, 0, 1, 4])
    for _ in range(rng.randrange(12)):
        row = _row(rng)
        values = {**{c: getattr(row, c) for c in COLUMNS}, "other": _text(rng), "a\nb": "-"}
        cells = [_cell(rng, values[name], delimiter) for name in columns]
        kind = rng.choices(("good", "blank", "wrong"), (8, 1, share))[0]
        if kind == "blank":
            texts.append("")
            line += 1
            continue
        bad: int | None = line if kind == "wrong" else None
        if kind == "wrong":
            made = rng.choice(("few", "many", "after", "blank", "open"))
            if made == "few":
                cells.pop()
            elif made == "many":
                cells.append("")
            elif made == "after":
                cells = ['"a"b', *("c" for _ in columns[1:])]
            elif made == "blank":
                cells[columns.index("input")] = rng.choice(['""', " ", '" "'])
            else:
                cells = ["c" for _ in columns]
                cells[-1] = '"never closed'
                closed = False
        text = delimiter.join(cells)
        texts.append(text)
        line += 1 + text.count("\n")
        if not wrong_header:
            expected.append(row if bad is None else bad)
        if not closed:
            break
    content = (rng.choice(["", "", "\ufeff"]) + end.join(texts) + rng.choice(["", end])).encode()
    what, damaged = _damaged(rng, content)
    if damaged != content:
        expected = csv_outcomes(damaged, delimiter)
    return FuzzedFile(suffix, damaged, expected, f"{suffix}, {what}")


def csv_outcomes(content: bytes, delimiter: str) -> list[Outcome]:
    """By a state machine of our own."""
    lines = _split(content)
    found: list[Outcome] = []
    header: list[str] | None = None
    at = 0
    while at < len(lines):
        start, damaged = at + 1, 0
        cells: list[str] = []
        state, cell, wrong = "quoted", "", False
        first = True
        while state == "quoted" and not wrong:
            if at == len(lines):
                wrong = True  # never closed
                break
            text, whole = lines[at]
            at += 1
            damaged = damaged or (0 if whole else at)
            state, cell, wrong = _scan(text, delimiter, "start" if first else state, cell, cells)
            first = False
        if damaged or wrong:
            found.append(damaged or start)
            if header is None:
                return found
        elif not cells:
            continue
        elif header is None:
            header = [name.strip() for name in cells]
            alone = len(header) == 1 and any(c in header[0] for c in ";,\t")
            if len(set(header)) < len(header) or "" in header or alone:
                return [start]
        else:
            named = dict(zip(header, cells, strict=False))
            fits = len(cells) == len(header) and all(c in named for c in COLUMNS)
            found.append((_made(named) if fits else None) or start)
    return found


def _split(content: bytes) -> list[tuple[str, bool]]:
    """(text, whether it is whole) of each line."""
    found = []
    for number, line in enumerate(io.BytesIO(content), start=1):
        if len(line) > LONGEST:
            found.append(("\n", False))
            continue
        try:
            text, whole = line.decode(), True
        except UnicodeDecodeError:
            text, whole = line.decode(errors="replace"), False
        found.append((text.removeprefix("\ufeff") if number == 1 and whole else text, whole))
    return found


def _scan(
    text: str, delimiter: str, state: str, cell: str, cells: list[str]
) -> tuple[str, str, bool]:
    """(state, unfinished cell, whether it is no CSV) after a line; adds its cells."""
    for char in text:
        if state == "ended":
            if char not in "\r\n":
                return state, cell, True
        elif state == "quoted":
            if char == '"':
                state = "quote"
            else:
                cell += char
        elif state == "quote" and char == '"':
            state, cell = "quoted", cell + char
        elif char in "\r\n":
            if state != "start":
                cells.append(cell)
            state, cell = "ended", ""
        elif char == delimiter:
            cells.append(cell)
            state, cell = "cell", ""
        elif state == "quote":
            return state, cell, True
        elif char == '"' and state in ("start", "cell"):
            state = "quoted"
        else:
            state, cell = "bare", cell + char
        if len(cell) > LONGEST:
            return state, cell, True
    if state not in ("start", "ended", "quoted"):
        cells.append(cell)
        state = "ended"
    return state, cell, False


# ---------------------------------------------------------------------------------- Parquet


def _parquet(rng: random.Random) -> FuzzedFile:
    rows = [_row(rng) for _ in range(rng.randrange(1, 40))]
    columns: dict[str, list[Any]] = {c: [getattr(row, c) for row in rows] for c in COLUMNS}
    expected: list[Outcome] = list(rows)
    kind = rng.choices(("good", "null", "type", "absent", "blank"), (6, 2, 1, 1, 1))[0]
    name = rng.choice(COLUMNS)
    if kind == "null":
        for place in rng.sample(range(len(rows)), rng.randint(1, min(3, len(rows)))):
            columns[name][place] = None
            expected[place] = place + 1
    elif kind == "blank":
        place = rng.randrange(len(rows))
        columns["input"][place] = " "
        expected[place] = place + 1
    elif kind in ("type", "absent"):
        columns[name] = [rng.choice([1, 2]) for _ in rows]
        expected = list(range(1, len(rows) + 1))
        if kind == "absent":
            columns["renamed"] = columns.pop(name)
    if rng.random() < 0.3:
        columns["extra"] = [[{"a": i, "b": None}] for i in range(len(rows))]
    file = io.BytesIO()
    pq.write_table(
        pa.table(columns),
        file,
        compression=rng.choice(["none", "snappy", "zstd", "gzip"]),
        row_group_size=rng.choice([3, 1000]),
        use_dictionary=rng.random() < 0.5,
        write_page_checksum=True,
    )
    content = file.getvalue()
    what = rng.choice(["whole", "whole", "cut", "empty", "noise", "flip"])
    whole = tuple(row for row in expected if isinstance(row, Row))
    if what == "whole":
        return FuzzedFile(".parquet", content, expected, f"Parquet, {kind}")
    if what == "flip":
        # In the pages, which have checksums; nothing guards the footer.
        footer = int.from_bytes(content[-8:-4], "little") + 8
        place = rng.randrange(4, len(content) - footer)
        content = (
            content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :]
        )
        return FuzzedFile(".parquet", content, None, f"Parquet, {kind}, flip at {place}", whole)
    content = {
        "cut": content[: rng.randrange(1, len(content))],
        "empty": b"",
        "noise": rng.randbytes(rng.randrange(1, 300)),
    }[what]
    return FuzzedFile(".parquet", content, [1], f"Parquet, {what}")


# ---------------------------------------------------------------------------------- damage


def _damaged(rng: random.Random, content: bytes) -> tuple[str, bytes]:
    """(what was done, the bytes); half of the files stay whole."""
    whole = len(content)
    place = rng.randrange(whole + 1)
    other = rng.choice(["utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252", "shift-jis"])

    def flipped() -> bytes:
        changed = bytearray(content)
        for at in rng.sample(range(whole), min(whole, rng.choice([1, 1, 3, 20]))):
            changed[at] ^= 1 << rng.randrange(8)
        return bytes(changed)

    signs = [b'"', b"\r", b"\n", b"\x00", b",", b"{", b"}", b"\\", b"\t", b"\xff", b"\xef\xbb\xbf"]
    made: dict[str, Callable[[], bytes]] = {
        "cut": lambda: content[:place],
        "beginning lost": lambda: content[place:],
        "flipped bits": flipped,
        "a sign more": lambda: content[:place] + rng.choice(signs) + content[place:],
        "a byte less": lambda: content[:place] + content[place + 1 :],
        "a piece twice": lambda: content[:place] + content[max(0, place - 40) :],
        "encoding": lambda: content.decode("utf-8", "replace").encode(other, "replace"),
        "carriage returns": lambda: content.replace(b"\n", b"\r"),
        "quotes": lambda: content.replace(b'"', b"'", rng.randrange(1, 4)),
        "noise": lambda: rng.randbytes(rng.randrange(200)),
        "a long line": lambda: content[:place] + b"x" * (LONGEST + 1) + content[place:],
        "nothing": lambda: b"",
    }
    what = rng.choice(list(made)) if rng.random() < 0.5 else "whole"
    return what, content if what == "whole" else made[what]()

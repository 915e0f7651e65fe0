"""Damaged data files: each is read rightly, or refused in one sentence with its file and line.

``KIF_FUZZ`` files (``make fuzz``: 10,000) of the seed ``KIF_FUZZ_SEED``.
"""

from __future__ import annotations

import faulthandler
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kif_lightning.benchmarks import files, rows
from kif_lightning.errors import UserError
from kif_lightning.interfaces import Row, Split
from tests.helpers import fuzz

NUMBER, SEED = int(os.environ.get("KIF_FUZZ", "400")), int(os.environ.get("KIF_FUZZ_SEED", "0"))
BATCHES = 8
MOST_SECONDS = 1.0


@pytest.fixture(autouse=True)
def _limits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(files, "LONGEST_LINE", fuzz.LONGEST)
    monkeypatch.setenv("KIF_CACHE", str(tmp_path / "cache"))
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.mark.parametrize("batch", range(BATCHES))
def test_every_file_is_read_rightly_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    for index in range(batch, NUMBER, BATCHES):
        rng = random.Random(f"{SEED}/{index}")
        file = fuzz.fuzzed_file(rng)
        path = tmp_path / f"train{file.suffix}"
        path.write_bytes(file.content)
        # One of four files goes through Arrow.
        monkeypatch.setattr(rows, "IN_MEMORY", rng.choice([-1, 2**26, 2**26, 2**26]))
        faulthandler.dump_traceback_later(60, exit=True)
        start = time.process_time()
        told = [refusal(path, file, tolerant=tolerant) for tolerant in (False, True)]
        seconds = time.process_time() - start
        path.unlink()
        case = f"KIF_FUZZ_SEED={SEED}, file {index} ({file.what}): {file.content[:2000]!r}"
        assert told == [None, None], f"{case}\n{told}"
        assert seconds < MOST_SECONDS, f"{case}\n{seconds} s"


def refusal(path: Path, file: fuzz.FuzzedFile, *, tolerant: bool) -> str | None:
    """What is wrong with how the file was read."""
    try:
        split: Split | UserError = rows.read_split(path, tolerant=tolerant)
    except UserError as error:
        split = error
    except Exception as error:
        return f"raised {error!r}"
    if file.expected is None:
        return damaged_mistake(path, file.whole, split)
    good = [outcome for outcome in file.expected if isinstance(outcome, Row)]
    bad = [outcome for outcome in file.expected if isinstance(outcome, int)]
    if isinstance(split, UserError):
        if tolerant and file.expected:
            return f"raised {split!r} though tolerant"
        if not tolerant and not bad and good:
            return f"raised {split!r} though all is well"
        return message_mistake(path, str(split), bad[0] if bad else None)
    if bad and not tolerant:
        return f"line {bad[0]} was accepted: {split!r}"
    if list(split.rows) != good:
        return f"expected {good}, got {list(split.rows)}"
    if len(split.problems) != len(bad):
        return f"expected problems in {bad}, got {split.problems}"
    mistakes = [message_mistake(path, p, n) for p, n in zip(split.problems, bad, strict=True)]
    return next((mistake for mistake in mistakes if mistake), None)


def message_mistake(path: Path, message: str, number: int | None) -> str | None:
    kinds = ("line", "row", "from row")
    places = [f"{path}, {kind} {number}{end}" for kind in kinds for end in (":", " on:")]
    if number is None:
        places = [f"{path} holds no row"]
    if not message.startswith(tuple(places)):
        return f"expected the place {places[0]!r} in {message!r}"
    if len(message.splitlines()) != 1 or len(message) > len(str(path)) + 400:
        return f"expected one sentence, got {message!r}"
    return None if message.isprintable() else f"not to be shown: {message!r}"


def damaged_mistake(path: Path, whole: tuple[Row, ...], split: Split | UserError) -> str | None:
    """Parquet: no row may be wrong; refused rows name the file."""
    messages = [str(split)] if isinstance(split, UserError) else list(split.problems)
    for message in messages:
        if str(path) not in message or len(message.splitlines()) != 1:
            return f"no good message: {message!r}"
    if isinstance(split, UserError):
        return None
    read = list(split.rows)
    return None if read == list(whole)[: len(read)] else f"expected {whole}, got {read}"


def test_both_ways_to_know_what_is_expected_agree() -> None:
    for index in range(300):
        file = fuzz.fuzzed_file(random.Random(f"agree/{index}"))
        suffix = file.suffix.lower()
        if suffix == ".parquet":
            continue
        if suffix in (".csv", ".tsv"):
            found = fuzz.csv_outcomes(file.content, "," if suffix == ".csv" else "\t")
        else:
            found = fuzz.json_outcomes(file.content)
        assert found == file.expected, (index, file)

"""Which rows are drawn: those whose inputs have the smallest seeded hash.

So a draw is uniform, the same whatever the order of the rows, and made in one pass that holds no
more than it keeps.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from heapq import heappush, heapreplace

PER_TASK, PER_CLASS = "1000_per_task", "1000_per_class"
SIZES = (PER_TASK, PER_CLASS)
"""Of train, as published by TaSL, and by O-LoRA and SAPT."""

TRAIN_ROWS, TEST_ROWS_OF_CLASS, MOST_DEV_ROWS = 1000, 500, 500
MOST_HELD_OUT = 100
"""Test rows, and dev rows, of a task that is one pool of rows."""

Pair = tuple[str, str]
"""(input, answer)."""


@dataclass(kw_only=True)
class Drawn:
    """The rows of the smallest hashes, of each class so many."""

    of_class: dict[str, list[tuple[int, Pair]]] = field(default_factory=dict)
    """Class -> (hash, row), in the draw's order."""
    num_different: int = 0
    """Inputs that were there to draw from."""


def draw(
    rows: Iterable[Pair],
    *,
    seed: int,
    purpose: str,
    most: int,
    classes: Sequence[str] = (),
    without: Set[str] = frozenset(),
    part: int | None = None,
) -> Drawn:
    """At most so many rows of each class, or of all.

    Of rows with the same input the first counts.

    Args:
        rows: any number, one by one.
        seed: of the draw.
        purpose: what it is for: draws for different purposes are independent.
        most: rows to keep of a class.
        classes: the answers; empty: the rows are of no classes.
        without: inputs to pass over.
        part: stop once so many different inputs were there, and ``most`` of each class.
    """
    key = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    seen: set[bytes] = set()
    heaps: dict[str, list[tuple[int, Pair]]] = defaultdict(list)
    for text, answer in rows:
        digest = hashlib.blake2b(text.encode(), key=key, digest_size=16).digest()
        if digest in seen or text in without:
            continue
        seen.add(digest)
        heap = heaps[answer if classes else ""]
        # The largest hash of those kept stands first.
        entry = (-int.from_bytes(digest), (text, answer))
        if len(heap) < most:
            heappush(heap, entry)
        elif entry > heap[0]:
            heapreplace(heap, entry)
        if (
            part is not None
            and len(seen) >= part
            and all(len(heaps[name]) >= most for name in classes)
        ):
            break
    return Drawn(
        of_class={
            name: sorted((-negative, row) for negative, row in heap)
            for name, heap in heaps.items()
            if heap
        },
        num_different=len(seen),
    )


def in_order(entries: Iterable[tuple[int, Pair]]) -> list[Pair]:
    """The rows, in the draw's order."""
    return [row for _, row in sorted(entries)]


def all_of(drawn: Drawn) -> Iterator[tuple[int, Pair]]:
    """Of all classes."""
    for entries in drawn.of_class.values():
        yield from entries


def train_and_dev(drawn: Drawn, size: str) -> tuple[list[Pair], list[Pair]]:
    """1000 train rows of the task, or of each class; of the others up to 500 dev rows."""
    if size == PER_CLASS:
        train = [entry for rows in drawn.of_class.values() for entry in rows[:TRAIN_ROWS]]
        rest = [entry for rows in drawn.of_class.values() for entry in rows[TRAIN_ROWS:]]
        return in_order(train), in_order(rest)[:MOST_DEV_ROWS]
    rows = in_order(all_of(drawn))
    return rows[:TRAIN_ROWS], rows[TRAIN_ROWS : TRAIN_ROWS + MOST_DEV_ROWS]


def one_pool(drawn: Drawn) -> tuple[list[Pair], list[Pair], list[Pair]]:
    """Train, dev and test rows of one pool: 1000, 100, 100.

    A smaller pool is cut 8 : 1 : 1, as the published files of small tasks are.
    """
    rows = in_order(all_of(drawn))
    held_out = min(MOST_HELD_OUT, -(-drawn.num_different // 10))
    test, dev = rows[:held_out], rows[held_out : 2 * held_out]
    return rows[2 * held_out :][:TRAIN_ROWS], dev, test

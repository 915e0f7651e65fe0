"""Task orders: a published name, a drawn one, or the user's own list."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from kif_lightning.errors import UserError, nearest_names
from kif_lightning.seeding import derive_seed

RANDOM = re.compile(r"random_(0|[1-9]\d*)")
"""``random_7``: the seventh order that is drawn of all tasks."""


def resolve_order(
    order: str | Sequence[str], orders: Mapping[str, Sequence[str]]
) -> tuple[str, list[str]]:
    """(name of the order, its tasks); an own list of tasks is called ``own``.

    ``random_N`` is a permutation of all tasks of the published orders, a function of N alone.

    Raises:
        UserError: an unknown name, no list, an empty one, a task named twice.
    """
    if isinstance(order, str):
        if order in orders:
            return order, list(orders[order])
        if drawn := RANDOM.fullmatch(order):
            return order, permuted({t for tasks in orders.values() for t in tasks}, int(drawn[1]))
        raise UserError(
            f"benchmark.order={order!r} is no order of this benchmark; "
            f"{nearest_names(order, orders)}. One drawn of all tasks: benchmark.order=random_1 "
            "(or any number). An own order: 'benchmark.order=[task_a,task_b]'."
        )
    if not isinstance(order, Sequence):
        raise UserError(f"benchmark.order must be a name or a list of tasks, got {order!r}.")
    names = [str(name) for name in order]
    if not names:
        raise UserError("benchmark.order must name at least one task, got an empty list.")
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise UserError(f"benchmark.order must name a task once, got {', '.join(doubled)} again.")
    return "own", names


def permuted(tasks: Collection[str], number: int) -> list[str]:
    """The number-th order that is drawn of the tasks, however they are listed.

    By places, not names: tasks that stand for others stand where those do.
    """
    names = sorted(tasks)
    places = sorted(range(len(names)), key=lambda i: derive_seed(number, "task order", i))
    return [names[place] for place in places]


def check_known(names: Sequence[str], known: Sequence[str], holder: str) -> None:
    """Refuse tasks of an order that ``holder`` does not have, all at once.

    Raises:
        UserError: one line for each unknown task, with the nearest known names.
    """
    problems = [
        f"benchmark.order names the task {name!r}, which {holder} does not hold; "
        f"{nearest_names(name, known)}."
        for name in names
        if name not in known
    ]
    if problems:
        raise UserError("\n".join(problems))

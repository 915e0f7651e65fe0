"""Task orders: a published name, or the user's own list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kif_lightning.errors import UserError, nearest_names


def resolve_order(
    order: str | Sequence[str], orders: Mapping[str, Sequence[str]]
) -> tuple[str, list[str]]:
    """(name of the order, its tasks); an own list of tasks is called ``own``.

    Raises:
        UserError: an unknown name, no list, an empty one, a task named twice.
    """
    if isinstance(order, str):
        if order not in orders:
            raise UserError(
                f"benchmark.order={order!r} is no order of this benchmark; "
                f"{nearest_names(order, orders)}. An own order: 'benchmark.order=[task_a,task_b]'."
            )
        return order, list(orders[order])
    if not isinstance(order, Sequence):
        raise UserError(f"benchmark.order must be a name or a list of tasks, got {order!r}.")
    names = [str(name) for name in order]
    if not names:
        raise UserError("benchmark.order must name at least one task, got an empty list.")
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise UserError(f"benchmark.order must name a task once, got {', '.join(doubled)} again.")
    return "own", names


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

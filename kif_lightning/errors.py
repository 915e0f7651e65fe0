"""Mistakes of the user, told in one sentence."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from difflib import get_close_matches


class UserError(ValueError):
    """A mistake the user can mend; the message says what was expected, what came, how to mend it.

    The command line prints the message without a trace and exits with status 2.
    """

    @classmethod
    def joined(cls, errors: Sequence[UserError]) -> UserError:
        """One error that tells all of ``errors``, one a line; missing parts share a line."""
        missing = [error for error in errors if isinstance(error, MissingPartError)]
        others = [str(error) for error in errors if not isinstance(error, MissingPartError)]
        told = [MissingPartError.sentence(missing)] if missing else []
        return cls("\n".join([*told, *others]))


class DivergedError(UserError):
    """Training went astray: with other settings it need not."""


class MissingPartError(UserError):
    """Data or weights that this machine does not have.

    Args:
        what: what is missing.
        bring: how to provide it, an imperative.
        stand_in: the override that takes the bundled stand-in instead.
    """

    def __init__(self, *, what: str, bring: str, stand_in: str) -> None:
        self.what = what
        self.bring = bring
        self.stand_in = stand_in
        super().__init__(self.sentence([self]))

    @staticmethod
    def sentence(missing: Sequence[MissingPartError]) -> str:
        """What is missing, and the two ways on: bring it, or take the bundled stand-ins."""
        what = " and ".join(error.what for error in missing)
        bring = "; and ".join(error.bring for error in missing)
        instead = (
            f"the bundled stand-in with {missing[0].stand_in}"
            if len(missing) == 1
            else "bundled stand-ins for all of it with +experiment=long_seq_t5"
        )
        return f"Not on this machine: {what}. Either {bring}, or take {instead}."


_collected: ContextVar[list[UserError] | None] = ContextVar("collected", default=None)


@contextmanager
def collecting_errors() -> Iterator[list[UserError]]:
    """Within it a failed ``require_...`` is noted in the list and the checked code goes on.

    A constructor so tells all its mistakes, not only the first. What it makes must not be used if
    the list is not empty.
    """
    errors: list[UserError] = []
    token = _collected.set(errors)
    try:
        yield errors
    finally:
        _collected.reset(token)


def _refuse(message: str) -> None:
    collected = _collected.get()
    if collected is None:
        raise UserError(message)
    collected.append(UserError(message))


def require_between(
    name: str, value: float, low: float, high: float, *, low_open: bool = False
) -> None:
    """Raise :class:`UserError` unless ``low <= value <= high`` (``low <`` if ``low_open``)."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        _refuse(f"{name} must be a number, got {value!r}.")
    elif not ((low < value if low_open else low <= value) and value <= high):
        bracket = "(" if low_open else "["
        _refuse(f"{name} must lie in {bracket}{low:g}, {high:g}], got {value}.")


def require_count(name: str, value: int, at_least: int = 1) -> None:
    """Raise :class:`UserError` unless ``value`` is a whole number of at least ``at_least``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        _refuse(f"{name} must be a whole number of at least {at_least}, got {value!r}.")


def require_choice(name: str, value: object, choices: Iterable[object]) -> None:
    """Raise :class:`UserError` unless ``value`` is one of ``choices``."""
    known = list(choices)
    if value not in known:
        _refuse(f"{name} must be {' or '.join(repr(c) for c in known)}, got {value!r}.")


def nearest_names(name: str, known: Iterable[str]) -> str:
    """A phrase that offers the known names closest to a mistyped one."""
    choices = sorted(known)
    close = get_close_matches(name, choices, n=3, cutoff=0.4)
    if close:
        return f"did you mean {' or '.join(repr(c) for c in close)}? Known: {', '.join(choices)}"
    return f"known: {', '.join(choices)}"

"""Mistakes of the user, told in one sentence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class UserError(ValueError):
    """A mistake the user can mend; the message says what was expected, what came, how to mend it.

    The command line prints the message without a trace and exits with status 2.
    """

    @classmethod
    def joined(cls, errors: Sequence[UserError]) -> UserError:
        """One error that tells all of ``errors`` at once, one a line."""
        return cls("\n".join(str(error) for error in errors))


def require_between(
    name: str, value: float, low: float, high: float, *, low_open: bool = False
) -> None:
    """Raise :class:`UserError` unless ``low <= value <= high`` (``low <`` if ``low_open``)."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise UserError(f"{name} must be a number, got {value!r}.")
    if (low < value if low_open else low <= value) and value <= high:
        return
    bracket = "(" if low_open else "["
    raise UserError(f"{name} must lie in {bracket}{low:g}, {high:g}], got {value}.")


def nearest_names(name: str, known: Iterable[str]) -> str:
    """A phrase that offers the known names closest to a mistyped one."""
    choices = sorted(known)
    close = get_close_matches(name, choices, n=3, cutoff=0.4)
    if close:
        return f"did you mean {' or '.join(repr(c) for c in close)}? Known: {', '.join(choices)}"
    return f"known: {', '.join(choices)}"

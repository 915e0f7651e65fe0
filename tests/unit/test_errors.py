"""The user's mistakes are told in one sentence each."""

from __future__ import annotations

import pytest

from kif_lightning.errors import UserError, nearest_names, require_between

INFINITY, NAN = float("inf"), float("nan")


def test_joined_tells_every_error_on_its_line() -> None:
    joined = UserError.joined([UserError("One is wrong."), UserError("Two is wrong.")])
    assert isinstance(joined, UserError)
    assert isinstance(joined, ValueError)
    assert str(joined) == "One is wrong.\nTwo is wrong."


@pytest.mark.parametrize(
    ("value", "low", "high", "low_open"),
    [
        (0, 0, 1, False),
        (1, 0, 1, False),
        (1, 0, 1, True),
        (1e-300, 0, 1, True),
        (5, 0, INFINITY, 0),
    ],
)
def test_a_value_in_range_passes(value: float, low: float, high: float, low_open: bool) -> None:
    require_between("x", value, low, high, low_open=low_open)


@pytest.mark.parametrize(
    ("value", "low", "high", "low_open", "told"),
    [
        (-1e-9, 0, 1, False, "x.y must lie in [0, 1], got -1e-09."),
        (1.5, 0, 1, False, "x.y must lie in [0, 1], got 1.5."),
        (0, 0, 1, True, "x.y must lie in (0, 1], got 0."),
        (NAN, 0, 1, False, "x.y must lie in [0, 1], got nan."),
        (NAN, 0, 1, True, "x.y must lie in (0, 1], got nan."),
        (-2, 0, INFINITY, False, "x.y must lie in [0, inf], got -2."),
    ],
)
def test_a_value_out_of_range_is_told(
    value: float, low: float, high: float, low_open: bool, told: str
) -> None:
    with pytest.raises(UserError) as caught:
        require_between("x.y", value, low, high, low_open=low_open)
    assert str(caught.value) == told


@pytest.mark.parametrize(
    ("name", "known", "told"),
    [
        ("adaptve", ["static", "adaptive"], "did you mean 'adaptive'? Known: adaptive, static"),
        ("kif", ["kif_b", "kif_a"], "did you mean 'kif_b' or 'kif_a'? Known: kif_a, kif_b"),
        ("zzz", ["static", "adaptive"], "known: adaptive, static"),
        ("zzz", [], "known: "),
    ],
)
def test_the_nearest_names_are_offered(name: str, known: list[str], told: str) -> None:
    assert nearest_names(name, known) == told

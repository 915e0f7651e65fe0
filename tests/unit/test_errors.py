"""The user's mistakes are told in one sentence each."""

from __future__ import annotations

import pytest

from kif_lightning.errors import (
    MissingPartError,
    UserError,
    collecting_errors,
    nearest_names,
    require_between,
    require_choice,
    require_count,
)

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


@pytest.mark.parametrize("value", ["0.5", None, True])
def test_what_is_no_number_is_told(value: object) -> None:
    with pytest.raises(UserError) as caught:
        require_between("x.y", value, 0, 1)  # type: ignore[arg-type]
    assert str(caught.value) == f"x.y must be a number, got {value!r}."


@pytest.mark.parametrize(("value", "at_least"), [(1, 1), (0, 0), (7, 2)])
def test_a_count_passes(value: int, at_least: int) -> None:
    require_count("x.y", value, at_least)


@pytest.mark.parametrize(
    ("value", "at_least"), [(0, 1), (-1, 0), (1.0, 1), ("2", 1), (True, 1), (None, 0)]
)
def test_what_is_no_count_is_told(value: object, at_least: int) -> None:
    with pytest.raises(UserError) as caught:
        require_count("x.y", value, at_least)  # type: ignore[arg-type]
    expected = f"x.y must be a whole number of at least {at_least}, got {value!r}."
    assert str(caught.value) == expected


def test_a_choice_is_one_of_the_known() -> None:
    require_choice("x.y", 2, (1, 2))
    with pytest.raises(UserError) as caught:
        require_choice("x.y", "c", iter(["a", "b"]))
    assert str(caught.value) == "x.y must be 'a' or 'b', got 'c'."


def test_all_mistakes_are_collected_and_only_within_the_block() -> None:
    with collecting_errors() as errors:
        require_between("a", 2, 0, 1)
        require_between("b", "2", 0, 1)  # type: ignore[arg-type]
        with collecting_errors() as inner:
            require_count("c", 0)
        require_choice("d", 3, (1, 2))
        require_between("e", 1, 0, 1)
    assert [str(error) for error in errors] == [
        "a must lie in [0, 1], got 2.",
        "b must be a number, got '2'.",
        "d must be 1 or 2, got 3.",
    ]
    assert [str(error) for error in inner] == ["c must be a whole number of at least 1, got 0."]
    with pytest.raises(UserError, match="a must lie in"):
        require_between("a", 2, 0, 1)


def test_collecting_ends_where_another_error_leaves_the_block() -> None:
    with pytest.raises(RuntimeError, match="other"), collecting_errors():
        raise RuntimeError("other")
    with pytest.raises(UserError, match="a must lie in"):
        require_between("a", 2, 0, 1)


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


def missing(part: str) -> MissingPartError:
    return MissingPartError(what=f"the {part}", bring=f"give {part}=F", stand_in=f"{part}=mini")


def test_a_missing_part_is_told_with_two_ways_on() -> None:
    assert str(missing("rows")) == (
        "Not on this machine: the rows. Either give rows=F, or take the bundled stand-in with "
        "rows=mini."
    )


def test_missing_parts_share_a_line_with_the_other_mistakes_below() -> None:
    told = str(UserError.joined([missing("rows"), UserError("lr is off."), missing("model")]))
    first, second = told.splitlines()
    assert "the rows and the model" in first
    assert "give rows=F; and give model=F" in first
    assert "+experiment=long_seq_t5" in first
    assert second == "lr is off."

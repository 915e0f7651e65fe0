"""The paired differences, against what can be worked out by hand or in another way."""

from __future__ import annotations

from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from kif_lightning.errors import UserError
from kif_lightning.reporting.comparison import contents, read_runs
from kif_lightning.reporting.comparison.statistics import paired_bootstrap, spread
from kif_lightning.reporting.comparison.tables import paired_table
from tests.helpers.compared_runs import compared_run


def entries(folder: Path, baseline: str = "plain") -> list[dict[str, Any]]:
    paired = contents(read_runs([folder]), baseline=baseline)["paired"]
    assert paired["baseline"] == baseline
    found: list[dict[str, Any]] = paired["entries"]
    return found


def test_two_tasks_by_hand(tmp_path: Path) -> None:
    """Task one: +100, 0, 0, 0, so 25; task two: -100 and +100, +100, +100, so 50; mean 37.5."""
    compared_run(tmp_path / "a", {"one": [0, 100, 0, 0], "two": [100, 0, 0, 0]})
    better = {"one": [100, 100, 0, 0], "two": [0, 100, 100, 100]}
    compared_run(tmp_path / "b", better, method="better")
    (entry,) = entries(tmp_path)
    (seed,) = entry["seeds"]
    assert seed["difference"] == 37.5 == entry["pooled"]["difference"]
    assert seed["low"] < 37.5 < seed["high"]
    assert (seed["tasks"], entry["of_tasks"], entry["notes"]) == (2, 2, [])
    assert entry["between_seeds"]["standard_deviation"] is None, "of one seed it is not known"


def test_identical_answers_differ_by_exactly_nothing(tmp_path: Path) -> None:
    rows = {"one": [33.3, 0.1, 100], "two": [12.5, 0]}
    for seed in (1, 2):
        compared_run(tmp_path / f"a{seed}", rows, seed=seed)
        compared_run(tmp_path / f"b{seed}", rows, seed=seed, method="same")
    (entry,) = entries(tmp_path)
    for found in (entry["pooled"], *entry["seeds"]):
        assert [found[key] for key in ("difference", "low", "high")] == [0, 0, 0]
        assert found["share_not_above_zero"] == 1


def test_the_interval_is_that_of_resampled_rows() -> None:
    """Against drawing the rows themselves, and the normal law of large samples."""
    draw = np.random.default_rng(3)
    tasks = [draw.choice([-100.0, 0.0, 100.0], size=n, p=[0.1, 0.6, 0.3]) for n in (200, 400)]
    found = paired_bootstrap([task[None] for task in tasks], resamples=4000)
    by_rows = np.mean(
        [task[draw.integers(0, len(task), (4000, len(task)))].mean(1) for task in tasks], axis=0
    )
    assert found.difference == pytest.approx(np.mean([task.mean() for task in tasks]))
    assert (found.low, found.high) == pytest.approx(np.percentile(by_rows, [2.5, 97.5]), abs=0.4)
    error = np.sqrt(sum(task.var() / len(task) for task in tasks)) / len(tasks)
    half = NormalDist().inv_cdf(0.975) * error
    assert found.high - found.difference == pytest.approx(half, abs=0.4)
    assert found == paired_bootstrap([task[None] for task in tasks], resamples=4000), "seeded"


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    draw = np.random.default_rng(0)
    covered = 0
    for number in range(300):
        tasks = [draw.choice([-100.0, 0.0, 100.0], size=(1, 80), p=[0.2, 0.5, 0.3]) for _ in "ab"]
        found = paired_bootstrap(tasks, resamples=400, seed=number)
        covered += found.low <= 10 <= found.high
    assert 0.9 < covered / 300 < 0.98


def test_many_distinct_scores_are_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.linspace(-50, 70, 101)[None]
    whole = paired_bootstrap([rows], resamples=500)
    from kif_lightning.reporting.comparison import statistics

    monkeypatch.setattr(statistics, "MOST_NUMBERS", 1000)
    assert paired_bootstrap([rows], resamples=500) == whole
    assert whole.difference == pytest.approx(10)


def test_seeds_share_their_rows_and_their_spread_is_told_apart(tmp_path: Path) -> None:
    """Seeds that win on the same rows: averaging them makes the choice of rows no surer."""
    wins = [100.0] * 30 + [0.0] * 70
    for seed in (1, 2, 3):
        compared_run(tmp_path / f"a{seed}", {"one": [0.0] * 100}, seed=seed)
        compared_run(tmp_path / f"b{seed}", {"one": wins}, seed=seed, method="better")
    (entry,) = entries(tmp_path)
    assert entry["pooled"] == {k: entry["seeds"][0][k] for k in entry["pooled"]}
    assert entry["between_seeds"] == {**spread([30.0] * 3), "n": 3}
    assert entry["between_seeds"]["standard_deviation"] == 0


def test_seeds_with_rows_of_their_own_are_resampled_apart(tmp_path: Path) -> None:
    for seed in (1, 2):
        where = {"seed": seed, "first_row": 100 * seed}
        compared_run(tmp_path / f"a{seed}", {"one": [0.0] * 100}, **where)
        rows = {"one": [100.0] * (20 * seed) + [0.0] * (100 - 20 * seed)}
        compared_run(tmp_path / f"b{seed}", rows, method="better", **where)
    (entry,) = entries(tmp_path)
    assert [seed["difference"] for seed in entry["seeds"]] == [20, 40]
    assert entry["pooled"]["difference"] == 30
    # sd of the mean of two independent means: sqrt(16 + 24) / 2 = 3.16.
    assert entry["pooled"]["high"] - entry["pooled"]["low"] == pytest.approx(4 * 3.16, abs=1.2)
    assert entry["notes"] == [
        "seeds have test rows of their own: the sd between seeds holds the choice of rows too"
    ]
    assert entry["between_seeds"]["standard_deviation"] == pytest.approx(14.142, abs=1e-3)


@pytest.mark.parametrize("share", [1.0, 0.9, 0.5])
def test_a_row_that_seeds_share_is_drawn_once_for_all_of_them(share: float) -> None:
    """Seeds that win on the same rows and see a part of them each: drawn rows are what varies."""
    draw = np.random.default_rng(1)
    rows = np.tile(np.repeat([100.0, 0.0], [30, 70]), (3, 1))
    for seed in rows:
        seed[draw.permutation(100)[: round(100 - 100 * share)]] = np.nan
    found = paired_bootstrap([rows])
    picked = rows[:, draw.integers(0, 100, (2000, 100))]
    expected = np.percentile(np.nanmean(picked, axis=2).mean(axis=0), [2.5, 97.5])
    assert (found.low, found.high) == pytest.approx(expected, abs=0.8)
    assert found.high - found.low > 15, "of the shared rows alone: 4 * sqrt(0.3 * 0.7 * 100) = 18"


def test_a_seed_of_which_no_row_is_drawn_has_no_say() -> None:
    rows = np.array([[0.0, np.nan], [np.nan, 100.0]])
    found = paired_bootstrap([rows])
    assert (found.difference, found.low, found.high) == (50, 0, 100)


def test_seeds_over_other_tasks_have_no_spread(tmp_path: Path) -> None:
    for seed in (1, 2):
        compared_run(tmp_path / f"a{seed}", {"one": [0, 0], "two": [0, 0]}, seed=seed)
        rows = {"one": [100, 0], "two": [0, 0]}
        compared_run(tmp_path / f"b{seed}", rows, seed=seed, method="better")
    (tmp_path / "b2" / "predictions" / "after_02_two__on_02_two.jsonl").unlink()
    found = contents(read_runs([tmp_path]), baseline="plain")
    (entry,) = found["paired"]["entries"]
    assert [seed["difference"] for seed in entry["seeds"]] == [25, 50]
    assert entry["pooled"] is entry["between_seeds"] is None
    told = "seed 2: two left out: no answers kept; seeds have other tasks: not pooled"
    table = paired_table(found)
    assert table is not None
    assert [row[-1] for row in table.rows] == [told, "", "1 of 2 tasks"]


def test_what_cannot_be_paired_is_left_out_and_told(tmp_path: Path) -> None:
    compared_run(tmp_path / "a", {"one": [0, 100], "two": [0, 100]})
    compared_run(tmp_path / "b", {"one": [100, 100], "two": [100, 100]}, method="graded")
    path = tmp_path / "b" / "predictions" / "after_02_two__on_02_two.jsonl"
    path.write_text(path.read_text().replace("100", "55"))
    compared_run(tmp_path / "c", {"one": [0, 0], "two": [0, 0]}, method="mute", answers=False)
    compared_run(tmp_path / "d", {"one": [9, 9], "two": [9, 9]}, method="other", first_row=7)
    compared_run(tmp_path / "e", {"one": [9, 9], "two": [9, 9]}, method="alone", seed=5)
    told = {entry["label"]: entry for entry in entries(tmp_path)}
    assert told["graded"]["seeds"][0]["difference"] == 50
    assert told["graded"]["seeds"][0]["tasks"] == 1
    why = "seed 1: two left out: the task's score is not the mean of its rows' scores"
    assert told["graded"]["notes"] == [why]
    assert told["mute"]["notes"] == ["seed 1: one, two left out: no answers kept"]
    why = "seed 1: one, two left out: other test rows than the baseline's"
    assert told["other"]["notes"] == [why]
    assert told["alone"]["notes"] == ["seed 5: no baseline of it with this backbone and order"]
    assert all(told[name]["pooled"] is None for name in ("mute", "other", "alone"))


def test_orders_and_backbones_are_paired_with_their_own(tmp_path: Path) -> None:
    """The order differs, so the same task stands in another column."""
    for name, order in (("order1", ("one", "two")), ("order2", ("two", "one"))):
        for method, won in (("plain", 0.0), ("better", 100.0 if name == "order2" else 50.0)):
            rows = {task: [won, 0.0] for task in order}
            compared_run(tmp_path / f"{method}{name}", rows, method=method, order_name=name)
    found = {entry["order"]: entry["pooled"]["difference"] for entry in entries(tmp_path)}
    assert found == {"order1": 25.0, "order2": 50.0}


def test_the_baseline_is_a_label_or_a_method(tmp_path: Path) -> None:
    for place, tau in enumerate((0.1, 0.5)):
        settings = {"method_settings": {"tau": tau}}
        compared_run(tmp_path / str(place), {"one": [0, 100]}, method="soft", **settings)
    compared_run(tmp_path / "2", {"one": [0, 100]})
    assert [e["label"] for e in entries(tmp_path, "soft (tau=0.5)")] == ["soft (tau=0.1)", "plain"]
    with pytest.raises(UserError, match=r"got 'soft'; 2 fit: soft \(tau=0.1\); soft \(tau=0.5\)"):
        entries(tmp_path, "soft")
    with pytest.raises(UserError, match=r"got 'plan'; did you mean 'plain'"):
        entries(tmp_path, "plan")

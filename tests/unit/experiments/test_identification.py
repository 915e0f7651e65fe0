"""The study of identification: its rules, and what it counts, by hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.scripts import scripts_of


@pytest.fixture
def script() -> Iterator[Any]:
    with scripts_of("identification") as found:
        yield found


PREVIOUS = torch.tensor([0.0, 0.001, 0.002, 1.0])
CURRENT = torch.tensor([1.0, 0.0, 0.2, 0.1])
CHANGE = torch.tensor([0.0, 5.0, 9.0, 7.0])
PLACES = torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=torch.float64) / 3


class TestRules:
    def test_ranks_look_at_the_order_alone(self, script: Any) -> None:
        ranks = script("rules").ranks
        assert torch.allclose(ranks(PREVIOUS), PLACES)
        assert torch.allclose(ranks(CURRENT), PLACES[[3, 0, 2, 1]])
        assert torch.equal(ranks(CURRENT), ranks(100 * CURRENT.exp()))

    def test_shares_of_the_rank_rules(self, script: Any) -> None:
        rules = script("rules").unit_rules(CHANGE, seed=3)
        # Differences of the ranks -1, 1/3, 0, 2/3, over tau 0.05.
        expected = torch.tensor([-20.0, 20 / 3, 0.0, 40 / 3], dtype=torch.float64).sigmoid()
        share = rules["ranks"](PREVIOUS, CURRENT)
        assert torch.allclose(share, expected)
        swapped = rules["ranks, past and present swapped"](PREVIOUS, CURRENT)
        assert torch.allclose(swapped, 1 - expected)
        by_change = rules["ranks, present by size of change"](PREVIOUS, CURRENT)
        differences = torch.tensor([0.0, 0.0, -20 / 3, 20 / 3], dtype=torch.float64)
        assert torch.allclose(by_change, differences.sigmoid())

    def test_shuffling_gives_the_same_shares_to_other_units(self, script: Any) -> None:
        draw = torch.Generator().manual_seed(0)
        previous, current = torch.rand(2, 50, generator=draw)
        name = "ranks, shuffled"
        once, again, other = (
            script("rules").unit_rules(current, seed=seed)[name](previous, current)
            for seed in (3, 3, 4)
        )
        share = script("rules").ranked(previous, current)
        assert torch.equal(once.sort().values, share.sort().values)
        assert not torch.equal(once, share)
        assert torch.equal(once, again)
        assert not torch.equal(once, other)

    def test_the_top_of_single_weights_is_taken_over_all_tensors(self, script: Any) -> None:
        before = {"a": torch.zeros(2, 2), "b": torch.zeros(6)}
        after = {"a": torch.ones(2, 2), "b": torch.full((6,), 2.0)}
        scores = {"b": torch.tensor([0.0, 8, 0, 9, 0, 0]), "a": torch.tensor([[0.0, 7], [1, 2]])}
        found = script("rules").new_at_top(0.3, scores, before, after)
        assert torch.equal(found["a"], torch.tensor([[0.0, 1], [0, 0]]))
        assert torch.equal(found["b"], torch.tensor([0.0, 2, 0, 2, 0, 0]))

    def test_controls_of_single_weights_change_as_many(self, script: Any) -> None:
        rules = script("rules")
        change = {"a": torch.rand(10, 10, generator=torch.Generator().manual_seed(0))}
        scores = {"a": change["a"].flip(0)}
        after, before = {"a": torch.ones(10, 10)}, {"a": torch.zeros(10, 10)}
        choices = rules.weight_choices(scores, change, seed=1)
        found = {n: rules.new_at_top(*c, before, after)["a"] for n, c in choices.items()}
        shares = [round(float(weights.mean()), 2) for weights in found.values()]
        assert shares == [0.1, 0.3, 0.5, 0.3, 0.3]
        assert len({tuple(weights.flatten().tolist()) for weights in found.values()}) == 5


class TestExcess:
    CURVE = ((3.0, 1.0), (1.0, 9.0), (2.0, 5.0))

    @pytest.mark.parametrize(
        ("new", "old", "expected"),
        [
            (2.0, 5.0, 0.0),  # on it
            (1.5, 6.0, -1.0),  # below 7, halfway between 9 and 5
            (2.25, 5.0, 1.0),  # above 4
            (0.5, 9.5, 0.5),  # beyond its ends
            (7.0, 0.5, -0.5),
        ],
    )
    def test_by_hand(self, script: Any, new: float, old: float, expected: float) -> None:
        report = script("report")
        assert report.excess(self.CURVE, new, old) == pytest.approx(expected)

    def test_the_best_mixes_leave_out_what_helps_neither_side(self, script: Any) -> None:
        report = script("report")
        assert report.best([(3.0, 7.0), (1.0, 9.0), (2.0, 5.0)]) == [(1.0, 9.0), (2.0, 5.0)]
        assert report.best([(2.0, 5.0), (1.0, 5.0)]) == [(1.0, 5.0)]

    def test_table_has_the_lowest_excess_first_and_each_run_beside(self, script: Any) -> None:
        report = script("report")
        runs = [self.run(1, better=4.0), self.run(2, better=3.0)]
        text = report.rules_table(runs)
        assert "**On stand-in data.**" in text
        rows = text.splitlines()[4:]
        # At new loss 2 the uniform mixes have old loss 5; -1 and -2 differ by 0.5 from their mean.
        ends = "-1.50 ± 0.50 | -1.50 ± 0.50 | 2 | -1.00 | -2.00 |"
        assert rows[0] == f"| better | 0.50 | 3.50 | 2.00 | 50.0 | 60.0 | {ends}"
        assert len(rows) == 3

    def run(self, seed: int, *, better: float) -> dict[str, Any]:
        losses = {"uniform 0": (1.0, 9.0), "uniform 1": (3.0, 1.0), "better": (2.0, better)}
        fusions = {
            name: {
                "mean_share": 0.5,
                "old_loss": old,
                "new_loss": new,
                "old_exact_match": 50.0,
                "new_exact_match": 60.0,
            }
            for name, (new, old) in losses.items()
        }
        setting = {"backbone": "tiny", "benchmark": "toy", "method": "m", "commit": "0123456789"}
        return {
            "protocol": {**setting, "order_name": "one", "seed": seed},
            "stand_ins": ["stand-in data"],
            "rows": 5,
            "machine": "cpu",
            "boundaries": [{"number": 2, "task": "b", "fusions": fusions}],
        }


def test_rank_correlations_by_hand(script: Any) -> None:
    scores = np.array([[1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 30.0, 500.0], [4.0, 3.0, 1.0, 1.0]])
    found = script("units").rank_correlations(scores)
    assert found[0, 1] == pytest.approx(1.0), "ranks, not sizes"
    # Ranks 4, 3, 1.5, 1.5 against 1, 2, 3, 4: covariance -4.5, deviations 5 and 4.5.
    assert found[0, 2] == pytest.approx(-4.5 / np.sqrt(5 * 4.5))

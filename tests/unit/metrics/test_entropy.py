from __future__ import annotations

import pytest

from kif_lightning.metrics.entropy import mean_binary_entropy


@pytest.mark.parametrize(
    ("shares", "bits"),
    [
        ([0.5] * 4, 1.0),
        ([0.0], 0.0),
        ([1.0, 0.5, 0.0], 1 / 3),
        ([0.25], 2 - 0.75 * 1.584962500721156),
    ],
)
def test_bits_of_plain_averages_and_hard_choices(shares: list[float], bits: float) -> None:
    assert mean_binary_entropy(shares) == pytest.approx(bits, abs=1e-12)

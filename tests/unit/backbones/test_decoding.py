"""Greedy and drawn answers, alike in both families."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kif_lightning.backbones import DecoderBackbone, Seq2SeqBackbone
from tests.helpers.tiny import toy_rows


@pytest.mark.parametrize(
    ("kind", "folder"), [(Seq2SeqBackbone, "tiny_t5"), (DecoderBackbone, "tiny_llama")]
)
@torch.no_grad()
def test_drawn_answers_are_the_seeds_and_greedy_ones_stay(
    kind: Any, folder: str, request: pytest.FixtureRequest
) -> None:
    path = str(request.getfixturevalue(folder))
    backbone = kind(name="tiny", hub_name="nobody/tiny", path=path)
    model = backbone.load_model().eval()
    rows = toy_rows("colour", "test", 5, ("good", "bad"))
    batch = backbone.generation_batch([backbone.encode(row) for row in rows])
    plain = backbone.generate(model, batch, 7)

    def drawn(seed: int, top_k: int) -> list[str]:
        torch.manual_seed(seed)
        return backbone.generate(model, batch, 7, top_k=top_k)

    assert drawn(1, 20) == drawn(1, 20)
    assert len({tuple(drawn(seed, 20)) for seed in range(4)}) == 4
    assert drawn(1, 1) == drawn(2, 1) == plain
    torch.manual_seed(3)
    assert backbone.generate(model, batch, 7) == plain
    # The model's own settings do not count here either.
    expected = drawn(1, 20)
    model.generation_config.update(temperature=50.0, top_p=0.1, num_beams=3, repetition_penalty=9.0)
    assert drawn(1, 20) == expected
    assert model.generation_config.temperature == 50.0

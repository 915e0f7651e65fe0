"""Units found in the model by their names."""

from __future__ import annotations

import pytest

from kif_lightning.reporting.figures.unit_places import ELSEWHERE, MOST_MODULES, OTHERS, places
from tests.helpers.fake_runs import llama_units, t5_units


@pytest.mark.parametrize(
    ("unit", "module", "row"),
    [
        ("encoder.block.3.layer.0.SelfAttention.q/rank:5", "encoder.SelfAttention.q", 3),
        ("decoder.block.11.layer.1.EncDecAttention.v/rank:0", "decoder.EncDecAttention.v", 11),
        ("model.layers.31.self_attn.q_proj/rank:7", "self_attn.q_proj", 31),
        ("model.layers.2.mlp.up_proj.lora_A.weight", "mlp.up_proj.lora_A", 2),
        ("encoder.block.0.layer.0.SelfAttention.k.ia3_l", "encoder.SelfAttention.k.ia3_l", 0),
        ("transformer.h.4.attn.c_attn.weight", "attn.c_attn", 4),
        ("layers.4.weight", "layers.weight", 4),
        ("7", "weights", 7),
        ("shared.weight", ELSEWHERE, "shared.weight"),
        ("prompt_embeddings", ELSEWHERE, "prompt_embeddings"),
        ("", ELSEWHERE, ""),
    ],
)
def test_one_name(unit: str, module: str, row: int | str) -> None:
    (place,) = places([unit])
    assert (place.module, place.row) == (module, row)


def test_modules_of_one_short_name_stay_apart() -> None:
    names = [f"encoder.block.{b}.layer.{k}.layer_norm.weight" for b in (0, 1) for k in (0, 1)]
    found = [(place.module, place.row) for place in places(names)]
    apart = ["encoder.0.layer_norm", "encoder.1.layer_norm"]
    assert found == [(apart[0], 0), (apart[1], 0), (apart[0], 1), (apart[1], 1)]
    assert {p.module for p in places(["model.block.0.x", "h.0.x"])} == {"model.block.x", "h.x"}


def test_all_units_of_a_seven_billion_model() -> None:
    found = places(llama_units(layers=32, rank=8))
    assert len(found) == 32 * 7 * 8
    assert len({place.module for place in found}) == 7
    assert {place.row for place in found} == set(range(32))
    assert len({place.module for place in places(t5_units())}) == 6


def test_experts_are_not_told_apart() -> None:
    names = [f"model.layers.0.mlp.experts.{n}.up_proj" for n in range(64)]
    assert {place.module for place in places(names)} == {"mlp.experts.up_proj"}
    few = places(names[:4])
    assert len({place.module for place in few}) == 4


def test_too_many_kinds_share_the_last_place() -> None:
    found = places([f"model.layers.0.kind_{n}" for n in range(50)])
    assert len({place.module for place in found}) == MOST_MODULES + 1
    assert [place.module for place in found[MOST_MODULES:]] == [OTHERS] * (50 - MOST_MODULES)

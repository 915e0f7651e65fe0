"""Partitions into skill units: stable names, shapes, and refusals by name."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from kif_lightning.errors import UserError
from kif_lightning.kif import lora_rank_units, matrix_units
from kif_lightning.kif.units import UnitMember


def lora_pair(module: str, rank: int, outputs: int = 4, inputs: int = 3) -> dict[str, Tensor]:
    return {
        f"{module}.lora_A.weight": torch.zeros(rank, inputs),
        f"{module}.lora_B.weight": torch.zeros(outputs, rank),
    }


def peft_export(**settings: object) -> dict[str, Tensor]:
    """What a peft model with an adapted embedding and linear layer exports."""
    model = nn.Sequential()
    model.add_module("words", nn.Embedding(7, 6))
    model.add_module("query", nn.Linear(6, 5))
    model.add_module("head", nn.Linear(5, 2))
    settings = {"r": 2, "target_modules": ["words", "query"], **settings}
    wrapped = get_peft_model(model, LoraConfig(**settings))
    state = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    return {name.removeprefix("base_model.model."): tensor for name, tensor in state.items()}


def test_matrix_units_are_the_tensors_in_order() -> None:
    units = matrix_units({"b.bias": torch.zeros(3), "a.weight": torch.zeros(2, 3)})
    assert units.ids == ("b.bias", "a.weight")
    assert len(units) == 2
    assert [group.members for group in units.groups] == [
        (UnitMember("b.bias", None),),
        (UnitMember("a.weight", None),),
    ]


def test_matrix_units_need_a_tensor() -> None:
    with pytest.raises(UserError, match="need at least one trainable tensor, got none"):
        matrix_units({})


def test_lora_units_of_different_ranks_and_their_places() -> None:
    units = lora_rank_units({**lora_pair("q", 2), **lora_pair("enc.v", 1), **lora_pair("k", 3)})
    assert units.ids == ("q/rank:0", "q/rank:1", "enc.v/rank:0", "k/rank:0", "k/rank:1", "k/rank:2")
    assert len(units) == 6
    assert [place for _, place in units.slices()] == [slice(0, 2), slice(2, 3), slice(3, 6)]
    assert units.groups[1].members == (
        UnitMember("enc.v.lora_A.weight", 0),
        UnitMember("enc.v.lora_B.weight", 1),
    )


def test_a_pair_is_found_whatever_lies_between_its_sides() -> None:
    first, second = lora_pair("q", 2), lora_pair("v", 1)
    b_before_a = dict(reversed([*first.items(), *second.items()]))
    units = lora_rank_units(b_before_a)
    assert units.ids == ("v/rank:0", "q/rank:0", "q/rank:1")
    for group in units.groups:
        assert [member.axis for member in group.members] == [0, 1]
        assert [member.parameter.split(".")[1] for member in group.members] == ["lora_A", "lora_B"]


@pytest.mark.parametrize(
    ("name_a", "name_b"),
    [
        ("q.lora_A.weight", "q.lora_B.weight"),
        ("q.lora_A", "q.lora_B"),
        ("q.lora_embedding_A", "q.lora_embedding_B"),
    ],
)
def test_spellings_of_a_pair(name_a: str, name_b: str) -> None:
    units = lora_rank_units({name_a: torch.zeros(1, 3), name_b: torch.zeros(4, 1)})
    assert units.ids == ("q/rank:0",)


def test_every_name_peft_exports_for_an_embedding_and_a_linear_layer() -> None:
    exported = peft_export()
    units = lora_rank_units(exported)
    assert sorted(units.ids) == ["query/rank:0", "query/rank:1", "words/rank:0", "words/rank:1"]
    assert {m.parameter for group in units.groups for m in group.members} == set(exported)
    for group in units.groups:
        assert {exported[m.parameter].shape[m.axis or 0] for m in group.members} == {2}


def test_convolution_pair_counts_its_ranks() -> None:
    units = lora_rank_units(
        {"c.lora_A.weight": torch.zeros(3, 2, 5, 5), "c.lora_B.weight": torch.zeros(4, 3, 1, 1)}
    )
    assert units.ids == ("c/rank:0", "c/rank:1", "c/rank:2")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"use_dora": True, "target_modules": ["query"]}, "query.lora_magnitude_vector"),
        ({"bias": "lora_only"}, "query.base_layer.bias"),
        ({"modules_to_save": ["head"]}, "head.weight"),
    ],
    ids=["dora", "bias", "modules_to_save"],
)
def test_other_trainable_tensors_are_refused_by_name(
    settings: dict[str, object], named: str
) -> None:
    exported = peft_export(**settings)
    assert any(name.startswith(named) for name in exported)
    with pytest.raises(UserError) as caught:
        lora_rank_units(exported)
    assert named in str(caught.value)
    assert "Use method/units=matrix" in str(caught.value)
    assert len(matrix_units(exported)) == len(exported)


def test_half_a_pair_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"trainable too: v\.lora_A\.weight\. Use method/units"):
        lora_rank_units({**lora_pair("q", 2), "v.lora_A.weight": torch.zeros(2, 3)})


@pytest.mark.parametrize(
    ("number", "told"), [(1, "o0."), (3, "o0, o1, o2."), (5, "o0, o1, o2 and 2 more.")]
)
def test_a_long_list_of_refused_names_is_cut(number: int, told: str) -> None:
    others = {f"o{i}": torch.zeros(1) for i in range(number)}
    with pytest.raises(UserError) as caught:
        lora_rank_units({**lora_pair("q", 2), **others})
    assert f"trainable too: {told} Use" in str(caught.value)


def test_nothing_trainable_is_told() -> None:
    with pytest.raises(UserError, match="nothing trainable is there: use method/adapter=lora"):
        lora_rank_units({})


def test_sides_of_different_rank_are_refused() -> None:
    pair = {"q.lora_A.weight": torch.zeros(2, 3), "q.lora_B.weight": torch.zeros(4, 3)}
    with pytest.raises(UserError, match=r"one rank in q, got \(2, 3\) and \(4, 3\)"):
        lora_rank_units(pair)


@pytest.mark.parametrize("axis", [0, 1, 2, None])
def test_spread_gives_each_index_of_the_axis_its_unit(axis: int | None) -> None:
    tensor = torch.zeros(2, 3, 4)
    per_unit = torch.arange(1.0, 1.0 + (1 if axis is None else tensor.shape[axis]))
    spread = UnitMember("x", axis).spread(per_unit, tensor).expand_as(tensor)
    for index in [(i, j, k) for i in range(2) for j in range(3) for k in range(4)]:
        assert spread[index] == per_unit[0 if axis is None else index[axis]]

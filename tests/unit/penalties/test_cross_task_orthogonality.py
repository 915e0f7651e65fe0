"""Cross-task orthogonality on several LoRAs of one peft model, against sums by hand."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from kif_lightning.errors import UserError
from kif_lightning.penalties import CrossTaskOrthogonality
from tests.helpers.streams import tiny_backbone


def several_loras(folder: Path, number: int) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    """A tiny T5 with that many LoRAs of ranks 2, 3, ..., all at work, the last one trainable."""
    torch.manual_seed(0)
    base: Any = tiny_backbone(folder).load_model()
    names = [f"task_{index:03d}" for index in range(1, number + 1)]
    for index, name in enumerate(names):
        lora = LoraConfig(r=2 + index, target_modules=["q", "v"], init_lora_weights=False)
        if index == 0:
            model: Any = get_peft_model(base, lora, adapter_name=name)
        else:
            model.add_adapter(name, lora)
    model.base_model.set_adapter(names)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(f".{names[-1]}." in name)
    trainable = {
        name.removeprefix("base_model.model.").replace(f".{names[-1]}", ""): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    return model, trainable


def context(model: nn.Module, parameters: Any) -> Any:
    return SimpleNamespace(parameters=parameters, model=model, logits=torch.empty(0))


def by_hand(model: Any, number: int) -> float:
    """Entry by entry, over layers and pairs of rows of the last LoRA and each earlier one."""
    total = []
    for layer in model.modules():
        if not isinstance(getattr(layer, "lora_A", None), nn.ModuleDict):
            continue
        new = layer.lora_A[f"task_{number:03d}"].weight.detach().double()
        for index in range(1, number):
            old = layer.lora_A[f"task_{index:03d}"].weight.detach().double()
            total += [abs(float(torch.dot(u, v))) for u in new for v in old]
    return math.fsum(total)


@pytest.mark.parametrize("number", [2, 3])
def test_value_is_that_by_hand(tiny_t5: Path, number: int) -> None:
    model, parameters = several_loras(tiny_t5, number)
    penalty = CrossTaskOrthogonality(coefficient=0.5)
    penalty.check(SimpleNamespace(trainable_parameters=parameters, identification=None))
    penalty.begin_task(parameters, number - 1)
    term = penalty(context(model, parameters))
    assert term.shape == ()
    assert float(term.detach()) == pytest.approx(0.5 * by_hand(model, number), rel=1e-5)
    term.backward()
    for name, parameter in parameters.items():
        assert (parameter.grad is not None) == ("lora_A" in name)
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.mul_(-2)
    assert float(penalty(context(model, parameters)).detach()) == pytest.approx(
        2 * float(term.detach()), rel=1e-5
    )


def test_each_task_looks_for_its_old_ones_anew(tiny_t5: Path) -> None:
    penalty = CrossTaskOrthogonality(coefficient=1.0)
    for number in (1, 2, 3):
        model, parameters = several_loras(tiny_t5, number)
        penalty.begin_task(parameters, number - 1)
        found = float(penalty(context(model, parameters)).detach())
        assert found == pytest.approx(by_hand(model, number), rel=1e-5)
        assert (found == 0) == (number == 1)
        penalty.end_task(parameters, number - 1, learnt=None)  # type: ignore[arg-type]
    assert penalty.state_dict() == {}
    penalty.load_state_dict({})


def toy_model(new: Tensor, old: Tensor) -> tuple[nn.Module, dict[str, Any]]:
    """One LoRA layer, named as in peft."""
    weights = nn.ModuleDict()
    for name, value in (("task_002", new), ("task_001", old)):
        linear = nn.Linear(value.shape[1], value.shape[0], bias=False)
        linear.weight = nn.Parameter(value.clone())
        weights[name] = linear
    model: Any = nn.ModuleDict({"q": nn.ModuleDict({"lora_A": weights})})
    model = nn.ModuleDict({"base_model": nn.ModuleDict({"model": model})})
    return model, {"q.lora_A.weight": weights["task_002"].weight}


def test_orthogonal_subspaces_cost_nothing() -> None:
    identity = torch.eye(6)
    penalty = CrossTaskOrthogonality()
    model, parameters = toy_model(identity[:2], identity[2:5])
    penalty.begin_task(parameters, 1)
    assert float(penalty(context(model, parameters)).detach()) == 0.0
    model, parameters = toy_model(identity[:3], identity[2:5])
    penalty.begin_task(parameters, 1)
    assert float(penalty(context(model, parameters)).detach()) == 0.5


def test_descent_on_it_alone_turns_the_new_rows_away_from_the_old() -> None:
    draw = torch.Generator().manual_seed(0)
    start, old = torch.randn(2, 8, generator=draw), torch.randn(3, 8, generator=draw)
    model, parameters = toy_model(start, old)
    penalty = CrossTaskOrthogonality(coefficient=1.0)
    penalty.begin_task(parameters, 1)
    optimizer = torch.optim.SGD(list(parameters.values()), lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        penalty(context(model, parameters)).backward()
        optimizer.step()
        optimizer.param_groups[0]["lr"] *= 0.97
    (new,) = parameters.values()
    cosines = [torch.cosine_similarity(a, b, dim=0).detach() for a in new for b in old]
    assert max(abs(float(c)) for c in cosines) < 1e-3
    # What was orthogonal from the start is left as it was.
    basis = torch.linalg.qr(old.T).Q
    projected = start - start @ basis @ basis.T
    torch.testing.assert_close(new.detach(), projected, atol=1e-2, rtol=0)


def test_half_precision_weights_are_computed_in_float32() -> None:
    model, parameters = toy_model(torch.ones(2, 300), torch.ones(1, 300))
    model.bfloat16()
    penalty = CrossTaskOrthogonality(coefficient=1.0)
    penalty.begin_task(parameters, 1)
    assert penalty(context(model, parameters)).dtype == torch.float32
    model.get_parameter("base_model.model.q.lora_A.task_002.weight").data[0, 0] = 2.0
    assert float(penalty(context(model, parameters)).detach()) == 601.0  # bfloat16 would round it


def test_a_model_without_lora_is_refused() -> None:
    others = {"q.ia3_l": torch.ones(3), "q.lora_B.weight": torch.ones(3)}
    with pytest.raises(UserError, match="method/penalty=none"):
        CrossTaskOrthogonality().check(
            SimpleNamespace(trainable_parameters=others, identification=None)
        )


def test_a_shared_lora_is_refused_in_the_second_task(tiny_t5: Path) -> None:
    model, parameters = several_loras(tiny_t5, 1)
    penalty = CrossTaskOrthogonality()
    penalty.begin_task(parameters, 0)
    assert float(penalty(context(model, parameters)).detach()) == 0.0
    penalty.begin_task(parameters, 1)
    with pytest.raises(UserError, match="holds no frozen LoRA after 1 tasks"):
        penalty(context(model, parameters))


@pytest.mark.parametrize("coefficient", [-0.1, float("nan"), "big", None])
def test_a_coefficient_that_is_none(coefficient: Any) -> None:
    with pytest.raises(UserError, match=r"penalty\.cross_task_orthogonality\.coefficient"):
        CrossTaskOrthogonality(coefficient=coefficient)

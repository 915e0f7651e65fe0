"""Frozen weights cast once: the same numbers as cast each time, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from peft import LoraConfig
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import AdamW
from transformers import AutoModelForCausalLM

from kif_lightning.adapters import FullAdapter, PeftAdapter
from kif_lightning.backbones import DecoderBackbone, Seq2SeqBackbone
from kif_lightning.interfaces import Row
from kif_lightning.mixed_precision import drop_casts_, keep_casts_
from kif_lightning.module import ContinualModule
from tests.helpers.fits import TinyFit

ROWS = [Row(id=str(i), input="is it red ? " * i, output="good " * i) for i in range(1, 5)]
BF16 = torch.bfloat16


def learner(family: str, folder: Path, **lora: Any) -> tuple[Any, nn.Module]:
    """A tiny backbone and its model with a LoRA that does something."""
    kind: Any = {"t5": Seq2SeqBackbone, "llama": DecoderBackbone}[family]
    backbone = kind(name="tiny", hub_name="nobody/tiny", path=str(folder))
    targets = ["q", "v", "wi"] if family == "t5" else ["q_proj", "v_proj", "up_proj"]
    config = LoraConfig(r=2, target_modules=targets, init_lora_weights=False, **lora)
    torch.manual_seed(1)
    return backbone, PeftAdapter(config=config).attach(backbone.load_model(), backbone)


def gradients(backbone: Any, model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Logits, and the gradient of everything that learns, under autocast."""
    model.zero_grad()
    torch.manual_seed(2)
    batch = backbone.training_batch([backbone.encode(row) for row in ROWS])
    with torch.autocast("cpu", dtype):
        logits, _ = backbone.answer_logits(model.train(), batch)
    logits.float().log_softmax(dim=-1)[..., 5].sum().backward()
    learnt = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"logits": logits.detach(), **learnt}


def answers(backbone: Any, model: nn.Module) -> list[str]:
    batch = backbone.generation_batch([backbone.encode(row) for row in ROWS])
    with torch.inference_mode(), torch.autocast("cpu", BF16):
        found: list[str] = backbone.generate(model.eval(), batch, 6)
    return found


@pytest.fixture(params=["t5", "llama"])
def family(request: pytest.FixtureRequest) -> tuple[str, Path]:
    """Its name, and a folder with a tiny model."""
    return request.param, request.getfixturevalue(f"tiny_{request.param}")


@pytest.mark.parametrize("dtype", [BF16, torch.float16])
@pytest.mark.parametrize("dora", [False, True])
def test_numbers_are_those_of_casting_each_time(
    family: tuple[str, Path], dtype: torch.dtype, dora: bool
) -> None:
    backbone, model = learner(*family, use_dora=dora, lora_dropout=0.2)
    expected, texts = gradients(backbone, model, dtype), answers(backbone, model)
    keep_casts_(model, dtype)
    found = gradients(backbone, model, dtype)
    assert len(found) > 4
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    assert answers(backbone, model) == texts
    # What is used is the cast, else nothing was tested.
    for layer in model.modules():
        if hasattr(layer, "cast"):
            layer.cast.zero_()
    assert not torch.equal(gradients(backbone, model, dtype)["logits"], expected["logits"])


def test_all_frozen_linear_layers_and_no_others(family: tuple[str, Path]) -> None:
    _, model = learner(*family)
    names = {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)}
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    keep_casts_(model, BF16)
    kept = {name for name, layer in model.named_modules() if hasattr(layer, "cast")}
    linear = {name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    assert kept == {name for name in linear if "lora_" not in name}
    assert any(name.endswith("lm_head") for name in kept), "a tied one too"
    assert {n: id(p) for n, p in model.named_parameters(remove_duplicate=False)} == names
    assert model.state_dict().keys() == state.keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name
        assert tensor.dtype == torch.float32
    drop_casts_(model)
    assert not any(hasattr(layer, "cast") for layer in model.modules())
    assert {type(layer) for layer in model.modules() if isinstance(layer, nn.Linear)} == {nn.Linear}


def test_without_autocast_and_with_other_weights_the_cast_is_not_used() -> None:
    layer = nn.Linear(8, 8).requires_grad_(False)
    model, inputs = nn.Sequential(layer), torch.randn(3, 8)
    other = {"0.weight": torch.randn(8, 8), "0.bias": torch.zeros(8)}
    plain = model(inputs)
    with torch.autocast("cpu", BF16):
        replaced = functional_call(model, other, (inputs,))
    with torch.autocast("cpu", torch.float16):
        half = model(inputs)
    keep_casts_(model, BF16)
    assert torch.equal(model(inputs), plain)
    with torch.autocast("cpu", BF16):
        assert torch.equal(functional_call(model, other, (inputs,)), replaced)
    with torch.autocast("cpu", torch.float16):
        assert torch.equal(model(inputs), half)


def test_what_learns_is_left_alone(tiny_t5: Path) -> None:
    backbone = Seq2SeqBackbone(name="tiny", hub_name="nobody/tiny", path=str(tiny_t5))
    model = FullAdapter().attach(backbone.load_model(), backbone)
    keep_casts_(model, BF16)
    assert not any(hasattr(layer, "cast") for layer in model.modules())


@pytest.mark.parametrize("again", [True, False])
def test_where_layers_are_computed_again_memory_comes_first_in_training(
    family: tuple[str, Path], again: bool
) -> None:
    backbone, _ = learner(*family)
    model = replace(backbone, gradient_checkpointing=again).load_model().requires_grad_(False)
    module = ContinualModule(backbone=backbone, model=model, optimizer=AdamW, schedule=AdamW)
    module._trainer = SimpleNamespace(precision="bf16-mixed")  # type: ignore[assignment]

    def kept() -> bool:
        return any(hasattr(layer, "cast") for layer in model.modules())

    module.on_train_start()
    assert kept() is not again
    module.on_train_end()
    module.on_test_start()
    assert kept()
    module.on_test_end()
    assert not kept()


def test_merged_weights_are_the_full_ones(tiny_llama: Path, tmp_path: Path) -> None:
    _, model = learner("llama", tiny_llama)
    expected = learner("llama", tiny_llama)[1]
    keep_casts_(model, BF16)
    for made in (model, expected):
        merging: Any = made
        merging.merge_and_unload()
    merged: dict[str, Any] = {"found": model, "expected": expected}
    for name, made in merged.items():
        made.get_base_model().save_pretrained(tmp_path / name)
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "found").state_dict()
    for name, tensor in expected.get_base_model().state_dict().items():
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name], tensor), name


class _Looks:
    """How many layers have a cast, each time it is asked."""

    def __init__(self, model: nn.Module) -> None:
        self.found: list[int] = []
        output_layer: nn.Module = model.get_submodule("base_model.model.lm_head")
        output_layer.register_forward_hook(
            lambda *_: self.found.append(sum(hasattr(m, "cast") for m in model.modules()))
        )


@pytest.mark.parametrize(
    ("precision", "used"), [("bf16-mixed", True), ("32-true", False)], ids=["mixed", "full"]
)
def test_a_fit_and_a_test_keep_them_for_their_time(
    tiny_t5: Path, precision: str, used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(keep: Callable[..., None]) -> tuple[dict[str, Tensor], _Looks, dict[int, str]]:
        monkeypatch.setattr("kif_lightning.module.keep_casts_", keep)
        fit = TinyFit(tiny_t5, precision=precision)
        looks = _Looks(fit.module.model)
        weights = {name: tensor.clone() for name, tensor in fit.fit().items()}
        assert not any(hasattr(layer, "cast") for layer in fit.module.model.modules())
        fit.module.begin_evaluation(1)
        Trainer(
            accelerator="cpu", precision=precision, logger=False, enable_progress_bar=False
        ).test(fit.module, dataloaders=fit.data.evaluation_dataloaders([0]), verbose=False)
        assert not any(hasattr(layer, "cast") for layer in fit.module.model.modules())
        return weights, looks, fit.module.answers[0]

    weights, looks, texts = run(keep_casts_)
    assert all(bool(number) == used for number in looks.found)
    assert len(looks.found) > 3
    expected, without, expected_texts = run(lambda *_: None)
    assert not any(without.found)
    assert texts == expected_texts
    for name, tensor in expected.items():
        assert torch.equal(weights[name], tensor), name

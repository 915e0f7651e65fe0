"""The PEFT adapter: names, what learns, state, and folders that plain peft reads."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from kif_lightning.adapters import PeftAdapter
from kif_lightning.backbones import DecoderBackbone, Seq2SeqBackbone
from kif_lightning.errors import UserError

ADAPTERS = {
    "lora": lambda targets: peft.LoraConfig(r=2, lora_alpha=8, target_modules=targets),
    "dora": lambda targets: peft.LoraConfig(r=2, target_modules=targets, use_dora=True),
    "ia3": lambda targets: peft.IA3Config(),
}
FAMILIES = {
    "t5": (Seq2SeqBackbone, AutoModelForSeq2SeqLM, ["q", "v"]),
    "llama": (DecoderBackbone, AutoModelForCausalLM, ["q_proj", "v_proj"]),
}


class Case:
    """One adapter on one family, its weights moved away from their start values."""

    def __init__(self, kind: str, family: str, folder: Path, **settings: Any) -> None:
        backbone_class, self.auto_class, targets = FAMILIES[family]
        self.folder = folder
        self.backbone = backbone_class(
            name="tiny", hub_name="nobody/tiny", path=str(folder), **settings
        )
        self.adapter = PeftAdapter(config=ADAPTERS[kind](targets))
        self.model: Any = self.adapter.attach(self.backbone.load_model(), self.backbone).eval()

    def move(self, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.adapter.trainable(self.model).values():
                parameter.add_(torch.randn(parameter.shape, generator=draw))

    @torch.no_grad()
    def logits(self, model: nn.Module) -> Tensor:
        ids = torch.tensor([[5, 9, 40, 77, 3]])
        labels = {"labels": ids} if self.backbone.task_type == "SEQ_2_SEQ_LM" else {}
        return model(input_ids=ids, **labels).logits


@pytest.fixture(params=[(kind, family) for kind in ADAPTERS for family in FAMILIES],
                ids="-".join)  # fmt: skip
def case(request: pytest.FixtureRequest) -> Case:
    kind, family = request.param
    return Case(kind, family, request.getfixturevalue(f"tiny_{family}"))


def test_exported_names_are_those_of_the_saved_adapter(case: Case, tmp_path: Path) -> None:
    names = case.adapter.trainable(case.model)
    assert names
    for name in names:
        assert "base_model" not in name
        assert ".default" not in name
    case.adapter.save(case.model, tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    in_file = {name.removeprefix("base_model.model.") for name in saved}
    assert in_file == {re.sub(r"(magnitude_vector)\.weight$", r"\1", name) for name in names}


def test_only_adapter_weights_learn(case: Case) -> None:
    before = {n: p.clone() for n, p in case.model.named_parameters()}
    case.logits(case.model)
    ids = torch.tensor([[5, 9, 40, 77, 3]])
    case.model(input_ids=ids, labels=ids).loss.backward()
    trainable = {id(p) for p in case.adapter.trainable(case.model).values()}
    optimizer = torch.optim.SGD(case.model.parameters(), lr=10.0)
    optimizer.step()
    changed = {n for n, p in case.model.named_parameters() if not torch.equal(p, before[n])}
    assert changed
    for name, parameter in case.model.named_parameters():
        learns = any(mark in name for mark in (".lora_", ".ia3_"))
        assert parameter.requires_grad == learns == (id(parameter) in trainable), name
        assert learns or name not in changed, name


def test_plain_peft_loads_the_saved_folder(case: Case, tmp_path: Path) -> None:
    untouched = case.logits(case.backbone.load_model().eval())
    case.move(seed=3)
    case.adapter.save(case.model, tmp_path)
    fresh = case.auto_class.from_pretrained(case.folder)
    loaded = peft.PeftModel.from_pretrained(fresh, str(tmp_path)).eval()
    ours = case.logits(case.model)
    assert torch.equal(case.logits(loaded), ours)
    assert not torch.allclose(ours, untouched), "an adapter without effect would prove nothing"


def test_the_saved_folder_names_the_hub_model_and_no_path(case: Case, tmp_path: Path) -> None:
    case.adapter.save(case.model, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "nobody/tiny"
    assert config["task_type"] == case.backbone.task_type
    for file in tmp_path.rglob("*"):
        assert str(case.folder).encode() not in file.read_bytes(), file.name


def test_state_goes_round_bit_for_bit(case: Case) -> None:
    case.move(seed=1)
    kept = {name: tensor.clone() for name, tensor in case.adapter.state_dict(case.model).items()}
    logits = case.logits(case.model)
    case.move(seed=2)
    assert not torch.equal(case.logits(case.model), logits)
    case.adapter.load_state_dict(case.model, kept)
    for name, parameter in case.adapter.trainable(case.model).items():
        assert torch.equal(parameter, kept[name]), name
        assert parameter.requires_grad
    assert torch.equal(case.logits(case.model), logits)


def test_state_of_another_adapter_is_refused(tiny_llama: Path) -> None:
    case = Case("lora", "llama", tiny_llama)
    state = dict(case.adapter.state_dict(case.model))
    name, tensor = state.popitem()
    with pytest.raises(UserError, match="another adapter: 2 names differ"):
        case.adapter.load_state_dict(case.model, {**state, "other.lora_A.weight": tensor})
    assert name in case.adapter.trainable(case.model)


def test_adapter_weights_are_float32_on_a_bfloat16_model(tiny_llama: Path) -> None:
    case = Case("lora", "llama", tiny_llama, dtype="bfloat16")
    trainable = {id(p) for p in case.adapter.trainable(case.model).values()}
    for parameter in case.model.parameters():
        expected = torch.float32 if id(parameter) in trainable else torch.bfloat16
        assert parameter.dtype == expected


def test_attaching_twice_leaves_the_config_as_it_was(tiny_llama: Path) -> None:
    case = Case("lora", "llama", tiny_llama)
    assert case.adapter.config.task_type is None
    again = case.adapter.attach(case.backbone.load_model(), case.backbone)
    assert case.adapter.trainable(again).keys() == case.adapter.trainable(case.model).keys()


@pytest.mark.parametrize(
    ("family", "own"),
    [
        ("llama", ["q_proj (2)", "lm_head (1)", "up_proj (2)"]),
        ("t5", ["q (6)", "wi (4)", "lm_head (1)"]),
    ],
)
def test_targets_that_match_nothing_name_the_models_layers(
    family: str, own: list[str], request: pytest.FixtureRequest
) -> None:
    backbone_class, _, _ = FAMILIES[family]
    folder = request.getfixturevalue(f"tiny_{family}")
    backbone = backbone_class(name="tiny", hub_name="nobody/tiny", path=str(folder))
    adapter = PeftAdapter(config=peft.LoraConfig(target_modules=["query", "key"]))
    with pytest.raises(UserError) as error:
        adapter.attach(backbone.load_model(), backbone)
    message = str(error.value)
    for part in ("['key', 'query']", "backbone.lora_targets", *own):
        assert part in message
    assert "\n" not in message

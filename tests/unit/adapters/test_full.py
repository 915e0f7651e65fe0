"""Full fine-tuning: every weight once, and a folder that from_pretrained reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
)

from kif_lightning.adapters import FullAdapter
from kif_lightning.backbones import DecoderBackbone, Seq2SeqBackbone
from kif_lightning.errors import UserError
from kif_lightning.interfaces import Backbone, count_weights

IDS = torch.tensor([[5, 9, 40, 77, 3]])


@pytest.fixture(params=["t5", "llama"])
def backbone(request: pytest.FixtureRequest) -> Any:
    family = {"t5": Seq2SeqBackbone, "llama": DecoderBackbone}[request.param]
    folder = request.getfixturevalue(f"tiny_{request.param}")
    return family(name="tiny", hub_name="nobody/tiny", path=str(folder))


@pytest.fixture
def adapter() -> FullAdapter:
    return FullAdapter()


@pytest.fixture
def model(backbone: Backbone, adapter: FullAdapter) -> Any:
    return adapter.attach(backbone.load_model(), backbone).eval()


def move(adapter: FullAdapter, model: nn.Module, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.trainable(model).values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(input_ids=IDS, labels=IDS).logits


def test_every_weight_learns_and_tied_ones_count_once(adapter: FullAdapter, model: Any) -> None:
    trainable = adapter.trainable(model)
    storages = {p.data_ptr(): p.numel() for p in model.parameters()}
    assert len(trainable) == len({p.data_ptr() for p in trainable.values()}) == len(storages)
    assert count_weights(trainable) == sum(storages.values())
    assert all(p.requires_grad for p in trainable.values())


def test_the_tied_embedding_of_t5_is_one_weight(tiny_t5: Path, adapter: FullAdapter) -> None:
    backbone = Seq2SeqBackbone(name="tiny", hub_name="nobody/tiny", path=str(tiny_t5))
    model: Any = adapter.attach(backbone.load_model(), backbone)
    names = [n for n, _ in model.named_parameters(remove_duplicate=False) if "embed_tokens" in n]
    assert len(names) == 2, "encoder and decoder share their embedding"
    vocabulary = [n for n, p in adapter.trainable(model).items() if p.shape == (len_of(model), 16)]
    assert vocabulary == ["shared.weight"]


def len_of(model: PreTrainedModel) -> int:
    return int(model.config.vocab_size)


def test_frozen_weights_of_a_loaded_model_learn_again(
    backbone: Backbone, adapter: FullAdapter
) -> None:
    frozen = backbone.load_model().requires_grad_(False)
    assert len(adapter.trainable(adapter.attach(frozen, backbone))) > 10


def test_from_pretrained_reads_the_saved_folder(
    backbone: Backbone, adapter: FullAdapter, model: Any, tmp_path: Path
) -> None:
    untouched = logits(model)
    move(adapter, model, seed=1)
    adapter.save(model, tmp_path)
    seq2seq = backbone.task_type == "SEQ_2_SEQ_LM"
    auto_class = AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM
    assert torch.equal(logits(auto_class.from_pretrained(tmp_path).eval()), logits(model))
    assert not torch.allclose(logits(model), untouched)
    text = "What is the colour ?"
    own: Any = backbone
    assert AutoTokenizer.from_pretrained(tmp_path)(text) == own.tokenizer(text)
    for file in tmp_path.glob("*.json"):
        assert own.path not in file.read_text(), file.name


def test_state_goes_round_bit_for_bit(adapter: FullAdapter, model: Any) -> None:
    move(adapter, model, seed=1)
    kept = {name: tensor.clone() for name, tensor in adapter.state_dict(model).items()}
    before = logits(model)
    move(adapter, model, seed=2)
    assert not torch.equal(logits(model), before)
    adapter.load_state_dict(model, kept)
    assert all(torch.equal(p, kept[n]) for n, p in adapter.trainable(model).items())
    assert torch.equal(logits(model), before)


def test_state_of_another_model_is_refused(adapter: FullAdapter, model: Any) -> None:
    with pytest.raises(UserError, match="names differ"):
        adapter.load_state_dict(model, {"shared.weight": torch.zeros(1)})


def test_packed_weights_cannot_learn(backbone: Backbone, adapter: FullAdapter) -> None:
    model = backbone.load_model()
    codes = torch.zeros(8, 1, dtype=torch.uint8)
    model.register_parameter("packed", nn.Parameter(codes, requires_grad=False))
    with pytest.raises(UserError, match=r"method/adapter=lora.*backbone\.quantisation=null.*\.$"):
        adapter.attach(model, backbone)

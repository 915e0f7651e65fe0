"""Gradient checkpointing: the same gradients and answers from less that is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor, nn

from kif_lightning.adapters import FullAdapter, PeftAdapter, ProgressivePrompts
from kif_lightning.backbones import DecoderBackbone, Seq2SeqBackbone
from kif_lightning.errors import UserError
from kif_lightning.interfaces import Row

ROWS = [Row(id=str(i), input="is it red ? " * i, output="good " * i) for i in range(1, 5)]


class Learner:
    """A tiny model with an adapter; dropout is on in training."""

    def __init__(self, family: str, folder: Path, adapter: str, *, checkpointing: bool) -> None:
        kind: Any = {"t5": Seq2SeqBackbone, "llama": DecoderBackbone}[family]
        self.backbone = kind(
            name="tiny",
            hub_name="nobody/tiny",
            path=str(folder),
            gradient_checkpointing=checkpointing,
        )
        targets = ["q", "v"] if family == "t5" else ["q_proj", "v_proj"]
        lora = LoraConfig(r=2, target_modules=targets, init_lora_weights=False, lora_dropout=0.2)
        torch.manual_seed(1)
        adapters: dict[str, Any] = {
            "full": FullAdapter,
            "lora": lambda: PeftAdapter(config=lora),
            "prompts": lambda: ProgressivePrompts(num_tokens=3),
        }
        self.adapter = adapters[adapter]()
        self.model: nn.Module = self.adapter.attach(self.backbone.load_model(), self.backbone)
        self.examples = [self.backbone.encode(row) for row in ROWS]
        self.kept_bytes = 0

    def _kept(self, tensor: Tensor) -> Tensor:
        self.kept_bytes += tensor.numel() * tensor.element_size()
        return tensor

    def gradients(self) -> dict[str, Tensor]:
        self.model.train()
        torch.manual_seed(2)
        with torch.autograd.graph.saved_tensors_hooks(self._kept, lambda tensor: tensor):
            logits, _ = self.backbone.answer_logits(
                self.model, self.backbone.training_batch(self.examples)
            )
        logits.log_softmax(dim=-1)[..., 5].sum().backward()
        return {name: p.grad for name, p in self.adapter.trainable(self.model).items()}

    def answers(self) -> list[str]:
        batch = self.backbone.generation_batch(self.examples)
        with torch.inference_mode():
            found: list[str] = self.backbone.generate(self.model.eval(), batch, 6)
        return found


@pytest.fixture(params=["t5", "llama"])
def family(request: pytest.FixtureRequest) -> tuple[str, Path]:
    """Its name, and a folder with a tiny model."""
    return request.param, request.getfixturevalue(f"tiny_{request.param}")


@pytest.mark.parametrize("adapter", ["full", "lora", "prompts"])
def test_gradients_are_those_without(family: tuple[str, Path], adapter: str) -> None:
    plain = Learner(*family, adapter, checkpointing=False)
    saving = Learner(*family, adapter, checkpointing=True)
    expected = plain.gradients()
    found = {name: gradient.clone() for name, gradient in saving.gradients().items()}
    kept_bytes = saving.kept_bytes
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient is not None
        assert gradient.any() or adapter == "full"
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-6, msg=name)
    assert kept_bytes < 0.5 * plain.kept_bytes
    saving.model.zero_grad()
    again = saving.gradients()
    assert all(torch.equal(again[name], found[name]) for name in found), "dropout drawn anew"
    assert saving.answers() == plain.answers()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_keeps_no_cache(family: tuple[str, Path], checkpointing: bool) -> None:
    learner = Learner(*family, "full", checkpointing=checkpointing)
    outputs: list[Any] = []
    learner.model.register_forward_hook(lambda _, __, output: outputs.append(output))
    learner.gradients()
    assert [output.get("past_key_values") for output in outputs] == [None]


def test_a_model_that_cannot_is_told(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = DecoderBackbone(
        name="tiny", hub_name="nobody/tiny", path=str(tiny_llama), gradient_checkpointing=True
    )
    kind = type(backbone.load_model())
    monkeypatch.setattr(kind, "supports_gradient_checkpointing", False)
    with pytest.raises(UserError, match=r"LlamaForCausalLM.*gradient_checkpointing=false\.$"):
        backbone.load_model()

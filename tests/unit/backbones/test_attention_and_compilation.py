"""How attention is computed, and compiled passes: same numbers, plain refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kif_lightning.backbones import DecoderBackbone, Seq2SeqBackbone
from kif_lightning.backbones import loading as loading_module
from kif_lightning.backbones.decoding import answer_ids
from kif_lightning.errors import UserError
from kif_lightning.interfaces import Row

ROWS = [Row(id=str(i), input="is it red ? " * i, output="good " * i) for i in range(1, 4)]


@pytest.fixture(params=["t5", "llama"])
def settings(request: pytest.FixtureRequest) -> tuple[Any, dict[str, Any]]:
    """The family's class, and what names a tiny model of it."""
    kind = Seq2SeqBackbone if request.param == "t5" else DecoderBackbone
    folder = request.getfixturevalue(f"tiny_{request.param}")
    return kind, {"name": "tiny", "hub_name": "nobody/tiny", "path": str(folder)}


def logits(backbone: Any, model: nn.Module) -> Tensor:
    batch = backbone.training_batch([backbone.encode(row) for row in ROWS])
    with torch.no_grad():
        found, labels = backbone.answer_logits(model.eval(), batch)
    chosen: Tensor = found[labels >= 0]
    return chosen


def test_every_attention_gives_the_same_logits(settings: tuple[Any, dict[str, Any]]) -> None:
    kind, names = settings
    found = {}
    for attention in (None, "sdpa", "eager"):
        backbone = kind(**names, attention=attention)
        model = backbone.load_model()
        assert attention in (None, model.config._attn_implementation)
        found[attention] = logits(backbone, model)
    torch.testing.assert_close(found["sdpa"], found["eager"], rtol=1e-4, atol=1e-5)
    assert any(torch.equal(found[None], found[name]) for name in ("sdpa", "eager"))


@pytest.mark.parametrize("attention", ["nonsense", "flash_attention_2"])
def test_an_attention_that_is_not_there(
    settings: tuple[Any, dict[str, Any]], attention: str
) -> None:
    if attention != "nonsense" and torch.cuda.is_available():
        pytest.skip("it may be there")
    kind, names = settings
    with pytest.raises(UserError, match=rf"^backbone.attention={attention} .*=null.*\.$") as error:
        kind(**names, attention=attention).load_model()
    assert "\n" not in str(error.value)
    assert names["path"] not in str(error.value)


class _Passes:
    """Stands for the compiler: counts the passes it is given, and runs them as they are."""

    def __init__(self) -> None:
        self.number = 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        def run(*given: Any) -> Any:
            self.number += 1
            return graph(*given)

        return run


class _Small(nn.Module):
    """Answers as a decoder does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(400, 8)
        self.output = nn.Linear(8, 400)

    def forward(self, input_ids: Tensor, **_: Any) -> Any:
        return {"logits": self.output(self.embedding(input_ids).cumsum(dim=1))}


def test_compiled_in_place_and_not_in_decoding(
    tiny_t5: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes, plain = _Passes(), nn.Module.compile
    monkeypatch.setattr(
        nn.Module, "compile", lambda module, **given: plain(module, backend=passes, **given)
    )
    backbone = Seq2SeqBackbone(name="t", hub_name="n/t", path=str(tiny_t5), compile=True)
    model = _Small()
    names, ids = list(model.state_dict()), torch.randint(2, 250, (3, 5))
    expected = model(ids)["logits"]
    assert backbone.compiled(model) is model
    compiled_call = model._compiled_call_impl
    assert torch.equal(backbone.compiled(model)(ids)["logits"], expected)
    assert passes.number == 1
    assert model._compiled_call_impl is compiled_call, "compiled once"
    assert list(model.state_dict()) == names
    with torch.compiler.set_stance("force_eager"):
        assert torch.equal(model(ids)["logits"], expected)
    assert passes.number == 1

    decoder: Any = backbone.load_model()
    decoder.compile()
    answer_ids(decoder, top_k=None, input_ids=ids, attention_mask=torch.ones_like(ids),
               max_new_tokens=3, decoder_start_token_id=0, pad_token_id=0)  # fmt: skip
    assert passes.number == 1


def test_not_compiled_unless_asked(tiny_t5: Path) -> None:
    backbone = Seq2SeqBackbone(name="t", hub_name="n/t", path=str(tiny_t5))
    assert backbone.compiled(_Small())._compiled_call_impl is None


def test_a_missing_compiler_is_told_before_the_weights_are_read(
    tiny_t5: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Any) -> Any:
        raise RuntimeError("no g++\nanywhere")

    monkeypatch.setattr(loading_module.torch, "compile", broken)
    backbone = Seq2SeqBackbone(name="t", hub_name="n/t", path=str(tiny_t5), compile=True)
    with pytest.raises(UserError, match=r"^backbone.compile=true .*g\+\+.*=false\.$") as error:
        backbone.require_available()
    assert "\n" not in str(error.value)


def test_labels_are_ranked_without_the_compiler(settings: tuple[Any, dict[str, Any]]) -> None:
    kind, names = settings
    backbone, passes = kind(**names), _Passes()
    model = backbone.load_model().eval()
    batch = backbone.generation_batch([backbone.encode(row) for row in ROWS])
    labels = [[5, 1], [7, 8, 1]]
    with torch.no_grad():
        expected = backbone.label_log_probabilities(model, batch, labels)
        model.compile(backend=passes)
        assert torch.equal(backbone.label_log_probabilities(model, batch, labels), expected)
    assert passes.number == 0


def test_how_a_model_computes_is_told(settings: tuple[Any, dict[str, Any]]) -> None:
    kind, names = settings
    for attention in ("eager", "sdpa"):
        backbone = kind(**names, attention=attention, dtype="bfloat16")
        told = {"backbone_dtype": "bfloat16", "attention": attention, "compile": False}
        assert backbone.computation(backbone.load_model()) == told
    own = kind(**names).load_model()  # null: what the model really uses
    assert kind(**names).computation(own)["attention"] == own.config._attn_implementation

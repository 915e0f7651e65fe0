"""A model spread over ranks: which parts are spread, what it computes, what is refused."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from kif_lightning.callbacks import KnowledgeFusion
from kif_lightning.errors import UserError
from kif_lightning.identification import Identification
from kif_lightning.kif import AdaptiveRule, ImportanceTracker, lora_rank_units, matrix_units
from kif_lightning.sharding import shard_model, transformer_blocks
from tests.helpers.processes import in_processes

VOCABULARY = 61
"""Odd, as the widths: no dimension is dealt out evenly."""


def tiny_t5() -> nn.Module:
    torch.manual_seed(0)
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=VOCABULARY,
            d_model=15,
            d_kv=5,
            d_ff=7,
            num_layers=2,
            num_heads=3,
            dropout_rate=0.0,
            decoder_start_token_id=0,
        )
    )


def tiny_llama() -> nn.Module:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=12,
            intermediate_size=9,
            num_hidden_layers=3,
            num_attention_heads=3,
            num_key_value_heads=3,
            eos_token_id=1,
            pad_token_id=0,
        )
    )


def with_lora(model: nn.Module, targets: list[str]) -> nn.Module:
    config = LoraConfig(r=3, target_modules=targets, init_lora_weights=False)
    return get_peft_model(model, config)


CASES: dict[str, tuple[Any, Any]] = {
    "t5, full": (tiny_t5, matrix_units),
    "t5, lora": (lambda: with_lora(tiny_t5(), ["q", "v"]), lora_rank_units),
    "llama, lora": (lambda: with_lora(tiny_llama(), ["q_proj", "v_proj"]), lora_rank_units),
}


def learn(model: nn.Module, partition: Any, rows: slice, mesh: Any = None) -> dict[str, Any]:
    """Two tasks of two steps with fusion; each step's rows are those of the slice."""
    if mesh is not None:
        shard_model(model, mesh)
    draw = torch.Generator().manual_seed(7)
    fusion = KnowledgeFusion(rule=AdaptiveRule(), units=partition, offload_snapshot=mesh is None)
    weights = {
        name.replace(".default", ""): p for name, p in model.named_parameters() if p.requires_grad
    }
    identification = Identification(tracker=ImportanceTracker())
    module: Any = SimpleNamespace(trainable_parameters=weights, identification=identification)
    model.eval()  # no dropout
    for _ in range(2):
        identification.begin_task()
        fusion.on_train_start(None, module)  # type: ignore[arg-type]
        for _ in range(2):
            tokens = torch.randint(2, VOCABULARY, (4, 6), generator=draw)[rows]
            model(input_ids=tokens, labels=tokens).loss.backward()
            identification.before_step(weights)
            with torch.no_grad():
                for parameter in weights.values():
                    assert parameter.grad is not None
                    parameter.sub_(parameter.grad, alpha=0.3)
                    parameter.grad = None
        fusion.on_train_end(None, module)  # type: ignore[arg-type]
    assert fusion.boundary is not None
    tokens = torch.randint(2, VOCABULARY, (2, 5), generator=draw)
    answers = model.generate(input_ids=tokens, max_new_tokens=4, do_sample=False)  # type: ignore[operator]
    return {
        "answers": answers.tolist(),
        "score": fusion.boundary.score.tolist(),
        "weight": fusion.boundary.weight.tolist(),  # type: ignore[union-attr]
        "fused": {name: listed(p) for name, p in weights.items()},
        "spread": all(isinstance(p, DTensor) for p in model.parameters()),
    }


def listed(tensor: Tensor) -> list[Any]:
    whole: Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    found: list[Any] = whole.detach().tolist()
    return found


def on_a_rank() -> str:
    mesh = init_device_mesh("cpu", (2,))
    rank = mesh.get_rank()
    rows = slice(2 * rank, 2 * rank + 2)
    found = {case: learn(make(), units, rows, mesh) for case, (make, units) in CASES.items()}
    return json.dumps(found)


@pytest.fixture(scope="module")
def on_two_ranks() -> list[dict[str, Any]]:
    return [json.loads(found) for found in in_processes(on_a_rank)]


@pytest.mark.parametrize("case", list(CASES))
def test_two_ranks_learn_and_fuse_what_one_does(
    case: str, on_two_ranks: list[dict[str, Any]]
) -> None:
    make, units = CASES[case]
    expected = learn(make(), units, slice(0, 4))
    assert not expected["spread"]
    largest = max(expected["score"])
    for found in (ranks[case] for ranks in on_two_ranks):
        assert found["spread"]
        assert found["answers"] == expected["answers"]
        assert found["score"] == pytest.approx(expected["score"], rel=1e-3, abs=1e-5 * largest)
        assert found["weight"] == pytest.approx(expected["weight"], abs=1e-3)
        for name, values in expected["fused"].items():
            got, want = torch.tensor(found["fused"][name]), torch.tensor(values)
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5, msg=name)


def test_blocks_are_the_layers_not_what_a_t5_layer_is_made_of() -> None:
    assert [type(b).__name__ for b in transformer_blocks(tiny_t5())] == ["T5Block"] * 4
    adapted = with_lora(tiny_llama(), ["q_proj"])
    assert [type(b).__name__ for b in transformer_blocks(adapted)] == ["LlamaDecoderLayer"] * 3


class Blocks(nn.Module):
    """Two blocks of one layer each."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])


def two_dtypes(model: Any) -> None:
    model.layers[0].bfloat16()


def quantised(model: Any) -> None:
    packed = torch.zeros(2, 2, dtype=torch.uint8)
    model.layers[0].weight = nn.Parameter(packed, requires_grad=False)


def one_number(model: Any) -> None:
    model.scale = nn.Parameter(torch.tensor(1.0))


def tied(model: Any) -> None:
    model.layers[1].weight = model.layers[0].weight


def no_blocks(model: Any) -> None:
    model.layers = nn.Sequential(*model.layers)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (two_dtypes, "must share one dtype, got torch.bfloat16 and torch.float32"),
        (quantised, "got torch.uint8 in layers.0.weight"),
        (one_number, "got scale of no dimension"),
        (tied, "several blocks share cannot be spread over ranks, got layers.0.weight"),
        (no_blocks, "got none in Blocks"),
    ],
)
def test_what_cannot_be_spread(spoil: Any, told: str) -> None:
    model = Blocks()
    spoil(model)
    mesh: Any = SimpleNamespace(ndim=1)  # refused before it is asked
    with pytest.raises(UserError) as caught:
        shard_model(model, mesh)
    assert told in str(caught.value)
    assert "trainer.strategy=ddp" in str(caught.value)


def test_tensor_parallelism_is_refused() -> None:
    class Mesh:
        ndim, shape, mesh_dim_names = 2, (2, 2), ("data_parallel", "tensor_parallel")

        def size(self) -> int:
            return 4

        def __getitem__(self, name: str) -> Any:
            return SimpleNamespace(size=lambda: 2)

    mesh: Any = Mesh()
    with pytest.raises(UserError, match=r"got a mesh of \(2, 2\): set trainer.strategy.tensor_par"):
        shard_model(Blocks(), mesh)

"""The scripts of the other side compute what the package computes, and the other way round."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from kif_lightning.backbones import Seq2SeqBackbone
from kif_lightning.interfaces import Row
from kif_lightning.kif import (
    AdaptiveRule,
    ImportanceTracker,
    accumulate,
    fuse_,
    lora_rank_units,
    min_max,
)
from kif_lightning.metrics.text import ExactMatch
from kif_lightning.penalties.orthonormality import orthonormality
from tests.helpers.scripts import scripts_of

Shapes = {"lora_A": (3, 7), "lora_B": (5, 3)}


@pytest.fixture
def script() -> Iterator[Any]:
    with scripts_of("benchmarks/public_scripts") as found:
        yield found


def lora_weights(seed: int) -> dict[str, torch.Tensor]:
    """Two modules of rank 3, under the names of a saved adapter."""
    draw = torch.Generator().manual_seed(seed)
    return {
        f"{module}.{side}.weight": torch.randn(shape, generator=draw)
        for module in ("decoder.q", "encoder.v")
        for side, shape in Shapes.items()
    }


class Adapter(nn.Module):
    """Parameters under peft's names within a model."""

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.held = {
            name.replace(".weight", ".default.weight"): nn.Parameter(weight.clone())
            for name, weight in weights.items()
        }

    def named_parameters(self, *_: Any, **__: Any) -> Iterator[tuple[str, nn.Parameter]]:
        yield from self.held.items()


def learnt(script: Any, seed: int) -> tuple[ImportanceTracker, Any, dict[str, torch.Tensor]]:
    """Our tracker and the script's after the same three steps, and the weights."""
    weights = lora_weights(seed)
    adapter = Adapter(weights)
    callback = script("train").ImportanceCallback(adapter)
    tracker = ImportanceTracker()
    tracker.reset(weights)
    draw = torch.Generator().manual_seed(seed + 100)
    for _ in range(3):
        gradients = {}
        for name, parameter in zip(weights, adapter.held.values(), strict=True):
            gradients[name] = torch.randn(parameter.shape, generator=draw)
            parameter.grad = gradients[name].clone()
        tracker.update(weights, gradients)
        callback.on_pre_optimizer_step()
    return tracker, callback, weights


def test_averages_and_unit_scores_are_ours(script: Any) -> None:
    tracker, callback, weights = learnt(script, seed=1)
    for ours, theirs in (
        (tracker.sensitivity, callback.sensitivity),
        (tracker.uncertainty, callback.uncertainty),
    ):
        for name, average in theirs.items():
            torch.testing.assert_close(ours[name.replace(".default", "")], average)
    fuse = script("fuse")
    averages = {"sensitivity": callback.sensitivity, "uncertainty": callback.uncertainty}
    scores = fuse.unit_scores(fuse.weight_scores(averages))
    units = lora_rank_units(weights)
    assert [f"{module}/rank:{rank}" for module, rank in scores] == list(units.ids)
    theirs = torch.stack(list(scores.values()))
    torch.testing.assert_close(theirs, tracker.unit_scores(units), rtol=1e-6, atol=0)


def test_fusion_and_accumulation_are_ours(script: Any) -> None:
    fuse = script("fuse")
    first, _, before = learnt(script, seed=1)
    second, _, now = learnt(script, seed=2)
    units = lora_rank_units(now)
    keys = [(unit.partition("/")[0], int(unit.rpartition(":")[2])) for unit in units.ids]

    def named(values: torch.Tensor) -> dict[tuple[str, int], torch.Tensor]:
        return dict(zip(keys, values, strict=True))

    previous, score = min_max(first.unit_scores(units)), second.unit_scores(units)
    current = fuse.normalised(named(score))
    mixed = fuse.accumulated(named(previous), current, beta=0.7)
    expected = accumulate(previous, score, 0.7)
    torch.testing.assert_close(torch.stack(list(mixed.values())), expected)

    theirs = fuse.fused(before, now, named(previous), current, tau=0.15)
    fuse_(units, AdaptiveRule(tau=0.15)(previous, min_max(score)), before, now)
    assert theirs.keys() == now.keys()
    for name, weight in now.items():
        torch.testing.assert_close(theirs[name], weight)


def test_the_penalty_is_ours(script: Any) -> None:
    weights = lora_weights(3)
    torch.testing.assert_close(
        script("train").orthonormality(Adapter(weights)), orthonormality(weights)
    )


def test_tokens_and_answers_are_ours(script: Any) -> None:
    rows = script("rows")
    backbone = Seq2SeqBackbone(
        name="t5_nano",
        hub_name="kif-lightning/t5_nano",
        source="bundled",
        max_source_tokens=16,
        mask_token=rows.MASK,
    )
    for text in ("a short one", "many words " * 20):
        example = backbone.encode(Row(id="", input=text, output="very good"))
        assert rows.prompt_ids(backbone.tokenizer, text, 16) == example.prompt_ids
        assert rows.answer_ids(backbone.tokenizer, "very good") == example.answer_ids
    model, texts = backbone.load_model().eval(), ["is this word good ?", "what is it ?"]
    examples = [backbone.encode(Row(id="", input=text, output="")) for text in texts]
    ours = backbone.generate(model, backbone.generation_batch(examples), 6)
    answer = script("predict").answer
    theirs = [answer(model, backbone.tokenizer, example.prompt_ids, 6) for example in examples]
    assert theirs == ours


def test_exact_match_is_ours(script: Any) -> None:
    pairs = [("Good.", "good"), ("bad", "good"), (" very  good", "very good"), ("", "good")]
    metric = ExactMatch(normalisation="sapt")
    metric.update([prediction for prediction, _ in pairs], [reference for _, reference in pairs])
    records = [{"prediction": p, "reference": r} for p, r in pairs]
    assert script("score").exact_match(records) == pytest.approx(float(metric.compute())) == 50.0

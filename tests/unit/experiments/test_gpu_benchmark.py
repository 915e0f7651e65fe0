"""The GPU benchmark: its code at a tiny size on the CPU; silent but for a line without a GPU."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from kif_lightning.module import ContinualModule

FOLDER = Path(__file__).parents[3] / "experiments" / "benchmarks"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(FOLDER)
    import gpu

    yield gpu
    for name in ("gpu", "our_side", "side_by_side"):  # plain names: nobody else shall find them
        sys.modules.pop(name, None)


def given(**sizes: int) -> argparse.Namespace:
    """Arguments of a tiny learner on the CPU."""
    return argparse.Namespace(
        device="cpu", tiny=True, source=6, target=3, new_tokens=3, steps=2, **sizes
    )


def test_it_measures_both_shapes(gpu: ModuleType, tmp_path: Path) -> None:
    sizes = "--source 6 --target 3 --new-tokens 3 --rows 2 --generated-rows 2 --steps 2"
    output = tmp_path / "gpu.json"
    gpu.main(
        ["--tiny", "--device", "cpu", "--peak", "1e11", "--output", str(output), *sizes.split()]
    )
    entries = json.loads(output.read_text())["entries"]
    for shape in ("t5_large", "llama_7b"):
        found = {e["what"].partition(", ")[2]: e for e in entries if e["what"].startswith(shape)}
        assert found.keys() == {
            *("training", "importance adds to a step", "generation"),
            "model FLOPs utilisation",
        }
        speed = found["training"]["value"]["median"]
        assert speed > 0
        assert found["generation"]["value"]["median"] > 0
        # 2 rows of 6 + 3 tokens a step.
        share = found["training"]["step_flops"] * speed / 18 / 1e11
        assert found["model FLOPs utilisation"]["value"]["median"] == pytest.approx(
            100 * share, rel=0.5
        )


def test_the_counted_operations_are_those_of_the_formula(gpu: ModuleType) -> None:
    # LLaMA, tiny: width 64, inner 128, 2 layers, one row of 9 tokens, output on 4 positions.
    learner = gpu.Learner("llama_7b", given(rows=1))
    _, module = learner.fit(importance=False)
    body = 2 * (4 * 64 * 64 + 3 * 64 * 128)
    frozen = 2 * (body * 9 + 64 * 32000 * 4)
    attention = 4 * 9 * 64 * 9 * 2
    lora = 2 * 2 * 9 * 2 * (64 * 8 * 2)
    assert learner.step_flops(module) == pytest.approx(
        2 * frozen + 3 * attention + 3 * lora / 2, rel=0.03
    )


@pytest.mark.parametrize(("shape", "tokens"), [("t5_large", 6), ("llama_7b", 9)])
def test_every_step_has_the_tokens_asked_for(
    gpu: ModuleType, shape: str, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[tuple[int, ...], int]] = []
    step = ContinualModule.training_step

    def spy(module: Any, batch: Any, *others: Any) -> Any:
        inputs = batch["inputs"]
        assert bool(inputs["attention_mask"].all())
        # What is padded with -100 is no target.
        seen.append((tuple(inputs["input_ids"].shape), int((inputs["labels"] >= 0).sum())))
        return step(module, batch, *others)

    monkeypatch.setattr(ContinualModule, "training_step", spy)
    gpu.Learner(shape, given(rows=2)).fit(importance=False)
    assert seen == [((2, tokens), 2 * 3)] * 5  # 3 steps to warm up, 2 measured


def test_other_batches_than_asked_for_are_no_measurement(gpu: ModuleType) -> None:
    learner = gpu.Learner("t5_large", given(rows=2))
    learner.arguments = given(rows=3)
    with pytest.raises(RuntimeError, match=r"\(2, 6\) .* \(3, 6\)"):
        learner.fit(importance=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(gpu: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    gpu.main([])
    assert capsys.readouterr().out == (
        "There is no GPU here that torch can use: nothing was measured.\n"
    )

"""The GPU benchmark: its code at a tiny size on the CPU; silent but for a line without a GPU."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

FOLDER = Path(__file__).parents[3] / "experiments" / "benchmarks"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    import gpu

    return gpu  # type: ignore[no-any-return]


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
    given = argparse.Namespace(
        device="cpu", tiny=True, source=6, target=3, rows=1, steps=2, new_tokens=3
    )
    learner = gpu.Learner("llama_7b", given)
    _, module = learner.fit(importance=False)
    body = 2 * (4 * 64 * 64 + 3 * 64 * 128)
    frozen = 2 * (body * 9 + 64 * 32000 * 4)
    attention = 4 * 9 * 64 * 9 * 2
    lora = 2 * 2 * 9 * 2 * (64 * 8 * 2)
    assert learner.step_flops(module) == pytest.approx(
        2 * frozen + 3 * attention + 3 * lora / 2, rel=0.03
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(gpu: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    gpu.main([])
    assert capsys.readouterr().out == (
        "There is no GPU here that torch can use: nothing was measured.\n"
    )

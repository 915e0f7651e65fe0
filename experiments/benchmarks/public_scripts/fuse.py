"""Phase 2 of a task: score the skill units, fuse the new adapter with the previous one.

python fuse.py --current FOLDER --output FOLDER [--previous FOLDER]
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

WEIGHTS, CONFIG, SCORES = "adapter_model.safetensors", "adapter_config.json", "scores.pt"
Units = dict[tuple[str, int], Tensor]
"""(module, rank) -> score, a scalar in float64."""


def weight_scores(averages: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Sensitivity times uncertainty, under the names of the saved adapter."""
    return {
        name.replace(".default", ""): sensitivity.double() * averages["uncertainty"][name].double()
        for name, sensitivity in averages["sensitivity"].items()
    }


def unit_scores(scores: Mapping[str, Tensor]) -> Units:
    """Of each rank: the mean over the outer product of B's column and A's row."""
    units: Units = {}
    for name, score_a in scores.items():
        if "lora_A" not in name:
            continue
        score_b = scores[name.replace("lora_A", "lora_B")]
        module = name.partition(".lora_A")[0]
        for rank in range(score_a.shape[0]):
            units[module, rank] = torch.outer(score_b[:, rank], score_a[rank]).mean()
    return units


def normalised(units: Units) -> Units:
    values = torch.stack(list(units.values()))
    low, high = values.min(), values.max()
    return {unit: (value - low) / (high - low) for unit, value in units.items()}


def accumulated(previous: Units, current: Units, beta: float) -> Units:
    """Both normalised already."""
    mixed = {unit: beta * previous[unit] + (1 - beta) * current[unit] for unit in current}
    return normalised(mixed)


def fused(
    before: Mapping[str, Tensor],
    now: Mapping[str, Tensor],
    previous: Units,
    current: Units,
    tau: float,
) -> dict[str, Tensor]:
    """Rank by rank: the previous weights' share is sigmoid((previous - current) / tau)."""
    result = {name: weight.clone() for name, weight in now.items()}
    for (module, rank), score in current.items():
        share = float(torch.sigmoid((previous[module, rank] - score) / tau))
        a, b = f"{module}.lora_A.weight", f"{module}.lora_B.weight"
        result[a][rank] = share * before[a][rank] + (1 - share) * now[a][rank]
        result[b][:, rank] = share * before[b][:, rank] + (1 - share) * now[b][:, rank]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--current", type=Path, required=True)
    parser.add_argument("--previous", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--beta", type=float, default=0.7)
    parser.add_argument("--tau", type=float, default=0.15)
    options = parser.parse_args()
    started = perf_counter()
    options.output.mkdir(parents=True)
    weights = load_file(options.current / WEIGHTS)
    averages = torch.load(options.current / "importance.pt", weights_only=True)
    scores = normalised(unit_scores(weight_scores(averages)))
    if options.previous is not None:
        previous = torch.load(options.previous / SCORES, weights_only=True)
        before = load_file(options.previous / WEIGHTS)
        weights = fused(before, weights, previous, scores, options.tau)
        scores = accumulated(previous, scores, options.beta)
    save_file(weights, options.output / WEIGHTS, metadata={"format": "pt"})
    shutil.copy(options.current / CONFIG, options.output / CONFIG)
    torch.save(scores, options.output / SCORES)
    print(f"work seconds: {perf_counter() - started:.3f}")


if __name__ == "__main__":
    main()

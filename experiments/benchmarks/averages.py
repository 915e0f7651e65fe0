"""What importance averages in bfloat16 change, beside those in float32, in one real training.

The bundled t5_nano learns one task of the bundled stream; trackers that differ in nothing but their
averages' dtype (and smoothing) are fed by the same weights and gradients of every optimizer step.

    python experiments/benchmarks/averages.py
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from our_side import composed
from torch import Tensor

from kif_lightning.assembly import build_parts
from kif_lightning.datamodule import ContinualDataModule
from kif_lightning.identification import Identification
from kif_lightning.kif import ImportanceTracker, classify, lora_rank_units, matrix_units, min_max
from kif_lightning.module import ContinualModule

SMOOTHING = (0.85, 0.99)
"""The default, and the slowest that averages in bfloat16 may have."""
TOP_PERCENT = 20.0
PARTITIONS = {"lora_rank": lora_rank_units, "matrix": matrix_units}


class SideBySide:
    """Several trackers where one is expected."""

    def __init__(self, trackers: Mapping[tuple[str, float], ImportanceTracker]) -> None:
        self.trackers = trackers
        self.num_steps = 0

    def reset(self, weights: Mapping[str, Tensor]) -> None:
        for tracker in self.trackers.values():
            tracker.reset(weights)

    def update(self, weights: Mapping[str, Tensor], gradients: Mapping[str, Any]) -> None:
        self.num_steps += 1
        for tracker in self.trackers.values():
            tracker.update(weights, gradients)


def train(task: str, epochs: int) -> tuple[SideBySide, dict[str, Tensor]]:
    """The trackers after the task, and the weights that they watched."""
    overrides = ("backbone=t5_nano", "benchmark=long_sequence_mini", "method=kif")
    config = composed(*overrides, f"benchmark.order=[{task}]")
    parts = build_parts(config)
    seed_everything(config.seed, verbose=False)
    model = parts.adapter.attach(parts.backbone.load_model(), parts.backbone)
    trackers = SideBySide(
        {
            (dtype, alpha): ImportanceTracker(alpha1=alpha, alpha2=alpha, average_dtype=dtype)
            for alpha in SMOOTHING
            for dtype in ("float32", "bfloat16")
        }
    )
    module = ContinualModule(
        backbone=parts.backbone,
        model=model,
        optimizer=parts.optimizer,
        schedule=parts.schedule,
        identification=Identification(tracker=trackers),  # type: ignore[arg-type]
    )
    data = ContinualDataModule(
        benchmark=parts.benchmark,
        backbone=parts.backbone,
        batch_size=config.optim.batch_size,
        micro_batch_size=None,
        evaluation_batch_size=8,
        max_new_tokens=8,
        seed=config.seed,
    )
    module.begin_task(parts.adapter.trainable(model), 0)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(module, datamodule=data)
    return trackers, dict(module.trainable_parameters)


def ranks(scores: Tensor) -> Tensor:
    return scores.argsort().argsort().double()


def compare(reference: Tensor, found: Tensor) -> dict[str, float]:
    """Unit scores (U,) against those of float32 averages."""
    expected, got = min_max(reference), min_max(found)
    correlation = torch.corrcoef(torch.stack([ranks(expected), ranks(got)]))[0, 1]
    # The past as float32 knows it: what changes is whether a unit is important now.
    classes = [classify(expected, scores, TOP_PERCENT) for scores in (expected, got)]
    changed = classes[0] != classes[1]
    return {
        "rank_correlation": float(correlation),
        "max_error": float((expected - got).abs().max()),
        "classes_changed_percent": 100 * float(changed.double().mean()),
    }


def bytes_a_weight(tracker: ImportanceTracker) -> float:
    kept = [*tracker.sensitivity.values(), *tracker.uncertainty.values()]
    weights = sum(t.numel() for t in tracker.sensitivity.values())
    return sum(t.numel() * t.element_size() for t in kept) / weights


def measure(task: str, epochs: int) -> dict[str, Any]:
    started = perf_counter()
    side_by_side, weights = train(task, epochs)
    trackers = side_by_side.trackers
    compared = []
    for name, partition in PARTITIONS.items():
        units = partition(weights)
        for alpha in SMOOTHING:
            reference, found = (
                trackers[dtype, alpha].unit_scores(units) for dtype in ("float32", "bfloat16")
            )
            entry = {"units": name, "num_units": len(units), "alpha": alpha}
            compared.append({**entry, **compare(reference, found)})
    return {
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"platform": platform.platform(), "torch": torch.__version__},
        "task": task,
        "optimizer_steps": side_by_side.num_steps,
        "trainable_weights": sum(w.numel() for w in weights.values()),
        "bytes_a_weight": {
            dtype: bytes_a_weight(trackers[dtype, SMOOTHING[0]])
            for dtype in ("float32", "bfloat16")
        },
        "bfloat16_against_float32": compared,
        "seconds": perf_counter() - started,
    }


def show(result: Mapping[str, Any]) -> None:
    print(
        f"{result['task']}: {result['optimizer_steps']} steps, {result['trainable_weights']} "
        f"weights, {result['seconds']:.0f} s"
    )
    for dtype, number in result["bytes_a_weight"].items():
        print(f"{dtype:9} {number:.0f} bytes a weight")
    columns = ("rank_correlation", "max_error", "classes_changed_percent")
    print(f"{'bfloat16 against float32':28}" + "".join(f"{name:>25}" for name in columns))
    for entry in result["bfloat16_against_float32"]:
        label = f"{entry['num_units']} {entry['units']}, alpha {entry['alpha']}"
        print(f"{label:28}" + "".join(f"{entry[name]:25.6f}" for name in columns))


def main() -> None:
    parser = argparse.ArgumentParser(description="Importance averages in bfloat16 and float32.")
    parser.add_argument("--task", default="mini_sst2")
    parser.add_argument("--epochs", type=int, default=2)
    default = Path(__file__).parent / "results" / "averages.json"
    parser.add_argument("--output", type=Path, default=default, help="the JSON to write")
    arguments = parser.parse_args()
    if arguments.epochs < 1:
        parser.error("--epochs must be at least 1")
    result = measure(arguments.task, arguments.epochs)
    show(result)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

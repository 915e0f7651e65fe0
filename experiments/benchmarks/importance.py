"""Cost of knowledge identification and fusion beside a training step, at T5-large's LoRA shapes.

Random weights, no download: the time does not depend on the values. Everything is measured in one
run, the importance update inside the very training step it belongs to (between backward and the
optimizer), so that caches and the machine's other load are the same for both.

    python experiments/benchmarks/importance.py
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import T5Config, T5ForConditionalGeneration

from kif_lightning.kif import (
    AdaptiveRule,
    ImportanceTracker,
    accumulate,
    fuse_,
    lora_rank_units,
    min_max,
)

SOURCE_TOKENS, TARGET_TOKENS = 128, 8
STEPS_A_TASK = 1000 // 8
"""Steps over which a task's one fusion is spread: 1000 rows in batches of 8."""
BOUNDARY_REPEATS = 7
VOCABULARY = 32128


def build_model() -> torch.nn.Module:
    """T5-large with LoRA r 8 on q and v, random weights: 144 LoRA modules."""
    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=1024,
        d_kv=64,
        d_ff=4096,
        num_layers=24,
        num_decoder_layers=24,
        num_heads=16,
        decoder_start_token_id=0,
    )
    lora = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.05, target_modules=["q", "v"])
    return get_peft_model(T5ForConditionalGeneration(config), lora).train()


def trainable(model: torch.nn.Module) -> dict[str, Tensor]:
    """Trainable tensors by name, without the adapter's."""
    return {
        name.replace(".default", ""): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def timed(work: Callable[[], Any]) -> float:
    start = perf_counter()
    work()
    return perf_counter() - start


def measure_steps(
    model: torch.nn.Module,
    weights: Mapping[str, Tensor],
    tracker: ImportanceTracker,
    *,
    steps: int,
    batch_size: int,
) -> tuple[list[float], list[float]]:
    """Seconds of each training step without importance, and of the update inside it."""
    optimizer = torch.optim.AdamW(weights.values(), lr=3e-4)

    def forward_backward() -> None:
        source = torch.randint(3, VOCABULARY, (batch_size, SOURCE_TOKENS))
        target = torch.randint(3, VOCABULARY, (batch_size, TARGET_TOKENS))
        optimizer.zero_grad()
        mask = torch.ones_like(source)
        model(input_ids=source, attention_mask=mask, labels=target).loss.backward()

    training, update = [], []
    for step in range(steps + 1):
        first = timed(forward_backward)
        gradients = {name: weight.grad for name, weight in weights.items()}
        identification = timed(lambda g=gradients: tracker.update(weights, g))
        second = timed(optimizer.step)
        if step > 0:  # the first step also allocates
            training.append(first + second)
            update.append(identification)
    return training, update


def measure_boundary(
    weights: Mapping[str, Tensor], tracker: ImportanceTracker
) -> tuple[list[float], list[float]]:
    """Seconds of the unit scores alone, and of the whole fusion (the scores included)."""
    units = lora_rank_units(weights)
    previous = {name: weight.detach().clone() for name, weight in weights.items()}
    accumulated = accumulate(None, torch.rand(len(units), dtype=torch.float64), 0.7)
    rule = AdaptiveRule()

    def boundary() -> None:
        scores = tracker.unit_scores(units)
        lam = rule(min_max(accumulated), min_max(scores))
        accumulate(accumulated, scores, 0.7)
        fuse_(units, lam, previous, weights)

    scoring, fusion = [], []
    for repeat in range(BOUNDARY_REPEATS + 1):
        scores_seconds = timed(lambda: tracker.unit_scores(units))
        fusion_seconds = timed(boundary)
        if repeat > 0:
            scoring.append(scores_seconds)
            fusion.append(fusion_seconds)
    return scoring, fusion


def num_bytes(*groups: Mapping[str, Tensor]) -> int:
    return sum(t.numel() * t.element_size() for group in groups for t in group.values())


def spread(seconds: list[float]) -> dict[str, float]:
    """Median, minimum and maximum in milliseconds."""
    found = {"median": median(seconds), "min": min(seconds), "max": max(seconds)}
    return {name: round(1000 * value, 4) for name, value in found.items()}


def measure(*, steps: int, batch_size: int) -> dict[str, Any]:
    """The whole result, ready to be written as JSON."""
    load_average = os.getloadavg()[0]  # other work slows the two-threaded matrix products most
    torch.manual_seed(0)
    model = build_model()
    weights = trainable(model)
    units = lora_rank_units(weights)
    tracker = ImportanceTracker()
    tracker.reset(weights)
    training, update = measure_steps(model, weights, tracker, steps=steps, batch_size=batch_size)
    scoring, fusion = measure_boundary(weights, tracker)

    a_step = median(update) + median(fusion) / STEPS_A_TASK
    slowest = max(update) + max(fusion) / STEPS_A_TASK
    snapshot = {name: weight.detach().clone() for name, weight in weights.items()}
    trainable_bytes = num_bytes(weights)
    extra_bytes = num_bytes(tracker.sensitivity, tracker.uncertainty, snapshot)
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "num_cpus": os.cpu_count(),
            "num_threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "load_average_before": round(load_average, 2),
        },
        "setting": {
            "model": "T5-large shapes, random float32 weights, LoRA r 8 on q and v, AdamW",
            "num_lora_modules": len(units.groups),
            "num_units": len(units),
            "num_trainable_weights": sum(weight.numel() for weight in weights.values()),
            "batch_size": batch_size,
            "source_tokens": SOURCE_TOKENS,
            "target_tokens": TARGET_TOKENS,
            "num_steps": steps,
            "num_boundary_repeats": BOUNDARY_REPEATS,
            "steps_a_task": STEPS_A_TASK,
        },
        "milliseconds": {
            "training_step": spread(training),
            "importance_update": spread(update),
            "unit_scores": spread(scoring),
            "fusion_at_the_boundary": spread(fusion),
        },
        "overhead_ms_a_step": round(1000 * a_step, 4),
        "overhead_percent_of_a_step": round(100 * a_step / median(training), 4),
        "overhead_percent_at_worst": round(100 * slowest / min(training), 4),
        "trainable_bytes": trainable_bytes,
        "extra_bytes": extra_bytes,
        "extra_bytes_relative_to_trainable": extra_bytes / trainable_bytes,
    }


def show(result: Mapping[str, Any]) -> None:
    print(f"{'milliseconds':26}{'median':>12}{'min':>12}{'max':>12}")
    for name, numbers in result["milliseconds"].items():
        columns = "".join(f"{numbers[key]:12.2f}" for key in ("median", "min", "max"))
        print(f"{name.replace('_', ' '):26}{columns}")
    print(
        f"update + fusion / {STEPS_A_TASK} steps: {result['overhead_ms_a_step']:.2f} ms a step, "
        f"{result['overhead_percent_of_a_step']:.3f} % of a training step (the slowest update over "
        f"the fastest step: {result['overhead_percent_at_worst']:.3f} %); extra memory "
        f"{result['extra_bytes'] / 2**20:.1f} MiB, "
        f"{result['extra_bytes_relative_to_trainable']:.2f} x the trainable weights"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost of knowledge identification and fusion.")
    parser.add_argument("--steps", type=int, default=4, help="measured training steps")
    parser.add_argument("--batch-size", type=int, default=8)
    default = Path(__file__).parent / "results" / "importance.json"
    parser.add_argument("--output", type=Path, default=default, help="the JSON to write")
    arguments = parser.parse_args()
    if arguments.steps < 1 or arguments.batch_size < 1:
        parser.error("--steps and --batch-size must be at least 1")
    result = measure(steps=arguments.steps, batch_size=arguments.batch_size)
    show(result)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

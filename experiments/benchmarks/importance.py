"""Cost of knowledge identification and fusion: T5-large with LoRA, T5-base with all weights.

Random weights, no download: the time does not depend on the values. The importance update is
timed inside the training step it belongs to (between backward and the optimizer), so that caches
and the machine's other load are the same for both. At most five minutes on two cores:

    python experiments/benchmarks/importance.py
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from our_side import random_model
from peft import LoraConfig, get_peft_model
from side_by_side import entry, in_turn, machine, ratio, spread, timed, write_result
from torch import Tensor

from kif_lightning.kif import (
    AdaptiveRule,
    ImportanceTracker,
    SkillUnits,
    accumulate,
    fuse_,
    lora_rank_units,
    matrix_units,
    min_max,
)

SOURCE_TOKENS, TARGET_TOKENS = 128, 8
VOCABULARY = 32128


def trainable(model: torch.nn.Module) -> dict[str, Tensor]:
    """Trainable tensors by name, without the adapter's."""
    return {
        name.replace(".default", ""): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def measure_steps(
    model: torch.nn.Module,
    tracker: ImportanceTracker,
    *,
    steps: int,
    batch_size: int,
    fused: bool = False,
) -> dict[str, list[float]]:
    """Seconds of each training step without importance, and with it; the first is not counted."""
    weights = trainable(model)
    optimizer = torch.optim.AdamW(weights.values(), lr=3e-4, fused=fused)
    tracker.reset(weights)

    def forward_backward() -> None:
        source = torch.randint(3, VOCABULARY, (batch_size, SOURCE_TOKENS))
        target = torch.randint(3, VOCABULARY, (batch_size, TARGET_TOKENS))
        optimizer.zero_grad()
        mask = torch.ones_like(source)
        model(input_ids=source, attention_mask=mask, labels=target).loss.backward()

    found: dict[str, list[float]] = {"without": [], "with": []}
    for _ in range(steps + 1):
        first = timed(forward_backward)
        gradients = {name: weight.grad for name, weight in weights.items()}
        update = timed(partial(tracker.update, weights, gradients))
        second = timed(optimizer.step)
        found["without"].append(first + second)
        found["with"].append(first + second + update)
    return {name: seconds[1:] for name, seconds in found.items()}


@torch.no_grad()
def outer_product_scores(
    tracker: ImportanceTracker, units: SkillUnits, *, rank_by_rank: bool
) -> Tensor:
    """Each rank's score as its definition says: the mean of its whole (O, I) outer product.

    A module's outer products are made all together, (R, O, I), or one after another. In float64,
    as ours: a product of two scores is below what float32 holds.
    """
    scores = tracker.weight_scores()
    found = []
    for group in units.groups:
        a, b = (scores[member.parameter] for member in group.members)
        if rank_by_rank:
            found.append(torch.stack([torch.outer(b[:, r], a[r]).mean() for r in range(len(a))]))
        else:
            found.append((b.T[:, :, None] * a[:, None, :]).mean(dim=(1, 2)))
    return torch.cat(found)


def boundary(
    weights: Mapping[str, Tensor], tracker: ImportanceTracker, units: SkillUnits
) -> Callable[[], None]:
    """Everything that happens at a task's end: scores, normalisation, rule, fused weights."""
    previous = {name: weight.detach().clone() for name, weight in weights.items()}
    accumulated = accumulate(None, torch.rand(len(units), dtype=torch.float64), 0.7)

    def work() -> None:
        scores = tracker.unit_scores(units)
        lam = AdaptiveRule()(min_max(accumulated), min_max(scores))
        accumulate(accumulated, scores, 0.7)
        fuse_(units, lam, previous, weights)

    return work


def measure_optimizers(weights: Mapping[str, Tensor], rounds: int) -> dict[str, list[float]]:
    """Seconds of AdamW's step over the same weights and gradients."""
    optimizers = {
        name: torch.optim.AdamW(weights.values(), lr=1e-9, fused=name == "fused")
        for name in ("plain", "fused")
    }
    work = {name: partial(timed, each.step) for name, each in optimizers.items()}
    return in_turn(work, rounds)


def large(steps: int, batch_size: int, rounds: int) -> list[dict[str, Any]]:
    """T5-large, LoRA r 8 on q and v: 144 modules, 2.36 M trainable weights."""
    lora = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.05, target_modules=["q", "v"])
    model = get_peft_model(random_model("t5_large"), lora).train()
    tracker = ImportanceTracker()
    found = measure_steps(model, tracker, steps=steps, batch_size=batch_size)
    weights = trainable(model)
    units = lora_rank_units(weights)
    scored = in_turn(
        {
            "ours": lambda: timed(lambda: tracker.unit_scores(units)),
            **{
                name: partial(timed, partial(outer_product_scores, tracker, units, rank_by_rank=by))
                for name, by in (("whole", False), ("by rank", True))
            },
        },
        3,
    )
    at_end = boundary(weights, tracker, units)
    fusion = in_turn({"boundary": lambda: timed(at_end)}, rounds)["boundary"]
    return [
        entry(
            "T5-large LoRA step: seconds with importance as a share of those without",
            ratio(found["with"], found["without"]),
            at_most=1.01,
            seconds={name: spread(values) for name, values in found.items()},
        ),
        entry(
            "unit scores of 144 LoRA modules: times as fast as the full outer products",
            ratio(scored["whole"], scored["ours"]),
            at_least=500,
            seconds={name: spread(values) for name, values in scored.items()},
        ),
        entry(
            "unit scores of 144 LoRA modules: times as fast as outer products rank by rank",
            ratio(scored["by rank"], scored["ours"]),
        ),
        entry("T5-large LoRA, a whole boundary", spread(fusion), unit="s"),
    ]


def base(steps: int, batch_size: int, rounds: int) -> list[dict[str, Any]]:
    """T5-base, all 223 M weights."""
    model = random_model("t5_base").train()
    tracker = ImportanceTracker()
    # As a run has it from 10 million trainable weights on.
    found = measure_steps(model, tracker, steps=steps, batch_size=batch_size, fused=True)
    weights = trainable(model)
    at_end = boundary(weights, tracker, matrix_units(weights))
    fusion = in_turn({"boundary": lambda: timed(at_end)}, rounds)["boundary"]
    optimizers = measure_optimizers(weights, rounds)
    return [
        entry(
            "T5-base full step: seconds with importance as a share of those without",
            ratio(found["with"], found["without"]),
            at_most=1.08,
            seconds={name: spread(values) for name, values in found.items()},
        ),
        entry("T5-base full, a whole boundary", spread(fusion), unit="s"),
        entry(
            "fused AdamW over T5-base: times as fast as the plain one",
            ratio(optimizers["plain"], optimizers["fused"]),
            seconds={name: spread(values) for name, values in optimizers.items()},
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost of knowledge identification and fusion.")
    parser.add_argument("--steps", type=int, default=3, help="measured training steps")
    parser.add_argument("--rounds", type=int, default=5, help="of all that is no training step")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--output", type=Path, default=None, help="the JSON to write")
    arguments = parser.parse_args()
    sizes = (arguments.steps, arguments.batch_size, arguments.rounds)
    if min(sizes) < 1:
        parser.error("--steps, --rounds and --batch-size must be at least 1")
    started_on = machine()
    torch.manual_seed(0)
    write_result(
        "importance",
        [*large(*sizes), *base(*sizes)],
        started_on=started_on,
        output=arguments.output,
        settings={
            "steps": arguments.steps,
            "rounds": arguments.rounds,
            "batch_size": arguments.batch_size,
            "source_tokens": SOURCE_TOKENS,
            "target_tokens": TARGET_TOKENS,
            "precision": "float32",
        },
    )


if __name__ == "__main__":
    main()

"""Folders like those that finished runs leave, of made-up numbers: nothing is trained.

The parts fit each other as in a real run: the score matrix is the mean of the predictions' scores,
fusion weights and classes follow from the importances, each phase's last loss ends its curve.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from kif_lightning.interfaces import Boundary
from kif_lightning.kif import AdaptiveRule, UnitClass, accumulate, classify, min_max
from kif_lightning.reporting.results import boundary_record, results_record
from kif_lightning.storage import write_json

STAND_INS = ("stand-in data", "stand-in model")


def fake_run(
    folder: Path,
    *,
    num_tasks: int = 3,
    joint: bool = False,
    fuses: bool = True,
    stand_ins: Sequence[str] = STAND_INS,
    unit_ids: Sequence[str] | None = None,
    steps: int = 6,
    test_rows: int = 10,
    seed: int = 1,
    method: str = "kif",
    all_tasks: bool = False,
    matrix: Sequence[Sequence[float | None]] | None = None,
) -> Path:
    """Write a finished run's folder; gives the folder.

    ``joint``: all tasks learnt at once, in one phase. ``fuses``: importance files are there, of
    ``unit_ids`` (None: a small T5's LoRA). ``steps`` of the optimizer a phase; 0: no curves at all,
    as of an earlier version. ``seed``: of every number. ``all_tasks``: every task is scored after
    every phase, also before it is learnt. ``matrix``: percent; given, no predictions are written.
    """
    draw = random.Random(seed)
    tasks = [f"task_{chr(97 + j)}" if num_tasks <= 26 else f"task_{j}" for j in range(num_tasks)]
    phases = ["all_tasks"] if joint else tasks
    if matrix is None:
        right = _right_answers(draw, len(phases), num_tasks, test_rows, joint or all_tasks)
        matrix = [[None if n is None else 100.0 * n / test_rows for n in row] for row in right]
        _write_predictions(folder, tasks, phases, right, test_rows, stand_ins)
    losses = [_curve(draw, steps) for _ in phases]
    if steps:
        for k, (name, loss) in enumerate(zip(phases, losses, strict=True)):
            record = {"task": name, "stand_ins": list(stand_ins), "first_step": k * steps + 1}
            write_json(folder / "curves" / f"{k + 1:02d}_{name}.json", {**record, "loss": loss})
    if fuses:
        _write_boundaries(folder, draw, phases, unit_ids or t5_units(), stand_ins)
    results = results_record(
        score_matrix=matrix,
        untrained=None,
        tasks=[_task(name, test_rows) for name in tasks],
        phases=[_phase(k, name, steps, losses[k]) for k, name in enumerate(phases)],
        stand_ins=stand_ins,
        data_findings=[],
        protocol=_protocol(tasks, method, seed, test_rows),
        cost=_cost(len(phases)),
    )
    write_json(folder / "results.json", results)
    return folder


def t5_units(layers: int = 2, rank: int = 4) -> list[str]:
    """Unit ids of LoRA on a T5's queries and values, in peft's order."""
    modules = [
        f"{side}.block.{block}.layer.{place}.{attention}.{projection}"
        for side in ("encoder", "decoder")
        for block in range(layers)
        for place, attention in enumerate(("SelfAttention", "EncDecAttention"))
        if side == "decoder" or place == 0
        for projection in "qv"
    ]
    return [f"{module}/rank:{r}" for module in modules for r in range(rank)]


def llama_units(layers: int = 32, rank: int = 8) -> list[str]:
    """Unit ids of LoRA on every linear layer of a Llama."""
    modules = [
        *(f"self_attn.{p}_proj" for p in "qkvo"),
        *(f"mlp.{p}_proj" for p in ("gate", "up", "down")),
    ]
    return [
        f"model.layers.{layer}.{module}/rank:{r}"
        for layer in range(layers)
        for module in modules
        for r in range(rank)
    ]


def _right_answers(
    draw: random.Random, phases: int, tasks: int, test_rows: int, everything: bool
) -> list[list[int | None]]:
    """Learnt tasks lose an answer now and then; those to come are guessed."""
    rows: list[list[int | None]] = []
    for i in range(phases):
        row: list[int | None] = []
        for j in range(tasks):
            before = rows[-1][j] if rows else None
            if i > j and before is not None:
                row.append(min(test_rows, max(0, before - draw.choice((-1, -1, 0, 0, 1, 1, 2)))))
            elif i == j or phases == 1:
                row.append(test_rows - draw.randint(0, test_rows // 3))
            else:
                row.append(draw.randint(0, test_rows // 2) if everything else None)
        rows.append(row)
    return rows


def _write_predictions(
    folder: Path,
    tasks: Sequence[str],
    phases: Sequence[str],
    right: Sequence[Sequence[int | None]],
    test_rows: int,
    stand_ins: Sequence[str],
) -> None:
    for j, task in enumerate(tasks):
        ids = [f"{task}-test-{n}" for n in range(test_rows)]
        inputs = [{"id": row, "input": f"Which one? ({row})\nAnswer:"} for row in ids]
        _write_lines(folder / "test_rows" / f"{j + 1:02d}_{task}.jsonl", inputs)
        for i, phase in enumerate(phases):
            number = right[i][j]
            if number is None:
                continue
            name = f"after_{i + 1:02d}_{phase}__on_{j + 1:02d}_{task}.jsonl"
            lines = [
                {
                    "id": row,
                    "prediction": "yes" if n < number else "no",
                    "reference": "yes",
                    "score": 100.0 if n < number else 0.0,
                    "stand_ins": list(stand_ins),
                }
                for n, row in enumerate(ids)
            ]
            _write_lines(folder / "predictions" / name, lines)


def _write_lines(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Without waiting for the disk: there are thousands of these files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")


def _write_boundaries(
    folder: Path,
    draw: random.Random,
    phases: Sequence[str],
    unit_ids: Sequence[str],
    stand_ins: Sequence[str],
) -> None:
    accumulated = None
    rule = AdaptiveRule(tau=0.15)
    for k, phase in enumerate(phases):
        raw = [1e-15 * draw.random() ** 4 for _ in unit_ids]
        score = torch.tensor(raw, dtype=torch.float64)
        current, previous, weight, classes = min_max(score), None, None, None
        if accumulated is not None:
            previous = min_max(accumulated)
            weight = rule(previous, current)
            found = classify(previous, current, 20.0).tolist()
            classes = tuple(UnitClass(value).name.lower() for value in found)
        accumulated = accumulate(accumulated, score, 0.7)
        boundary = Boundary(
            unit_ids=tuple(unit_ids),
            score=score,
            current=current,
            accumulated=accumulated,
            previous=previous,
            weight=weight,
            classes=classes,
            seconds=0.25,
        )
        record = boundary_record(phase, asdict(boundary), stand_ins)
        write_json(folder / "importance" / f"{k + 1:02d}_{phase}_fusion.json", record)


def _curve(draw: random.Random, steps: int) -> list[float]:
    return [3.0 / (1 + 0.1 * step) + 0.2 * draw.random() for step in range(steps)]


def _task(name: str, test_rows: int) -> dict[str, Any]:
    return {
        "name": name,
        "kind": "classification",
        "metric": "exact_match",
        "test_rows": test_rows,
        "decode": "generate",
        "max_new_tokens": 6,
    }


def _phase(place: int, name: str, steps: int, losses: Sequence[float]) -> dict[str, Any]:
    return {
        "name": name,
        "train_rows": 48,
        "rehearsed_rows": 0,
        "memory_rows": 0,
        "optimizer_steps": steps,
        "selected_step": None,
        "stopped_early": False,
        "skipped_steps": 0,
        "scaler_overflows": 0,
        "last_loss": losses[-1] if losses else None,
        "seconds": _seconds(place),
        "replay_steps": 0,
    }


def _seconds(place: int) -> dict[str, float]:
    return {"train": 10.0 + place, "boundary": 0.25, "evaluate": 2.0 * (place + 1)}


def _cost(phases: int) -> dict[str, Any]:
    each = [_seconds(place) for place in range(phases)]
    seconds = {key: sum(one[key] for one in each) for key in _seconds(0)}
    return {
        "trainable_weights": 49152,
        "frozen_weights": 3935616,
        "learnt_weights": 49152,
        "memory_rows": 0,
        "seconds": {**seconds, "total": sum(seconds.values())},
        "peak_memory_bytes": 739536896,
        "peak_gpu_memory_bytes": None,
    }


def _protocol(tasks: Sequence[str], method: str, seed: int, test_rows: int) -> dict[str, Any]:
    return {
        "benchmark": "made_up",
        "order_name": "order1",
        "order": list(tasks),
        "data_source": {"source": "generated"},
        "data_sha256": {task: {"test": "0" * 64, "train": "1" * 64} for task in tasks},
        "rows": {task: {"train": 48, "test": test_rows} for task in tasks},
        "metrics": dict.fromkeys(tasks, "exact_match"),
        "backbone": "t5_nano",
        "weights": {"source": "bundled", "name": "made-up", "sha256": "2" * 64},
        "backbone_dtype": "float32",
        "attention": "sdpa",
        "compile": False,
        "prompt_and_decoding": {
            "max_source_tokens": 256,
            "max_target_tokens": 32,
            "truncation": "middle",
            "decoding": "greedy",
            "mask_token": "<extra_id_0>",
        },
        "decode": dict.fromkeys(tasks, "generate"),
        "method": method,
        "method_settings": {"penalty": {}, "boundary": {}},
        "lora": {"r": 4, "lora_alpha": 32, "lora_dropout": 0.05, "target_modules": ["q", "v"]},
        "optim": {"name": "adamw", "lr": 0.002},
        "fused_optimizer": False,
        "seed": seed,
        "epochs": 1,
        "effective_batch": 8,
        "micro_batch": 8,
        "length_grouping": "within_step",
        "evaluation_batch": 128,
        "evaluation_batch_tokens": 8192,
        "evaluation_matrix": "full",
        "loss_mean": "step_tokens",
        "selection": None,
        "gradient_clip": None,
        "precision": "32-true",
        "evaluation_precision": "32-true",
        "device": "cpu",
        "kif_lightning": "0.1.0",
        "commit": "0" * 40,
        "python": "3.11.0",
        "packages": {},
    }

"""T5-large and a 7B-shaped LLaMA on a GPU: tokens per second, FLOPs utilisation, memory.

    python experiments/benchmarks/gpu.py [--shapes t5_large llama_7b] [--rows 8] [--peak FLOPS]

Random weights made on the device (no download), LoRA r 8 on query and value projections, trained by
this package's module and data module under Lightning's Trainer with bf16-mixed precision; T5-large
has float32 weights, the 7B shape bfloat16 ones. Without a GPU nothing is measured.

Model FLOPs utilisation = FLOPs of a step / (seconds of a step * peak FLOP/s of the device). The
FLOPs are those of the matrix products that run, as torch's ``FlopCounterMode`` counts them in one
step: 2 N a token forward for N weights in matrix products (the output layer on answer positions
alone), 2 N a token backward for the gradient of what goes into frozen weights, LoRA's own products,
and attention (scores and values, 4 * keys * width a token and layer forward, twice that backward;
causal attention counts whole, as is customary). Peaks are dense bfloat16 figures of the vendors'
data sheets; ``--peak`` names another.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, Trainer
from our_side import LLAMA_SHAPES, random_model
from peft import LoraConfig
from side_by_side import entry, machine, spread, timed, write_result
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import get_scheduler

from kif_lightning.adapters import PeftAdapter
from kif_lightning.backbones import DecoderBackbone, Seq2SeqBackbone, bundled_folder
from kif_lightning.backbones.decoding import answer_ids
from kif_lightning.datamodule import ContinualDataModule
from kif_lightning.identification import Identification
from kif_lightning.interfaces import Batch, Example, Row, Task
from kif_lightning.kif import ImportanceTracker
from kif_lightning.mixed_precision import drop_casts_, keep_casts_
from kif_lightning.module import ContinualModule

PEAKS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "A10G": 70e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
}
"""Part of a device's name -> FLOP/s; the first that fits counts."""
WARM_UP = 3
TINY: dict[str, dict[str, int]] = {
    "t5_large": {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4},
    "llama_7b": {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4,
    },
}  # fmt: skip


class Tasks:
    """One task of rows that are made of tokens alone."""

    name, order_name, stand_in, provenance = "random", "own", True, {"source": "random tokens"}

    def __init__(self, num_rows: int) -> None:
        rows = [Row(id=str(i), input=str(i), output="") for i in range(num_rows)]
        self.tasks = (
            Task(name="random", kind="generation", metric="exact_match", train=rows,
                 test=rows[:1], labels=(), sha256={}),
        )  # fmt: skip


class StepSeconds(Callback):
    """Of every optimizer step but the first ones; every batch must be of the size asked for."""

    def __init__(self, device: str, size: tuple[int, int]) -> None:
        self.device, self.size, self._before = device, size, 0.0
        self.seconds: list[float] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Batch, *_: Any) -> None:
        size = tuple(batch["inputs"]["input_ids"].shape)
        if size != self.size:
            raise RuntimeError(
                f"A batch has {size} (rows, tokens) where {self.size} are asked for."
            )

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()
        now = perf_counter()
        if trainer.global_step > WARM_UP:
            self.seconds.append(now - self._before)
        self._before = now


class Learner:
    """A model with LoRA, its data, and a module with or without importance."""

    def __init__(self, shape: str, arguments: argparse.Namespace) -> None:
        self.arguments, self.device = arguments, arguments.device
        self.decoder = decoder = shape in LLAMA_SHAPES
        kind: Any = DecoderBackbone if decoder else Seq2SeqBackbone
        # Only for its padding: rows are random tokens, encoded here.
        self.backbone = kind(name=shape, hub_name=shape, path=str(bundled_folder("t5_nano")))
        self.backbone.encode_rows = self.examples
        dtype = torch.bfloat16 if decoder else torch.float32
        torch.manual_seed(0)
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with torch.device(self.device):
                base: nn.Module = random_model(shape, **(TINY[shape] if arguments.tiny else {}))
        finally:
            torch.set_default_dtype(before)
        targets = ["q_proj", "v_proj"] if decoder else ["q", "v"]
        self.adapter = PeftAdapter(config=LoraConfig(r=8, target_modules=targets))
        self.model = self.adapter.attach(base, self.backbone)
        tasks: Any = Tasks(arguments.rows * (arguments.steps + WARM_UP))
        self.data = ContinualDataModule(
            benchmark=tasks,
            backbone=self.backbone,
            batch_size=arguments.rows,
            micro_batch_size=None,
            evaluation_batch_size=arguments.rows,
            max_new_tokens=arguments.new_tokens,
            seed=1,
        )

    def examples(self, rows: Sequence[Row], max_target_tokens: int | None = None) -> list[Example]:
        """In place of the backbone's own."""
        return [self.example(row) for row in rows]

    def example(self, row: Row) -> Example:
        """Random tokens, the same for the same row."""
        draw = torch.Generator().manual_seed(int(row.id or 0))

        def ids(number: int) -> list[int]:
            return torch.randint(3, 30000, (number,), generator=draw).tolist()

        return Example(
            prompt_ids=ids(self.arguments.source), answer_ids=[*ids(self.arguments.target - 1), 1]
        )

    def fit(self, *, importance: bool) -> tuple[list[float], ContinualModule]:
        module = ContinualModule(
            backbone=self.backbone,
            model=self.model,
            optimizer=lambda weights: torch.optim.AdamW(weights, lr=1e-4),
            schedule=lambda **given: get_scheduler("linear", num_warmup_steps=0, **given),
            identification=Identification(tracker=ImportanceTracker()) if importance else None,
        )
        module.begin_task(self.adapter.trainable(self.model), 0)
        tokens = self.arguments.source + (self.arguments.target if self.decoder else 0)
        clock = StepSeconds(self.device, (self.arguments.rows, tokens))
        accelerator: Literal["gpu", "cpu"] = "gpu" if self.device == "cuda" else "cpu"
        Trainer(
            accelerator=accelerator, devices=1, precision="bf16-mixed", max_epochs=1,
            callbacks=[clock], logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        ).fit(module, datamodule=self.data)  # fmt: skip
        self.model.to(self.device)
        return clock.seconds, module

    def step_flops(self, module: ContinualModule) -> int:
        """Of a forward and a backward pass."""
        batch = next(self.data.sample_batches(1, "flops"))
        rows = self.data.task.train[: self.arguments.rows]
        inputs = self.backbone.training_batch(self.examples(rows))
        batch["inputs"] = {name: tensor.to(self.device) for name, tensor in inputs.items()}
        with FlopCounterMode(display=False) as counter:
            with torch.autocast(self.device, torch.bfloat16):
                loss = module.step_loss(batch)
            loss.backward()
        module.zero_grad()
        return int(counter.get_total_flops())

    def generate(self) -> float:
        """New tokens per second of a batch, end tokens ignored."""
        arguments = self.arguments
        rows = self.data.task.train[: arguments.generated_rows]
        batch = self.backbone.generation_batch(self.examples(rows))
        settings: dict[str, Any] = {
            "input_ids": batch["input_ids"].to(self.device),
            "attention_mask": batch["attention_mask"].to(self.device),
            "max_new_tokens": arguments.new_tokens,
            "min_new_tokens": arguments.new_tokens,
            "pad_token_id": 0,
            "eos_token_id": 1,
            "bos_token_id": 1,
            "decoder_start_token_id": 0,
        }

        def work() -> None:
            answer_ids(self.model, top_k=None, **settings)
            if self.device == "cuda":
                torch.cuda.synchronize()

        self.model.eval()
        keep_casts_(self.model, torch.bfloat16)
        with torch.inference_mode(), torch.autocast(self.device, torch.bfloat16):
            work()
            seconds = timed(work)
        drop_casts_(self.model)
        return len(rows) * arguments.new_tokens / seconds


def measure(shape: str, arguments: argparse.Namespace, peak: float | None) -> list[dict[str, Any]]:
    on_gpu = arguments.device == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    learner = Learner(shape, arguments)
    plain, module = learner.fit(importance=False)
    memory = torch.cuda.max_memory_allocated() if on_gpu else None
    measured, _ = learner.fit(importance=True)
    with_importance = torch.cuda.max_memory_allocated() if on_gpu else None
    flops = learner.step_flops(module)
    tokens = arguments.rows * (arguments.source + arguments.target)
    added = 100 * (spread(measured)["median"] / spread(plain)["median"] - 1)
    speed = learner.generate()
    entries = [
        entry(f"{shape}, training", spread([tokens / s for s in plain]), unit="tokens/s",
              step_flops=flops, peak_memory_bytes=memory,
              peak_memory_bytes_with_importance=with_importance),
        entry(f"{shape}, importance adds to a step", spread([added]), unit="%"),
        entry(f"{shape}, generation", spread([speed]), unit="new tokens/s"),
    ]  # fmt: skip
    if peak is not None:
        utilisation = [100 * flops / (s * peak) for s in plain]
        entries.append(entry(f"{shape}, model FLOPs utilisation", spread(utilisation), unit="%"))
    return entries


def peak_of(device: str) -> float | None:
    return next((peak for part, peak in PEAKS.items() if part in device), None)


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Speed on a GPU.")
    shapes = ["t5_large", "llama_7b"]
    parser.add_argument("--shapes", nargs="+", choices=shapes, default=shapes)
    parser.add_argument("--rows", type=int, default=8, help="of a training step")
    parser.add_argument("--generated-rows", type=int, default=32)
    parser.add_argument("--source", type=int, default=448, help="prompt tokens")
    parser.add_argument("--target", type=int, default=64, help="answer tokens")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20, help="measured ones")
    parser.add_argument("--peak", type=float, help="FLOP/s of the device")
    parser.add_argument("--device", default="cuda", help=argparse.SUPPRESS)
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help="the JSON to write")
    arguments = parser.parse_args(given)
    on_gpu = arguments.device == "cuda"
    if on_gpu and not torch.cuda.is_available():
        print("There is no GPU here that torch can use: nothing was measured.")
        return
    peak = arguments.peak
    source = "--peak"
    if peak is None and on_gpu:
        peak, source = peak_of(torch.cuda.get_device_name()), "vendor data sheet"
        if peak is None:
            parser.error(f"the peak of {torch.cuda.get_device_name()} is not known: give --peak")
    started_on, entries = machine(), []
    for shape in arguments.shapes:
        entries += measure(shape, arguments, peak)
    settings = {key: value for key, value in vars(arguments).items() if key != "output"}
    write_result("gpu", entries, started_on=started_on, output=arguments.output, settings=settings,
                 peak_flops=peak, peak_source=source)  # fmt: skip


if __name__ == "__main__":
    main()

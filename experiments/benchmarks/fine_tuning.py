"""Our fine-tuning beside plain transformers' Trainer with peft, on the same rows, on the CPU.

1. Equal batches, in the same order, each padded to its longest row: the loops alone differ.
2. A mix of long and short rows, as long as those of imdb, agnews, cb and sst2 (in tokens of the
   bundled tokenizer, cut at 512): each side groups rows by length in its own ways, or not.

Both sides: the same base model, LoRA, AdamW, learning rate, batch of 8, float32, collation in the
main process, no evaluation, nothing saved or logged. The Trainer keeps its defaults otherwise (its
AdamW is torch's fused one), but does not clip, as ours does not. Ours has the callbacks of a run:
progress, checkpoint (not due within so short a time), and those of the method. Seconds are those of
a whole epoch, without the start of a fit and without the task's boundary.

    python experiments/benchmarks/fine_tuning.py [--data FOLDER]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from random import Random
from statistics import median
from time import perf_counter
from typing import Any, get_args

import transformers
from data import WORDS
from lightning.pytorch import Callback
from omegaconf import DictConfig
from our_side import T5_SHAPES, built_runner, save_random_t5, settings, silence
from peft import LoraConfig, get_peft_model
from side_by_side import entry, in_turn, machine, ratio, spread, write_result

from kif_lightning.batches import LengthGrouping
from kif_lightning.callbacks import TaskCheckpoint, TaskProgress
from kif_lightning.interfaces import Batch, Example
from kif_lightning.runner import StreamRunner

MIX = {
    # name: (median tokens, standard deviation of their logarithm, share of the rows, answers)
    "imdb": (333, 0.60, 4, ("Good", "Bad")),
    "agnews": (107, 0.17, 4, ("World", "Sports", "Business", "Science or Technology")),
    "cb": (140, 0.32, 1, ("entailment", "contradiction", "neutral")),
    "sst2": (41, 0.25, 4, ("Good", "Bad")),
}
"""Measured on the public tasks' train rows, prompts included; shares of 1000, 1000, 250, 1000."""
GROUPINGS = get_args(LengthGrouping)
STRATEGIES = {"Trainer": "random", "Trainer grouped by length": "group_by_length"}


class Ours(Callback):
    """A run's runner; module, data, Trainer and callbacks are as its fits have them."""

    def __init__(self, config: DictConfig) -> None:
        self.runner: StreamRunner = built_runner(config)
        self.runner.begin_task(0)
        self.seconds = 0.0

    def epoch(self) -> float:
        """Seconds of one epoch of the first task."""
        self.runner.begin_task(0)
        trainer = self.runner.new_trainer(self.callbacks(), training=True, epochs=1)
        trainer.fit(self.runner.module, datamodule=self.runner.data)
        return self.seconds

    def callbacks(self) -> list[Callback]:
        """A run's, then this one, so that an epoch's end is the end of theirs too."""
        parts, options = self.runner.parts, self.runner.options
        method: dict[str, Callback] = {**parts.gradient, **parts.boundary}
        checkpoint = TaskCheckpoint(
            keepers=method,
            save=self.runner._save_training,
            interruption=self.runner.interruption,
            every_steps=options.checkpoint_every_steps,
            every_minutes=options.checkpoint_every_minutes,
        )
        return [TaskProgress(label="ours"), *method.values(), checkpoint, self]

    def on_train_epoch_start(self, *_: Any) -> None:
        """The start of the fit is over."""
        self.started = perf_counter()

    def on_train_epoch_end(self, *_: Any) -> None:
        """Before whatever follows the epoch."""
        self.seconds = perf_counter() - self.started

    def examples(self) -> list[Example]:
        """All rows, tokenised, in the order of the data."""
        data = self.runner.data
        return [data.backbone.encode(row) for row in data.training_rows()]

    def order(self) -> list[int]:
        """The rows as the first epoch takes them."""
        return [i for part in self.runner.data.train_dataloader().plan for i in part.indices]

    def batches(self) -> list[Batch]:
        """Model inputs of the first epoch, one for each pass through the model."""
        batches = self.runner.data.train_dataloader()
        return [part["inputs"] for batch in batches for part in batch.get("parts", [batch])]


class Theirs(transformers.TrainerCallback):
    """transformers' Trainer on the rows, base model and settings of a run of ours."""

    def __init__(self, ours: Ours, config: DictConfig, folder: Path) -> None:
        self.backbone = ours.runner.parts.backbone
        self.config, self.folder = config, folder
        lora = LoraConfig(
            task_type=self.backbone.task_type,
            r=config.lora.r,
            lora_alpha=config.lora.alpha,
            lora_dropout=config.lora.dropout,
            target_modules=list(config.backbone.lora_targets),
        )
        self.model = get_peft_model(self.backbone.load_model(), lora)
        self.seconds = self.mean_loss = 0.0

    def trainer(self, examples: Sequence[Example], sampling: str, seed: int = 1) -> Any:
        """A fresh Trainer for one epoch."""
        arguments = transformers.TrainingArguments(
            output_dir=str(self.folder),
            per_device_train_batch_size=self.config.optim.batch_size,
            num_train_epochs=1,
            learning_rate=self.config.optim.lr,
            weight_decay=self.config.optim.weight_decay,
            max_grad_norm=0.0,
            lr_scheduler_type="linear",
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
            remove_unused_columns=False,
            seed=seed,
            train_sampling_strategy=sampling,
        )
        trainer = transformers.Trainer(
            model=self.model,
            args=arguments,
            train_dataset=[{"input_ids": e.prompt_ids, "labels": e.answer_ids} for e in examples],
            data_collator=self.collate,
            callbacks=[self],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        return trainer

    def collate(self, rows: Sequence[dict[str, list[int]]]) -> Batch:
        """As ours, so that nothing differs but the loops."""
        examples = [Example(prompt_ids=r["input_ids"], answer_ids=r["labels"]) for r in rows]
        return self.backbone.training_batch(examples)

    def epoch(self, examples: Sequence[Example], sampling: str) -> float:
        """Seconds of one epoch."""
        self.mean_loss = self.trainer(examples, sampling).train().training_loss
        return self.seconds

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        """The start of the fit is over."""
        self.started = perf_counter()

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        """Before whatever follows the epoch."""
        self.seconds = perf_counter() - self.started


def padding_percent(batches: Iterable[Batch]) -> float:
    """Share of the prompts' positions that hold no token."""
    masks = [batch["attention_mask"] for batch in batches]
    return 100 * (1 - sum(int(m.sum()) for m in masks) / sum(m.numel() for m in masks))


def throughput(seconds: Sequence[float], num_rows: int) -> float:
    """Rows a second, by the median."""
    return round(num_rows / median(seconds), 2)


def equal_batches(
    name: str, overrides: Sequence[str], folder: Path, rows: int, rounds: int
) -> list[dict[str, Any]]:
    """Entries of one model."""
    common = (
        *overrides,
        *("benchmark=long_sequence_mini", "benchmark.order=[mini_agnews]"),
        *(f"benchmark.train_rows={rows}", "optim.length_grouping=none"),
    )
    configs = {m: settings(folder, *common, f"method={m}") for m in ("seq_lora", "kif")}
    ours = {method: Ours(config) for method, config in configs.items()}
    plain = ours["seq_lora"]
    theirs = Theirs(plain, configs["seq_lora"], folder)
    examples = plain.examples()
    ordered = [examples[i] for i in plain.order()]
    variants: dict[str, Callable[[], float]] = {
        "Trainer": partial(theirs.epoch, ordered, "sequential"),
        **{method: side.epoch for method, side in ours.items()},
    }
    seconds = in_turn(variants, rounds)
    batches = plain.batches()
    told: dict[str, Any] = {
        "rows_per_second": {key: throughput(value, rows) for key, value in seconds.items()},
        "steps": -(-rows // configs["seq_lora"].optim.batch_size),
        "passes": len(batches),
        "padding_percent": round(padding_percent(batches), 1),
    }
    words = "is x times as fast as Trainer + peft: equal batches, " + name
    plain_ratio, kif_ratio = (ratio(seconds["Trainer"], seconds[m]) for m in ("seq_lora", "kif"))
    return [
        entry(f"our training {words}", plain_ratio, at_least=0.97, **told),
        entry(f"our training with importance and penalty {words}", kif_ratio, **told),
    ]


def write_mix(folder: Path, number: int, data: Path | None = None, seed: int = 0) -> None:
    """``mix/{train,test}.jsonl``: generated rows, or real ones of ``data/<task>/train.jsonl``."""
    random, rows = Random(seed), []
    shares = sum(share for _, _, share, _ in MIX.values())
    for task, (tokens, deviation, share, answers) in MIX.items():
        wanted = max(1, round(number * share / shares))
        if data is not None:
            lines = (data / task / "train.jsonl").read_text(encoding="utf-8").split("\n")
            real = [json.loads(line) for line in lines if line.strip()]
            chosen = random.sample(real, min(wanted, len(real)))
            rows += [(row["input"], row["output"]) for row in chosen]
            continue
        for _ in range(wanted):
            # Nearly every one of the words is one token; the end token is another.
            length = max(3, round(tokens * random.lognormvariate(0, deviation)) - 1)
            rows.append((" ".join(random.choices(WORDS, k=length)), random.choice(answers)))
    random.shuffle(rows)
    (folder / "mix").mkdir(parents=True, exist_ok=True)
    for split, part in (("train", rows), ("test", rows[:1])):
        records = [{"id": str(i), "input": a, "output": b} for i, (a, b) in enumerate(part)]
        text = "".join(json.dumps(record) + "\n" for record in records)
        (folder / "mix" / f"{split}.jsonl").write_text(text, encoding="utf-8")


def mixed_lengths(
    name: str, overrides: Sequence[str], folder: Path, rows: int, rounds: int, data: Path | None
) -> list[dict[str, Any]]:
    """Entries of the mix, for one model."""
    write_mix(folder / "data", rows, data)
    common = (
        *overrides,
        *("benchmark=long_sequence", f"benchmark.data_dir={folder / 'data'}"),
        *("benchmark.order=[mix]", "method=seq_lora", "backbone.max_source_tokens=512"),
    )
    configs = {
        grouping: settings(folder, *common, f"optim.length_grouping={grouping}")
        for grouping in GROUPINGS
    }
    ours = {f"ours, {grouping}": Ours(config) for grouping, config in configs.items()}
    plain = ours["ours, none"]
    theirs = Theirs(plain, configs["none"], folder)
    examples = plain.examples()
    seconds = in_turn(
        {
            # Ours first: what the first of all pays for being so is not the other side's.
            **{key: side.epoch for key, side in ours.items()},
            **{key: partial(theirs.epoch, examples, how) for key, how in STRATEGIES.items()},
        },
        rounds,
        warm_up=False,  # the equal batches have warmed the process up
    )
    padding = {key: padding_percent(side.batches()) for key, side in ours.items()}
    for key, how in STRATEGIES.items():
        trainer = theirs.trainer(examples, how)
        padding[key] = padding_percent(trainer.get_train_dataloader())
    lengths = sorted(len(example.prompt_ids) for example in examples)
    told: dict[str, Any] = {
        "rows": len(examples),
        "prompt_tokens": {"median": median(lengths), "longest": lengths[-1]},
        "padding_percent": {key: round(value, 1) for key, value in padding.items()},
        "seconds": {key: spread(value) for key, value in seconds.items()},
        "rows_per_second": {k: throughput(v, len(examples)) for k, v in seconds.items()},
    }
    kind = "real rows" if data is not None else "long and short rows"
    entries = []
    for key, grouping in zip(ours, configs, strict=True):
        best = grouping == "across_steps"
        for other, least in zip(STRATEGIES, (1.5, 1.0), strict=True):
            entries.append(
                entry(
                    f"our training is x times as fast as {other} + peft: {kind}, {name}, "
                    f"our length grouping {grouping}",
                    ratio(seconds[other], seconds[key]),
                    at_least=least if best else None,
                    **told,
                )
            )
    return entries


def main() -> None:
    parser = argparse.ArgumentParser(description="Our fine-tuning beside Trainer + peft.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=240, help="equal batches, t5_nano")
    parser.add_argument("--long-rows", type=int, default=40, help="equal batches, --shape")
    parser.add_argument("--mix-rows", type=int, default=117, help="of the mix, t5_nano")
    parser.add_argument("--long-mix-rows", type=int, default=0, help="of the mix, --shape")
    parser.add_argument("--shape", choices=list(T5_SHAPES), default="t5_small")
    parser.add_argument("--data", type=Path, help="folder of imdb, agnews, cb, sst2: real rows")
    parser.add_argument("--output", type=Path, help="the JSON to write")
    arguments = parser.parse_args()
    silence()
    started_on = machine()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models: dict[str, Sequence[str]] = {"t5_nano": ("backbone=t5_nano",)}
        if arguments.long_rows or arguments.long_mix_rows:
            path = save_random_t5(folder / "model", arguments.shape)
            shaped = f"{arguments.shape} shape"
            models[shaped] = (f"backbone={arguments.shape}", f"backbone.path={path}")
        plain = (arguments.rows, arguments.long_rows)
        mixed = (arguments.mix_rows, arguments.long_mix_rows)
        entries = []
        for (model, overrides), rows, mix_rows in zip(models.items(), plain, mixed, strict=False):
            place = (model, overrides, folder)
            if rows:
                entries += equal_batches(*place, rows, arguments.rounds)
            if mix_rows:
                entries += mixed_lengths(*place, mix_rows, arguments.rounds, arguments.data)
    setting = {key: getattr(arguments, key) for key in ("rounds", "rows", "long_rows", "mix_rows")}
    write_result(
        "fine_tuning",
        entries,
        started_on=started_on,
        output=arguments.output,
        setting={
            **setting,
            "long_mix_rows": arguments.long_mix_rows,
            "real_rows": bool(arguments.data),
        },
    )


if __name__ == "__main__":
    main()

"""Phase 1 of a task: fine-tune the adapter, and track the importance of its weights.

The process of a public research script: transformers.Trainer and peft, a callback with a Python
loop over the parameters, files at the end.

    python train.py --model MODEL --rows TASK/train.jsonl --output FOLDER [--previous FOLDER]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from rows import answer_ids, prompt_ids, read_rows
from torch import Tensor, nn
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)


class ImportanceCallback(TrainerCallback):
    """Sensitivity and uncertainty of every trainable weight, updated before each optimizer step."""

    def __init__(self, model: nn.Module, alpha1: float = 0.85, alpha2: float = 0.85) -> None:
        self.model = model
        self.alpha1, self.alpha2 = alpha1, alpha2
        self.sensitivity: dict[str, Tensor] = {}
        self.uncertainty: dict[str, Tensor] = {}

    @torch.no_grad()
    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        for name, parameter in self.model.named_parameters():
            if not parameter.requires_grad:
                continue
            if name not in self.sensitivity:
                self.sensitivity[name] = torch.zeros_like(parameter)
                self.uncertainty[name] = torch.zeros_like(parameter)
            product = parameter * parameter.grad
            importance = (product - product**2 / 2).abs()
            sensitivity, uncertainty = self.sensitivity[name], self.uncertainty[name]
            sensitivity.mul_(self.alpha1).add_(importance, alpha=1 - self.alpha1)
            change = (importance - sensitivity).abs()
            uncertainty.mul_(self.alpha2).add_(change, alpha=1 - self.alpha2)


def orthonormality(model: nn.Module) -> Tensor:
    """Mean distance of A A^T and B^T B from the identity over all LoRA matrices."""
    distances = []
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            gram = parameter @ parameter.T
        elif "lora_B" in name:
            gram = parameter.T @ parameter
        else:
            continue
        distances.append(torch.norm(gram - torch.eye(gram.shape[0], device=gram.device)))
    return torch.stack(distances).mean()


class PenaltyTrainer(Trainer):
    """Adds the orthonormality penalty to the model's loss."""

    penalty: float = 0.0

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        return loss + self.penalty * orthonormality(model)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--previous", type=Path, help="the adapter to go on from")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--penalty", type=float, default=0.1)
    parser.add_argument("--r", type=int, default=8)
    parser.add_argument("--alpha", type=int, default=32)
    parser.add_argument("--dropout", type=float, default=0.05)
    parser.add_argument("--targets", nargs="+", default=["q", "v"])
    parser.add_argument("--max-source", type=int, default=256)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    set_seed(options.seed)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    base = AutoModelForSeq2SeqLM.from_pretrained(options.model, dtype=torch.float32)
    model: Any
    if options.previous is None:
        lora = LoraConfig(
            task_type="SEQ_2_SEQ_LM",
            r=options.r,
            lora_alpha=options.alpha,
            lora_dropout=options.dropout,
            target_modules=options.targets,
        )
        model = get_peft_model(base, lora)
    else:
        model = PeftModel.from_pretrained(base, str(options.previous), is_trainable=True)
    features = [
        {
            "input_ids": prompt_ids(tokenizer, row["input"], options.max_source),
            "labels": answer_ids(tokenizer, row["output"]),
        }
        for row in read_rows(options.rows)
    ]
    importance = ImportanceCallback(model)
    trainer = PenaltyTrainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(options.output),
            num_train_epochs=options.epochs,
            per_device_train_batch_size=options.batch,
            learning_rate=options.lr,
            max_grad_norm=0.0,
            save_strategy="no",
            report_to=[],
            logging_steps=50,
            seed=options.seed,
            dataloader_pin_memory=False,
            use_cpu=True,
        ),
        train_dataset=features,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=base),
        callbacks=[importance],
    )
    trainer.penalty = options.penalty
    started = perf_counter()
    trainer.train()
    print(f"work seconds: {perf_counter() - started:.3f}")
    model.save_pretrained(str(options.output), save_embedding_layers=False)
    averages = {"sensitivity": importance.sensitivity, "uncertainty": importance.uncertainty}
    torch.save(averages, options.output / "importance.pt")


if __name__ == "__main__":
    main()

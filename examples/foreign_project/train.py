"""Fine-tune a small T5 with one LoRA on three tasks of a shop, one after another."""

import argparse
import csv
from pathlib import Path

import lightning.pytorch as pl
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

HERE = Path(__file__).parent
DATA = HERE.parent / "own_tasks"
MODEL = HERE.parents[1] / "kif_lightning" / "backbones" / "t5_nano"
TASKS = {
    "tickets": (
        "Which team should answer? Choose one: delivery, billing, workshop.\nmessage: {message}",
        "team",
    ),
    "reviews": (
        "Does the customer recommend the shop? Choose one: yes, no.\nreview: {review}",
        "recommends",
    ),
    "replies": ("Answer the customer as our shop does.\nquestion: {question}", "reply"),
}


def read(task: str) -> tuple[list, list]:
    """Train and test rows (prompt, answer); every fifth row is for test."""
    prompt, answer = TASKS[task]
    with (DATA / f"{task}.csv").open(encoding="utf-8", newline="") as file:
        records = list(csv.DictReader(file))
    words = {"1": "yes", "0": "no"}
    rows = [
        # The model has been pretrained to fill in what <extra_id_0> stands for.
        (
            f"{prompt.format(**r)}\nAnswer: <extra_id_0>".lower(),
            words.get(r[answer], r[answer]).lower(),
        )
        for r in records
    ]
    return [r for i, r in enumerate(rows) if i % 5], rows[::5]


class FineTuning(pl.LightningModule):
    """T5 with a LoRA."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = AutoTokenizer.from_pretrained(MODEL)
        lora = LoraConfig(r=8, lora_alpha=16, target_modules=["q", "v"], task_type="SEQ_2_SEQ_LM")
        self.model = get_peft_model(AutoModelForSeq2SeqLM.from_pretrained(MODEL), lora)

    def collate(self, rows: list) -> dict:
        """Pad and stack."""
        prompts, answers = zip(*rows, strict=True)
        batch = self.tokenizer(list(prompts), padding=True, return_tensors="pt")
        targets = [f"<extra_id_0> {answer}" for answer in answers]
        labels = self.tokenizer(text_target=targets, padding=True, return_tensors="pt")["input_ids"]
        return {**batch, "labels": labels.masked_fill(labels == self.tokenizer.pad_token_id, -100)}

    def training_step(self, batch: dict, batch_idx: int) -> torch.Tensor:
        """The language model's loss."""
        return self.model(**batch).loss

    def configure_optimizers(self) -> dict:
        """AdamW, decaying to zero."""
        weights = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=3e-3)
        steps = self.trainer.estimated_stepping_batches
        decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": decay, "interval": "step"}}

    @torch.no_grad()
    def score(self, rows: list) -> float:
        """Percent of the rows that are answered word for word."""
        self.eval()
        batch = self.collate(rows)
        del batch["labels"]
        ids = self.model.generate(**batch, max_new_tokens=24)
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        right = [t.strip() == answer for t, (_, answer) in zip(texts, rows, strict=True)]
        return 100 * sum(right) / len(right)


def main(epochs: int, seed: int) -> tuple[FineTuning, dict]:
    """Learn the tasks one after another; the scores of all tasks after each."""
    pl.seed_everything(seed, verbose=False)
    module = FineTuning()
    scores = {}
    for task in TASKS:
        rows = read(task)[0]
        module.train()
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, DataLoader(rows, 8, shuffle=True, collate_fn=module.collate))
        scores[task] = {name: module.score(read(name)[1]) for name in TASKS}
        shown = "  ".join(f"{name} {score:5.1f}" for name, score in scores[task].items())
        print(f"after {task}: {shown}")
    return module, scores


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    main(**vars(parser.parse_args()))

"""Rows for a probe, and the loss of a model on them, row by row with transformers alone."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM


def written(path: Path, number: int = 9) -> Path:
    """Prompts and answers of unequal lengths: padding matters."""
    rows = [
        {
            "id": f"row{i}",
            "input": f"Say {'the ' * (i % 4)}word {i} again",
            "output": "red" * (1 + i % 3),
        }
        for i in range(number)
    ]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def by_hand(folder: Path, prompt: list[int], answer: list[int]) -> float:
    """-log p(answer | prompt) over its tokens, of one row alone."""
    with torch.no_grad():
        if "t5" in folder.name:
            model = AutoModelForSeq2SeqLM.from_pretrained(folder)
            given = torch.tensor([[0, *answer[:-1]]])
            logits = model(input_ids=torch.tensor([prompt]), decoder_input_ids=given).logits[0]
        else:
            model = AutoModelForCausalLM.from_pretrained(folder)
            logits = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0]
            logits = logits[len(prompt) - 1 : -1]
    chosen = logits.log_softmax(dim=-1)[range(len(answer)), answer]
    return -float(chosen.mean())

"""Phase 3 of a task: answer the test rows of every task seen so far, row by row.

python predict.py --model MODEL --adapter FOLDER --tasks FOLDER ... --output FOLDER
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from peft import PeftModel
from rows import longest_answer, prompt_ids, read_rows
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer


@torch.inference_mode()
def answer(model: Any, tokenizer: Any, prompt: list[int], max_new_tokens: int) -> str:
    """Greedy, with the KV cache, until the end token."""
    input_ids = torch.tensor([prompt])
    ids = model.generate(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
    )
    text: str = tokenizer.decode(ids[0], skip_special_tokens=True)
    return text.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--tasks", type=Path, nargs="+", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--max-source", type=int, default=256)
    options = parser.parse_args()
    options.output.mkdir(parents=True)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    base = AutoModelForSeq2SeqLM.from_pretrained(options.model, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(options.adapter)).eval()
    started = perf_counter()
    for task in options.tasks:
        train = read_rows(task / "train.jsonl")
        cap = longest_answer(tokenizer, [row["output"] for row in train])
        records = []
        for row in read_rows(task / "test.jsonl"):
            prompt = prompt_ids(tokenizer, row["input"], options.max_source)
            text = answer(model, tokenizer, prompt, cap)
            records.append({"prediction": text, "reference": row["output"]})
        path = options.output / f"{task.name}.json"
        path.write_text(json.dumps(records, indent=1), encoding="utf-8")
    print(f"work seconds: {perf_counter() - started:.3f}")


if __name__ == "__main__":
    main()

"""Tiny random models, a byte-level tokenizer and toy tasks, made in the test: no network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from kif_lightning.interfaces import Row

WORDS = "What is the colour of this word ? red green blue round square flat Answer: good bad"


def tiny_tokenizer(*, ends_sequences: bool) -> PreTrainedTokenizerFast:
    """Byte-level BPE, about 300 tokens; ``ends_sequences`` appends the end token, as T5 does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([WORDS] * 3, trainer)
    if ends_sequences:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="$A </s>", special_tokens=[("</s>", 1)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",  # noqa: S106
        eos_token="</s>",  # noqa: S106
    )


def save_tiny_t5(folder: Path, seed: int = 0) -> Path:
    """A random T5 (2 + 2 layers, width 16) with its tokenizer, saved in ``folder``."""
    tokenizer = tiny_tokenizer(ends_sequences=True)
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=16,
        d_kv=4,
        d_ff=32,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
    )
    T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_tiny_llama(folder: Path, seed: int = 0) -> Path:
    """A random LLaMA (2 layers, width 16) with its tokenizer, saved in ``folder``."""
    tokenizer = tiny_tokenizer(ends_sequences=False)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def toy_rows(task: str, split: str, number: int, labels: Sequence[str]) -> list[Row]:
    """Rows whose label is told by one word of the prompt."""
    cues = {"colour": ("red", "green"), "shape": ("round", "square")}.get(task, ("good", "bad"))
    rows = []
    for i in range(number):
        cue = cues[i % len(labels)]
        text = f"What is the {task} of this word ? {'the ' * (i % 5)}{cue} {split} {i}\nAnswer:"
        rows.append(Row(id=f"{task}-{split}-{i}", input=text, output=labels[i % len(labels)]))
    return rows


def save_toy_tasks(
    folder: Path,
    tasks: Sequence[str] = ("colour", "shape"),
    *,
    train: int = 16,
    test: int = 6,
    labels: Sequence[str] = ("good", "bad"),
) -> Path:
    """``<folder>/<task>/{train,test}.jsonl``, as a benchmark's data folder."""
    for task in tasks:
        for split, number in (("train", train), ("test", test)):
            path = folder / task / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = toy_rows(task, split, number, labels)
            lines = [json.dumps({"id": r.id, "input": r.input, "output": r.output}) for r in rows]
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder

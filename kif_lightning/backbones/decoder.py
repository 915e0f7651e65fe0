"""Decoder-only language models: the LLaMA family.

Shapes: N rows, S tokens of prompt and answer, L longest answer of the batch, V vocabulary.
Batches are padded on the left, in training too: all answers then end in the last column, so the
vocabulary projection, a large part of a small model's work, runs on L + 1 positions alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from kif_lightning.backbones.decoding import answer_ids, base_model
from kif_lightning.backbones.loading import Pretrained
from kif_lightning.backbones.tokens import IGNORED, cut, pad_left
from kif_lightning.interfaces import Batch, Example, Row


@dataclass(kw_only=True)
class DecoderBackbone(Pretrained):
    """A LLaMA-like model: the answer continues the prompt; loss on the answer only.

    Prompt and answer are joined by one space (white space at the prompt's end is dropped).
    """

    task_type = "CAUSAL_LM"

    def load_model(self) -> nn.Module:
        """The pretrained module."""
        return self.load_pretrained(AutoModelForCausalLM)

    def encode(self, row: Row, max_target_tokens: int | None = None) -> Example:
        """Token ids; prompt and answer are tokenised together where the tokenizer allows a cut."""
        prompt_text = row.input.rstrip()
        prompt = self.tokenizer(prompt_text)["input_ids"]
        joined = self.tokenizer(f"{prompt_text} {row.output}")["input_ids"]
        if joined[: len(prompt)] == prompt:
            answer = joined[len(prompt) :]
        else:  # a token spans the border: the answer is tokenised alone
            answer = self.tokenizer(f" {row.output}", add_special_tokens=False)["input_ids"]
        room = (max_target_tokens or self.max_target_tokens) - 1
        return Example(
            prompt_ids=cut(prompt, self.max_source_tokens, self.truncation),
            answer_ids=[*answer[:room], self.tokenizer.eos_token_id],
        )

    def training_batch(self, examples: Sequence[Example]) -> Batch:
        """``input_ids``, ``attention_mask``, ``position_ids`` (N, S) and ``labels`` (N, L)."""
        sequences = [[*example.prompt_ids, *example.answer_ids] for example in examples]
        labels = pad_left([example.answer_ids for example in examples], IGNORED)
        return {**self._inputs(sequences), "labels": labels}

    def generation_batch(self, examples: Sequence[Example]) -> Batch:
        """``input_ids``, ``attention_mask`` and ``position_ids`` (N, S) of the prompts."""
        return self._inputs([example.prompt_ids for example in examples])

    def _inputs(self, sequences: Sequence[Sequence[int]]) -> Batch:
        mask = pad_left([[1] * len(sequence) for sequence in sequences], 0)
        return {
            "input_ids": pad_left(sequences, self.tokenizer.pad_token_id),
            "attention_mask": mask,
            "position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0),
        }

    def answer_logits(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits (N, L, V) and labels (N, L); the logit before each answer token predicts it."""
        labels: Tensor = batch["labels"]
        keep = labels.shape[1] + 1
        options: dict[str, Any] = {}
        if _takes(base_model(model), "logits_to_keep"):
            options["logits_to_keep"] = keep
        if _takes(model, "num_answer_tokens"):
            # A model that looks at the text before it answers must know where that ends.
            options["num_answer_tokens"] = (labels >= 0).sum(dim=1)
        output = self.compiled(model)(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            position_ids=batch["position_ids"],
            use_cache=False,
            **options,
        )
        logits: Tensor = output.logits[:, -keep:-1]
        return logits, labels

    def generate(
        self, model: nn.Module, batch: Batch, max_new_tokens: int, *, top_k: int | None = None
    ) -> list[str]:
        """Greedy answers, (N,) texts; with ``top_k`` drawn by torch's global generator."""
        ids = answer_ids(
            model,
            top_k=top_k,
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=max_new_tokens,
            pad_token_id=self.tokenizer.pad_token_id,
            bos_token_id=self.tokenizer.bos_token_id,
            eos_token_id=self.tokenizer.eos_token_id,
        )
        return self.texts(ids[:, batch["input_ids"].shape[1] :])


def _takes(model: nn.Module, argument: str) -> bool:
    return argument in inspect.signature(model.forward).parameters

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

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from kif_lightning.backbones.decoding import answer_ids, base_model, eagerly
from kif_lightning.backbones.loading import Pretrained
from kif_lightning.backbones.ranking import packed_labels, score_dtype
from kif_lightning.backbones.tokens import IGNORED, cut, cut_in_words, ids_of, pad_left
from kif_lightning.interfaces import Batch, Example, PlainUse, Row


@dataclass(kw_only=True)
class DecoderBackbone(Pretrained):
    """A LLaMA-like model: the answer continues the prompt; loss on the answer only.

    Prompt and answer are joined by one space (white space at the prompt's end is dropped).
    """

    task_type = "CAUSAL_LM"

    def load_model(self) -> nn.Module:
        """The pretrained module."""
        return self.load_pretrained(AutoModelForCausalLM)

    def encode_rows(
        self, rows: Sequence[Row], max_target_tokens: int | None = None
    ) -> list[Example]:
        """Token ids; prompt and answer are tokenised together where the tokenizer allows a cut."""
        texts = [row.input.rstrip() for row in rows]
        prompts = ids_of(self.tokenizer, texts)
        whole = [f"{text} {row.output}" for text, row in zip(texts, rows, strict=True)]
        answers: list[list[int] | None] = [
            joined[len(prompt) :] if joined[: len(prompt)] == prompt else None
            for prompt, joined in zip(prompts, ids_of(self.tokenizer, whole), strict=True)
        ]
        # A token spans the border: the answer is tokenised alone.
        places = [place for place, answer in enumerate(answers) if answer is None]
        alone = [f" {rows[place].output}" for place in places]
        for place, ids in zip(
            places, ids_of(self.tokenizer, alone, special_tokens=False), strict=True
        ):
            answers[place] = ids
        room = (max_target_tokens or self.max_target_tokens) - 1
        return [
            Example(
                prompt_ids=cut(prompt, self.max_source_tokens, self.truncation),
                answer_ids=[*(answer or [])[:room], self.tokenizer.eos_token_id],
            )
            for prompt, answer in zip(prompts, answers, strict=True)
        ]

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
            **self._ends(),
        )
        return self.texts(ids[:, batch["input_ids"].shape[1] :])

    def _ends(self) -> dict[str, Any]:
        """Token ids that begin a text, end and pad an answer."""
        return {
            "pad_token_id": self.tokenizer.pad_token_id,
            "bos_token_id": self.tokenizer.bos_token_id,
            "eos_token_id": self.tokenizer.eos_token_id,
        }

    def plain_use(self, model: nn.Module) -> PlainUse:
        """The answer continues the prompt."""
        return PlainUse(
            auto_class=AutoModelForCausalLM.__name__,
            rule=(
                "White space at the prompt's end is dropped; the answer goes on with one space, "
                "which the model writes itself."
            ),
            encode="\n".join(
                [
                    'ids = tokenizer(prompt.rstrip())["input_ids"]',
                    *cut_in_words(self.max_source_tokens, self.truncation),
                ]
            ),
            padding_side="left",
            repeats_prompt=True,
            generation=self._ends(),
        )

    def label_log_probabilities(
        self, model: nn.Module, batch: Batch, labels: Sequence[Sequence[int]]
    ) -> Tensor:
        """Each label's log p(label | prompt), (N, K) in float32; the prompt runs once.

        The labels continue it side by side, at the same positions: each sees the prompt and itself.
        """
        with eagerly(model):
            once = {"logits_to_keep": 1} if _takes(base_model(model), "logits_to_keep") else {}
            output: Any = model(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                position_ids=batch["position_ids"],
                use_cache=True,
                **once,
            )
            after_prompt = output.logits[:, -1].float().log_softmax(dim=1)
            # Its later name of transformers' two.
            kept = "cache" if _takes(base_model(model), "cache") else "past_key_values"
            cache: Any = getattr(output, kept)
            mask = batch["attention_mask"]
            # Soft prompts, if any, came before the text, and its positions follow theirs.
            soft = cache.get_seq_length() - mask.shape[1]
            seen = torch.cat([mask.new_ones(len(mask), soft), mask], dim=1)
            found = []
            for packed in packed_labels(model, labels, seen):
                width = len(packed.inputs)
                if not width:  # labels of the end token alone
                    found.append(after_prompt.new_zeros(len(seen), len(packed.lengths)))
                    continue
                output = model(
                    input_ids=packed.inputs.expand(len(seen), -1),
                    attention_mask=packed.mask(seen, score_dtype(model)),
                    position_ids=batch["position_ids"][:, -1:] + 1 + soft + packed.places,
                    use_cache=True,
                    **{kept: cache},
                )
                found.append(packed.sums(output.logits))
                cache.crop(-width)
            return after_prompt[:, [label[0] for label in labels]] + torch.cat(found, dim=1)


def _takes(model: nn.Module, argument: str) -> bool:
    return argument in inspect.signature(model.forward).parameters

"""Encoder-decoder language models: the T5 family.

Shapes: N rows, S source tokens, L target tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSeq2SeqLM
from transformers.modeling_outputs import BaseModelOutput

from kif_lightning.backbones.decoding import answer_ids, eagerly
from kif_lightning.backbones.loading import Pretrained
from kif_lightning.backbones.ranking import packed_labels, score_dtype
from kif_lightning.backbones.tokens import IGNORED, cut, cut_in_words, ids_of, pad_right
from kif_lightning.errors import UserError
from kif_lightning.interfaces import Batch, Example, PlainUse, Row


@dataclass(kw_only=True)
class Seq2SeqBackbone(Pretrained):
    """A T5-like model: prompt in the encoder, answer in the decoder.

    Args:
        mask_token: a mask of the model's span corruption (``<extra_id_0>``): each prompt then ends
            with it and each answer begins with it, so that a task is the cloze that a model knows
            which saw nothing but span corruption. None: plain prompt and answer.

    Raises:
        UserError: from :meth:`encode_rows`, if the tokenizer has no such token.
    """

    task_type = "SEQ_2_SEQ_LM"
    mask_token: str | None = None

    def load_model(self) -> nn.Module:
        """The pretrained module."""
        return self.load_pretrained(AutoModelForSeq2SeqLM)

    def encode_rows(
        self, rows: Sequence[Row], max_target_tokens: int | None = None
    ) -> list[Example]:
        """Token ids; the tokenizer ends both sides with its end token, which a cut keeps."""
        if not rows:
            return []
        sources = ids_of(self.tokenizer, [row.input for row in rows])
        answers = list(dict.fromkeys(row.output for row in rows))
        # Not by ids_of: a tokenizer may mark a target as one (mBART: by its language).
        targets = dict(zip(answers, self.tokenizer(text_target=answers)["input_ids"], strict=True))
        mask = [] if self.mask_token is None else [self._mask_id]
        room = (max_target_tokens or self.max_target_tokens) - len(mask)
        return [
            self._example(source, targets[row.output], mask, room)
            for source, row in zip(sources, rows, strict=True)
        ]

    def _example(self, source: list[int], target: list[int], mask: list[int], room: int) -> Example:
        limit = self.max_source_tokens - len(mask)
        if self.truncation == "right" and len(source) > limit:
            # What the tokenizer's own truncation does: the last token stays the end token.
            source = [*source[: limit - 1], source[-1]]
        if len(target) > room:
            target = [*target[: room - 1], target[-1]]
        prompt = cut(source, limit, self.truncation)
        return Example(
            prompt_ids=[*prompt[:-1], *mask, prompt[-1]],
            answer_ids=[*mask, *target],
        )

    @cached_property
    def _mask_id(self) -> int:
        found: Any = self.tokenizer.convert_tokens_to_ids(str(self.mask_token))
        if found in (None, self.tokenizer.unk_token_id):
            raise UserError(
                f"backbone.mask_token must be a token of the model, got {self.mask_token!r}: use "
                "<extra_id_0> with a T5, or null."
            )
        return int(found)

    def protocol(self) -> dict[str, Any]:
        """What decides the prompt's tokens and the decoding."""
        return {**super().protocol(), "mask_token": self.mask_token}

    def training_batch(self, examples: Sequence[Example]) -> Batch:
        """``input_ids`` and ``attention_mask`` (N, S), ``labels`` (N, L) with -100 as padding."""
        labels = pad_right([example.answer_ids for example in examples], IGNORED)
        return {**self.generation_batch(examples), "labels": labels}

    def generation_batch(self, examples: Sequence[Example]) -> Batch:
        """``input_ids`` and ``attention_mask`` (N, S)."""
        prompts = [example.prompt_ids for example in examples]
        return {
            "input_ids": pad_right(prompts, self.tokenizer.pad_token_id),
            "attention_mask": pad_right([[1] * len(prompt) for prompt in prompts], 0),
        }

    def answer_logits(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits (N, L, V) and labels (N, L): position l predicts label l (teacher forcing)."""
        output = self.compiled(model)(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            labels=batch["labels"],
            use_cache=False,
        )
        return output.logits, batch["labels"]

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
            **self._ends(model),
        )
        return self.texts(ids)

    def _ends(self, model: nn.Module) -> dict[str, Any]:
        """Token ids that begin, end and pad an answer."""
        return {
            "pad_token_id": self.tokenizer.pad_token_id,
            "eos_token_id": self.tokenizer.eos_token_id,
            "decoder_start_token_id": _start_id(model),
        }

    def plain_use(self, model: nn.Module) -> PlainUse:
        """The prompt is the encoder's input; what is generated is the answer."""
        masked = self.mask_token is not None
        limit = self.max_source_tokens - masked
        mask_lines = [f"ids = [*ids[:-1], {self._mask_id}, ids[-1]]"] if masked else []
        behind = f"`{self.mask_token}` stands right behind it, before" if masked else "Behind it is"
        return PlainUse(
            auto_class=AutoModelForSeq2SeqLM.__name__,
            rule=f"The prompt goes into the encoder. {behind} the end token; the decoder answers.",
            encode="\n".join(
                [
                    'ids = tokenizer(prompt)["input_ids"]  # ends with the end token',
                    *cut_in_words(limit, self.truncation, keeps_end=True),
                    *mask_lines,
                ]
            ),
            padding_side="right",
            repeats_prompt=False,
            generation=self._ends(model),
        )

    def label_log_probabilities(
        self, model: nn.Module, batch: Batch, labels: Sequence[Sequence[int]]
    ) -> Tensor:
        """Each label's log p(label | prompt), (N, K) in float32; the encoder runs once.

        The labels stand side by side in one decoder row, each after a start token of its own. T5's
        positions are distances, so a label's are the same wherever it stands.
        """
        with eagerly(model):
            prompts, seen = {"input_ids": batch["input_ids"]}, batch["attention_mask"]
            found = []
            start = _start_id(model)
            for packed in packed_labels(model, [[start, *label] for label in labels], seen):
                output: Any = model(
                    **prompts,
                    attention_mask=seen,
                    decoder_input_ids=packed.inputs.expand(len(seen), -1),
                    decoder_attention_mask=packed.mask(seen[:, :0], score_dtype(model)),
                    use_cache=False,
                )
                found.append(packed.sums(output.logits))
                if "input_ids" in prompts:
                    states = output.encoder_last_hidden_state
                    prompts = {"encoder_outputs": BaseModelOutput(last_hidden_state=states)}
                    # Soft prompts, if any, came before the text.
                    soft = seen.new_ones(len(seen), states.shape[1] - seen.shape[1])
                    seen = torch.cat([soft, seen], dim=1)
            return torch.cat(found, dim=1)


def _start_id(model: nn.Module) -> int:
    config: Any = model.config
    start = getattr(config, "decoder_start_token_id", None)
    found: int = config.pad_token_id if start is None else start
    return found

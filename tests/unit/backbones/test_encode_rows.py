"""A batch of rows gets the ids that transformers gives for each text alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest

from kif_lightning.backbones import DecoderBackbone, Seq2SeqBackbone
from kif_lightning.interfaces import Row

TEXTS = ["red ?", "", " ", "What is the colour ?\nAnswer: \n", "雨 é \U0001f327", "a</s>b <pad> c",
         "the colour of red green " * 12 + "END", "<extra_id_0> red", "A:", "A: "]  # fmt: skip
OUTPUTS = ["good", "", "good", " bad ", "good " * 9, "é", "\n", "</s>", "bad"]
ROWS = [Row(id="", input=text, output=output) for text in TEXTS for output in OUTPUTS]
TRUNCATIONS: tuple[Literal["middle", "right"], ...] = ("middle", "right")
LIMITS: list[dict[str, Any]] = [{}, {"max_source_tokens": 9, "max_target_tokens": 4}]


def cut_prompt(ids: list[int], limit: int, truncation: str) -> list[int]:
    if len(ids) <= limit:
        return ids
    return (
        ids[:limit] if truncation == "right" else ids[: limit - limit // 2] + ids[-(limit // 2) :]
    )


@pytest.mark.parametrize("truncation", TRUNCATIONS)
@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("most", [None, 3])
@pytest.mark.parametrize("mask", [None, "</s>"])
def test_sequence_to_sequence(
    tiny_t5: Path, truncation: Any, limits: Any, most: int | None, mask: str | None
) -> None:
    backbone = Seq2SeqBackbone(
        name="tiny", hub_name="tiny/t5", path=str(tiny_t5), truncation=truncation, mask_token=mask,
        **limits,
    )  # fmt: skip
    tokenizer = backbone.tokenizer
    added = [] if mask is None else [tokenizer.convert_tokens_to_ids(mask)]
    limit = backbone.max_source_tokens - len(added)
    room = (most or backbone.max_target_tokens) - len(added)
    found = backbone.encode_rows(ROWS, most)
    for row, example in zip(ROWS, found, strict=True):
        prompt = tokenizer(row.input)["input_ids"]
        if len(prompt) > limit and truncation == "right":
            prompt = [*prompt[: limit - 1], prompt[-1]]
        prompt = cut_prompt(prompt, limit, truncation)
        answer = tokenizer(row.output)["input_ids"]
        if len(answer) > room:
            answer = [*answer[: room - 1], answer[-1]]
        assert example.prompt_ids == [*prompt[:-1], *added, prompt[-1]]
        assert example.answer_ids == [*added, *answer]
    assert found == [backbone.encode(row, most) for row in ROWS]
    assert backbone.encode_rows([]) == []


class Merging:
    """Tokenises by twos of characters: a token spans the border where the prompt is of odd length.

    A tokenizer written in Python, with a token that begins every text.
    """

    eos_token_id, split_special_tokens = 1, False

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        pairs = [text[i : i + 2] for i in range(0, len(text), 2)]
        first = [0] if add_special_tokens else []
        return {"input_ids": [*first, *(int.from_bytes(pair.encode()) for pair in pairs)]}


def expected(tokenizer: Any, row: Row, limit: int, room: int, truncation: str) -> tuple[Any, Any]:
    text = row.input.rstrip()
    prompt, joined = (tokenizer(t)["input_ids"] for t in (text, f"{text} {row.output}"))
    answer = joined[len(prompt) :]
    if joined[: len(prompt)] != prompt:
        answer = tokenizer(f" {row.output}", add_special_tokens=False)["input_ids"]
    answer = [*answer[: room - 1], tokenizer.eos_token_id]
    return cut_prompt(prompt, limit, truncation), answer


@pytest.mark.parametrize("truncation", TRUNCATIONS)
@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("most", [None, 3])
@pytest.mark.parametrize("merging", [False, True])
def test_decoder(
    tiny_llama: Path, truncation: Any, limits: Any, most: int | None, merging: bool
) -> None:
    backbone = DecoderBackbone(
        name="tiny", hub_name="tiny/llama", path=str(tiny_llama), truncation=truncation, **limits
    )
    tokenizer: Any = Merging() if merging else backbone.tokenizer
    backbone.__dict__["tokenizer"] = tokenizer
    if merging:
        spans = [row for row in ROWS if len(row.input.rstrip()) % 2]
        assert 0 < len(spans) < len(ROWS)
    found = backbone.encode_rows(ROWS, most)
    room = most or backbone.max_target_tokens
    for row, example in zip(ROWS, found, strict=True):
        prompt, answer = expected(tokenizer, row, backbone.max_source_tokens, room, truncation)
        assert (example.prompt_ids, example.answer_ids) == (prompt, answer)
    assert found == [backbone.encode(row, most) for row in ROWS]
    assert backbone.encode_rows([]) == []


def test_only_a_tokenizer_that_can_be_read_whole_has_a_fingerprint(tiny_llama: Path) -> None:
    """The same vocabulary may be merged by other rules."""
    backbone: Any = DecoderBackbone(name="tiny", hub_name="tiny/llama", path=str(tiny_llama))
    assert isinstance(backbone.encoding_fingerprint(), str)
    backbone.__dict__["tokenizer"] = Merging()
    assert backbone.encoding_fingerprint() is None

"""The lines that a card shows make the token ids that the backbone makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kif_lightning.backbones.decoder import DecoderBackbone
from kif_lightning.backbones.loading import Pretrained
from kif_lightning.backbones.seq2seq import Seq2SeqBackbone
from kif_lightning.interfaces import PlainUse, Row
from tests.helpers.tiny import toy_rows

ROWS = [
    *toy_rows("colour", "test", 6, ("good", "bad")),
    *(Row(id=str(i), input=text, output="x") for i, text in enumerate(("a  ", "a\n", "good"))),
]


def ids_as_shown(use: PlainUse, prompt: str, tokenizer: Any) -> list[int]:
    names = {"prompt": prompt, "tokenizer": tokenizer}
    exec(use.encode, names)  # noqa: S102
    found: Any = names["ids"]
    return list(found)


@pytest.mark.parametrize("truncation", ["middle", "right"])
@pytest.mark.parametrize("limit", [5, 8, 512])
@pytest.mark.parametrize("mask_token", [None, "A"])
def test_of_a_t5(tiny_t5: Path, truncation: Any, limit: int, mask_token: str | None) -> None:
    backbone = Seq2SeqBackbone(
        name="tiny",
        hub_name="tiny/t5",
        path=str(tiny_t5),
        truncation=truncation,
        max_source_tokens=limit,
        mask_token=mask_token,
    )
    check(backbone)
    assert backbone.plain_use(backbone.load_model()).generation["decoder_start_token_id"] == 0


@pytest.mark.parametrize("truncation", ["middle", "right"])
@pytest.mark.parametrize("limit", [5, 8, 512])
def test_of_a_decoder(tiny_llama: Path, truncation: Any, limit: int) -> None:
    check(
        DecoderBackbone(
            name="tiny",
            hub_name="tiny/llama",
            path=str(tiny_llama),
            truncation=truncation,
            max_source_tokens=limit,
        )
    )


def check(backbone: Pretrained) -> None:
    use = backbone.plain_use(backbone.load_model())
    examples = backbone.encode_rows(ROWS)
    for row, example in zip(ROWS, examples, strict=True):
        assert ids_as_shown(use, row.input, backbone.tokenizer) == example.prompt_ids
    lengths = [len(backbone.tokenizer(row.input)["input_ids"]) for row in ROWS]
    assert max(lengths) > 8, "the limits cut"

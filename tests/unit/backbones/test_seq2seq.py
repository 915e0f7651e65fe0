"""The T5 family against transformers called row by row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kif_lightning.backbones import Seq2SeqBackbone
from kif_lightning.errors import UserError
from kif_lightning.interfaces import Row
from tests.helpers.tiny import toy_rows

LONG = Row(id="l", input=" ".join(["the colour of", "red green"] * 20) + " END", output="good " * 9)


def backbone_of(folder: Path, **settings: Any) -> Seq2SeqBackbone:
    return Seq2SeqBackbone(name="tiny", hub_name="nobody/tiny", path=str(folder), **settings)


@pytest.fixture
def backbone(tiny_t5: Path) -> Seq2SeqBackbone:
    return backbone_of(tiny_t5)


@pytest.fixture
def model(backbone: Seq2SeqBackbone) -> nn.Module:
    """Larger weights than at initialisation, so that the answer depends on the prompt."""
    model = backbone.load_model().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.ndim > 1 else 1)
    return model


def rows() -> list[Row]:
    """Prompts and answers of different lengths."""
    found = toy_rows("colour", "test", 5, ("good", "bad red green"))
    assert len({len(row.input) for row in found}) > 2
    return found


def test_encode_ends_both_sides_with_the_end_token(backbone: Seq2SeqBackbone) -> None:
    example = backbone.encode(Row(id="a", input="red ?", output="good"))
    tokenizer = backbone.tokenizer
    assert example.prompt_ids == tokenizer("red ?")["input_ids"]
    assert example.prompt_ids[-1] == example.answer_ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(example.answer_ids, skip_special_tokens=True) == "good"


@pytest.mark.parametrize("limit", [2, 7, 10])
def test_right_truncation_is_the_tokenizers_own(tiny_t5: Path, limit: int) -> None:
    backbone = backbone_of(tiny_t5, truncation="right", max_source_tokens=limit)
    expected = backbone.tokenizer(LONG.input, truncation=True, max_length=limit)["input_ids"]
    assert backbone.encode(LONG).prompt_ids == expected
    assert expected[-1] == backbone.tokenizer.eos_token_id


@pytest.mark.parametrize("limit", [2, 7, 10])
def test_middle_truncation_keeps_start_end_and_end_token(tiny_t5: Path, limit: int) -> None:
    whole = backbone_of(tiny_t5).encode(LONG).prompt_ids
    kept = backbone_of(tiny_t5, truncation="middle", max_source_tokens=limit).encode(LONG)
    tail = limit // 2
    assert kept.prompt_ids == whole[: limit - tail] + whole[-tail:]
    assert kept.prompt_ids[-1] == backbone_of(tiny_t5).tokenizer.eos_token_id


def test_cut_answer_keeps_the_end_token(tiny_t5: Path) -> None:
    backbone = backbone_of(tiny_t5, max_target_tokens=4)
    expected = backbone.tokenizer(LONG.output, truncation=True, max_length=4)["input_ids"]
    assert backbone.encode(LONG).answer_ids == expected
    assert expected[-1] == backbone.tokenizer.eos_token_id


def test_training_batch_is_padded_on_the_right(backbone: Seq2SeqBackbone) -> None:
    examples = [backbone.encode(row) for row in rows()]
    batch = backbone.training_batch(examples)
    for i, example in enumerate(examples):
        n, m = len(example.prompt_ids), len(example.answer_ids)
        assert batch["input_ids"][i, :n].tolist() == example.prompt_ids
        assert batch["attention_mask"][i].sum() == n == batch["attention_mask"][i, :n].sum()
        assert batch["labels"][i, :m].tolist() == example.answer_ids
        assert (batch["labels"][i, m:] == -100).all()


def test_loss_of_each_row_is_that_of_the_row_alone(
    backbone: Seq2SeqBackbone, model: nn.Module
) -> None:
    examples = [backbone.encode(row) for row in rows()]
    with torch.no_grad():
        logits, labels = backbone.answer_logits(model, backbone.training_batch(examples))
        for i, example in enumerate(examples):
            alone = model(
                input_ids=torch.tensor([example.prompt_ids]),
                labels=torch.tensor([example.answer_ids]),
            ).loss
            batched = nn.functional.cross_entropy(logits[i], labels[i])
            assert torch.isclose(batched, alone, rtol=1e-4), i


def greedy(model: Any, prompt_ids: list[int], cap: int, end: int) -> list[int]:
    """Written out: one forward pass a token, no cache, no padding."""
    produced = [model.config.decoder_start_token_id]
    while len(produced) <= cap and produced[1:][-1:] != [end]:
        logits = model(
            input_ids=torch.tensor([prompt_ids]), decoder_input_ids=torch.tensor([produced])
        ).logits
        produced.append(int(logits[0, -1].argmax()))
    return produced[1:]


@torch.no_grad()
def test_generation_in_a_batch_is_greedy_row_by_row(
    backbone: Seq2SeqBackbone, model: nn.Module
) -> None:
    examples = [backbone.encode(row) for row in rows()]
    texts = backbone.generate(model, backbone.generation_batch(examples), 7)
    tokenizer = backbone.tokenizer
    alone = [greedy(model, e.prompt_ids, 7, tokenizer.eos_token_id) for e in examples]
    assert texts == [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in alone]
    assert len(set(texts)) > 1, "a model that ignores its prompt would prove nothing"


def test_the_models_own_sampling_settings_do_not_count(
    backbone: Seq2SeqBackbone, model: Any
) -> None:
    batch = backbone.generation_batch([backbone.encode(row) for row in rows()])
    plain = backbone.generate(model, batch, 5)
    model.generation_config.update(do_sample=True, temperature=50.0, num_beams=3)
    assert backbone.generate(model, batch, 5) == plain


def test_a_model_is_fresh_and_of_the_dtype_asked_for(tiny_t5: Path) -> None:
    backbone = backbone_of(tiny_t5, dtype="bfloat16")
    first, second = backbone.load_model(), backbone.load_model()
    assert {p.dtype for p in first.parameters()} == {torch.bfloat16}
    shared = {p.data_ptr() for p in first.parameters()} & {
        p.data_ptr() for p in second.parameters()
    }
    assert not shared


@pytest.mark.parametrize("truncation", ["middle", "right"])
def test_with_a_mask_token_a_task_is_a_cloze(tiny_t5: Path, truncation: Any) -> None:
    settings = {"name": "tiny", "hub_name": "tiny/t5", "path": str(tiny_t5)}
    settings["truncation"] = truncation
    row = Row(id="0", input="What is the colour? red\nAnswer:", output="good")
    plain = Seq2SeqBackbone(**settings, max_source_tokens=64).encode(row)
    cloze = Seq2SeqBackbone(**settings, max_source_tokens=64, mask_token="<pad>")  # noqa: S106
    mask = cloze.tokenizer.pad_token_id
    found = cloze.encode(row)
    assert found.prompt_ids == [*plain.prompt_ids[:-1], mask, plain.prompt_ids[-1]]
    assert found.answer_ids == [mask, *plain.answer_ids]
    assert cloze.protocol()["mask_token"] == cloze.tokenizer.pad_token
    short = Seq2SeqBackbone(**settings, max_source_tokens=6, mask_token="<pad>")  # noqa: S106
    cut = short.encode(row).prompt_ids
    assert len(cut) == 6
    assert cut[-2:] == [mask, plain.prompt_ids[-1]]


def test_a_mask_token_that_the_model_does_not_have(tiny_t5: Path) -> None:
    backbone = Seq2SeqBackbone(
        name="tiny",
        hub_name="tiny/t5",
        path=str(tiny_t5),
        mask_token="<mask>",  # noqa: S106
    )
    with pytest.raises(UserError, match=r"backbone\.mask_token .*'<mask>'"):
        backbone.encode(Row(id="0", input="a", output="b"))


@torch.no_grad()
def test_draws_are_of_the_likeliest_tokens_alone(backbone: Seq2SeqBackbone, model: Any) -> None:
    example = backbone.encode(rows()[0])
    batch = backbone.generation_batch([example] * 200)
    # (1, V): what comes first after the prompt.
    logits = model(
        input_ids=torch.tensor([example.prompt_ids]),
        decoder_input_ids=torch.tensor([[model.config.decoder_start_token_id]]),
    ).logits[0, -1]
    likeliest = [backbone.texts(token.reshape(1, 1))[0] for token in logits.topk(3).indices]
    torch.manual_seed(0)
    found = set(backbone.generate(model, batch, 1, top_k=3))
    assert found == set(likeliest)


@pytest.mark.parametrize("limit", [3, 9])
def test_answers_may_be_given_another_limit(tiny_t5: Path, limit: int) -> None:
    short = backbone_of(tiny_t5, max_target_tokens=5)
    row = Row(id="a", input="What colour ?", output="good bad " * 9)
    whole = backbone_of(tiny_t5).encode(row)
    assert len(whole.answer_ids) > 9
    assert short.encode(row).answer_ids == [*whole.answer_ids[:4], whole.answer_ids[-1]]
    cut = short.encode(row, limit)
    assert cut.answer_ids == [*whole.answer_ids[: limit - 1], whole.answer_ids[-1]]
    assert cut.prompt_ids == whole.prompt_ids

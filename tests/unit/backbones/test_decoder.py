"""The LLaMA family against transformers called row by row, unpadded, with its own loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from kif_lightning.backbones import DecoderBackbone
from kif_lightning.interfaces import Example, Row
from tests.helpers.tiny import toy_rows


def backbone_of(folder: Path, **settings: Any) -> DecoderBackbone:
    return DecoderBackbone(name="tiny", hub_name="nobody/tiny", path=str(folder), **settings)


@pytest.fixture
def backbone(tiny_llama: Path) -> DecoderBackbone:
    return backbone_of(tiny_llama)


@pytest.fixture
def model(backbone: DecoderBackbone) -> nn.Module:
    """Larger weights than at initialisation, so that the answer depends on the prompt."""
    model = backbone.load_model().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.ndim > 1 else 1)
    return model


@pytest.fixture
def examples(backbone: DecoderBackbone) -> list[Example]:
    """Prompts and answers of different lengths."""
    rows = toy_rows("colour", "test", 6, ("good", "bad red green"))
    found = [backbone.encode(row) for row in rows]
    assert len({len(e.prompt_ids) for e in found}) > 2
    assert len({len(e.answer_ids) for e in found}) > 1
    return found


def test_answer_continues_the_prompt_after_one_space(backbone: DecoderBackbone) -> None:
    example = backbone.encode(Row(id="a", input="What colour ?\nAnswer: \n", output="good"))
    tokenizer = backbone.tokenizer
    whole = tokenizer("What colour ?\nAnswer: good")["input_ids"]
    assert [*example.prompt_ids, *example.answer_ids] == [*whole, tokenizer.eos_token_id]
    assert tokenizer.decode(example.prompt_ids) == "What colour ?\nAnswer:"
    assert tokenizer.decode(example.answer_ids) == " good</s>"


def test_answer_is_tokenised_alone_where_a_token_spans_the_border(tiny_llama: Path) -> None:
    def spanning(text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        """One token a letter, but ': ' is one token of its own."""
        ids = [ord(letter) for letter in text.replace(": ", "\0")]
        return {"input_ids": [500, *ids] if add_special_tokens else ids}

    spanning.eos_token_id = 1  # type: ignore[attr-defined]
    backbone = backbone_of(tiny_llama)
    backbone.__dict__["tokenizer"] = spanning
    example = backbone.encode(Row(id="a", input="A:", output="b"))
    assert example.prompt_ids == [500, ord("A"), ord(":")]
    assert example.answer_ids == [ord(" "), ord("b"), 1]


@pytest.mark.parametrize("truncation", ["middle", "right"])
def test_limits_cut_the_prompt_and_the_answer_keeps_its_end_token(
    tiny_llama: Path, truncation: str
) -> None:
    row = Row(id="a", input="red green " * 20 + "?", output="good bad " * 9)
    whole = backbone_of(tiny_llama).encode(row)
    limits = {"max_source_tokens": 6, "max_target_tokens": 4}
    cut = backbone_of(tiny_llama, truncation=truncation, **limits).encode(row)
    ends = {"middle": whole.prompt_ids[:3] + whole.prompt_ids[-3:], "right": whole.prompt_ids[:6]}
    assert cut.prompt_ids == ends[truncation]
    assert cut.answer_ids == [*whole.answer_ids[:3], whole.answer_ids[-1]]
    assert cut.answer_ids[-1] == backbone_of(tiny_llama).tokenizer.eos_token_id


def test_training_batch_is_padded_on_the_left(
    backbone: DecoderBackbone, examples: list[Example]
) -> None:
    batch = backbone.training_batch(examples)
    for i, example in enumerate(examples):
        sequence = [*example.prompt_ids, *example.answer_ids]
        n, m = len(sequence), len(example.answer_ids)
        assert batch["input_ids"][i, -n:].tolist() == sequence
        assert batch["position_ids"][i, -n:].tolist() == list(range(n))
        assert batch["attention_mask"][i].sum() == n == batch["attention_mask"][i, -n:].sum()
        assert batch["labels"][i, -m:].tolist() == example.answer_ids
        assert (batch["labels"][i, :-m] == -100).all()


@torch.no_grad()
def test_loss_of_each_row_is_that_of_the_row_alone(
    backbone: DecoderBackbone, model: nn.Module, examples: list[Example]
) -> None:
    logits, labels = backbone.answer_logits(model, backbone.training_batch(examples))
    for i, example in enumerate(examples):
        prompt, answer = example.prompt_ids, example.answer_ids
        # transformers' own loss over the answer only: it shifts the labels itself.
        alone = model(
            input_ids=torch.tensor([[*prompt, *answer]]),
            labels=torch.tensor([[*[-100] * len(prompt), *answer]]),
        ).loss
        batched = nn.functional.cross_entropy(logits[i], labels[i])
        assert torch.isclose(batched, alone, rtol=1e-4), i


class WithoutLogitsToKeep(nn.Module):
    """A model whose forward always projects every position."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor,
                use_cache: bool) -> Any:  # fmt: skip
        return self.model(input_ids, attention_mask, position_ids, use_cache=use_cache)


@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "peft"])
@torch.no_grad()
def test_only_the_answer_is_projected_and_nothing_changes(
    backbone: DecoderBackbone, model: Any, examples: list[Example], wrapped: bool
) -> None:
    batch = backbone.training_batch(examples)
    full, _ = backbone.answer_logits(WithoutLogitsToKeep(model), batch)
    projected: list[int] = []
    model.lm_head.register_forward_hook(lambda _m, inputs, _o: projected.append(inputs[0].shape[1]))
    if wrapped:
        model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"])).eval()
    kept, labels = backbone.answer_logits(model, batch)
    assert projected == [labels.shape[1] + 1]
    assert labels.shape[1] + 1 < batch["input_ids"].shape[1]
    torch.testing.assert_close(kept, full)


def greedy(model: Any, prompt_ids: list[int], cap: int, end: int) -> list[int]:
    """Written out: one forward pass a token, no cache, no padding."""
    produced: list[int] = []
    while len(produced) < cap and produced[-1:] != [end]:
        logits = model(input_ids=torch.tensor([[*prompt_ids, *produced]])).logits
        produced.append(int(logits[0, -1].argmax()))
    return produced


@torch.no_grad()
def test_generation_in_a_padded_batch_is_greedy_row_by_row(
    backbone: DecoderBackbone, model: nn.Module, examples: list[Example]
) -> None:
    texts = backbone.generate(model, backbone.generation_batch(examples), 7)
    tokenizer = backbone.tokenizer
    alone = [greedy(model, e.prompt_ids, 7, tokenizer.eos_token_id) for e in examples]
    assert texts == [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in alone]
    assert len(set(texts)) > 1, "a model that ignores its prompt would prove nothing"


@torch.no_grad()
def test_generation_stops_at_the_end_token(
    backbone: DecoderBackbone, model: Any, examples: list[Example]
) -> None:
    model.lm_head.weight.zero_()
    model.model.norm.weight.zero_()
    end = backbone.tokenizer.eos_token_id
    model.lm_head.bias = nn.Parameter(torch.eye(model.config.vocab_size)[end])
    passes: list[int] = []
    model.lm_head.register_forward_hook(lambda *_: passes.append(1))
    assert backbone.generate(model, backbone.generation_batch(examples), 7) == [""] * len(examples)
    assert len(passes) == 1


@pytest.mark.parametrize(
    "own",
    [
        {"do_sample": True, "temperature": 50.0, "num_beams": 3},
        {"repetition_penalty": 30.0},
    ],
    ids=lambda own: "-".join(own),
)
def test_the_models_own_decoding_settings_do_not_count(
    backbone: DecoderBackbone, model: Any, examples: list[Example], own: dict[str, Any]
) -> None:
    batch = backbone.generation_batch(examples)
    plain = backbone.generate(model, batch, 7)
    model.generation_config.update(**own)
    assert backbone.generate(model, batch, 7) == plain


@torch.no_grad()
def test_draws_are_of_the_likeliest_tokens_alone(backbone: DecoderBackbone, model: Any) -> None:
    example = backbone.encode(toy_rows("colour", "test", 5, ("good", "bad"))[0])
    batch = backbone.generation_batch([example] * 200)
    # (1, V): what comes first after the prompt.
    logits = model(input_ids=torch.tensor([example.prompt_ids])).logits[0, -1]
    likeliest = [backbone.texts(token.reshape(1, 1))[0] for token in logits.topk(3).indices]
    torch.manual_seed(0)
    found = set(backbone.generate(model, batch, 1, top_k=3))
    assert found == set(likeliest)


@pytest.mark.parametrize("limit", [3, 9])
def test_answers_may_be_given_another_limit(tiny_llama: Path, limit: int) -> None:
    short = backbone_of(tiny_llama, max_target_tokens=5)
    row = Row(id="a", input="What colour ?", output="good bad " * 9)
    whole = backbone_of(tiny_llama).encode(row)
    assert len(whole.answer_ids) > 9
    assert short.encode(row).answer_ids == [*whole.answer_ids[:4], whole.answer_ids[-1]]
    cut = short.encode(row, limit)
    assert cut.answer_ids == [*whole.answer_ids[: limit - 1], whole.answer_ids[-1]]
    assert cut.prompt_ids == whole.prompt_ids

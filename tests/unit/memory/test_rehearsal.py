"""What joins a task's own rows: the memory's, or rows that the model writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kif_lightning.backbones import DecoderBackbone, Seq2SeqBackbone
from kif_lightning.errors import UserError
from kif_lightning.interfaces import Example, RehearsalContext, Row, Task
from kif_lightning.memory import MemoryRehearsal, PseudoSamples
from tests.helpers.streams import toy_task

Pair = tuple[str, str]


class LetterBackbone:
    """A letter is a token; it writes the texts it is given, task by task, over and over."""

    def __init__(self, texts: Mapping[str, Sequence[str]]) -> None:
        self.texts = texts
        self.calls: list[dict[str, Any]] = []
        self.cut: list[int | None] = []

    def encode(self, row: Row, max_target_tokens: int | None = None) -> Example:
        self.cut.append(max_target_tokens)
        return Example(
            prompt_ids=[ord(letter) for letter in row.input],
            answer_ids=[ord(letter) for letter in row.output][:max_target_tokens],
        )

    def encode_rows(
        self, rows: Sequence[Row], max_target_tokens: int | None = None
    ) -> list[Example]:
        return [self.encode(row, max_target_tokens) for row in rows]

    def generation_batch(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        width = max(len(example.prompt_ids) for example in examples)
        rows = [[*e.prompt_ids, *[0] * (width - len(e.prompt_ids))] for e in examples]
        return {"input_ids": torch.tensor(rows)}

    def generate(self, model: nn.Module, batch: Any, cap: int, *, top_k: int | None) -> list[str]:
        orders = [text(i for i in row if i) for row in batch["input_ids"].tolist()]
        before = [order for call in self.calls for order in call["orders"]]
        modes = {layer.training for layer in model.modules()}
        grad = torch.is_grad_enabled()
        drawn = float(torch.rand(1))
        self.calls.append(
            {"orders": orders, "cap": cap, "top_k": top_k, "modes": modes, "grad": grad,
             "drawn": drawn}
        )  # fmt: skip
        written = []
        for place, order in enumerate(orders):
            found = [texts for task, texts in self.texts.items() if f"of {task}:" in order]
            turn = [*before, *orders[:place]].count(order)
            written.append(found[0][turn % len(found[0])])
        return written


def text(ids: Any) -> str:
    return "".join(chr(i) for i in ids)


def pairs(examples: Sequence[Example]) -> list[Pair]:
    return [(text(e.prompt_ids), text(e.answer_ids)) for e in examples]


def context_of(backbone: Any, **options: Any) -> RehearsalContext:
    settings: dict[str, Any] = {
        "task": toy_task("shape", train=10),
        "past_tasks": {},
        "memory_rows": (),
        "model": nn.Sequential(nn.Linear(1, 1), nn.Dropout()),
        "seed": 3,
    }
    return RehearsalContext(backbone=backbone, **{**settings, **options})


def as_text(task: str, prompt: str, answer: str) -> Pair:
    """The second form of a row, written out."""
    return f"write an example of {task}:", f"{prompt} => {answer}"


def own_pairs(found: Sequence[Pair], task: Task) -> list[Pair]:
    own = {as_text(task.name, row.input, row.output) for row in task.train}
    return [pair for pair in found if pair in own]


def test_the_memory_is_rehearsed_row_by_row(tiny_t5: Path) -> None:
    backbone = Seq2SeqBackbone(name="tiny", hub_name="tiny/t5", path=str(tiny_t5))
    rows = (*toy_task("colour").train[3:6], *toy_task("form").train[:2])
    found = MemoryRehearsal().examples(context_of(backbone, memory_rows=rows))
    tokenizer = backbone.tokenizer
    assert [(e.prompt_ids, e.answer_ids) for e in found] == [
        (tokenizer(row.input)["input_ids"], tokenizer(row.output)["input_ids"]) for row in rows
    ]
    assert MemoryRehearsal(times=2).examples(context_of(backbone, memory_rows=rows)) == found * 2
    assert MemoryRehearsal().examples(context_of(backbone)) == []


def test_a_memory_that_never_comes_is_refused() -> None:
    with pytest.raises(UserError, match="a whole number of at least 1, got 0"):
        MemoryRehearsal(times=0)


def test_written_rows_with_the_mark_are_rehearsed_in_both_forms() -> None:
    texts = {
        "colour": ["is it red? => good", "no mark", " => no prompt", "no answer => ", "=>", ""],
        "form": ["a=>b", "  x  =>  y => z  "],
    }
    backbone = LetterBackbone(texts)
    context = context_of(backbone, past_tasks={"colour": 60, "form": 20})
    found = pairs(PseudoSamples(share=0.1, writing_share=0.2).examples(context))
    rows = [("colour", "is it red?", "good"), ("form", "a", "b"), ("form", "x", "y => z")]
    expected = [(prompt, answer) for _, prompt, answer in rows]
    expected += [as_text(*row) for row in rows]
    assert found[:6] == expected
    assert len(found) == 8
    assert len(set(own_pairs(found[6:], context.task))) == 2


def test_each_past_task_is_written_for_by_its_share() -> None:
    backbone = LetterBackbone({"colour": ["a => b"], "form": ["c => d"], "size": ["e => f"]})
    past = {"colour": 100, "form": 10, "size": 129}
    found = pairs(PseudoSamples(share=0.02, batch_size=3).examples(
        context_of(backbone, past_tasks=past)
    ))  # fmt: skip
    # 2, 0.2 but at least one, 2.58
    assert found[:6] == [("a", "b")] * 2 + [("c", "d")] + [("e", "f")] * 3
    orders = [
        f"write an example of {task}:" for task in ("colour",) * 2 + ("form",) + ("size",) * 3
    ]
    assert [call["orders"] for call in backbone.calls] == [orders[:3], orders[3:]]


def test_model_writes_without_dropout_and_graph_and_goes_on_as_before() -> None:
    for training in (True, False):
        backbone = LetterBackbone({"colour": ["a => b"]})
        context = context_of(backbone, past_tasks={"colour": 100})
        context.model.train(training)
        PseudoSamples(max_tokens=9, top_k=4).examples(context)
        (call,) = backbone.calls
        assert (call["cap"], call["top_k"], call["modes"], call["grad"]) == (9, 4, {False}, False)
        assert {layer.training for layer in context.model.modules()} == {training}
        assert torch.is_grad_enabled()


def test_draws_are_of_this_purpose_alone() -> None:
    drawn = {}
    for seed, name, noise in ((3, "shape", 0), (3, "shape", 1), (4, "shape", 0), (3, "size", 0)):
        backbone = LetterBackbone({"colour": ["a => b"]})
        task = toy_task(name, train=10)
        context = context_of(backbone, past_tasks={"colour": 9}, seed=seed, task=task)
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        PseudoSamples().examples(context)
        assert torch.equal(torch.get_rng_state(), before)
        drawn[seed, name, noise] = backbone.calls[0]["drawn"]
    assert drawn[3, "shape", 0] == drawn[3, "shape", 1]
    assert len(set(drawn.values())) == 3


@pytest.mark.parametrize(
    ("share", "rows", "expected"), [(0.2, 10, 2), (0.2, 13, 3), (0.01, 10, 1), (1.0, 10, 10)]
)
def test_own_rows_as_text_to_write(share: float, rows: int, expected: int) -> None:
    def own(seed: int) -> list[Pair]:
        context = context_of(LetterBackbone({}), task=toy_task("shape", train=rows), seed=seed)
        found = pairs(PseudoSamples(writing_share=share).examples(context))
        assert own_pairs(found, context.task) == found, "the first task has nothing else"
        assert len(set(found)) == len(found) == expected
        return found

    assert own(3) == own(3)
    if expected > 1:
        assert any(own(seed) != own(3) for seed in range(4, 9))


def test_every_own_row_may_be_chosen() -> None:
    seen = {
        pair
        for seed in range(60)
        for pair in pairs(PseudoSamples().examples(context_of(LetterBackbone({}), seed=seed)))
    }
    assert len(seen) == 10


def test_a_long_text_to_write_keeps_its_mark_and_answer() -> None:
    task = toy_task("shape", train=3)
    long = replace(task, train=tuple(replace(row, input="x" * 500) for row in task.train))
    samples = PseudoSamples(writing_share=1.0, max_tokens=40)
    for example in samples.examples(context_of(LetterBackbone({}), task=long)):
        prompt, mark, answer = text(example.answer_ids).partition(" => ")
        assert mark
        assert set(prompt) == {"x"}
        assert answer in {row.output for row in task.train}
        assert 35 <= len(example.answer_ids) <= 40


def test_rows_that_could_not_be_read_are_told(caplog: pytest.LogCaptureFixture) -> None:
    good = context_of(LetterBackbone({"colour": ["a => b"]}), past_tasks={"colour": 4})
    PseudoSamples(share=1.0).examples(good)
    assert caplog.text == ""
    mixed = context_of(LetterBackbone({"colour": ["a => b", "nothing"]}), past_tasks={"colour": 4})
    PseudoSamples(share=1.0).examples(mixed)
    assert "Of 4 rows of past tasks the model wrote 2" in caplog.text


@pytest.mark.parametrize("family", ["tiny_t5", "tiny_llama"])
def test_real_models_write_and_do_so_again(family: str, request: pytest.FixtureRequest) -> None:
    kind: Any = Seq2SeqBackbone if family == "tiny_t5" else DecoderBackbone
    folder = request.getfixturevalue(family)
    backbone = kind(name="tiny", hub_name="tiny/tiny", path=str(folder))
    model = backbone.load_model()
    written: list[list[str]] = []
    generate = backbone.generate

    def spy(*args: Any, **options: Any) -> list[str]:
        texts: list[str] = generate(*args, **options)
        written.append(texts)
        # A random model writes no mark.
        return [f"{one} => good" for one in texts]

    backbone.generate = spy
    found: dict[str, list[Example]] = {}
    for name, seed in (("first", 3), ("again", 3), ("other", 4)):
        written.clear()
        torch.manual_seed(len(found))
        past = {"colour": 150, "form": 100}
        context = context_of(backbone, model=model.train(), past_tasks=past, seed=seed)
        examples = PseudoSamples(max_tokens=12, batch_size=4).examples(context)
        texts = [one for batch in written for one in batch]
        assert [len(batch) for batch in written] == [4, 1]
        assert len(set(texts)) > 1, "drawn, not greedy"
        real = [one for one in texts if one]
        assert len(examples) == 2 * len(real) + 2
        for place, one in enumerate(real):
            row = Row(id="", input=one, output="good")
            assert examples[place] == backbone.encode(row)
        assert all(len(e.answer_ids) <= 12 for e in examples[len(real) :])
        found[name] = examples
    assert found["first"] == found["again"] != found["other"]
    assert model.training


@pytest.mark.parametrize(
    "wrong",
    [
        {"share": 0.0},
        {"share": 1.1},
        {"writing_share": 0.0},
        {"writing_share": 2},
        {"max_tokens": 1},
        {"top_k": 0},
        {"batch_size": 0},
    ],
)
def test_values_out_of_range_are_told(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"rehearsal\.{next(iter(wrong))} "):
        PseudoSamples(**wrong)

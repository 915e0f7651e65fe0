"""Soft prompts: what is prepended, what learns, decoding, the pool's choice, saved forms."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig

from kif_lightning.adapters import ProgressivePrompts, PromptPool
from kif_lightning.adapters.prompted_model import HEAD_TOKENS, key_distance, text_head
from kif_lightning.backbones import DecoderBackbone, Seq2SeqBackbone
from kif_lightning.errors import UserError
from kif_lightning.interfaces import Example
from tests.helpers.tiny import toy_rows

ROWS = toy_rows("colour", "train", 4, ("good", "round bad"))
LENGTHS = (23, 20, 9, 1)
"""Prompt lengths of the drawn rows: longer and shorter than a query's head."""
WIDTH, TOKENS = 16, 3


def drawn(number: int, seed: int) -> list[int]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(5, 250, (number,), generator=draw).tolist()


EXAMPLES = [
    Example(prompt_ids=drawn(length, i), answer_ids=[*drawn(1 + i % 3, 50 + i), 1])
    for i, length in enumerate(LENGTHS)
]


class Case:
    """An adapter on one family; the loud prompts change the tiny model's answers."""

    def __init__(self, adapter: Any, family: str, folder: Path, **settings: Any) -> None:
        kind = {"t5": Seq2SeqBackbone, "llama": DecoderBackbone}[family]
        self.backbone: Any = kind(name="tiny", hub_name="nobody/tiny", path=str(folder), **settings)
        self.adapter = adapter
        self.seq2seq = family == "t5"
        torch.manual_seed(3)
        self.base: Any = self.load().eval()
        self.model: Any = adapter.attach(self.load(), self.backbone).eval()
        self.loud(0)

    def load(self) -> Any:
        """The tiny model; a T5 whose answers depend on its encoder: it would repeat its start."""
        base = self.backbone.load_model()
        with torch.no_grad():
            for name, parameter in base.named_parameters():
                if "EncDecAttention.o" in name:
                    parameter.mul_(100)
        return base

    def loud(self, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.adapter.trainable(self.model).values():
                parameter.add_(torch.randn(parameter.shape, generator=draw))

    def loss(self, examples: Sequence[Example] = EXAMPLES) -> Tensor:
        batch = self.backbone.training_batch(examples)
        logits, labels = self.backbone.answer_logits(self.model, batch)
        return cross_entropy(logits.flatten(0, 1), labels.flatten())

    @torch.no_grad()
    def answer_logits(self, examples: Sequence[Example] = EXAMPLES) -> Tensor:
        return self.backbone.answer_logits(self.model, self.backbone.training_batch(examples))[0]

    def new_ids(self, examples: Sequence[Example], count: int = 6) -> Tensor:
        """Greedy token ids, without prompt or start."""
        batch = self.backbone.generation_batch(examples)
        start = {"decoder_start_token_id": 0} if self.seq2seq else {}
        ids = self.model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            generation_config=GenerationConfig(max_new_tokens=count, pad_token_id=0, **start),
        )
        return ids[:, 1:] if self.seq2seq else ids[:, batch["input_ids"].shape[1] :]

    def step(self, task: int, steps: int = 2) -> None:
        self.adapter.begin_task(self.model, task)
        self.model.train()
        weights = list(self.adapter.trainable(self.model).values())
        optimizer = torch.optim.AdamW(weights, lr=0.5, weight_decay=0.1)
        for _ in range(steps):
            optimizer.zero_grad()
            self.loss().backward()
            optimizer.step()
        self.model.eval()

    @torch.no_grad()
    def by_hand(self, prompts: Tensor, example: Example) -> Tensor:
        """The plain base model on embeddings written out for one row; logits of its answer."""
        embed = self.base.get_input_embeddings()
        answer = torch.tensor([example.answer_ids])
        prompt = embed(torch.tensor(example.prompt_ids))
        if self.seq2seq:
            return self.base(inputs_embeds=torch.cat([prompts, prompt])[None], labels=answer).logits
        whole = torch.cat([prompts, prompt, embed(answer[0])])[None]
        return self.base(inputs_embeds=whole).logits[:, -answer.shape[1] - 1 : -1]


@pytest.fixture(params=["t5", "llama"])
def family(request: pytest.FixtureRequest) -> tuple[str, Path]:
    return request.param, request.getfixturevalue(f"tiny_{request.param}")


@pytest.fixture
def progressive(family: tuple[str, Path]) -> Case:
    return Case(ProgressivePrompts(num_tokens=TOKENS), *family)


@pytest.fixture
def pool(family: tuple[str, Path]) -> Case:
    return Case(PromptPool(pool_size=6, num_tokens=TOKENS, num_chosen=2), *family)


def stacked(case: Case, newest: int) -> Tensor:
    state = case.adapter.state_dict(case.model)
    return torch.cat([state[f"prompts.{i}"] for i in range(newest, -1, -1)])


# --- both: the wrapped model -------------------------------------------------------------------


def test_logits_are_the_base_models_with_the_newest_prompt_first(progressive: Case) -> None:
    progressive.adapter.begin_task(progressive.model, 1)
    progressive.loud(1)
    prompts = stacked(progressive, 1)
    assert prompts.shape == (2 * TOKENS, WIDTH)
    assert not torch.equal(prompts[:TOKENS], prompts[TOKENS:])
    found = progressive.answer_logits()  # a padded batch
    for i, example in enumerate(EXAMPLES):
        expected = progressive.by_hand(prompts, example)[0]
        count = len(expected)
        own = found[i, :count] if progressive.seq2seq else found[i, -count:]
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5)
        swapped = progressive.by_hand(prompts.roll(TOKENS, 0), example)[0]
        assert not torch.allclose(own, swapped, rtol=1e-4, atol=1e-5)


def test_generate_is_a_greedy_loop_over_forward_and_padding_changes_nothing(
    progressive: Case, pool: Case
) -> None:
    for case in (progressive, pool):
        together = case.new_ids(EXAMPLES)
        for example, ids in zip(EXAMPLES, together, strict=True):
            assert torch.equal(case.new_ids([example])[0], ids)
            assert greedy_loop(case, example.prompt_ids, len(ids)) == ids.tolist()
        assert len({tuple(ids) for ids in together.tolist()}) > 1


@torch.no_grad()
def greedy_loop(case: Case, prompt_ids: list[int], length: int) -> list[int]:
    """One row, token by token, without padding and cache."""
    prompt, written = torch.tensor([prompt_ids]), list[int]()
    for _ in range(length):
        if case.seq2seq:
            start = torch.tensor([[0, *written]])
            logits = case.model(input_ids=prompt, decoder_input_ids=start).logits
        else:
            whole = torch.tensor([[*prompt_ids, *written]])
            # The query must not see what is written: it is as long as an answer could be.
            logits = case.model(input_ids=whole, logits_to_keep=1 + len(written)).logits
        written.append(int(logits[0, -1].argmax()))
    return written


def test_the_backbone_generates_through_it(progressive: Case, pool: Case) -> None:
    for case in (progressive, pool):
        examples = [case.backbone.encode(row) for row in ROWS]
        batch = case.backbone.generation_batch(examples)
        texts = case.backbone.generate(case.model, batch, 6)
        ids = case.new_ids(examples)
        expected = [case.backbone.texts(row[None])[0] for row in cut_at_end(ids)]
        assert texts == expected


def cut_at_end(ids: Tensor) -> list[Tensor]:
    rows = []
    for row in ids:
        ends = (row == 1).nonzero()
        rows.append(row[: int(ends[0])] if len(ends) else row)
    return rows


def test_only_the_prompts_learn(progressive: Case, pool: Case) -> None:
    for case in (progressive, pool):
        case.model.train()
        learning = {id(p) for p in case.adapter.trainable(case.model).values()}
        for name, parameter in case.model.named_parameters():
            assert parameter.requires_grad == (id(parameter) in learning), name
            assert parameter.dtype == torch.float32
        case.step(0)
        for name, parameter in case.base.named_parameters():
            assert torch.equal(parameter, case.model.base.get_parameter(name)), name


def test_prompts_start_as_embeddings_of_the_vocabulary(family: tuple[str, Path]) -> None:
    for adapter in (ProgressivePrompts(num_tokens=TOKENS), PromptPool(pool_size=4, num_tokens=2)):
        case = Case(adapter, *family)
        torch.manual_seed(11)
        fresh = adapter.attach(case.load(), case.backbone)
        torch.manual_seed(11)
        again = adapter.attach(case.load(), case.backbone)
        first, second = adapter.state_dict(fresh), adapter.state_dict(again)
        assert all(torch.equal(first[name], second[name]) for name in first)
        vocabulary = {tuple(row) for row in case.base.get_input_embeddings().weight.tolist()}
        prompts = next(iter(first.values())).flatten(0, -2)
        assert {tuple(row) for row in prompts.tolist()} <= vocabulary
        assert len({tuple(row) for row in prompts.tolist()}) > 1


def test_prompts_are_float32_on_a_bfloat16_model(tiny_llama: Path) -> None:
    for adapter in (ProgressivePrompts(num_tokens=2), PromptPool(num_tokens=2)):
        case = Case(adapter, "llama", tiny_llama, dtype="bfloat16")
        assert all(p.dtype == torch.float32 for p in adapter.trainable(case.model).values())
        case.loss().backward()


# --- progressive prompts -----------------------------------------------------------------------


def test_old_tasks_answer_bitwise_as_when_they_were_learnt(progressive: Case) -> None:
    case, learnt = progressive, []
    for task in range(3):
        case.step(task)
        case.adapter.use_task(case.model, task)
        learnt.append((case.answer_logits(), case.new_ids(EXAMPLES), stacked(case, task)))
    for task, (logits, ids, prompts) in enumerate(learnt):
        case.adapter.use_task(case.model, task)
        assert torch.equal(case.answer_logits(), logits)
        assert torch.equal(case.new_ids(EXAMPLES), ids)
        assert torch.equal(stacked(case, task), prompts)
    assert not torch.allclose(learnt[0][0], learnt[1][0])
    assert len(case.adapter.state_dict(case.model)) == 3
    assert list(case.adapter.trainable(case.model)) == ["prompt"]
    newest = case.adapter.trainable(case.model)["prompt"]
    assert torch.equal(newest, case.adapter.state_dict(case.model)["prompts.2"])


def test_a_task_not_learnt_yet_is_answered_with_all_prompts(progressive: Case) -> None:
    case = progressive
    case.step(0)
    case.step(1)
    expected = case.answer_logits()
    case.adapter.use_task(case.model, 0)
    assert not torch.equal(case.answer_logits(), expected)
    case.adapter.use_task(case.model, 7)
    assert torch.equal(case.answer_logits(), expected)


def test_training_uses_all_prompts_again_after_an_evaluation(progressive: Case) -> None:
    case = progressive
    case.step(0)
    case.adapter.use_task(case.model, 0)
    case.adapter.begin_task(case.model, 1)
    case.adapter.use_task(case.model, 0)
    case.adapter.begin_task(case.model, 1)
    case.loss().backward()
    learning = case.adapter.trainable(case.model)["prompt"]
    assert learning.grad.abs().sum() > 0
    assert [name for name, p in case.model.named_parameters() if p.requires_grad] == [
        name for name, p in case.model.named_parameters() if p is learning
    ]


def test_beginning_a_task_twice_adds_one_prompt(progressive: Case) -> None:
    case = progressive
    before = case.adapter.trainable(case.model)["prompt"]
    case.adapter.begin_task(case.model, 0)
    assert case.adapter.trainable(case.model)["prompt"] is before
    case.adapter.begin_task(case.model, 1)
    second = case.adapter.trainable(case.model)["prompt"]
    assert second is not before
    case.adapter.begin_task(case.model, 1)
    assert case.adapter.trainable(case.model)["prompt"] is second
    assert len(case.adapter.state_dict(case.model)) == 2


def test_progressive_state_goes_round_and_a_resumed_run_goes_on(
    progressive: Case, family: tuple[str, Path]
) -> None:
    case = progressive
    case.step(0)
    case.step(1)
    kept = {name: p.clone() for name, p in case.adapter.state_dict(case.model).items()}
    fresh = Case(ProgressivePrompts(num_tokens=TOKENS), *family)
    fresh.adapter.load_state_dict(fresh.model, kept)
    assert torch.equal(fresh.answer_logits(), case.answer_logits())
    for one in (case, fresh):
        torch.manual_seed(21)
        one.step(2)
    ours, theirs = (one.adapter.state_dict(one.model) for one in (case, fresh))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert all(torch.equal(ours[name], kept[name]) for name in kept)
    # Back to the first task's: what was added goes away and the first learns again.
    case.adapter.load_state_dict(case.model, {"prompts.0": kept["prompts.0"]})
    assert list(case.adapter.state_dict(case.model)) == ["prompts.0"]
    assert case.adapter.trainable(case.model)["prompt"].requires_grad


@pytest.mark.parametrize("state", [{}, {"keys": torch.zeros(6, WIDTH)}])
def test_state_of_another_adapter_is_refused(progressive: Case, pool: Case, state: Any) -> None:
    for case in (progressive, pool):
        with pytest.raises(UserError, match="names differ"):
            case.adapter.load_state_dict(case.model, state)


def test_plain_peft_loads_each_tasks_folder(progressive: Case, tmp_path: Path) -> None:
    case = progressive
    for task in range(3):
        case.step(task)
    case.adapter.save(case.model, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["task_001", "task_002", "task_003"]
    ids = torch.tensor([[5, 9, 40, 77, 3]])
    labels = {"labels": ids} if case.seq2seq else {}
    seen = []
    for task in range(3):
        folder = tmp_path / f"task_{task + 1:03d}"
        loaded = peft.PeftModel.from_pretrained(case.load(), str(folder)).eval()
        case.adapter.use_task(case.model, task)
        with torch.no_grad():
            seen.append(case.model(input_ids=ids, **labels).logits)
            theirs = loaded(input_ids=ids, attention_mask=torch.ones_like(ids), **labels).logits
        assert torch.equal(theirs, seen[-1])
        config = json.loads((folder / "adapter_config.json").read_text())
        assert config["num_virtual_tokens"] == TOKENS * (task + 1)
        assert config["base_model_name_or_path"] == "nobody/tiny"
        for file in folder.iterdir():
            assert case.backbone.path.encode() not in file.read_bytes()
    assert not torch.allclose(seen[0][:, -1], seen[1][:, -1])


# --- the pool ----------------------------------------------------------------------------------


@torch.no_grad()
def feature(case: Case, example: Example, text_tokens: int) -> np.ndarray:
    """The plain base model's mean state of one unpadded row, no prompts."""
    if case.seq2seq:
        ids = torch.tensor([example.prompt_ids])
        states = case.base.encoder(input_ids=ids).last_hidden_state
    else:
        ids = torch.tensor([example.prompt_ids[:text_tokens]])
        states = case.base.model(input_ids=ids).last_hidden_state
    return states[0].double().numpy().mean(axis=0)


def cosines(query: np.ndarray, keys: Tensor) -> np.ndarray:
    table = keys.detach().double().numpy()
    lengths = np.sqrt((table**2).sum(axis=1)) * np.sqrt((query**2).sum())
    return (table @ query) / lengths


def text_tokens(example: Example, longest_answer: int) -> int:
    """What a training query of a decoder sees: nothing that could be of the answer."""
    length = len(example.prompt_ids) + len(example.answer_ids)
    return min(HEAD_TOKENS, max(1, length - longest_answer))


def test_each_row_gets_the_prompts_of_the_nearest_keys_best_first(pool: Case) -> None:
    state = pool.adapter.state_dict(pool.model)
    found = pool.answer_logits()
    choices = []
    longest = max(len(example.answer_ids) for example in EXAMPLES)
    for i, example in enumerate(EXAMPLES):
        query = feature(pool, example, text_tokens(example, longest))
        best = np.argsort(-cosines(query, state["keys"]))[:2]
        choices.append(tuple(best.tolist()))
        prompts = torch.cat([state["prompts"][k] for k in best])
        expected = pool.by_hand(prompts, example)[0]
        count = len(expected)
        own = found[i, :count] if pool.seq2seq else found[i, -count:]
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5)
    assert len(set(choices)) > 1, "different texts choose differently"


def keys_for(case: Case, tokens: int) -> None:
    """Each row's own feature as the key of its number."""
    with torch.no_grad():
        for i, example in enumerate(EXAMPLES):
            case.model.source.keys[i] = torch.tensor(feature(case, example, tokens))


def test_a_text_chooses_the_key_that_is_its_feature(pool: Case) -> None:
    keys_for(pool, HEAD_TOKENS)
    batch = pool.backbone.generation_batch(EXAMPLES)
    prompts = pool.model.source(pool.model.base, batch["input_ids"], batch["attention_mask"], 0)
    for i in range(len(EXAMPLES)):
        assert torch.equal(prompts[i, :TOKENS], pool.model.source.prompts[i])


def test_the_training_query_does_not_see_the_answer(tiny_llama: Path) -> None:
    """Rows of other answers choose the same prompts and keep the same distance from the keys."""
    case = Case(PromptPool(pool_size=6, num_tokens=TOKENS, num_chosen=2), "llama", tiny_llama)
    case.model.train()
    distances = []
    for seed in range(3):
        examples = [
            Example(prompt_ids=e.prompt_ids, answer_ids=[*drawn(len(e.answer_ids) - 1, seed), 1])
            for e in EXAMPLES
        ]
        case.loss(examples)
        distances.append(float(case.model.key_distance.detach()))
    assert distances[0] == distances[1] == distances[2]
    other = [
        Example(prompt_ids=drawn(len(e.prompt_ids), 90), answer_ids=e.answer_ids) for e in EXAMPLES
    ]
    case.loss(other)
    assert float(case.model.key_distance.detach()) != distances[0]


def test_training_and_test_choose_alike_for_texts_longer_than_the_head(pool: Case) -> None:
    long = [
        Example(prompt_ids=drawn(HEAD_TOKENS + 5 + i, i), answer_ids=drawn(1 + i, 40 + i))
        for i in range(5)
    ]
    training, test = pool.backbone.training_batch(long), pool.backbone.generation_batch(long)
    source, base = pool.model.source, pool.model.base
    first = source(base, training["input_ids"], training["attention_mask"], 5)
    assert torch.equal(first, source(base, test["input_ids"], test["attention_mask"], 0))


def test_gradient_reaches_exactly_the_chosen_prompts_and_keys(pool: Case) -> None:
    pool.model.train()
    row = EXAMPLES[:1]
    pool.loss(row).backward()
    weights = pool.adapter.trainable(pool.model)
    query = feature(pool, row[0], text_tokens(row[0], len(row[0].answer_ids)))
    chosen = set(np.argsort(-cosines(query, weights["keys"]))[:2].tolist())
    touched = weights["prompts"].grad.abs().amax(dim=2).gt(0)
    assert {i for i in range(6) if touched[i].any()} == chosen
    assert touched[sorted(chosen)].all()
    assert weights["keys"].grad is None, "the loss alone does not move the keys"
    before = weights["prompts"].grad.clone()
    pool.model.key_distance.backward()
    assert {i for i in range(6) if weights["keys"].grad[i].any()} == chosen
    assert torch.equal(weights["prompts"].grad, before)
    assert all(p.grad is None for p in pool.model.base.parameters())


def test_key_distance_is_that_of_numpy(pool: Case) -> None:
    pool.model.train()
    pool.loss()
    keys = pool.adapter.trainable(pool.model)["keys"]
    longest = max(len(example.answer_ids) for example in EXAMPLES)
    rows = []
    for example in EXAMPLES:
        nearest = sorted(cosines(feature(pool, example, text_tokens(example, longest)), keys))[-2:]
        rows.append(sum(1 - cosine for cosine in nearest))
    expected = pytest.approx(np.mean(rows), rel=1e-5)
    assert float(pool.model.key_distance.detach()) == expected
    pool.model.eval()
    pool.loss(EXAMPLES[:1])
    assert float(pool.model.key_distance.detach()) == expected, "validation leaves it alone"


def test_key_distance_written_out() -> None:
    asked = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    keys = torch.tensor([[1.0, 0.0], [0.0, 5.0], [-1.0, 0.0]])
    # Row 0: 0 to key 0, 1 to key 1; row 1: 0 to key 1, 1 to key 2.
    assert float(key_distance(asked, keys, torch.tensor([[0, 1], [1, 2]]))) == pytest.approx(1.0)
    assert float(key_distance(asked, keys, torch.tensor([[2], [1]]))) == pytest.approx(1.0)
    assert float(key_distance(asked, keys, torch.tensor([[0], [1]]))) == pytest.approx(0.0)


def test_the_query_has_no_dropout_and_leaves_the_modes_alone(tiny_t5: Path) -> None:
    case = Case(PromptPool(pool_size=6, num_tokens=2, num_chosen=2), "t5", tiny_t5)
    batch = case.backbone.training_batch(EXAMPLES)
    inputs = case.model.base, batch["input_ids"], batch["attention_mask"], 0
    expected = case.model.source(*inputs)
    case.model.train()
    case.model.base.decoder.eval()
    modes = [module.training for module in case.model.modules()]
    state = torch.get_rng_state()
    assert torch.equal(case.model.source(*inputs), expected)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in case.model.modules()] == modes
    assert not torch.equal(case.answer_logits(), case.answer_logits()), "the model's own dropout is"


def test_a_model_in_training_can_be_copied(pool: Case) -> None:
    pool.step(0)
    copied = copy.deepcopy(pool.model)
    assert torch.equal(copied.key_distance, pool.model.key_distance)


def test_pool_state_goes_round_and_the_saved_files_tell_how(pool: Case, tmp_path: Path) -> None:
    pool.step(0)
    kept = {name: p.clone() for name, p in pool.adapter.state_dict(pool.model).items()}
    before = pool.answer_logits()
    pool.adapter.save(pool.model, tmp_path / "new")
    pool.step(1)
    assert not torch.equal(pool.answer_logits(), before)
    assert count(pool.model) == sum(p.numel() for p in kept.values()), "the pool does not grow"
    pool.adapter.load_state_dict(pool.model, kept)
    assert torch.equal(pool.answer_logits(), before)
    saved = load_file(tmp_path / "new" / "prompts.safetensors")
    assert saved.keys() == kept.keys() == {"prompts", "keys"}
    assert all(torch.equal(saved[name], kept[name]) for name in kept)
    told = json.loads((tmp_path / "new" / "prompts.json").read_text())
    assert (told["num_tokens"], told["num_chosen"], told["pool_size"]) == (TOKENS, 2, 6)
    assert told["base_model_name_or_path"] == "nobody/tiny"


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_keys_start_in_all_directions(tiny_t5: Path) -> None:
    backbone = Seq2SeqBackbone(name="tiny", hub_name="nobody/tiny", path=str(tiny_t5))
    adapter = PromptPool(pool_size=50)
    keys = adapter.state_dict(adapter.attach(backbone.load_model(), backbone))["keys"]
    assert keys.shape == (50, WIDTH)
    assert -1 <= float(keys.min()) < -0.9
    assert 0.9 < float(keys.max()) < 1
    assert abs(float(keys.mean())) < 0.1


# --- mistakes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda: ProgressivePrompts(num_tokens=0), "num_tokens must be a whole number"),
        (lambda: PromptPool(pool_size=0), "pool_size must be a whole number"),
        (lambda: PromptPool(num_tokens=0), "num_tokens must be a whole number"),
        (lambda: PromptPool(num_chosen=0), "num_chosen must be a whole number"),
        (lambda: PromptPool(pool_size=3, num_chosen=4), "got 4 of 3"),
    ],
)
def test_wrong_settings_are_refused(make: Any, part: str) -> None:
    with pytest.raises(UserError, match=part):
        make()


def test_a_row_asks_with_its_own_text_whatever_the_others_answer() -> None:
    ids = torch.arange(1, 25).repeat(2, 1)
    mask = torch.ones_like(ids)
    mask[1, :4] = 0  # padded on the left: 20 tokens
    head, seen = text_head(ids, mask, torch.tensor([21, 2]))
    assert [row[m.bool()].tolist() for row, m in zip(head, seen, strict=True)] == [
        [1, 2, 3],  # 24 tokens, 21 of them the answer
        list(range(5, 5 + HEAD_TOKENS)),  # 18 of text: the first 16
    ]
    head, seen = text_head(ids, mask, None)
    assert seen.sum(dim=1).tolist() == [HEAD_TOKENS, HEAD_TOKENS]

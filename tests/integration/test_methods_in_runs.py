"""Whole tiny runs of methods with a memory, with all tasks at once, with a part for each task."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from kif_lightning.backbones.seq2seq import Seq2SeqBackbone
from kif_lightning.interfaces import RehearsalContext
from kif_lightning.memory import PseudoSamples
from kif_lightning.module import ContinualModule
from tests.helpers.streams import run_stream, tiny_config
from tests.helpers.tiny import save_toy_tasks

TASKS = ("colour", "shape", "size")
MEMORY = "method.memory.share=0.15"  # 3 of 20 rows
REPLAYED = ("method=kif_m", "method.memory.share=0.25", "optim.batch_size=4")  # 5 of 20 rows


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tasks of 20 rows; each prompt names its task, the last one has labels of its own."""
    folder = tmp_path_factory.mktemp("data")
    save_toy_tasks(folder, TASKS[:2], train=20)
    return save_toy_tasks(folder, TASKS[2:], train=20, labels=("round", "flat"))


@pytest.fixture
def config(tiny_t5: Path, data: Path, tmp_path: Path) -> Any:
    def make(name: str, *overrides: str) -> DictConfig:
        order = f"benchmark.order=[{','.join(TASKS)}]"
        return tiny_config(tiny_t5, data, tmp_path / name, order, *overrides)

    return make


def column(results: Any, key: str) -> list[Any]:
    return [phase[key] for phase in results["phases"]]


@contextmanager
def watched_training() -> Iterator[list[tuple[bool, list[str]]]]:
    """Of each forward pass in training: whether it is a replay's, and its prompts."""
    seen: list[tuple[bool, list[str]]] = []
    original = ContinualModule.training_step

    def spy(self: Any, batch: Any, batch_idx: int) -> Any:
        decode = self.backbone.tokenizer.batch_decode
        prompts = decode(batch["inputs"]["input_ids"], skip_special_tokens=True)
        seen.append((self.identification is None, prompts))
        return original(self, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ContinualModule, "training_step", spy)
        yield seen


def task_of(prompt: str) -> str:
    (found,) = [task for task in TASKS if f"the {task} of" in prompt]
    return found


@pytest.mark.parametrize("epochs", [1, 2])
def test_memory_is_mixed_into_each_later_task(config: Any, epochs: int) -> None:
    with watched_training() as seen:
        results, _ = run_stream(config("run", "method=replay", MEMORY, f"optim.epochs={epochs}"))
    assert column(results, "train_rows") == [20, 20, 20]
    assert column(results, "memory_rows") == [3, 6, 9]
    assert column(results, "rehearsed_rows") == [0, 3, 6]
    # Batches of 8: 20, 23 and 26 rows.
    steps = [epochs * number for number in (3, 3, 4)]
    assert column(results, "optimizer_steps") == steps
    assert column(results, "replay_steps") == [0, 0, 0]
    assert results["cost"]["memory_rows"] == 9
    start = 0
    for k, number in enumerate(steps):
        rows = [prompt for _, prompts in seen[start : start + number] for prompt in prompts]
        counts = [sum(task_of(row) == task for row in rows) for task in TASKS]
        assert counts == [epochs * n for n in [*[3] * k, 20, *[0] * (2 - k)]]
        start += number
    assert start == len(seen)


@pytest.mark.parametrize("epochs", [1, 2])
def test_replay_at_the_boundary_is_of_past_tasks_alone(config: Any, epochs: int) -> None:
    with watched_training() as seen:
        results, _ = run_stream(config("run", *REPLAYED, f"method.boundary.fusion.epochs={epochs}"))
    assert column(results, "optimizer_steps") == [5, 5, 5]
    # Batches of 4: nothing, then 5 and 10 rows.
    assert column(results, "replay_steps") == [0, 2 * epochs, 3 * epochs]
    assert column(results, "memory_rows") == [5, 10, 15]
    assert column(results, "rehearsed_rows") == [0, 0, 0]
    assert column(results, "skipped_steps") == [0, 0, 0]
    kinds = [replayed for replayed, _ in seen]
    expected = [False] * 5
    for number in (2 * epochs, 3 * epochs):
        expected += [False] * 5 + [True] * number
    assert kinds == expected
    replayed = [prompts for is_replay, prompts in seen if is_replay]
    for k, part in ((1, replayed[: 2 * epochs]), (2, replayed[2 * epochs :])):
        rows = [prompt for prompts in part for prompt in prompts]
        assert sorted(map(task_of, rows)) == sorted(TASKS[:k] * (5 * epochs))
        assert len(set(rows)) == 5 * k, "each epoch has the same rows"


@pytest.mark.parametrize("position", ["after_fusion", "before_fusion"])
def test_replay_changes_no_importance_of_its_own_boundary(
    config: Any, tmp_path: Path, position: str
) -> None:
    """The first replay comes at the second boundary: the third task is the first to feel it."""
    run_stream(config("plain", "method=kif", "optim.batch_size=4"))
    run_stream(config("memory", *REPLAYED, f"method.boundary.fusion.position={position}"))
    same = []
    for number, task in enumerate(TASKS, start=1):
        plain, memory = (
            json.loads((tmp_path / run / f"importance/{number:02d}_{task}_fusion.json").read_text())
            for run in ("plain", "memory")
        )
        assert plain.keys() == memory.keys()
        del plain["seconds"], memory["seconds"]
        same.append(plain == memory)
    assert same == [True, True, False]


def test_replay_takes_part_in_selection_runs_too(config: Any) -> None:
    """A look at held-out rows of the task has no place in the replay."""
    options = (*REPLAYED, "method/selection=held_out", "method.selection.held_out_share=0.2")
    results, _ = run_stream(config("run", *options, "method.selection.every_steps=1"))
    assert column(results, "train_rows") == [16, 16, 16]
    assert column(results, "optimizer_steps") == [4, 4, 4]
    assert column(results, "replay_steps") == [0, 2, 3]


def test_rows_that_the_model_writes_join_in_both_forms(
    config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Seq2SeqBackbone.generate

    def writes(self: Any, model: Any, batch: Any, cap: int, *, top_k: int | None = None) -> Any:
        if top_k is None:
            return original(self, model, batch, cap)
        assert cap == 12
        orders = self.tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)
        return [f"{order} written => good" for order in orders]

    monkeypatch.setattr(Seq2SeqBackbone, "generate", writes)
    options = ("method=lfpt5", "method.rehearsal.share=0.1", "method.rehearsal.max_tokens=12")
    results, _ = run_stream(config("run", *options))
    # A fifth of the 20 own rows as text, and 2 rows of each past task in two forms.
    assert column(results, "rehearsed_rows") == [4, 4 + 4, 4 + 8]
    assert column(results, "optimizer_steps") == [3, 4, 4]
    assert results["cost"]["memory_rows"] == 0


def test_rows_held_out_are_not_given_to_write(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, set[str]]] = []
    examples = PseudoSamples.examples

    def watched(self: PseudoSamples, context: RehearsalContext) -> Any:
        seen.append((len(context.task.train), {row.id for row in context.task.train}))
        return examples(self, context)

    monkeypatch.setattr(PseudoSamples, "examples", watched)
    held_out = ("method/selection=held_out", "method.selection.held_out_share=0.4")
    options = ("method.selection.every_steps=1", "method.rehearsal.max_tokens=12")
    results, _ = run_stream(config("run", "method=lfpt5", *held_out, *options))
    assert [number for number, _ in seen] == [phase["train_rows"] for phase in results["phases"]]
    assert {number for number, _ in seen} == {12}


def test_all_tasks_at_once(config: Any, tmp_path: Path) -> None:
    with watched_training() as seen:
        results, _ = run_stream(config("run", "method=multi_task"))
    (phase,) = results["phases"]
    assert (phase["train_rows"], phase["optimizer_steps"]) == (60, 8)
    (scores,) = results["score_matrix"]
    assert len(scores) == 3
    assert all(score is not None for score in scores)
    assert [task["name"] for task in results["tasks"]] == list(TASKS)
    assert results["metrics"]["average_performance"] == pytest.approx(sum(scores) / 3)
    assert len(seen) == 8
    rows = [prompt for _, prompts in seen for prompt in prompts]
    assert [sum(task_of(row) == task for row in rows) for task in TASKS] == [20, 20, 20]
    assert sum(len({task_of(row) for row in prompts}) > 1 for _, prompts in seen) > 4, "shuffled"
    files = sorted(path.name for path in (tmp_path / "run" / "predictions").iterdir())
    assert [name.rpartition("__on_")[2] for name in files] == [
        f"{i:02d}_{task}.jsonl" for i, task in enumerate(TASKS, start=1)
    ]


def test_a_part_for_each_task_is_left_alone_by_later_ones(config: Any, tmp_path: Path) -> None:
    forgetful = {}
    for method in ("per_task", "seq_lora"):
        options = (f"method={method}", "optim.lr=0.05", "optim.epochs=4")
        results, _ = run_stream(config(method, *options))
        changed = []
        for j in range(2):
            column = [row[j] for row in results["score_matrix"][j:]]
            ending = f"__on_{j + 1:02d}_{TASKS[j]}.jsonl"
            files = sorted((tmp_path / method / "predictions").glob(f"*{ending}"))
            assert len(files) == len(column) == 3 - j
            texts = {path.read_text() for path in files}
            changed.append(len(texts) > 1)
            if len(texts) == 1:
                assert len(set(column)) == 1
        forgetful[method] = any(changed)
    assert forgetful == {"per_task": False, "seq_lora": True}


def test_learning_rate_of_the_method_is_told_and_used(
    config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    original = ContinualModule.configure_optimizers

    def spy(self: Any) -> Any:
        made = original(self)
        rates.append(made["lr_scheduler"]["scheduler"].base_lrs[0])
        return made

    monkeypatch.setattr(ContinualModule, "configure_optimizers", spy)
    for method, factor, words in (
        ("seq_full", 0.3, "Method seq_full trains with 0.3 times optim.lr: 0.0006."),
        ("seq_lora", 1.0, ""),
    ):
        rates.clear()
        options = (f"method={method}", "optim.lr=0.002", "benchmark.order=[colour]")
        _, said = run_stream(config(method, *options))
        assert rates == pytest.approx([factor * 0.002])
        assert words in said
        assert ("times optim.lr" in said) == bool(words)

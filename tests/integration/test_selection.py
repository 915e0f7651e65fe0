"""Looks, early stopping and selection by dev rows in real fits and whole tiny runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from kif_lightning.callbacks import SelectBestStep, selection
from kif_lightning.datamodule import ContinualDataModule
from kif_lightning.errors import UserError
from kif_lightning.runner import StreamRunner
from tests.helpers.fits import Averages, TinyFit
from tests.helpers.streams import run_stream, tiny_config
from tests.helpers.tiny import save_toy_tasks, toy_rows

EARLY = (
    "method=seq_lora",
    "method/selection=early_stopping",
    "method.selection.every_steps=1",
    "method.selection.patience=1",
    "optim.lr=20",  # so large that the losses go up and down, whatever the rounding
    "optim.epochs=4",
)


class Snapshots(Callback):
    """The weights after each micro-batch's end, and the steps taken by then."""

    def __init__(self) -> None:
        self.weights: dict[int, Averages] = {}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
        copies = {name: p.detach().clone() for name, p in pl_module.trainable_parameters.items()}
        self.weights[trainer.global_step] = copies


@pytest.fixture
def told_losses(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Makes looks find the losses told; gives the list of the steps they come at."""
    real = selection._loss_per_token

    def tell(*losses: float) -> list[int]:
        steps: list[int] = []

        def told(trainer: Any, module: Any) -> float:
            assert real(trainer, module) > 0
            steps.append(trainer.global_step)
            return losses[len(steps) - 1]

        monkeypatch.setattr(selection, "_loss_per_token", told)
        return steps

    return tell


@pytest.mark.parametrize("micro", [8, 2])
def test_looks_come_at_multiples_of_steps_however_steps_are_cut(
    tiny_t5: Path, micro: int, told_losses: Any
) -> None:
    # 14 rows: two steps an epoch, the second of 6 rows and so of fewer micro-batches.
    steps = told_losses(*range(9, 0, -1))
    looks = SelectBestStep(num_held_out=5, every_steps=3)
    fit = TinyFit(tiny_t5, micro=micro, epochs=5, held_out=5, callbacks=[looks])
    fit.fit()
    assert fit.trainer.global_step == 10
    assert steps == [3, 6, 9]
    assert (looks.selected_step, looks.stopped_early) == (9, False)


def test_a_look_changes_nothing_in_the_training(tiny_t5: Path) -> None:
    found = []
    for every in (1, 1000):
        snapshots = Snapshots()
        looks = SelectBestStep(num_held_out=5, every_steps=every)
        options: Any = {"micro": 2, "epochs": 2, "held_out": 5}
        TinyFit(tiny_t5, callbacks=[looks, snapshots], **options).fit()
        found.append(snapshots.weights)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


@pytest.mark.parametrize("micro", [4, 2])
def test_the_training_stops_within_an_epoch(tiny_t5: Path, micro: int, told_losses: Any) -> None:
    steps = told_losses(5.0, 4.0, 6.0, 7.0, 1.0)
    looks, snapshots = SelectBestStep(num_held_out=5, every_steps=1, patience=2), Snapshots()
    callbacks = [looks, snapshots]
    fit = TinyFit(tiny_t5, batch=4, micro=micro, epochs=3, held_out=5, callbacks=callbacks)
    found = fit.fit()
    assert steps == [1, 2, 3, 4]
    assert fit.module.counts.optimizer_steps == fit.trainer.global_step == 4
    assert (looks.selected_step, looks.stopped_early) == (2, True)
    torch.testing.assert_close(found, snapshots.weights[2], rtol=0, atol=0)
    # What the next task begins with is a training of its own.
    steps = told_losses(*range(12, 0, -1))
    fit.fit()
    assert len(steps) == fit.trainer.global_step == 12
    assert (looks.selected_step, looks.stopped_early) == (12, False)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16-mixed", torch.bfloat16), ("32-true", torch.float32)]
)
def test_a_look_has_the_precision_of_the_training(
    tiny_t5: Path, precision: str, dtype: torch.dtype
) -> None:
    looks = SelectBestStep(num_held_out=5, every_steps=1)
    fit = TinyFit(tiny_t5, precision=precision, held_out=5, callbacks=[looks])
    seen: dict[bool, set[torch.dtype]] = {True: set(), False: set()}
    answer_logits = fit.backbone.answer_logits

    def spy(model: Any, batch: Any) -> Any:
        logits, labels = answer_logits(model, batch)
        seen[torch.is_grad_enabled()].add(logits.dtype)
        return logits, labels

    fit.backbone.answer_logits = spy  # type: ignore[method-assign]
    fit.fit()
    assert seen == {True: {dtype}, False: {dtype}}


def column(results: Any, key: str) -> list[Any]:
    return [phase[key] for phase in results["phases"]]


def test_early_stopping_in_a_run(tiny_t5: Path, toy_data: Path, tmp_path: Path) -> None:
    results, _ = run_stream(tiny_config(tiny_t5, toy_data, tmp_path / "run", *EARLY))
    assert column(results, "train_rows") == [14, 14]  # of 16: a tenth, rounded
    assert column(results, "stopped_early") == [True, True]
    for phase in results["phases"]:
        # One look after the best one.
        assert phase["optimizer_steps"] == phase["selected_step"] + 1 < 8
    assert results["protocol"]["selection"] == {"rows": "held_out"}
    plain, _ = run_stream(tiny_config(tiny_t5, toy_data, tmp_path / "plain", "method=seq_lora"))
    assert plain["protocol"]["selection"] is None
    assert column(plain, "selected_step") == [None, None]
    assert column(plain, "stopped_early") == [False, False]


def test_an_interrupted_run_with_early_stopping_goes_on_bitwise(
    tiny_t5: Path, toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = run_stream(tiny_config(tiny_t5, toy_data, tmp_path / "whole", *EARLY))
    config = tiny_config(tiny_t5, toy_data, tmp_path / "cut", *EARLY)
    learn = StreamRunner._learn

    def break_off(self: StreamRunner, task_index: int, state: Any) -> None:
        if task_index == 1:
            raise KeyboardInterrupt
        learn(self, task_index, state)

    with monkeypatch.context() as patch:
        patch.setattr(StreamRunner, "_learn", break_off)
        with pytest.raises(KeyboardInterrupt):
            run_stream(config)
    resumed, _ = run_stream(config)
    assert resumed["score_matrix"] == whole["score_matrix"]
    for key in ("optimizer_steps", "selected_step", "stopped_early", "last_loss"):
        assert column(resumed, key) == column(whole, key)
    weights = [
        (tmp_path / run / "adapter" / "adapter_model.safetensors").read_bytes()
        for run in ("whole", "cut")
    ]
    assert weights[0] == weights[1]


def test_a_share_of_the_joint_task_is_held_out(
    tiny_t5: Path, toy_data: Path, tmp_path: Path
) -> None:
    options = ("method=multi_task", "method/selection=early_stopping")
    config = tiny_config(tiny_t5, toy_data, tmp_path / "run", *options)
    results, _ = run_stream(config)
    assert column(results, "train_rows") == [32 - 3]


def add_dev(folder: Path, task: str, rows: list[Any]) -> None:
    lines = [json.dumps({"id": f"dev-{i}", "input": r.input, "output": r.output})
             for i, r in enumerate(rows)]  # fmt: skip
    (folder / task / "dev.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


DEV = ("method=seq_lora", "method/selection=dev", "method.selection.every_steps=1")


def test_dev_rows_select_and_are_warned_about(
    tiny_t5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_toy_tasks(tmp_path / "data")
    test_rows = toy_rows("colour", "test", 6, ("good", "bad"))
    own = toy_rows("colour", "dev", 3, ("good", "bad"))
    add_dev(folder, "colour", [*test_rows[:2], *own])
    add_dev(folder, "shape", toy_rows("shape", "dev", 3, ("good", "bad")))
    looked_at: list[list[list[int]]] = []
    loader = ContinualDataModule.selection_dataloader

    def spy(self: ContinualDataModule) -> Any:
        looked_at.append([example.prompt_ids for example in self._training_split()[1]])
        return loader(self)

    monkeypatch.setattr(ContinualDataModule, "selection_dataloader", spy)
    results, said = run_stream(tiny_config(tiny_t5, folder, tmp_path / "run", *DEV))
    assert said.count("Warning: steps are selected by the data's own dev rows") == 1
    before, _, after = said.partition("Warning: steps are selected")
    assert "Dev rows whose input is in test here: colour 2 of 5. Use method/selection" in after
    assert "Score matrix" in after
    assert "Score matrix" not in before
    assert results["protocol"]["selection"] == {
        "rows": "dev",
        "dev_rows_in_test": {"colour": 2, "shape": 0},
    }
    assert column(results, "train_rows") == [16, 16]
    assert [len(rows) for rows in looked_at] == [5, 5, 3, 3]


def test_data_without_dev_rows_is_refused_before_anything_is_written(
    tiny_t5: Path, tmp_path: Path
) -> None:
    folder = save_toy_tasks(tmp_path / "data")
    add_dev(folder, "colour", toy_rows("colour", "dev", 3, ("good", "bad")))
    config = tiny_config(tiny_t5, folder, tmp_path / "run", *DEV)
    with pytest.raises(UserError, match=r"the data has none of shape: use method/selection=held_o"):
        run_stream(config)
    assert not (tmp_path / "run").exists()


def test_rows_held_out_are_not_warned_about(tiny_t5: Path, toy_data: Path, tmp_path: Path) -> None:
    settings = ("method=seq_lora", "method/selection=held_out")
    config = tiny_config(tiny_t5, toy_data, tmp_path / "run", *settings, "plan=true")
    _, said = run_stream(config)
    assert "Warning" not in said
    config = tiny_config(tiny_t5, toy_data, tmp_path / "run", *DEV, "plan=true")
    with pytest.raises(UserError, match="none of colour, shape"):
        run_stream(config)

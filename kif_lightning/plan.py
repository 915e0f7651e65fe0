"""``plan=true``: what a run would do, and how long it would take, measured on a few real steps."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import Callback
from rich.table import Table

from kif_lightning.errors import UserError
from kif_lightning.runner import StreamRunner
from kif_lightning.tokenised import tokenised

_PROBE_STEPS = 3


class _Clock(Callback):
    """Seconds of each training step and test batch."""

    def __init__(self) -> None:
        self.training: list[float] = []
        self.testing: list[float] = []
        self._last = time.perf_counter()

    def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
        self._last = time.perf_counter()

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.training.append(time.perf_counter() - self._last)

    def on_test_batch_start(self, *args: Any, **kwargs: Any) -> None:
        self._last = time.perf_counter()

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.testing.append(time.perf_counter() - self._last)


def show_plan(runner: StreamRunner) -> None:
    """Print tasks, steps, trainable weights, memory and an estimate of time; writes nothing."""
    if runner.new_trainer([], training=False).world_size > 1:
        raise UserError("plan=true measures one process: add trainer=default trainer.devices=1.")
    runner.build()
    options, data = runner.options, runner.data
    train_second, test_second = _seconds_per_token(runner)
    table = Table(title="Plan", title_justify="left", box=None)
    for column in ("task", "kind", "metric", "train rows", "steps", "evaluated on", "minutes"):
        table.add_column(
            column, justify="left" if column in ("task", "kind", "metric") else "right"
        )
    total = 0.0
    test_seconds = [
        test_second * int(data.test_examples(task).prompt_lengths.sum()) if task.at_hand else 0.0
        for task in runner.tasks
    ]
    if options.evaluate_untrained:
        total += sum(test_seconds) / 60
    for index, task in enumerate(data.training_tasks):
        if index < runner.parts.num_learnt:
            continue
        evaluated = runner.tasks_to_judge(index)
        tokens = float(tokenised(data.backbone, task.train).prompt_lengths.mean())
        train = train_second * tokens * data.num_training_rows(task) * options.epochs
        minutes = (train + sum(test_seconds[i] for i in evaluated)) / 60
        total += minutes
        table.add_row(
            task.name,
            task.kind,
            task.metric,
            str(data.num_training_rows(task)),
            str(data.optimizer_steps(task, options.epochs)),
            f"{len(evaluated)} tasks",
            f"{minutes:.1f}",
        )
    runner.console.console.print(table)
    probe = runner.parts.probe
    if probe is not None:
        times = len(data.training_tasks) + 1
        minutes = times * test_second * data.test_examples(probe.task).prompt_lengths.sum() / 60
        total += minutes
        runner.console.say(
            f"General ability: {len(probe.task.test)} rows of the probe {probe.name}, asked "
            f"{times} times: {minutes:.1f} minutes."
        )
    memory = runner.parts.memory
    if memory is not None or runner.parts.rehearsal is not None:
        learning = data.training_tasks[runner.parts.num_learnt :]
        kept = sum(memory.budget(task) for task in learning) if memory else 0
        known = f" ({kept} rows after the last task)" if kept else ""
        runner.console.say(
            "What the method does with rows of past tasks comes on top of these steps, minutes and "
            f"memory{known}."
        )
    runner.console.mapping("Memory", _memory(runner))
    runner.console.say(
        f"Estimated time: about {total:.1f} minutes (rough: scaled by tokens from {_PROBE_STEPS} "
        "training steps and one test batch of the first task on this machine)."
    )


def _seconds_per_token(runner: StreamRunner) -> tuple[float, float]:
    """Seconds a prompt token costs in training and in evaluation."""
    clock = _Clock()
    data = runner.data
    first = runner.parts.num_learnt
    runner.take_up_origin()
    runner.begin_task(first)
    trainer = runner.new_trainer([clock], training=True)
    trainer.limit_train_batches = _PROBE_STEPS * data.accumulate_grad_batches
    trainer.fit_loop.max_epochs = 1
    batch_tokens = [
        sum(part["inputs"]["input_ids"].numel() for part in batch.get("parts", [batch]))
        for batch in data.train_dataloader()
    ]
    trainer.fit(runner.module, datamodule=data)
    # The first step warms up; it counts only where there is no other.
    skip = 1 if len(clock.training) > 1 else 0
    tokens = sum(batch_tokens[skip : len(clock.training)])
    train = sum(clock.training[skip:]) / tokens
    test_loader = data.evaluation_dataloaders([first])[0]
    asked = next(iter(test_loader))["inputs"]["input_ids"]
    runner.module.begin_evaluation(1)
    tester = runner.new_trainer([clock], training=False)
    tester.limit_test_batches = 1
    tester.test(runner.module, dataloaders=test_loader, verbose=False)
    return train, clock.testing[0] / asked.numel()


def _memory(runner: StreamRunner) -> dict[str, str]:
    """Sizes of what stays in memory, apart from activations."""
    model = runner.module.model
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    trainable = list(runner.parts.adapter.trainable(model).values())
    learnt = sum(p.numel() * p.element_size() for p in trainable)
    float32 = 4 * sum(p.numel() for p in trainable)
    averages = 2 * float32 if runner.parts.identification is not None else 0
    snapshot = learnt if runner.parts.boundary else 0
    return {
        "model": _megabytes(weights),
        "gradients and AdamW's two moments": _megabytes(3 * learnt),
        "importance averages": _megabytes(averages),
        "snapshot of the trainable weights": _megabytes(snapshot),
    }


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"

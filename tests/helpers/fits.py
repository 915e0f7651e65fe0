"""One tiny Lightning fit, and the plain torch loop it is compared with."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, Trainer
from peft import LoraConfig
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from kif_lightning.adapters import FullAdapter, PeftAdapter
from kif_lightning.datamodule import ContinualDataModule
from kif_lightning.interfaces import Example, LossContext, Task
from kif_lightning.module import ContinualModule
from tests.helpers.streams import ToyBenchmark, tiny_backbone, toy_task

Averages = dict[str, Tensor]


def linear_decay(*, optimizer: Optimizer, num_training_steps: int) -> LambdaLR:
    """From the full learning rate in the first step to 1/n in the last of n."""
    return LambdaLR(optimizer, lambda step: 1 - step / num_training_steps)


def sgd(parameters: Iterable[nn.Parameter]) -> Optimizer:
    """Follows the gradient linearly: differences show as they are."""
    return SGD(parameters, lr=0.1, momentum=0.5)


@dataclass
class TinyFit:
    """One Lightning fit on the tiny T5 without dropout; :meth:`fit` runs it."""

    folder: Path
    batch: int = 8
    micro: int | None = None
    task: Task = field(default_factory=toy_task)
    full: bool = False
    optimizer: Callable[..., Optimizer] = sgd
    clip: float | None = None
    precision: Any = "32-true"
    epochs: int = 1
    held_out: int = 0
    callbacks: Sequence[Callback] = ()
    module_options: dict[str, Any] = field(default_factory=dict)
    trainer_options: dict[str, Any] = field(default_factory=dict)
    data_options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.backbone = tiny_backbone(self.folder)
        base = self.backbone.load_model()
        for layer in base.modules():
            if isinstance(layer, nn.Dropout):
                layer.p = 0.0
            elif isinstance(getattr(layer, "dropout", None), float):
                layer.dropout = 0.0  # T5's attention calls the function
        torch.manual_seed(5)
        # Random A and B, so that no gradient is zero.
        lora = LoraConfig(r=3, lora_alpha=3, target_modules=["q", "v"], init_lora_weights=False)
        self.adapter: Any = FullAdapter() if self.full else PeftAdapter(config=lora)
        model = self.adapter.attach(base, self.backbone)
        self.before = copy.deepcopy(model)
        self.module = ContinualModule(
            backbone=self.backbone,
            model=model,
            optimizer=self.optimizer,
            schedule=linear_decay,
            **self.module_options,
        )
        self.data = ContinualDataModule(
            benchmark=ToyBenchmark((self.task,)),
            backbone=self.backbone,
            batch_size=self.batch,
            micro_batch_size=self.micro,
            evaluation_batch_size=4,
            max_new_tokens=5,
            num_held_out=self.held_out,
            seed=1,
            **self.data_options,
        )

    def fit(self) -> dict[str, Tensor]:
        """The trainable weights after training."""
        self.module.begin_task(self.adapter.trainable(self.module.model), 0)
        self.trainer = Trainer(
            accelerator="cpu",
            precision=self.precision,
            max_epochs=self.epochs,
            gradient_clip_val=self.clip,
            callbacks=list(self.callbacks),
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            **self.trainer_options,
        )
        self.trainer.accumulate_grad_batches = self.data.accumulation(self.trainer.world_size)
        self.trainer.fit(self.module, datamodule=self.data)
        return {name: p.detach() for name, p in self.module.trainable_parameters.items()}

    def steps(self) -> list[list[list[Example]]]:
        """Optimizer step -> micro-batch -> rows, cut from each epoch's order of rows."""
        loader = self.data.train_dataloader()
        examples, micro = loader.dataset.examples, self.micro or self.batch
        found = []
        for epoch in range(self.epochs):
            loader.sampler.set_epoch(epoch)
            order = [examples[i] for part in loader.sampler for i in part.indices]
            for start in range(0, len(order), self.batch):
                rows = order[start : start + self.batch]
                found.append([rows[i : i + micro] for i in range(0, len(rows), micro)])
        return found

    def plain(self, **options: Any) -> PlainLoop:
        """The same training as a plain loop, from the same start."""
        return PlainLoop(self, **options)


class PlainLoop:
    """Plain torch: the mean over a whole batch's tokens, as transformers computes it.

    ``parts_mean``: ``whole``: the batch in one pass; ``tokens``: micro-batches weighted by their
    tokens; ``means``: the mean of the micro-batches' means.
    Keeps each step's weights and gradients: before the step and unclipped, after it and clipped.
    """

    def __init__(
        self,
        fit: TinyFit,
        *,
        parts_mean: Literal["whole", "tokens", "means"] = "whole",
        autocast: bool = False,
        penalty: Callable[[dict[str, nn.Parameter]], Tensor] | None = None,
        skip: Sequence[int] = (),
    ) -> None:
        model = fit.before.train()
        self.weights = fit.adapter.trainable(model)
        optimizer = fit.optimizer(list(self.weights.values()))
        full_rate = optimizer.param_groups[0]["lr"]
        self.before: list[tuple[Averages, Averages]] = []
        self.after: list[tuple[Averages, Averages]] = []
        self.losses: list[float] = []
        steps = fit.steps()
        for number, parts in enumerate(steps):
            optimizer.param_groups[0]["lr"] = full_rate * (1 - number / len(steps))
            if number in skip:
                continue
            optimizer.zero_grad()
            batches = [[row for rows in parts for row in rows]] if parts_mean == "whole" else parts
            sizes = [sum(len(row.answer_ids) for row in rows) for rows in batches]
            if parts_mean == "means":
                sizes = [1 for _ in batches]
            step_loss = 0.0
            for size, rows in zip(sizes, batches, strict=True):
                with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
                    loss = size / sum(sizes) * model(**padded(rows)).loss
                loss.backward()
                step_loss += float(loss.detach())
            if penalty is not None:
                term = penalty(self.weights)
                term.backward()
                step_loss += float(term.detach())
            self.losses.append(step_loss)
            self.before.append(self._now())
            if fit.clip is not None:
                nn.utils.clip_grad_norm_(list(self.weights.values()), fit.clip)
            optimizer.step()
            self.after.append(self._now())

    def _now(self) -> tuple[Averages, Averages]:
        weights = {name: p.detach().clone() for name, p in self.weights.items()}
        return weights, {name: p.grad.clone() for name, p in self.weights.items()}

    def averages(self, when: str = "before", *, first: int = 0) -> tuple[Averages, Averages]:
        """Sensitivity and uncertainty after all steps (order 2, both alphas 0.85)."""
        sensitivity = {name: torch.zeros_like(p) for name, p in self.weights.items()}
        uncertainty = {name: torch.zeros_like(p) for name, p in self.weights.items()}
        for weights, gradients in getattr(self, when)[first:]:
            for name in weights:
                product = weights[name] * gradients[name]
                importance = (product - product**2 / 2).abs()
                sensitivity[name] = 0.85 * sensitivity[name] + 0.15 * importance
                distance = (importance - sensitivity[name]).abs()
                uncertainty[name] = 0.85 * uncertainty[name] + 0.15 * distance
        return sensitivity, uncertainty


def padded(rows: Sequence[Example]) -> dict[str, Tensor]:
    source = max(len(row.prompt_ids) for row in rows)
    target = max(len(row.answer_ids) for row in rows)
    ids = torch.zeros(len(rows), source, dtype=torch.long)
    mask = torch.zeros(len(rows), source, dtype=torch.long)
    labels = torch.full((len(rows), target), -100)
    for i, row in enumerate(rows):
        ids[i, : len(row.prompt_ids)] = torch.tensor(row.prompt_ids)
        mask[i, : len(row.prompt_ids)] = 1
        labels[i, : len(row.answer_ids)] = torch.tensor(row.answer_ids)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def assert_near(found: Averages, expected: Averages, tolerance: float = 1e-4) -> None:
    """Equal up to ``tolerance`` of each tensor's largest element."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        limit = tolerance * float(tensor.abs().max())
        torch.testing.assert_close(found[name], tensor.detach(), rtol=0, atol=limit, msg=name)


def squares(parameters: Any) -> Tensor:
    """A plain penalty: a tenth of the sum of squares."""
    return 0.1 * torch.stack([(p**2).sum() for p in parameters.values()]).sum()


class PenaltyBase:
    """A penalty without memory."""

    def begin_task(self, parameters: Any, task_index: int) -> None: ...

    def end_task(self, parameters: Any, task_index: int, learnt: Any) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Any) -> None: ...


class Squares(PenaltyBase):
    """:func:`squares` as a penalty."""

    def __call__(self, context: LossContext) -> Tensor:
        return squares(context.parameters)


class BreaksAt(PenaltyBase):
    """Zero, but not finite in the calls named: in the loss, or in the gradient alone."""

    def __init__(self, calls: Sequence[int], where: str = "loss") -> None:
        self.calls, self.where, self.seen = set(calls), where, 0

    def __call__(self, context: LossContext) -> Tensor:
        zero = 0.0 * next(iter(context.parameters.values())).sum()
        self.seen += 1
        if self.seen - 1 not in self.calls:
            return zero
        return zero * float("nan") if self.where == "loss" else zero.abs().sqrt()

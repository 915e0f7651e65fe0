"""Fusion whose weights of the past are fitted on a few rows, as a Lightning callback."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from tqdm.auto import tqdm

from kif_lightning import ranks
from kif_lightning.callbacks.fusion import KnowledgeFusion
from kif_lightning.errors import require_between, require_count
from kif_lightning.interfaces import Batch, Needs, Parameters, Row
from kif_lightning.kif import fuse_, share_gradient
from kif_lightning.modes import evaluating
from kif_lightning.seeding import generator

log = logging.getLogger(__name__)
SURE = 0.99
"""A fit starts from no share nearer to 0 or 1: there its gradient would vanish."""


class FittedFusion(KnowledgeFusion):
    """Knowledge fusion with one more step: the units' shares of the past are fitted on rows.

    The rule's shares, from the importance, are where the fit starts. From there Adam lowers the
    mean loss of the rows of memory, and of as many rows of the present task as the memory keeps of
    a past one, over the logits of the shares: U numbers are learnt, and no weight but by them.
    Without memory rows the rule's shares are kept. Dropout and penalties are off, and with them
    gradient checkpointing; with fp16 there is no loss scale. A step with a non-finite gradient is
    left out and told. Several processes share the rows of a step.

    Not from the KIF papers. Coefficients of a merge fitted by gradient are those of AdaMerging
    (arXiv 2310.02575), there on the entropy of unlabelled test rows.

    The module must offer ``trainable_parameters``, ``identification`` and ``row_loss(batch)``, the
    datamodule ``memory_rows``, ``training_rows()`` and ``row_steps(rows, purpose)``.

    Args:
        fit_epochs: over these rows, in batches as in training.
        fit_lr: learning rate of the logits, constant.
        kwargs: of :class:`KnowledgeFusion`.

    Raises:
        UserError: a value out of range.
    """

    needs = Needs(shared_weights=True, memory=True)

    def __init__(self, *, fit_epochs: int = 3, fit_lr: float = 0.3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        require_count("fusion.fit_epochs", fit_epochs)
        require_between("fusion.fit_lr", fit_lr, 0.0, float("inf"), low_open=True)
        self.fit_epochs = fit_epochs
        self.fit_lr = fit_lr
        self.outer_steps = 0
        """Of the last boundary's fit."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Identify, fit, fuse."""
        module: Any = pl_module
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self.outer_steps = 0
        self.identify(module)
        assert self.boundary is not None
        if self.boundary.weight is not None and data.memory_rows:
            started = time.perf_counter()
            fitted = self._fitted(self.boundary.weight, trainer, module)
            seconds = self.boundary.seconds + time.perf_counter() - started
            self.boundary = replace(self.boundary, weight=fitted, seconds=seconds)
        self.fuse(module.trainable_parameters)

    def _fitted(self, share: Tensor, trainer: Trainer, module: Any) -> Tensor:
        """Shares (U,) after the fit; the weights are left as they were."""
        assert self.units is not None
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        rows = [*data.memory_rows, *_drawn(data)]
        steps = self.fit_epochs * -(-len(rows) // data.batch_size)
        parameters = module.trainable_parameters
        after = {name: p.detach().clone() for name, p in parameters.items()}
        logits = torch.logit(share.double().clamp(1 - SURE, SURE)).requires_grad_()
        optimizer = torch.optim.Adam([logits], lr=self.fit_lr)
        skipped = 0
        drawn = itertools.islice(data.row_steps(rows, "fitted shares"), steps)
        hidden = True if ranks.rank() else None  # None: where no terminal is
        with evaluating(module):
            for batches in tqdm(drawn, "fit fusion", steps, leave=False, disable=hidden):
                share = torch.sigmoid(logits.detach())
                _restore(parameters, after)
                fuse_(self.units, share, self.snapshot, parameters)
                slope = self._slope(batches, after, trainer, module)
                self.outer_steps += 1
                if not bool(torch.isfinite(slope).all()):
                    skipped += 1
                    continue
                logits.grad = slope * share * (1 - share)
                optimizer.step()
        _restore(parameters, after)
        if skipped:
            log.warning(
                "%d of %d steps of the fusion's fit had a non-finite gradient and were left out.",
                skipped,
                steps,
            )
        return torch.sigmoid(logits.detach())

    def _slope(
        self, batches: Sequence[Batch], after: Mapping[str, Tensor], trainer: Trainer, module: Any
    ) -> Tensor:
        """Of a step's mean loss per target token in each share, (U,); in every process the same."""
        assert self.units is not None
        parameters = module.trainable_parameters
        slope = torch.zeros(len(self.units), dtype=torch.float64)
        for batch in batches:
            if not batch["weight"]:
                continue  # a filler
            on_device = module.transfer_batch_to_device(batch, module.device, 0)
            with torch.enable_grad(), trainer.precision_plugin.forward_context():
                loss = module.row_loss(on_device) / batch["step_tokens"]
            # Not into .grad, which is the training's.
            found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            gradients = dict(zip(parameters, found, strict=True))
            slope += share_gradient(self.units, gradients, self.snapshot, after)
        ranks.sum_([slope])
        return slope


@torch.no_grad()
def _restore(parameters: Parameters, values: Mapping[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(values[name])


def _drawn(data: Any) -> list[Row]:
    """As many rows of the present task as the memory holds of a past one, rounded up."""
    rows = data.training_rows()
    number = -(-len(data.memory_rows) // data.task_index)
    order = torch.randperm(len(rows), generator=generator(data.seed, data.task.name, "fitted rows"))
    return [rows[i] for i in order[:number].tolist()]

"""A Lightning project that knows nothing of this package: its module, its rows, its fit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.utils.data import DataLoader, TensorDataset

BATCH = 4


class Layers(nn.Module):
    """Two linear layers; the first can be adapted."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(5, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.query(x)))


class ForeignModule(LightningModule):
    """Least squares on :class:`Layers`, with a LoRA of peft or whole."""

    def __init__(
        self, seed: int = 0, *, adapted: bool = True, adapter: str = "default", **lora: Any
    ) -> None:
        super().__init__()
        torch.manual_seed(seed)
        layers = Layers()
        if adapted:
            # Random A and B, so that no gradient is zero.
            config = LoraConfig(r=3, target_modules=["query"], init_lora_weights=False, **lora)
            self.model: Any = get_peft_model(layers, config, adapter)
        else:
            self.model = layers

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return ((self.model(batch[0]) - batch[1]) ** 2).mean()

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("test_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self) -> Optimizer:
        return SGD([p for p in self.parameters() if p.requires_grad], lr=0.3, momentum=0.5)

    def weights(self) -> dict[str, Tensor]:
        return {n: p.detach().clone() for n, p in self.named_parameters() if p.requires_grad}


def rows(task: int, number: int = 4 * BATCH) -> TensorDataset:
    draw = torch.Generator().manual_seed(100 + task)
    x = torch.randn(number, 5, generator=draw)
    return TensorDataset(x, torch.tanh(x @ torch.randn(5, 2, generator=draw)))


def loader(data: TensorDataset) -> DataLoader:
    return DataLoader(data, batch_size=BATCH)


def fit(
    module: LightningModule,
    data: TensorDataset,
    callbacks: Sequence[Callback] = (),
    *,
    epochs: int = 2,
    ckpt_path: Path | None = None,
    **options: Any,
) -> Trainer:
    """One task, as a project would write it."""
    keeps = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=keeps,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, loader(data), ckpt_path=ckpt_path)
    return trainer

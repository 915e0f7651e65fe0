from __future__ import annotations

import pytest
from lightning.pytorch import LightningModule, Trainer
from tqdm.auto import tqdm

from kif_lightning.callbacks import TaskProgress, progress


class Widget(tqdm):
    """As tqdm.auto's class is in a notebook that can show widgets."""


def test_a_notebooks_widget_is_live(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not progress.is_live()
    monkeypatch.setattr(Widget, "__module__", "tqdm.notebook")
    monkeypatch.setattr(progress, "tqdm", Widget)
    assert progress.is_live()


@pytest.mark.parametrize("hidden", [True, False])
def test_a_hidden_bar_shows_nothing(hidden: bool, capsys: pytest.CaptureFixture[str]) -> None:
    shown = TaskProgress(label="task", hidden=hidden)
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    trainer.fit_loop.max_epochs = 1
    shown.on_train_start(trainer, LightningModule())
    shown.on_train_batch_end()
    shown.on_train_end(trainer, LightningModule())
    assert ("task train" in capsys.readouterr().err) is not hidden

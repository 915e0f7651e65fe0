from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch import LightningModule
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
    trainer: Any = SimpleNamespace(num_test_batches=[1])
    shown.on_test_start(trainer, LightningModule())
    shown.on_test_batch_end()
    shown.on_test_end(trainer, LightningModule())
    assert ("task evaluate" in capsys.readouterr().err) is not hidden

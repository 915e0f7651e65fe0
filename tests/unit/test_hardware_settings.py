"""evaluation.precision and backbone.compile in a whole config: stamped, used, refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kif_lightning import launch
from kif_lightning.assembly import build_parts
from kif_lightning.backbones import loading
from kif_lightning.errors import UserError
from kif_lightning.reporting.console import RunConsole
from tests.helpers.streams import tiny_config
from tests.helpers.tiny import save_toy_tasks


@pytest.fixture
def config(tiny_t5: Path, tmp_path: Path) -> Any:
    data = save_toy_tasks(tmp_path / "data")
    return lambda *overrides: tiny_config(tiny_t5, data, tmp_path / "run", *overrides)


@pytest.mark.parametrize(
    ("overrides", "training", "evaluation"),
    [
        ([], "32-true", "32-true"),
        (["evaluation.precision=bf16-mixed"], "32-true", "bf16-mixed"),
        (["trainer.precision=bf16-mixed"], "bf16-mixed", "bf16-mixed"),
        (["trainer.precision=bf16-mixed", "evaluation.precision=32-true"], "bf16-mixed", "32-true"),
    ],
)
def test_each_trainer_has_its_precision(
    config: Any, overrides: list[str], training: str, evaluation: str
) -> None:
    runner = launch.new_runner(config("method=seq_lora", *overrides), RunConsole())
    assert runner.new_trainer([], training=True).precision == training
    assert runner.new_trainer([], training=False).precision == evaluation


def test_an_unknown_precision_is_refused(config: Any) -> None:
    with pytest.raises(UserError, match=r"^evaluation\.precision must be .*, got '8bit'\.$"):
        build_parts(config("method=seq_lora", "evaluation.precision=8bit"))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["method=migu"], "a callback that listens to layers"),
        (["method=lwf"], "a penalty that runs the model with other weights"),
        (["method=l2p"], "PromptPool, which changes the model"),
        (["method=kif_full", "trainer=sharded"], "weights spread over devices"),
    ],
)
def test_what_cannot_be_compiled_is_refused(
    config: Any, overrides: list[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "require_compiler", lambda: None)
    with pytest.raises(UserError, match=rf"compiled .* {expected}.*backbone\.compile=false\.$"):
        build_parts(config(*overrides, "backbone.compile=true"))


@pytest.mark.parametrize("method", ["kif", "kif_full", "seq_lora", "ewc"])
def test_what_can_be_is_not(config: Any, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "require_compiler", lambda: None)
    assert build_parts(config(f"method={method}", "backbone.compile=true")).backbone

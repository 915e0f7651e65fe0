"""Settings of how a run computes, in a whole config: used, stamped, refused, told together."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from rich.console import Console

from kif_lightning import launch
from kif_lightning.assembly import build_parts
from kif_lightning.backbones import Seq2SeqBackbone, loading
from kif_lightning.batches import ELSEWHERE, PASS_OVERHEAD
from kif_lightning.errors import UserError
from kif_lightning.reporting.console import RunConsole
from kif_lightning.runner import StreamRunner
from tests.helpers.streams import run_stream, tiny_config
from tests.helpers.tiny import save_toy_tasks

MEANS = "method.fixes.loss_mean=micro_batches"


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


@pytest.mark.parametrize("training", ["bf16-true", "16-true", "64-true"])
def test_evaluation_has_its_own_precision_only_beside_float32_weights(
    config: Any, training: str
) -> None:
    precisions = [f"trainer.precision={training}", "evaluation.precision=32-true"]
    told = rf"^evaluation\.precision=32-true needs trainer\.precision=32-true, .*got {training}: "
    with pytest.raises(UserError, match=told):
        build_parts(config("method=seq_lora", *precisions))
    assert build_parts(config("method=seq_lora", precisions[0]))


def test_weights_in_bfloat16_are_not_evaluated_in_float32(config: Any) -> None:
    weights = ("method=seq_lora", "backbone.dtype=bfloat16")
    with pytest.raises(UserError, match=r"needs backbone\.dtype=float32, got bfloat16: "):
        build_parts(config(*weights, "evaluation.precision=32-true"))
    assert build_parts(config(*weights, "evaluation.precision=bf16-mixed"))


def test_mistakes_in_plain_settings_are_told_together(config: Any) -> None:
    wrong = {
        "evaluation.matrix": "half",
        "evaluation.decode": "guess",
        "evaluation.batch_size": "0",
        "evaluation.batch_tokens": "0",
        "evaluation.precision": "8bit",
        "optim.length_grouping": "by_mood",
        "optim.fused": "maybe",
        "optim.lr": "-1",
    }
    with pytest.raises(UserError) as error:
        build_parts(config("method=seq_lora", *[f"{key}={value}" for key, value in wrong.items()]))
    lines = str(error.value).splitlines()
    assert len(lines) == len(wrong)
    assert {line.split(" must ")[0] for line in lines} == set(wrong)


def built(config: DictConfig) -> StreamRunner:
    runner = launch.new_runner(config, RunConsole(Console(file=io.StringIO())))
    runner.build()
    return runner


def test_the_trainings_precision_decides_on_the_optimizer(
    config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning clips no gradients of a fused one in mixed precision."""
    clipped = ("method=seq_lora", "optim.gradient_clip=1.0")
    mixed = (*clipped, "trainer.precision=bf16-mixed", "evaluation.precision=32-true")
    full = (*clipped, "evaluation.precision=bf16-mixed")
    with pytest.raises(UserError, match=r"not go with optim\.gradient_clip in mixed precision"):
        built(config(*mixed, "optim.fused=true"))
    assert built(config(*full, "optim.fused=true"))._uses_fused()
    monkeypatch.setattr("kif_lightning.module.FUSED_FROM", 1)
    assert not built(config(*mixed))._uses_fused()
    assert built(config(*full))._uses_fused()


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["method=seq_lora"], "within_step"),
        (["method=seq_lora", MEANS], "none"),
        (["method=seq_lora", MEANS, "optim.length_grouping=across_steps"], "across_steps"),
    ],
)
def test_means_of_micro_batches_keep_their_rows(
    config: Any, overrides: list[str], expected: str
) -> None:
    runner = launch.new_runner(config(*overrides, "optim.micro_batch_size=2"), RunConsole())
    assert runner.data.length_grouping == runner.options.length_grouping == expected


def test_a_grouping_that_is_not_used_is_told(config: Any) -> None:
    _, said = run_stream(config("method=seq_lora", MEANS))
    assert "optim.length_grouping=within_step is not used" in said


@pytest.mark.parametrize(
    ("overrides", "device", "expected"),
    [
        (["method=seq_lora"], "cpu", PASS_OVERHEAD["cpu"]),
        (["method=seq_lora"], "cuda", ELSEWHERE),
        (["method=seq_lora"], "mps", ELSEWHERE),
        (["method=migu"], "cpu", None),  # masks the gradient
        (["method=seq_lora", MEANS], "cpu", None),
        (["method=kif_full", "trainer=sharded"], "cuda", None),
    ],
)
def test_what_parting_a_micro_batch_costs(
    config: Any, overrides: list[str], device: str, expected: int | None
) -> None:
    runner = launch.new_runner(config(*overrides), RunConsole())
    runner.device = torch.device(device)
    assert runner._pass_overhead() == expected
    assert PASS_OVERHEAD["cpu"] < ELSEWHERE, "an accelerator hardly notices some tokens"


@pytest.mark.parametrize(("decode", "refused"), [("rank_labels", True), ("generate", False)])
def test_labels_that_cannot_be_ranked_are_told_before_training(
    config: Any, decode: str, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = Seq2SeqBackbone.load_model

    def flexible(self: Seq2SeqBackbone) -> Any:
        model: Any = load(self)
        model.config._attn_implementation = "flex_attention"
        return model

    monkeypatch.setattr(Seq2SeqBackbone, "load_model", flexible)
    settings = config("method=seq_lora", f"evaluation.decode={decode}")
    if not refused:
        assert built(settings)
        return
    with pytest.raises(UserError, match=r"rank_labels needs attention .* got flex_attention"):
        built(settings)


def test_the_stamp_says_how_it_was_computed(config: Any) -> None:
    results, _ = run_stream(config("method=seq_lora"))
    plain = {
        "evaluation_precision": "32-true",
        "fused_optimizer": False,
        "decode": {"colour": "generate", "shape": "generate"},
        "length_grouping": "within_step",
        "backbone_dtype": "float32",
        "attention": "sdpa",
        "compile": False,
    }
    assert plain.items() <= results["protocol"].items()


def test_the_stamp_says_what_was_asked_for(config: Any) -> None:
    results, _ = run_stream(
        config(
            *("method=seq_lora", "evaluation.precision=bf16-mixed", "optim.fused=true"),
            *("evaluation.decode=rank_labels", "backbone.attention=eager"),
        )
    )
    asked = {
        "precision": "32-true",
        "evaluation_precision": "bf16-mixed",
        "fused_optimizer": True,
        "decode": {"colour": "rank_labels", "shape": "rank_labels"},
        "attention": "eager",
    }
    assert asked.items() <= results["protocol"].items()


def test_a_logger_gets_each_steps_loss_and_learning_rate(config: Any, tmp_path: Path) -> None:
    run_stream(config("method=seq_lora", "logger=csv", "optim.lr=0.1", "optim.batch_size=8"))
    (path,) = (tmp_path / "run").rglob("metrics.csv")
    with path.open() as file:
        lines = [line for line in csv.DictReader(file) if line["train/loss"]]
    # 16 rows a task: 2 steps each, whose learning rate falls to nothing.
    assert [float(line["running_step"]) for line in lines] == [1, 2, 3, 4]
    rates = [float(line["train/learning_rate"]) for line in lines]
    assert rates == pytest.approx([0.1, 0.05, 0.1, 0.05])
    assert all(0 < float(line["train/loss"]) < 20 for line in lines)


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

"""Whole runs with the weights spread over two processes, against one process that has them all.

All that two processes do is done by one pair of them: they take long to start.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh

from kif_lightning import launch, ranks
from kif_lightning.backbones import DecoderBackbone
from kif_lightning.errors import UserError
from kif_lightning.interfaces import Row
from kif_lightning.interruption import Interrupted
from kif_lightning.reporting.console import RunConsole
from kif_lightning.runner import StreamRunner
from kif_lightning.sharding import shard_model
from tests.helpers.fits import assert_near
from tests.helpers.processes import in_processes
from tests.helpers.streams import run_stream, tiny_config
from tests.helpers.tiny import save_tiny_llama, save_tiny_t5, save_toy_tasks

SHARDED = ["trainer=sharded", "trainer.devices=2"]
COMMON = ["examine_data=false", "optim.lr=0.01", "lora.dropout=0", "benchmark.order=[colour,shape]"]
LOOKS = ["method.selection.num_held_out=4", "method.selection.every_steps=1"]
MEMORY = ["method.memory.share=0.3"]
METHODS = {
    "full": ["method=kif_full", "evaluation.untrained=true"],
    "decoder": ["method=kif_full"],
    "selected": ["method=kif_official", "method/penalty=none", *LOOKS, "optim.epochs=2"],
    "replayed": ["method=kif_m", "method/penalty=none", *MEMORY],
    "rehearsed": ["method=replay", *MEMORY],
    "clipped": ["method=seq_lora", "optim.gradient_clip=0.1", "optim.micro_batch_size=2"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, and a model without dropout: two processes would draw otherwise than one."""
    folder = tmp_path_factory.mktemp("sharded")
    model = save_tiny_t5(folder / "t5")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "dropout_rate": 0.0}))
    save_tiny_llama(folder / "llama")
    save_toy_tasks(folder / "data")
    return folder


def config(folder: Path, name: str, *overrides: str) -> Any:
    model = folder / ("llama" if name.startswith("decoder") else "t5")
    return tiny_config(model, folder / "data", folder / name, *COMMON, *overrides)


def answers(folder: Path, *, rank: int, spread: bool) -> list[str]:
    """To a prompt of each rank's own, the longer the higher the rank."""
    backbone = DecoderBackbone(name="tiny", hub_name="tiny/llama", path=str(folder / "llama"))
    model = backbone.load_model()
    if spread:
        shard_model(model, init_device_mesh("cpu", (2,)))
    row = Row(id="0", input="red " * (rank + 1), output="good")
    batch = backbone.generation_batch([backbone.encode(row)])
    return backbone.generate(model, batch, 2 + 3 * rank)


def work(folder: Path) -> dict[str, Any]:
    """All runs, in one of two processes; the last one is stopped within the second task."""
    for name, method in METHODS.items():
        run_stream(config(folder, f"{name}_two", *method, *SHARDED))
    learn = StreamRunner._learn

    def stopped(self: StreamRunner, task_index: int, training: Path | None) -> None:
        if task_index == 1 and ranks.rank() == 1:
            self.interruption.requested = "SIGTERM"
        learn(self, task_index, training)

    cut = config(folder, "cut", *METHODS["full"], *SHARDED)
    with patch.object(StreamRunner, "_learn", stopped), pytest.raises(Interrupted):
        run_stream(cut)
    assert not (folder / "cut" / "results.json").exists()
    said = run_stream(cut)[1]
    return {"said": said, "answers": answers(folder, rank=ranks.rank(), spread=True)}


@pytest.fixture(scope="module")
def both(folder: Path) -> list[dict[str, Any]]:
    """What the resumed run said and the last answers, in each process."""
    return in_processes(work, folder, join=False, seconds=240)


def contents(run: Path, part: str) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted((run / part).glob("*.json*"))}


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_sharded_run_ends_as_one_in_one_process(name: str, folder: Path, both: list[Any]) -> None:
    results, _ = run_stream(config(folder, f"{name}_one", *METHODS[name]))
    one, two = folder / f"{name}_one", folder / f"{name}_two"
    found = json.loads((two / "results.json").read_text())
    assert found["score_matrix"] == results["score_matrix"]
    assert found["metrics"] == results["metrics"]
    for count in ("trainable_weights", "frozen_weights", "learnt_weights"):
        assert found["cost"][count] == results["cost"][count]
    for ours, theirs in zip(found["phases"], results["phases"], strict=True):
        assert ours["last_loss"] == pytest.approx(theirs["last_loss"], rel=1e-5)
        assert ours["optimizer_steps"] == theirs["optimizer_steps"]
    predictions = contents(one, "predictions")
    assert len(predictions) >= 3
    assert contents(two, "predictions") == predictions
    assert contents(two, "importance").keys() == contents(one, "importance").keys()
    # The adapter's folder, as a model hub would have it, and the state that a run goes on from.
    assert {p.name for p in (two / "adapter").iterdir()} == {
        p.name for p in (one / "adapter").iterdir()
    }
    for path in (*one.glob("adapter/*.safetensors"), *one.glob("state/*/*.safetensors")):
        assert_near(load_file(two / path.relative_to(one)), load_file(path), 1e-5)


@pytest.mark.slow
def test_a_run_stopped_within_a_task_begins_it_again(folder: Path, both: list[Any]) -> None:
    whole, cut = folder / "full_two", folder / "cut"
    first, second = (each["said"] for each in both)
    assert "Resuming after the end of task 1 of 2." in first
    assert "the state is saved between tasks alone" in first
    assert "Resuming" in second  # this test's console speaks in both
    assert not list(cut.glob("state/task_*"))
    name = "adapter/model.safetensors"
    assert (cut / name).read_bytes() == (whole / name).read_bytes()
    assert contents(cut, "predictions") == contents(whole, "predictions")


@pytest.mark.slow
def test_a_rank_with_its_answers_waits_for_the_others(folder: Path, both: list[Any]) -> None:
    for rank, each in enumerate(both):
        assert each["answers"] == answers(folder, rank=rank, spread=False)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["method=kif"], "OrthonormalityPenalty need whole weights"),
        (["method=ewc"], "ElasticWeights need"),
        (["method=lwf"], "Distillation need"),
        (["method=o_lora"], "TaskLoras and CrossTaskOrthogonality need"),
        (["method=l2p"], "PromptPool and KeyPull need"),
        (["method=migu"], "MagnitudeMask need"),
        (["method=recurrent_kif"], "RecurrentFusion need"),
        (["method=kif_fitted", "method/penalty=none"], "FittedFusion need"),
        (["method=lfpt5"], "PseudoSamples need"),
        (["method=kif_full", "trainer.precision=16-mixed"], "use bf16-mixed or 32-true"),
        (["method=kif_full", "trainer.devices=1"], "over several devices, got one"),
        (["method=kif_full", "trainer.strategy=fsdp"], "trainer=sharded .*got .*=fsdp"),
        (["method=kif_full", "trainer.strategy=deepspeed_stage_3"], "got .*=deepspeed_stage_3"),
        (["method=kif_full", "trainer.strategy={_target_: x}"], "must be a name, got"),
    ],
)
def test_what_cannot_be_spread_is_refused_before_a_file_is_written(
    overrides: list[str], expected: str, folder: Path, tmp_path: Path
) -> None:
    refused = config(folder, str(tmp_path / "run"), *SHARDED, *overrides)
    with pytest.raises(UserError, match=expected):
        launch.run(refused, RunConsole())
    assert not (tmp_path / "run").exists()

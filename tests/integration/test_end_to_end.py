"""Whole runs on tiny models: files, determinism, resume, refusals."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from peft import PeftModel
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from kif_lightning import launch
from kif_lightning.errors import UserError
from kif_lightning.reporting.console import RunConsole
from kif_lightning.runner import StreamRunner
from tests.helpers import streams

FAMILIES = {
    "seq2seq": ("t5_small", "tiny_t5", AutoModelForSeq2SeqLM),
    "decoder": ("llama2_7b", "tiny_llama", AutoModelForCausalLM),
}


def composed(
    request: pytest.FixtureRequest, run_dir: Path, *overrides: str, family: str = "seq2seq"
) -> DictConfig:
    backbone, fixture, _ = FAMILIES[family]
    return streams.composed(
        f"backbone={backbone}",
        f"backbone.path={request.getfixturevalue(fixture)}",
        "backbone.dtype=float32",
        f"benchmark.data_dir={request.getfixturevalue('toy_data')}",
        "benchmark.order=[colour,shape]",
        f"run_dir={run_dir}",
        "trainer.accelerator=cpu",
        "report=false",
        *overrides,
    )


def run(config: DictConfig) -> dict[str, Any]:
    results = launch.run(config, RunConsole(Console(file=io.StringIO(), width=120)))
    assert results is not None
    return results


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_leaves_what_it_promises(
    family: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    results = run(composed(request, tmp_path / "run", family=family))
    folder = tmp_path / "run"
    text = (folder / "results.json").read_text()
    assert json.loads(text) == results
    assert {"score_matrix", "metrics", "tasks", "protocol", "cost"} <= results.keys()
    assert str(tmp_path.parent) not in text, "no path of the machine"
    assert results["score_matrix"][0][1] is None
    for name in (
        "after_01_colour__on_01_colour",
        "after_02_shape__on_01_colour",
        "after_02_shape__on_02_shape",
    ):
        lines = (folder / "predictions" / f"{name}.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        assert len(rows) == 6
        after, on = int(name[6:8]) - 1, int(name.split("__on_")[1][:2]) - 1
        mean = sum(row["score"] for row in rows) / len(rows)
        assert results["score_matrix"][after][on] == pytest.approx(mean)
    boundary = json.loads((folder / "importance" / "02_shape_fusion.json").read_text())
    columns = ("score", "current", "previous", "accumulated", "weight", "classes")
    assert {len(boundary[column]) for column in columns} == {len(boundary["unit_ids"])}
    _, fixture, auto_class = FAMILIES[family]
    base = auto_class.from_pretrained(request.getfixturevalue(fixture))
    shipped = PeftModel.from_pretrained(base, str(folder / "adapter"))
    state = load_file(folder / "state" / "after_002" / "tensors.safetensors")
    learnt = {name.rpartition("/")[2]: tensor for name, tensor in state.items() if "lora" in name}
    loaded = {n: p for n, p in shipped.named_parameters() if "lora" in n}
    assert len(learnt) == len(loaded)
    for name, parameter in loaded.items():
        plain = name.removeprefix("base_model.model.").replace(".default", "")
        assert torch.equal(parameter, learnt[plain])


def test_same_seed_same_bits_and_a_resumed_run_is_no_other(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bits(name: str) -> tuple[Any, bytes, list[str]]:
        folder = tmp_path / name
        matrix = json.loads((folder / "results.json").read_text())["score_matrix"]
        predictions = [p.read_text() for p in sorted((folder / "predictions").iterdir())]
        return matrix, (folder / "adapter/adapter_model.safetensors").read_bytes(), predictions

    run(composed(request, tmp_path / "one"))
    run(composed(request, tmp_path / "two"))
    run(composed(request, tmp_path / "other", "seed=2"))
    learn = StreamRunner._learn

    def power_fails(self: StreamRunner, task_index: int, training: Any) -> None:
        if task_index == 1:
            raise RuntimeError("power")
        learn(self, task_index, training)

    with monkeypatch.context() as patch:
        patch.setattr(StreamRunner, "_learn", power_fails)
        with pytest.raises(RuntimeError, match="power"):
            run(composed(request, tmp_path / "cut"))
    assert not (tmp_path / "cut" / "results.json").exists()
    run(composed(request, tmp_path / "cut"))
    assert bits("one") == bits("two") == bits("cut")
    assert bits("one")[1] != bits("other")[1]


def test_a_finished_run_is_shown_and_other_settings_are_refused(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    options = ("method=seq_lora", "evaluation.untrained=true", "evaluation.next_task=true")
    results = run(composed(request, folder, *options))
    assert results["score_matrix"][0][1] is not None, "the next task, zero-shot"
    assert "forward_transfer_zero_shot" in results["metrics"]
    with pytest.raises(UserError, match=r"optim\.lr: 0\.0003 there, 0\.5 now"):
        run(composed(request, folder, *options, "optim.lr=0.5"))

    def no_work(*args: Any) -> Any:
        raise AssertionError("a finished run must not be computed again")

    monkeypatch.setattr(launch, "build_parts", no_work)
    assert run(composed(request, folder, *options)) == results


def test_full_fine_tuning_learns_the_toy_task(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    results = run(
        composed(
            request,
            tmp_path / "run",
            "method=seq_full",
            "optim.lr=0.1",
            "optim.epochs=20",
            "benchmark.order=[colour]",
        )
    )
    assert results["metrics"]["average_performance"] >= 50, "answers in the task's words"
    assert (tmp_path / "run" / "adapter" / "model.safetensors").is_file()


@pytest.mark.parametrize("method", ["kif_matrix", "kif_full", "kif_ia3", "kif_static", "mean"])
def test_every_variant_runs(method: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    results = run(composed(request, tmp_path / "run", f"method={method}", "benchmark.test_rows=2"))
    assert len(results["score_matrix"]) == 2


def test_the_official_variant_holds_rows_out(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    results = run(
        composed(
            request,
            tmp_path / "run",
            "method=kif_official",
            "method.selection.num_held_out=4",
            "method.selection.every_steps=1",
            "optim.batch_size=4",
            "optim.micro_batch_size=2",
        )
    )
    assert [phase["train_rows"] for phase in results["phases"]] == [12, 12]
    assert results["protocol"]["gradient_clip"] == 1.0
    assert results["protocol"]["prompt_and_decoding"]["truncation"] == "right"


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["method/rule=none"], "needs a rule and units"),
        (["method/adapter=ia3"], "use method/penalty=none"),
        (["method/adapter=full", "method/penalty=none"], "Use method/units=matrix"),
        (["backbone.lora_targets=[no_such]"], "its linear layers are"),
    ],
)
def test_parts_that_do_not_fit_are_refused_before_anything_is_written(
    overrides: list[str], told: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=told):
        run(composed(request, tmp_path / "run", *overrides))
    assert not (tmp_path / "run").exists()


def test_a_plan_writes_nothing(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    config = composed(request, tmp_path / "run", "plan=true")
    output = io.StringIO()
    assert launch.run(config, RunConsole(Console(file=output, width=120))) is None
    assert "Estimated time" in output.getvalue()
    assert not (tmp_path / "run").exists()

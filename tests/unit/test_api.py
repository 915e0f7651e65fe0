from __future__ import annotations

import gc
import json
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from lightning.pytorch.trainer.connectors import accelerator_connector
from omegaconf import OmegaConf

from kif_lightning import api, launch
from kif_lightning.checkup import named_backbone
from kif_lightning.errors import UserError
from kif_lightning.whatif import run_config
from tests.helpers.fake_runs import STAND_INS, fake_run

LITTLE = (
    *("+experiment=long_seq_t5", "benchmark.order=[mini_imdb,mini_cb]"),
    *("benchmark.train_rows=8", "benchmark.test_rows=4"),
)


def test_importing_the_package_brings_neither_torch_nor_hydra() -> None:
    code = (
        "import sys, kif_lightning; "
        "sys.exit(bool({'torch', 'hydra', 'pandas', 'lightning'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_lazy_name_is_there() -> None:
    import kif_lightning

    assert {"run", "compose", "Run", "pack", "extend", "load"} <= set(dir(kif_lightning))
    for name in dir(kif_lightning):
        getattr(kif_lightning, name)
    with pytest.raises(AttributeError, match="no attribute 'runn'"):
        kif_lightning.runn  # noqa: B018


def test_compose_is_what_the_command_line_composes() -> None:
    config = api.compose(*LITTLE, "method=seq_lora")
    assert config.method.name == "seq_lora"
    assert config.benchmark.train_rows == 8
    assert config.experiment_name == "long_seq_t5"


@pytest.mark.parametrize("wrong", ["method=kiff", "no_such_key=1", "method=kif,seq_lora", "a=[1"])
def test_a_wrong_override_is_a_users_mistake_in_one_line(wrong: str) -> None:
    with pytest.raises(UserError, match=wrong.partition("=")[0]) as mistake:
        api.compose(wrong)
    assert "\n" not in str(mistake.value)


def test_composing_leaves_the_callers_hydra_alone(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("a: 1\n")
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        before = GlobalHydra.instance().hydra
        api.compose(*LITTLE)
        with pytest.raises(UserError):
            api.compose("method=kiff")
        assert GlobalHydra.instance().hydra is before
    assert not GlobalHydra.instance().is_initialized()


@pytest.mark.parametrize("text", ["+sweep=local", "hydra.verbose=true", "hydra/launcher=basic"])
def test_a_sweep_is_no_call(text: str) -> None:
    with pytest.raises(UserError, match="One call is one run"):
        api.run(*LITTLE, text)


def test_all_that_composes_works_within_a_hydra_application(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("a: 1\n")
    (tmp_path / "config.yaml").write_text("{lora: {}, evaluation: {}, trainer: {}}\n")
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        assert run_config(tmp_path).trainer.devices == 1
        assert named_backbone("t5_nano") is not None


def test_a_config_of_elsewhere_is_refused(tmp_path: Path) -> None:
    config = api.compose(*LITTLE)
    OmegaConf.set_struct(config, False)
    del config["plan"]
    with pytest.raises(UserError, match="one without plan"):
        api.run(config, folder=tmp_path / "run")
    for build in (api.build_stream, api.build_parts):
        with pytest.raises(UserError, match="got dict"):
            build({"benchmark": {}})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("strategy", "told"), [("auto", "Several processes cannot"), ("ddp", "strategy=ddp cannot")]
)
def test_a_notebook_starts_no_processes(
    strategy: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accelerator_connector, "_IS_INTERACTIVE", True)
    more = ("trainer.devices=2", f"trainer.strategy={strategy}", "trainer.accelerator=cpu")
    with pytest.raises(UserError, match=told):
        api.run(*LITTLE, *more, folder=tmp_path / "run", quiet=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("rank", "quiet", "speaks"), [("0", False, True), ("0", True, False), ("1", False, False)]
)
def test_the_first_process_alone_speaks(
    rank: str, quiet: bool, speaks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", rank)
    assert launch.new_console(quiet=quiet).quiet is not speaks


def test_a_run_leaves_no_cycles_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever calls it: each model's memory is free before the next one is made."""
    left: list[weakref.ref[object]] = []

    class Part:
        def __init__(self) -> None:
            self.other = self

    def ran(*_: object) -> dict[str, object]:
        left.append(weakref.ref(Part()))
        return {}

    monkeypatch.setattr(launch, "run", ran)
    gc.disable()
    try:
        launch.run_cell(api.compose(*LITTLE), launch.new_console(quiet=True))
    finally:
        gc.enable()
    assert left[0]() is None


def test_the_stream_as_a_table() -> None:
    stream = api.build_stream(api.compose(*LITTLE))
    table = api.stream_table(stream)
    assert list(table["name"]) == ["mini_imdb", "mini_cb"]
    assert list(table["train_rows"]) == [8, 8]
    assert set(table["stand_ins"]) == {"stand-in data"}
    assert list(table["prompt"]) == [task.train[0].input for task in stream.tasks]


def test_settings_are_texts_or_one_config() -> None:
    config = api.compose(*LITTLE)
    with pytest.raises(UserError, match="one config alone, got DictConfig, str"):
        api.run(config, "seed=2")
    with pytest.raises(UserError, match="plan=true makes no run"):
        api.run(*LITTLE, "plan=true")


def test_a_stopped_command_is_an_interrupted_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> launch.Cell:
        raise SystemExit(75)

    monkeypatch.setattr(launch, "run_cell", stopped)
    with pytest.raises(KeyboardInterrupt, match="goes on from there"):
        api.run(*LITTLE, folder=tmp_path / "run", quiet=True)


def test_interrupting_the_report_stops_what_comes_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "run_cell", lambda *_: launch.Cell({}, asked_to_stop=True))
    with pytest.raises(KeyboardInterrupt):
        api.run(*LITTLE, folder=tmp_path / "run", quiet=True)


def test_comparing_gives_every_number_in_full(tmp_path: Path) -> None:
    folders = [fake_run(tmp_path / name, seed=1, method=name) for name in ("kif", "seq_lora")]
    table = api.compare(api.Run.open(folders[0]), folders[1])
    for folder, row in zip(folders, table.to_dict("records"), strict=True):
        results = json.loads((folder / "results.json").read_text())
        assert row["folder"] == str(folder)
        assert row["stand_ins"] == "; ".join(STAND_INS)
        for name, value in results["metrics"].items():
            assert row[name] == value
    with pytest.raises(UserError, match="at least two"):
        api.compare(folders[0])


def test_real_runs_have_the_stamps_column_empty(tmp_path: Path) -> None:
    """Names that look like numbers stay texts; only metrics are left out where no run has them."""
    folders = [
        fake_run(tmp_path / name, method=name, stand_ins=stand_ins)
        for name, stand_ins in (("02", ()), ("nan", ()), ("seq_lora", STAND_INS))
    ]
    real = api.compare(*folders[:2])
    assert list(real["stand_ins"]) == ["", ""]
    assert list(real["method"]) == ["02", "nan"]
    assert list(real["seed"]) == [1, 1]
    assert "forward_transfer_zero_shot" not in real
    assert "peak_gpu_memory_bytes" in real
    assert real.attrs["stand_ins"] == ()
    mixed = api.compare(*folders, show_differences=True)
    assert sorted(mixed["stand_ins"]) == ["", "", "; ".join(STAND_INS)]
    assert mixed.attrs["stand_ins"] == STAND_INS


def test_runs_are_given_one_by_one(tmp_path: Path) -> None:
    folders = [fake_run(tmp_path / name, method=name) for name in ("kif", "seq_lora")]
    with pytest.raises(UserError, match=r"compare\(a, b\), got a list"):
        api.compare(folders)  # type: ignore[arg-type]


def test_a_baseline_must_be_among_the_compared(tmp_path: Path) -> None:
    folders = [fake_run(tmp_path / name, method=name, steps=2) for name in ("kif", "seq_lora")]
    with pytest.raises(UserError, match="ewc"):
        api.comparison_report(*folders, to=tmp_path / "out", baseline="ewc")


def test_the_doctors_findings_as_a_table(tmp_path: Path) -> None:
    row = '{"id": "0", "input": "Is it? ", "output": "yes"}\n'
    for split in ("train", "test"):
        (tmp_path / "task").mkdir(exist_ok=True)
        (tmp_path / "task" / f"{split}.jsonl").write_text(row)
    found = api.doctor(tmp_path)
    assert "error" in set(found["severity"])


def test_nothing_found_is_an_empty_table_of_the_same_columns() -> None:
    own_tasks = Path(__file__).parents[2] / "examples" / "own_tasks" / "tasks.yaml"
    found = api.doctor(own_tasks)
    assert found.empty
    assert "severity" in found

"""What a sweep tells of its failed cells, without running any."""

from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from kif_lightning import sweep
from kif_lightning.benchmarks.orders import resolve_order
from kif_lightning.errors import UserError
from kif_lightning.paths import conf_dir
from kif_lightning.sweep import SweepNotes, failures_told, require_plugin, run_noted
from tests.helpers.streams import composed

BeginCell = Callable[..., Path]


@pytest.fixture
def begin_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BeginCell]:
    """Begins a sweep in the main process; the function makes this the process of a cell."""
    token = sweep._present.set(None)
    monkeypatch.setattr("sys.argv", ["kif_lightning"])
    for variable in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(variable, raising=False)
    notes = SweepNotes()
    task = {"overrides": {"task": ["seed=1,2", "optim.lr=0.1", "plan=false"]}}
    notes.on_multirun_start(OmegaConf.create({"hydra": {**task, "sweep": {"dir": str(tmp_path)}}}))

    def begin(seed: int) -> Path:
        hydra = {
            "job": {"num": seed},
            "overrides": {"task": [f"seed={seed}", "optim.lr=0.1", "plan=False"]},
        }
        monkeypatch.setattr(sweep.HydraConfig, "get", lambda: OmegaConf.create(hydra))
        pickle.loads(pickle.dumps(notes)).on_job_start(config=None)  # noqa: S301
        return tmp_path / f"run{seed}"

    yield begin
    sweep._present.reset(token)


def end(error: BaseException | None) -> None:
    """A cell that ends so."""
    if error is not None:
        raise error


def told_at_the_end(capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    with pytest.raises(SystemExit) as ended, failures_told():
        pass
    return ended.value.code, capsys.readouterr().err


def test_failed_cells_are_named_and_others_are_not(
    begin_cell: BeginCell,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "run2.failed.json").write_text("{}")
    (tmp_path / "run7.failed.json").write_text("{}")  # of a sweep before
    (tmp_path / ".sweep_other").mkdir()
    (tmp_path / ".sweep_other" / "7.json").write_text('"seed=7: of a sweep beside"')
    errors = {1: UserError("Mend it."), 2: None, 3: ZeroDivisionError("by zero")}
    for seed, error in errors.items():
        folder = begin_cell(seed)
        run_noted(partial(end, error), find_folder=partial(Path, folder))
    status, told = told_at_the_end(capsys)
    assert status == 1
    assert told.splitlines() == [
        "2 cells of the sweep failed:",
        f"  seed=1 ({tmp_path / 'run1'}): Mend it.",
        f"  seed=3 ({tmp_path / 'run3'}): ZeroDivisionError: by zero",
    ]
    assert {path.name for path in tmp_path.iterdir()} == {
        *("run1.failed.json", "run3.failed.json", "run7.failed.json", ".sweep_other")
    }
    assert json.loads((tmp_path / "run3.failed.json").read_text()) == {
        "error": "ZeroDivisionError: by zero"
    }
    traced = [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR and r.exc_info]
    assert traced == ["This cell failed"]


def test_success_is_silent(begin_cell: BeginCell, tmp_path: Path) -> None:
    folder = begin_cell(1)
    seen: list[Path] = []
    with failures_told():
        run_noted(lambda: seen.extend(tmp_path.glob(".sweep_*/1.json")), find_folder=lambda: folder)
    assert len(seen) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_plan_keeps_no_record(begin_cell: BeginCell, tmp_path: Path) -> None:
    folder = begin_cell(1)
    error = UserError("Mend it.")
    run_noted(partial(end, error), find_folder=lambda: folder, keep_record=False)
    assert not list(tmp_path.glob("*.failed.json"))
    assert list(tmp_path.glob(".sweep_*/1.json"))


def test_a_cell_whose_folder_cannot_be_told(
    begin_cell: BeginCell, capsys: pytest.CaptureFixture[str]
) -> None:
    def unknown() -> Path:
        raise UserError("No such key.")

    begin_cell(1)
    ran: list[int] = []
    run_noted(lambda: ran.append(1), find_folder=unknown)
    assert ran == []
    assert told_at_the_end(capsys) == (1, "1 cell of the sweep failed:\n  seed=1: No such key.\n")


def test_a_killed_cell_counts_and_the_launchers_own_status_stays(
    begin_cell: BeginCell, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = begin_cell(1)
    with pytest.raises(SystemExit) as ended, failures_told():
        run_noted(partial(end, SystemExit(75)), find_folder=lambda: folder)
    assert ended.value.code == 75
    told = capsys.readouterr().err
    assert f"seed=1 ({folder}): began but did not end" in told


def test_only_the_first_rank_notes(
    begin_cell: BeginCell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_PROCID", "1")
    folder = begin_cell(1)
    run_noted(partial(end, UserError("Mend it.")), find_folder=lambda: folder)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_first_note(
    begin_cell: BeginCell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    def fill() -> None:
        monkeypatch.setattr("kif_lightning.storage.replacing", full)
        full()

    folder = begin_cell(1)
    run_noted(fill, find_folder=lambda: folder)
    status, told = told_at_the_end(capsys)
    assert status == 1
    assert "began but did not end" in told


def test_no_sweep_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    token = sweep._present.set(None)
    monkeypatch.setattr("sys.argv", ["kif_lightning", "seed=1"])
    with failures_told():
        pass
    with pytest.raises(SystemExit) as ended, failures_told():
        raise SystemExit(2)
    sweep._present.reset(token)
    assert ended.value.code == 2
    assert capsys.readouterr().err == ""


def test_a_missing_launcher_tells_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for argument in (
        *("+sweep=local", "+sweep=slurm", "sweep=local"),
        *("+sweep=[methods,local]", "+sweep=[ slurm , orders]"),
    ):
        with pytest.raises(UserError, match=r"pip install 'kif-lightning\[sweeps\]'"):
            require_plugin(["-m", argument])
    require_plugin(["-m", "method=sweep", "+sweep=own", "sweep", "+sweep=[methods,orders]"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    require_plugin(["+sweep=local"])


SHIPPED = sorted(path.stem for path in (Path(conf_dir()) / "sweep").glob("*.yaml"))
SWEEPS = [option for option in SHIPPED if option not in sweep.PLUGINS]


def test_every_launcher_has_its_plugin_and_no_sweep_changes_a_setting() -> None:
    assert set(sweep.PLUGINS) < set(SHIPPED)
    for option in SHIPPED:
        text = (Path(conf_dir()) / "sweep" / f"{option}.yaml").read_text()
        assert text.startswith("# @package _global_")
        config = OmegaConf.create(text)
        assert set(config) == {"hydra", *(["defaults"] if option in sweep.PLUGINS else [])}
        assert config.hydra.mode == "MULTIRUN"


def cells(*arguments: str) -> list[list[str]]:
    """The overrides of each cell, as Hydra makes them of a command line."""
    chosen = [argument for argument in arguments if argument.startswith("+sweep=")]
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        hydra = compose("config", overrides=chosen, return_hydra_config=True).hydra
    of_yaml = [f"{key}={value}" for key, value in hydra.sweeper.params.items()]
    parsed = OverridesParser.create().parse_overrides([*of_yaml, *arguments])
    return [list(cell) for batch in BasicSweeper.split_arguments(parsed, None) for cell in batch]


@pytest.mark.parametrize("option", [s for s in SWEEPS if s != "all_methods"])
def test_every_cell_of_a_shipped_sweep_composes(option: str) -> None:
    benchmark = "superni" if option == "orders_superni" else "long_sequence"
    found = cells(f"+sweep={option}", f"benchmark={benchmark}")
    assert len(found) > 1
    settings = set()
    for cell in found:
        with initialize_config_dir(conf_dir(), version_base="1.3"):
            config = compose("config", overrides=cell)
        settings.add(OmegaConf.to_yaml(config, resolve=True))
        order = config.benchmark.order
        assert resolve_order(order, config.benchmark.orders)[0] == order
    assert len(settings) == len(found), "no cell twice"


def test_the_documented_command_joins_methods_and_seeds() -> None:
    found = cells("+experiment=long_seq_t5", "+sweep=methods", "seed=1,2,3")
    pairs = {(cell[0], cell[-1]) for cell in found}
    assert len(pairs) == len(found)
    methods = {method for method, _ in pairs}
    assert pairs == {(m, f"seed={s}") for m in methods for s in (1, 2, 3)}
    assert {f"method={m}" for m in ("kif", "seq_lora", "replay", "mean", "per_task")} <= methods


def test_the_command_line_chooses_other_methods_and_sweeps_combine() -> None:
    found = cells("+sweep=[methods,orders]", "method=kif,ewc", "seed=1")
    configs = [composed(*cell) for cell in found]
    assert {(c.method.name, c.benchmark.order) for c in configs} == {
        (method, f"order{n}") for method in ("kif", "ewc") for n in (1, 2, 3)
    }
    assert len(configs) == 6


def test_the_end_of_a_sweep_says_how_to_compare(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"run_root": str(tmp_path), "experiment_name": "free", "plan": False}
    for run in ("one", "two"):
        SweepNotes().on_multirun_end(OmegaConf.create(config))
        assert capsys.readouterr().out == "", "one run is no comparison"
        (tmp_path / "free" / run).mkdir(parents=True)
        (tmp_path / "free" / run / "results.json").touch()
    SweepNotes().on_multirun_end(OmegaConf.create(config))
    assert capsys.readouterr().out == f"Compare the runs: kif compare {tmp_path / 'free'}\n"
    SweepNotes().on_multirun_end(OmegaConf.create({**config, "plan": True}))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("+experiment=a,b", False),
        ("experiment_name=a,b", False),
        ("+experiment=a", True),
        ("method=kif,ewc", True),
    ],
)
def test_no_folder_is_named_where_experiments_are_swept(
    given: str, told: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    token = sweep._present.set(None)
    for run in ("one", "two"):
        (tmp_path / "free" / run).mkdir(parents=True)
        (tmp_path / "free" / run / "results.json").touch()
    notes = SweepNotes()
    hydra = {"overrides": {"task": [given]}, "sweep": {"dir": str(tmp_path)}}
    notes.on_multirun_start(OmegaConf.create({"hydra": hydra}))
    sweep._present.reset(token)
    config = {"run_root": str(tmp_path), "experiment_name": "free", "plan": False}
    notes.on_multirun_end(OmegaConf.create(config))
    assert bool(capsys.readouterr().out) == told


@pytest.mark.parametrize("option", sorted(sweep.PLUGINS))
def test_the_launcher_accepts_the_shipped_options(option: str) -> None:
    pytest.importorskip(f"hydra_plugins.{sweep.PLUGINS[option]}", reason="extra [sweeps] absent")
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        config = compose("config", overrides=[f"+sweep={option}"], return_hydra_config=True)
    assert "sweep" not in config
    assert config.hydra.launcher._target_.startswith(f"hydra_plugins.{sweep.PLUGINS[option]}")

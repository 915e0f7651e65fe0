"""The first command on bundled parts: no hub, an empty home, and the stamp wherever results are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from kif_lightning.errors import UserError
from tests.helpers.streams import composed, run_stream

ROOT = Path(__file__).parents[2]
STAMP = ["stand-in data", "stand-in model"]


def call(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A process that knows no hub and no home."""
    home = cwd / "home"
    home.mkdir(exist_ok=True)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "XDG_"))}
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=cwd,
        env={**kept, "HOME": str(home), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def main_job(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The README's command, cut to two tasks and a few rows; (its folder, what it said)."""
    cwd = tmp_path_factory.mktemp("laptop")
    done = call(
        cwd,
        "kif_lightning",
        "+experiment=long_seq_t5",
        "benchmark.order=[mini_imdb,mini_sst2]",
        "benchmark.train_rows=16",
        "benchmark.test_rows=8",
        "run_dir=run",
        "logger=csv",
    )
    assert done.returncode == 0, done.stderr
    return cwd / "run", done.stdout


def test_it_runs_without_hub_and_home(main_job: tuple[Path, str]) -> None:
    results = json.loads((main_job[0] / "results.json").read_text())
    assert len(results["score_matrix"]) == 2
    assert results["protocol"]["backbone"] == "t5_nano"
    assert results["protocol"]["weights"]["source"] == "bundled"
    assert results["protocol"]["benchmark"] == "long_sequence_mini"


def test_the_stamp_is_wherever_results_are(main_job: tuple[Path, str]) -> None:
    folder, said = main_job
    for title in ("Score matrix (percent)", "Transfer metrics"):
        lines = [line for line in said.splitlines() if title in line]
        assert lines
        assert all("stand-in data and stand-in model" in line for line in lines)
    results = json.loads((folder / "results.json").read_text())
    assert results["stand_ins"] == STAMP
    importances = list((folder / "importance").iterdir())
    assert len(importances) == 2
    assert all(json.loads(path.read_text())["stand_ins"] == STAMP for path in importances)
    for path in (folder / "predictions").iterdir():
        for line in path.read_text().splitlines():
            assert json.loads(line)["stand_ins"] == STAMP
    card = (folder / "adapter" / "README.md").read_text()
    assert "stand-in data and stand-in model" in card
    (logged,) = folder.glob("logs/**/hparams.yaml")
    assert OmegaConf.load(logged).stand_ins == STAMP


def test_the_adapter_goes_onto_the_bundled_model(main_job: tuple[Path, str]) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSeq2SeqLM

    from kif_lightning.backbones import bundled_folder

    base = AutoModelForSeq2SeqLM.from_pretrained(bundled_folder("t5_nano"))
    model = PeftModel.from_pretrained(base, main_job[0] / "adapter")
    assert model.peft_config["default"].base_model_name_or_path == "kif-lightning/t5_nano"


def test_without_a_hub_the_papers_setting_tells_what_is_missing(tmp_path: Path) -> None:
    started = time.monotonic()
    done = call(tmp_path, "kif_lightning", "+experiment=paper/long_seq_t5_large")
    assert done.returncode == 2
    (line,) = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    for part in (
        "rows of benchmark long_sequence",
        "google-t5/t5-large",
        "benchmark.data_dir=FOLDER",
        "backbone.path=FOLDER",
        "+experiment=long_seq_t5",
    ):
        assert part in line
    assert time.monotonic() - started < 20
    assert [path.name for path in tmp_path.iterdir()] == ["home"], "nothing was written"
    assert "Traceback" not in done.stdout + done.stderr


def test_with_rows_but_no_model_the_model_is_named(
    tmp_path: Path, toy_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    config = composed(
        "+experiment=paper/long_seq_t5_base",
        f"benchmark.data_dir={toy_data}",
        "benchmark.order=[colour]",
        f"run_dir={tmp_path / 'run'}",
    )
    with pytest.raises(UserError) as error:
        run_stream(config)
    said = str(error.value)
    assert "google-t5/t5-base" in said
    assert "backbone=t5_nano" in said
    assert "rows of benchmark" not in said
    assert not (tmp_path / "run").exists()


def test_the_experiment_takes_other_parts(tmp_path: Path, tiny_t5: Path, toy_data: Path) -> None:
    config = composed(
        "+experiment=long_seq_t5",
        "benchmark=long_sequence",
        f"benchmark.data_dir={toy_data}",
        "benchmark.order=[colour]",
        "backbone=t5_small",
        f"backbone.path={tiny_t5}",
        "trainer.accelerator=cpu",
        f"run_dir={tmp_path / 'run'}",
    )
    _, said = run_stream(config)
    results: Any = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["stand_ins"] == []
    assert "stand-in" not in said


def test_the_wheel_holds_configs_and_model_and_no_more_than_12_megabytes(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stat().st_size < 12e6
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    assert {
        "kif_lightning/conf/config.yaml",
        "kif_lightning/conf/experiment/long_seq_t5.yaml",
        "kif_lightning/backbones/t5_nano/model.safetensors",
        "kif_lightning/backbones/t5_nano/tokenizer.json",
    } <= names
    assert not [name for name in names if name.startswith(("experiments/", "tests/"))]

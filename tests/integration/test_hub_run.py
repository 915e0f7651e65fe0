"""``benchmark.source=hub``: a stream from a mirror folder, as the command line runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from kif_lightning.assembly import build_parts
from kif_lightning.errors import UserError
from tests.helpers.mirrors import save_json_lines, save_parquet_set
from tests.helpers.streams import composed, run_stream


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    """sst2 and rte of GLUE, and two tasks of SuperNI, a few rows each."""
    sentence = [{"sentence": f"film {i} ", "label": i % 2} for i in range(60)]
    pair = [{"sentence1": f"It is {i}.", "sentence2": f"{i}?", "label": i % 2} for i in range(60)]
    save_parquet_set(
        tmp_path / "mirror" / "nyu-mll" / "glue",
        {
            "sst2": {"train": sentence[:40], "validation": sentence[40:]},
            "rte": {"train": pair[:40], "validation": pair[40:52]},
        },
    )
    for name in ("task363_sst2_polarity_classification", "task591_sciq_answer_generation"):
        records = [
            {"task_name": name, "id": f"{i}", "definition": "Say it.", "inputs": f"word {i}",
             "targets": ("POS", "NEG")[i % 2]}
            for i in range(40)
        ]  # fmt: skip
        folder = tmp_path / "mirror" / "Muennighoff" / "natural-instructions" / "train"
        save_json_lines(folder / f"{name}_train.jsonl", records)
    return tmp_path / "mirror"


def config(model: Path, tmp_path: Path, *overrides: str) -> DictConfig:
    settings = [
        "backbone=t5_base",
        f"backbone.path={model}",
        "benchmark.source=hub",
        "trainer.accelerator=cpu",
        "method=seq_lora",
        "report=false",
        f"run_dir={tmp_path / 'run'}",
    ]
    return composed(*settings, *overrides)


def test_a_stream_of_a_mirrors_rows(tiny_t5: Path, mirror: Path, tmp_path: Path) -> None:
    words = [f"benchmark.mirror={mirror}", "benchmark.order=[rte,sst2]"]
    results, _ = run_stream(config(tiny_t5, tmp_path, *words))
    assert results["protocol"]["rows"] == {
        "rte": {"train": 40, "test": 12},
        "sst2": {"train": 40, "test": 20},
    }
    source = results["protocol"]["data_source"]
    glue = {"repository": "nyu-mll/glue", "revision": None}  # of a copy it is not known
    assert source == {
        "source": "hub",
        "size": "1000_per_task",
        "draw_seed": 0,
        "mirror": True,
        "data_sets": {name: {**glue, "config": name} for name in ("rte", "sst2")},
    }
    assert results["stand_ins"] == []


def test_the_rows_do_not_depend_on_the_runs_seed(
    tiny_t5: Path, mirror: Path, tmp_path: Path
) -> None:
    def drawn(*overrides: str) -> Any:
        words = [f"benchmark.mirror={mirror}", "benchmark=superni", "benchmark.order=[task363]"]
        (task,) = build_parts(config(tiny_t5, tmp_path, *words, *overrides)).benchmark.tasks
        return task

    assert drawn("seed=1").sha256 == drawn("seed=2").sha256
    assert drawn("seed=1").sha256 != drawn("benchmark.draw_seed=1").sha256
    task = drawn()
    assert (task.kind, task.metric) == ("classification", "exact_match")
    assert task.labels == ("NEG", "POS")
    assert task.test[0].input.startswith("[INS] Say it.\n [IN] word ")


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["benchmark.data_dir=FOLDER"], "benchmark.data_dir is for benchmark.source=local"),
        (["benchmark.source=local", "benchmark.mirror=FOLDER"], "benchmark.mirror is for"),
        (["benchmark.source=local", "benchmark.size=1000_per_class"], "benchmark.size is for"),
        (["benchmark.source=local", "benchmark.draw_seed=1"], "benchmark.draw_seed is for"),
        (["benchmark.source=web"], "'local' or 'hub', got 'web'"),
        (["benchmark.order=[sst3]"], "did you mean 'sst2'"),
        (["benchmark.mirror=FOLDER", "benchmark.size=500"], "1000_per_task"),
        (["benchmark.mirror=FOLDER", "benchmark.order=[cb]"], "aps/super_glue"),
    ],
)
def test_a_mistake_is_told(
    tiny_t5: Path, mirror: Path, tmp_path: Path, overrides: list[str], part: str
) -> None:
    words = [word.replace("FOLDER", str(mirror)) for word in overrides]
    with pytest.raises(UserError) as error:
        build_parts(config(tiny_t5, tmp_path, *words))
    assert part in str(error.value)
    assert "\n" not in str(error.value)

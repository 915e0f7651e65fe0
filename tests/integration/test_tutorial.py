"""The tutorial as a reader runs it: a fresh kernel, in a folder with nothing but the examples."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

import kif_lightning as kl

EXAMPLES = Path(__file__).parents[2] / "examples"
COMMITTED = nbformat.read(EXAMPLES / "tutorial.ipynb", as_version=4)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Any]]:
    """The folder it wrote, and the notebook with its outputs."""
    folder = tmp_path_factory.mktemp("tutorial")
    shutil.copytree(EXAMPLES / "own_tasks", folder / "own_tasks")
    notebook = nbformat.from_dict(COMMITTED)
    client = NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(EXAMPLES.parent))
        patch.setenv("HF_HUB_OFFLINE", "1")
        client.execute()
    yield folder / "tutorial_files", notebook
    shutil.rmtree(folder, ignore_errors=True)


def test_what_the_text_says_is_seen(done: tuple[Path, Any]) -> None:
    plain, kif = (kl.Run.open(done[0] / name) for name in ("seq_lora", "kif"))
    # 60 rows a task: a standard error of 6 points; what is claimed is far beyond it.
    assert plain.metrics["backward_transfer"] < -10
    assert kif.metrics["backward_transfer"] > plain.metrics["backward_transfer"] + 5
    second = plain.tasks().iloc[1]
    assert second["at_the_end"] < second["just_learnt"] - 20
    assert kif.tasks()["at_the_end"][1] > 60  # of two labels: kept, and not by guessing
    most_said = [
        plain.predictions(after=after, on=2)["prediction"].value_counts(normalize=True).max()
        for after in (2, 3)
    ]
    assert most_said[0] < 0.8 < most_said[1]  # one answer to almost everything
    units = kif.units(after=3)
    kept = units["weight"][units["previous"] > units["current"]]
    assert (kept > 0.5).all()


def test_the_extended_state_has_all_tasks(done: tuple[Path, Any]) -> None:
    model = kl.load(done[0] / "state_2")
    assert model.tasks == ("mini_boolqa", "mini_wic", "mini_agnews", "tickets")
    assert set(model.stand_ins) >= {"stand-in data", "stand-in model"}


def test_it_says_its_stand_ins(done: tuple[Path, Any]) -> None:
    shown = [
        str(output.get("text") or output.get("data", {}).get("text/plain"))
        for cell in done[1].cells
        for output in cell.get("outputs", [])
    ]
    assert sum("stand-in" in text for text in shown) >= 6


def test_the_committed_notebook_is_small_and_of_no_machine() -> None:
    text = (EXAMPLES / "tutorial.ipynb").read_text(encoding="utf-8")
    assert len(text) < 300_000
    for trace in ("/work/", "/tmp/", "/home/", "site-packages", "application/vnd.jupyter.widget"):  # noqa: S108
        assert trace not in text
    assert COMMITTED.metadata.kernelspec.name == "python3"
    assert "widgets" not in COMMITTED.metadata
    outputs = [output for cell in COMMITTED.cells for output in cell.get("outputs", [])]
    assert len(outputs) >= 12
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert not [output for output in outputs if output.output_type == "error"]

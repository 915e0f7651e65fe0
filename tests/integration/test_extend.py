"""States that learn on, cut or not, as one run would have, and what is told of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from kif_lightning.continual_state import read_state
from tests.helpers.states import Workshop, differences
from tests.helpers.tiny import save_toy_tasks

TASKS = ("colour", "shape", "size")
MEMORY = ("method.memory.share=0.3",)
METHODS: dict[str, tuple[str, ...]] = {
    "kif": (),
    "kif_m": MEMORY,
    "kif_full": (),
    "recurrent_kif": (
        *MEMORY,
        "method.boundary.recurrent.num_inner_steps=2",
        "method.boundary.recurrent.num_outer_steps=2",
    ),
    "replay": MEMORY,
    "ewc": (),
    "migu": (),
    "o_lora": (),
    "inc_lora": (),
    "per_task": (),
    "prog_prompt": (),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    save_toy_tasks(folder, TASKS[:2], train=12, test=3)
    return save_toy_tasks(folder, TASKS[2:], train=12, test=3, labels=("round", "flat"))


@pytest.fixture
def workshop(tiny_t5: Path, data: Path, tmp_path: Path) -> Workshop:
    return Workshop(tiny_t5, data, tmp_path)


@pytest.mark.parametrize("method", METHODS)
def test_runs_of_one_task_each_end_as_one_run_of_all(workshop: Workshop, method: str) -> None:
    """Weights, importance, penalties, memory: bit for bit, and so are the scores."""
    settings = (f"method={method}", *METHODS[method])
    whole = workshop.learn("whole", TASKS, *settings, "keep_states=true")
    workshop.pack(whole, "one", after="1")
    workshop.extend(workshop.folder / "one", "two", TASKS[1:2])
    workshop.extend(workshop.folder / "two", "three", TASKS)
    workshop.pack(whole, "expected")
    found, expected = (read_state(workshop.folder / name) for name in ("three", "expected"))
    assert differences(found, expected) == []
    assert [task.name for task in found.tasks] == list(TASKS)
    assert found.score_matrix[2] == expected.score_matrix[2]
    assert None not in found.score_matrix[2]
    assert found.score_matrix[1] == [None, expected.score_matrix[1][1], None]

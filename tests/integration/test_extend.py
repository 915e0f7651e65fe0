"""States that learn on, cut or not, as one run would have, and what is told of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kif_lightning import extending
from kif_lightning.cli import app
from kif_lightning.continual_state import PastTask, read_state, write_state
from kif_lightning.errors import UserError
from kif_lightning.launch import Cell
from kif_lightning.reporting import comparison
from kif_lightning.reporting.run_record import read_run
from kif_lightning.reporting.run_report import report_html
from kif_lightning.runner import StreamRunner
from tests.helpers.states import Workshop, content, differences
from tests.helpers.tiny import save_toy_tasks

TASKS = ("colour", "shape", "size")
MEMORY = ("method.memory.share=0.3",)
METHODS: dict[str, tuple[str, ...]] = {
    "kif": (),
    "kif_m": MEMORY,
    "kif_fitted": MEMORY,
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
CHAINED = ("kif_m", "o_lora")
"""Methods that learn every task in a run of its own; of the others one that goes on after two."""
QUICK = ("kif_m", "recurrent_kif", "ewc", "o_lora", "prog_prompt")
"""One of each kind: a memory, other outer steps, a penalty, weights that grow, prompts."""
EVERY = [
    method if method in QUICK else pytest.param(method, marks=pytest.mark.slow)
    for method in METHODS
]


@pytest.mark.parametrize("method", EVERY)
def test_runs_of_one_task_each_end_as_one_run_of_all(workshop: Workshop, method: str) -> None:
    """Weights, importance, penalties, memory: bit for bit, and so are the scores."""
    settings = (f"method={method}", *METHODS[method])
    whole = workshop.learn(f"whole_{method}", TASKS, *settings, "keep_states=true")
    first = "1" if method in CHAINED else "2"
    state = workshop.pack(whole, f"first_{method}", after=first)
    if method in CHAINED:
        workshop.extend(state, f"second_{method}", TASKS[1:2])
        state = workshop.folder / f"second_{method}"
    workshop.extend(state, f"third_{method}", TASKS)
    found = read_state(workshop.folder / f"third_{method}")
    expected = read_state(workshop.pack(whole, f"expected_{method}"))
    assert differences(found, expected) == []
    assert [task.name for task in found.tasks] == list(TASKS)
    assert found.score_matrix[2] == expected.score_matrix[2]
    assert None not in found.score_matrix[2]
    if method in CHAINED:
        assert found.score_matrix[1] == [None, expected.score_matrix[1][1], None]


def kif(*words: object, folder: Path) -> str:
    """What the command prints, in a process of its own."""
    single = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [sys.executable, "-m", *map(str, words)],
        cwd=folder,
        env=os.environ | single,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    return done.stdout


def test_other_processes_and_other_places_change_nothing(
    workshop: Workshop, tmp_path: Path
) -> None:
    """On the command line; the folder of tasks has a blank, a comma and an = in its name."""
    whole = workshop.learn("whole_moved", TASKS[:2], "keep_states=true")
    state = workshop.pack(whole, "moved", after="colour")
    data = save_toy_tasks(tmp_path / "my data, k=v", TASKS[1:2], train=12, test=3)
    model = tmp_path / "another place"
    model.symlink_to(workshop.model)
    (tmp_path / "s").symlink_to(state)
    before = content(state)
    given = (f"backbone.path={model}", "report=false", "examine_data=false")
    said = kif("kif_lightning.cli", "extend", "s", data, *given, "--to", "t", folder=tmp_path)
    assert said.endswith("State: t\n")
    expected = read_state(workshop.pack(whole, "moved_expected"))
    assert differences(read_state(tmp_path / "t"), expected) == []
    assert content(state) == before
    shown = CliRunner().invoke(app, ["show", str(tmp_path / "t")]).output
    assert "1 colour" in shown
    assert read_state(state).digest[:12] in shown  # where it came from


@pytest.fixture(scope="module")
def plain(workshop: Workshop) -> Path:
    """The state of KIF after one task."""
    return workshop.packed("extend_plain")


def test_cut_and_given_again_it_ends_as_uncut(
    workshop: Workshop, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut within the task, after it, before the state is written; the old one stays as it is."""
    before = content(plain)
    workshop.extend(plain, "uncut", TASKS[1:])
    expected = read_state(workshop.folder / "uncut")
    often = "checkpoint.every_steps=1"
    for owner, name, cut_at in (
        (StreamRunner, "_save_training", 2),
        (StreamRunner, "_judge", 2),
        (extending, "pack", 1),
    ):
        with monkeypatch.context() as patch:
            _cut(patch, owner, name, cut_at)
            with pytest.raises(CutError):
                workshop.extend(plain, "cut", TASKS[1:], often)
        assert not (workshop.folder / "cut").exists()
        assert content(plain) == before
    workshop.extend(plain, "cut", TASKS[1:], often)
    found = read_state(workshop.folder / "cut")
    assert differences(found, expected) == []
    assert found.score_matrix == expected.score_matrix
    with pytest.raises(UserError, match="--to must be a new folder"):
        workshop.extend(plain, "cut", TASKS[1:], often)
    assert read_state(workshop.folder / "cut").digest == found.digest


class CutError(BaseException):
    """Stands for whatever ends the process."""


def _cut(patch: pytest.MonkeyPatch, owner: Any, name: str, number: int) -> None:
    """The process ends where that would be called for the so-manieth time."""
    original = getattr(owner, name)
    calls = []

    def cut(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        if len(calls) == number:
            raise CutError
        return original(*args, **kwargs)

    patch.setattr(owner, name, cut)


def test_settings_reach_all_that_takes_its_value_from_them(workshop: Workshop, plain: Path) -> None:
    """As in a run: the state's settings are resolved, but ``optim.lr`` is still the optimizer's."""
    lower = ("optim.lr=0.001", "optim.weight_decay=0.5", "optim.schedule_name=constant")
    more = (*lower, "method.rule.tau=0.5", "seed=7")
    workshop.extend(plain, "followed", ["shape"], *more)
    config = read_state(workshop.folder / "followed").config
    assert config["optim"]["optimizer"]["lr"] == config["optim"]["lr"] == 0.001
    assert config["optim"]["optimizer"]["weight_decay"] == 0.5
    assert config["optim"]["schedule"]["name"] == "constant"
    assert config["method"]["boundary"]["fusion"]["rule"]["tau"] == 0.5
    # As a run of these settings from there on.
    workshop.go_on(plain, "followed_run_2", *more)
    expected = read_state(workshop.pack(workshop.folder / "followed_run_2", "followed_expected"))
    assert differences(read_state(workshop.folder / "followed"), expected) == []


def test_what_is_not_evaluated_is_said(workshop: Workshop, plain: Path) -> None:
    said = workshop.extend(plain, "partly", ["shape"])
    run = workshop.folder / "partly_run"
    results = json.loads((run / "results.json").read_text())
    last = results["score_matrix"][-1]
    assert last[0] is None
    assert results["metrics"] == {}
    told = "Not evaluated at the end: colour, so metrics over all 2 tasks are absent; "
    assert f"{told}the mean of the other scores (1) is {last[1]:.1f}%." in said
    assert "-: not evaluated" in said
    record = read_run(run)
    page = report_html(record)
    assert "Not evaluated at the end: colour" in page
    assert "-: not evaluated." in page
    runs = [run, workshop.folder / "extend_plain_run"]
    groups = comparison.read_runs(runs, show_differences=True)
    found = comparison.contents(groups)
    assert any("not evaluated at the end in partly_run" in note for note in found["notes"])
    # With its rows at hand it is evaluated again.
    said = workshop.extend(plain, "wholly", ["colour", "shape"])
    results = json.loads((workshop.folder / "wholly_run" / "results.json").read_text())
    assert None not in results["score_matrix"][-1]
    assert {"average_performance", "backward_transfer"} <= results["metrics"].keys()
    assert "ot evaluated" not in said


def test_loggers_are_told_what_there_is(workshop: Workshop, plain: Path) -> None:
    workshop.extend(plain, "logged", ["shape"], "logger=csv")
    logged = "".join(
        path.read_text() for path in (workshop.folder / "logged_run" / "logs").rglob("*.csv")
    )
    assert "shape" in logged
    assert "colour" not in logged


def test_stand_ins_are_never_forgotten(workshop: Workshop, plain: Path) -> None:
    """Learnt on stand-in data, extended on real files: the whole says so, each task for itself."""
    state = read_state(plain)
    tasks = tuple(PastTask(**{**vars(task), "stand_in": True}) for task in state.tasks)
    marked = workshop.folder / "marked"
    write_state(replace(state, tasks=tasks, stand_ins=("stand-in data",)), marked)
    said = workshop.extend(marked, "on", ["shape"], "evaluation.rows=test")
    found = read_state(workshop.folder / "on")
    assert found.stand_ins == ("stand-in data",)
    assert [task.stand_in for task in found.tasks] == [True, False]
    assert "on stand-in data" in said
    held = "held-out rows of train, not test"
    # The model is a copy in a folder, of which nothing but the state tells what it stands for.
    told = ("stand-in model", held)
    write_state(replace(state, stand_ins=told), workshop.folder / "held")
    workshop.extend(workshop.folder / "held", "held_on", ["shape"])
    assert read_state(workshop.folder / "held_on").stand_ins == told


def test_the_order_given_counts_and_a_plan_writes_nothing(workshop: Workshop, plain: Path) -> None:
    data = str(workshop.data)
    given = [f"backbone.path={workshop.model}", "report=false", "plan=true"]
    to = workshop.folder / "planned"
    before = content(workshop.folder)
    words = ["extend", str(plain), data, "benchmark.order=[size]", *given, "--to", str(to)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "size" in done.output
    assert "shape" not in done.output
    assert "State:" not in done.output
    assert content(workshop.folder) == before


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "got none of them"),
        (["TASKS", "benchmark=own"], "got two of them"),
        (["TASKS", "MORE"], "Expected one yaml or folder of tasks"),
        (["missing.yaml"], "there is no missing.yaml"),
        (["TASKS", "--with-memory"], "method keeps none: leave it out"),
    ],
)
def test_the_command_says_what_is_wrong(
    workshop: Workshop, plain: Path, words: list[str], told: str
) -> None:
    places = {"TASKS": str(workshop.data), "MORE": str(workshop.folder)}
    given = [places.get(word, word) for word in words]
    before = content(workshop.folder)
    to = workshop.folder / "refused"
    done = CliRunner().invoke(app, ["extend", str(plain), *given, "--to", str(to)])
    assert done.exit_code == 2
    assert told in " ".join(done.output.split())
    assert content(workshop.folder) == before


def test_free_texts_are_not_taken_for_labels(workshop: Workshop, plain: Path) -> None:
    """A state holds all labels: a folder that says nothing of such a task is refused."""
    texts = ("so we wrote to them again" * 3, "so we waited for their answer" * 3)
    data = save_toy_tasks(workshop.folder / "letters", ("notes",), train=12, test=3, labels=texts)
    save_toy_tasks(data, ("size",), train=12, test=3)
    given = [str(plain), str(data), f"backbone.path={workshop.model}", "plan=true"]
    words = ["extend", *given, "report=false", "--to", str(workshop.folder / "refused")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2
    assert "Nothing says what task notes of" in done.output
    assert CliRunner().invoke(app, [*words, "benchmark.order=[size]"]).exit_code == 0
    (data / "manifest.json").write_text(done.output.partition(", as ")[2].strip().rstrip("."))
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("rank", ["0", "1"])
def test_of_several_processes_one_speaks_and_writes_the_state(
    workshop: Workshop, plain: Path, monkeypatch: pytest.MonkeyPatch, rank: str
) -> None:
    packed: list[Path] = []

    def pack(_: Path, to: Path, *, with_memory: bool) -> Path:
        packed.append(to)
        write_state(read_state(plain), to)
        return to

    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(extending.launch, "run_cell", lambda *_: Cell({}, asked_to_stop=False))
    monkeypatch.setattr(extending, "pack", pack)
    to = workshop.folder / f"by_rank_{rank}"
    given = [str(plain), str(workshop.data), f"backbone.path={workshop.model}", "--to", str(to)]
    done = CliRunner().invoke(app, ["extend", *given])
    assert done.exit_code == 0, done.output
    assert packed == ([to] if rank == "0" else [])
    assert done.output == (f"State: {to}\n" if rank == "0" else "")


def test_memory_is_told_of_before_training(workshop: Workshop) -> None:
    state = workshop.packed("telling_before", TASKS[:1], "method=kif_m", *MEMORY)
    given = [str(workshop.data), f"backbone.path={workshop.model}", "plan=true", "report=false"]
    words = ["extend", str(state), *given, "--to", str(workshop.folder / "telling_next")]
    said = {}
    for name, more in (("with", ["--with-memory"]), ("without", [])):
        done = CliRunner().invoke(app, [*words, *more])
        assert done.exit_code == 0, done.output
        said[name] = "learn no more tasks" in done.output
    assert said == {"with": False, "without": True}


def test_memory_is_told_of_when_a_state_is_written(workshop: Workshop) -> None:
    run = workshop.learn("telling_run", TASKS[:1], "method=kif_m", *MEMORY)
    said = {}
    for name, more in (("with", ["--with-memory"]), ("without", [])):
        to = str(workshop.folder / f"telling_{name}")
        done = CliRunner().invoke(app, ["pack", str(run), "--to", to, *more])
        assert done.exit_code == 0, done.output
        said[name] = " ".join(done.output.split())
    assert "raw rows of the tasks before" in said["with"]
    assert "learn no more tasks without them (--with-memory writes them)" in said["without"]

"""One battery for every method yaml found: what a method promises, it keeps on tiny models."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from peft import PeftModel
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor, nn

from kif_lightning import launch
from kif_lightning.interfaces import Row, Task
from kif_lightning.paths import option_names
from kif_lightning.reporting.console import RunConsole
from kif_lightning.runner import StreamRunner
from kif_lightning.storage import flat
from tests.helpers.streams import ToyBenchmark, tiny_config
from tests.helpers.tiny import save_toy_tasks, toy_rows

METHODS = [
    *option_names("method"),
    *(f"ablation/{name}" for name in option_names("method/ablation")),
]
CASES = [
    pytest.param((method, family), id=f"{method}-{family}", marks=marks)
    for method in METHODS
    for family, marks in (("tiny_t5", ()), ("tiny_llama", pytest.mark.slow))
]
# One parameter of the module's scope: the tests of a case follow each other and share its run.
every_case = pytest.mark.parametrize("case", CASES, scope="module")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks whose rows hold a word that nothing else holds."""
    return save_toy_tasks(tmp_path_factory.mktemp("data"), train=21, labels=("good", "sour bad"))


@dataclass
class Battery:
    """Runners of one method on the tiny model of one family."""

    method: str
    model: Path
    data: Path
    folder: Path

    def config(self, name: str, *overrides: str) -> DictConfig:
        config = tiny_config(
            self.model, self.data, self.folder / name, f"method={self.method}", *overrides
        )
        # Sizes that suit 20 rows.
        for key, value in (("selection.num_held_out", 4), ("selection.every_steps", 1)):
            if OmegaConf.select(config.method, key) is not None:
                OmegaConf.update(config.method, key, value)
        if OmegaConf.select(config.method, "rehearsal.max_tokens") is not None:
            config.method.rehearsal.max_tokens = 12
        return config

    def runner(self, name: str, *overrides: str) -> StreamRunner:
        """Built, its folder claimed."""
        config = self.config(name, *overrides)
        runner = launch.new_runner(config, RunConsole(Console(file=io.StringIO())))
        runner.build()
        runner.folder.open(launch.run_settings(config), rerun=False)
        return runner


@dataclass
class Whole:
    """One run of a case, as it was when it ended."""

    runner: StreamRunner
    results: dict[str, Any]
    before: dict[str, Tensor]
    after: dict[str, Tensor]
    learning: set[int]
    """Ids of the parameters that learnt in any task."""
    state: dict[str, Tensor]
    files: dict[str, bytes]


@pytest.fixture(scope="module")
def battery(
    case: tuple[str, str],
    request: pytest.FixtureRequest,
    data: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Battery:
    method, family = case
    model = request.getfixturevalue(family)
    return Battery(method, model, data, tmp_path_factory.mktemp("battery"))


@pytest.fixture(scope="module")
def whole(battery: Battery) -> Whole:
    """A run that nothing cut."""
    runner = battery.runner("whole")
    before = everything(runner.module.model)
    learning = watch_training(runner)
    results = runner.run()
    return Whole(
        runner=runner,
        results=results,
        before=before,
        after=everything(runner.module.model),
        learning=learning,
        state=tensors(runner.parts_state()),
        files=files(runner),
    )


def everything(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def answers(runner: StreamRunner, asked: int) -> list[Tensor]:
    """Logits of each task's test rows, where the model is told that they are of task ``asked``."""
    runner.module.eval()
    runner.parts.adapter.use_task(runner.module.model, asked)
    backbone = runner.parts.backbone
    found = []
    for task in runner.tasks:
        batch = backbone.training_batch([backbone.encode(row) for row in task.test])
        with torch.no_grad():
            found.append(backbone.answer_logits(runner.module.model, batch)[0])
    return found


def watch_training(runner: StreamRunner) -> set[int]:
    """Ids of the parameters that learn in any task, filled while the runner runs."""
    learning: set[int] = set()
    begin = runner.begin_task

    def watched(task_index: int) -> None:
        begin(task_index)
        learning.update(id(p) for p in runner.module.trainable_parameters.values())

    runner.begin_task = watched  # type: ignore[method-assign]
    return learning


@every_case
def test_a_method_keeps_its_word(battery: Battery, whole: Whole) -> None:
    """Learns two tasks, changes what it may, keeps to its memory, needs what it says."""
    runner, results, before, after = whole.runner, whole.results, whole.before, whole.after
    declared = battery.config("whole").method
    names = {id(p): name for name, p in runner.module.model.named_parameters()}
    learnt = {names[i] for i in whole.learning}
    assert learnt
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    assert changed <= learnt, "a weight changed that was not to learn"
    assert len(changed) > len(learnt & before.keys()) / 3, "hardly anything learnt"
    phases = len(runner.data.training_tasks)
    assert len(results["score_matrix"]) == len(results["phases"]) == phases
    assert all(score is not None for score in results["score_matrix"][-1])
    assert all(phase["optimizer_steps"] > 0 for phase in results["phases"])
    keeps_its_memory(runner, results, declared)
    needs_the_task_id_as_it_says(runner, declared)
    exports(runner)


def keeps_its_memory(runner: StreamRunner, results: dict[str, Any], declared: Any) -> None:
    kept, memory = results["cost"]["memory_rows"], runner.parts.memory
    assert (memory is not None) == declared.needs_memory
    limit = sum(memory.budget(task) for task in runner.tasks) if memory else 0
    assert 0 < kept <= limit if memory else kept == 0
    stored = "\n".join(p.read_text() for p in (runner.folder.path / "state").rglob("*.json"))
    rows = [row for task in runner.tasks for row in task.train if json.dumps(row.input) in stored]
    assert len(rows) == kept, "rows of data in the state that the method does not own up to"


def needs_the_task_id_as_it_says(runner: StreamRunner, declared: Any) -> None:
    told = [answers(runner, asked) for asked in range(2)]
    same = all(torch.equal(a, b) for a, b in zip(*told, strict=True))
    assert same == (not declared.needs_task_id)


def exports(runner: StreamRunner) -> None:
    """What is saved gives, loaded by others' tools, the same logits."""
    folder = runner.folder.path / "adapter"
    standard = sorted(path.parent for path in folder.rglob("adapter_config.json"))
    backbone = runner.parts.backbone
    for place, adapter in enumerate(standard or [folder]):
        if (folder / "prompts.json").is_file():
            # No tool but ours knows a pool: the file holds what makes a fresh one answer alike.
            model = runner.parts.adapter.attach(backbone.load_model(), backbone)
            pool = load_file(folder / "prompts.safetensors")
            runner.parts.adapter.load_state_dict(model, pool)
        elif standard:
            model = PeftModel.from_pretrained(backbone.load_model(), str(adapter))
        else:
            kind = type(backbone.load_model())
            model = kind.from_pretrained(folder)  # type: ignore[attr-defined]
        model.eval()
        runner.parts.adapter.use_task(runner.module.model, place)
        # Row by row: peft's prompts take no heed of padding.
        for row in [row for task in runner.tasks for row in task.test]:
            batch = backbone.training_batch([backbone.encode(row)])
            with torch.no_grad():
                found, _ = backbone.answer_logits(model, batch)
                expected, _ = backbone.answer_logits(runner.module.model, batch)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@every_case
def test_state_comes_back_exactly(
    battery: Battery, whole: Whole, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run cut after its first task and resumed ends bit for bit as one that was not cut."""
    if len(whole.runner.data.training_tasks) == 1:
        pytest.skip("one phase: there is no task to resume at")
    cut = battery.runner("cut")
    learn = cut._learn

    def cut_short(task_index: int, state: Any) -> None:
        if task_index == 1:
            cut.begin_task(1)  # whatever it draws or adds is done anew
            raise KeyboardInterrupt
        learn(task_index, state)

    monkeypatch.setattr(cut, "_learn", cut_short)
    with pytest.raises(KeyboardInterrupt):
        cut.run()
    resumed = battery.runner("cut")
    resumed.run()
    found, expected = tensors(resumed.parts_state()), whole.state
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []
    assert files(resumed) == whole.files


def tensors(state: dict[str, Any]) -> dict[str, Tensor]:
    """Everything of a state, by name; plain values as bytes."""
    found = {}
    for name, value in flat(state).items():
        is_tensor = isinstance(value, Tensor)
        found[name] = value if is_tensor else torch.tensor(list(json.dumps(value).encode()))
    return found


def files(runner: StreamRunner) -> dict[str, bytes]:
    root = runner.folder.path
    return {
        str(path.relative_to(root)): path.read_bytes()
        for folder in ("adapter", "predictions")
        for path in (root / folder).rglob("*")
        if path.is_file()
    }


PLAIN = (
    "lora.dropout=0",
    "optim.optimizer._target_=torch.optim.SGD",
    "optim.lr=0.05",
    "optim.schedule_name=constant",
)
"""What follows the gradient linearly: differences show as they are."""


@pytest.mark.slow
@every_case
def test_accumulation_changes_nothing(battery: Battery) -> None:
    fixed = battery.config("run").method.fixes.loss_mean
    if fixed != "step_tokens":
        pytest.skip(f"the method insists on another loss mean: {fixed}")
    plain = without_dropout(battery.model, battery.folder / battery.model.name)
    battery = replace(battery, model=plain)
    runs = [
        battery.runner(f"micro_{micro}", *PLAIN, f"optim.micro_batch_size={micro}")
        for micro in (8, 2)
    ]
    for runner in runs:
        for _ in learnt_tasks(runner):
            pass
    whole, parts = (runner.parts.adapter.state_dict(runner.module.model) for runner in runs)
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=1e-3, atol=1e-5, msg=name)


def learnt_tasks(runner: StreamRunner) -> Iterator[int]:
    """Learns task after task as a run does, but evaluates nothing."""
    state = runner._start()
    for task_index in range(len(runner.data.training_tasks)):
        runner._learn(task_index, state)
        yield task_index


def without_dropout(model: Path, folder: Path) -> Path:
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dropout_rate": 0.0}))
    return folder


@pytest.mark.slow
@every_case
def test_mixed_precision(battery: Battery) -> None:
    runner = battery.runner(
        "mixed", "trainer.precision=bf16-mixed", "optim.micro_batch_size=4", "optim.epochs=2"
    )
    results = runner.run()
    assert [phase["skipped_steps"] for phase in results["phases"]] == [0] * len(results["phases"])
    learnt = runner.parts.adapter.trainable(runner.module.model)
    assert {p.dtype for p in learnt.values()} == {torch.float32}
    assert all(torch.isfinite(p).all() for p in learnt.values())


@pytest.mark.slow
@pytest.mark.parametrize("method", option_names("method"))
def test_state_of_many_tasks(
    method: str, tiny_t5: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a method that says so keeps more the more tasks it has learnt; memory keeps its rows."""
    battery = Battery(method, tiny_t5, data, tmp_path)
    made, declared = launch.build_parts, battery.config("run").method
    # What grows is slow, and shows it soon.
    number = 10 if declared.grows_with_tasks else 30

    def with_many_tasks(config: DictConfig) -> Any:
        parts = made(config)
        parts.benchmark = ToyBenchmark(tuple(small_task(i) for i in range(number)))
        return parts

    monkeypatch.setattr(launch, "build_parts", with_many_tasks)
    # Two steps for a task's ten rows, for a method may leave out the first; a growing memory is
    # trained on whole in one.
    batch = 50 if declared.needs_memory else 5
    runner = battery.runner("run", f"optim.batch_size={batch}")
    phases = len(runner.data.training_tasks)
    if phases == 1:
        pytest.skip("one phase: there is nothing that could grow")
    sizes, rows = [], []
    for _ in learnt_tasks(runner):
        sizes.append(size(runner.parts_state()))
        rows.append(runner._memory_rows())
    if declared.grows_with_tasks:
        assert sizes[-1] > sizes[1] * number / 4
    else:
        assert sizes[-1] == sizes[1]
    # The first of two labels has a row of its own in each memory, whatever the share.
    assert rows == [2 * (i + 1) * declared.needs_memory for i in range(phases)]


def small_task(index: int) -> Task:
    name = f"task{index:03d}"
    rows: Callable[..., list[Row]] = toy_rows
    return Task(
        name=name,
        kind="classification",
        metric="exact_match",
        train=tuple(rows(name, "train", 10, ("good", "bad"))),
        test=tuple(rows(name, "test", 1, ("good", "bad"))),
        labels=("good", "bad"),
        sha256={},
    )


def size(state: dict[str, Any]) -> int:
    """Numbers kept, the memory's rows apart."""
    kept = flat({key: part for key, part in state.items() if key != "memory"})
    return sum(part.numel() if isinstance(part, Tensor) else 1 for part in kept.values())

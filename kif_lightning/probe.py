"""General-ability guard: rows of no task, asked before the first task and after each.

Measuring changes nothing of the training: no random number is drawn, no weight is touched. Where
the tasks have weights of their own, those of the newest task answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Dataset

from kif_lightning.batches import as_is
from kif_lightning.benchmarks.rows import limit_rows, read_split, sha256_of
from kif_lightning.callbacks import TaskProgress
from kif_lightning.datamodule import ContinualDataModule
from kif_lightning.errors import UserError, require_count
from kif_lightning.evaluation import TaskScores, keep_inputs
from kif_lightning.interfaces import Batch, Task
from kif_lightning.reporting.console import general_ability, probe_stand_ins, stamped
from kif_lightning.run_state import require_same_data
from kif_lightning.seeding import generator
from kif_lightning.tracking.tables import probe_numbers

if TYPE_CHECKING:
    from kif_lightning.runner import StreamRunner

Measured = dict[str, float | None]
"""``score`` in percent; ``loss``: mean over rows of -log p(answer | prompt) in nats an answer
token, None where it is not finite."""


class Probe:
    """A small set of rows that belong to no task of the stream.

    Args:
        name: how results call it.
        file: rows with ``id``, ``input`` and ``output``, as a task's.
        metric: of their score, one of ``evaluation.metrics``.
        rows: at most so many of them; None: all.
        seed: of that draw.
        stand_in: whether the rows only stand for a real measurement of general ability.

    Raises:
        UserError: no file, no such file, a row that is none, two of one id, ``rows`` below 1.
    """

    def __init__(
        self,
        *,
        name: str,
        file: str | Path | None,
        metric: str,
        rows: int | None = 64,
        seed: int = 1,
        stand_in: bool = False,
    ) -> None:
        if file is None:
            raise UserError(
                "probe=own asks rows of your own, but no file names them: give "
                'probe.file=ROWS.jsonl (one {"id", "input", "output"} a line), or take '
                "probe=general."
            )
        if rows is not None:
            require_count("probe.rows (null for all)", rows)
        found = read_split(Path(file)).rows
        _check_ids([row.id for row in found], file)
        kept = limit_rows(found, rows, balanced=False, generator=generator(seed, "probe rows"))
        self.name = name
        self.stand_in = stand_in
        self.num_found = len(found)
        self.task = Task(
            name=f"probe {name}",
            kind="generation",
            metric=metric,
            train=(),
            test=kept,
            labels=(),
            sha256={"rows": sha256_of(kept)},
        )

    def stamp(self) -> dict[str, Any]:
        """For the protocol; ``sha256`` is of the rows asked, as JSON lines."""
        rows = {"rows": len(self.task.test), "sha256": self.task.sha256["rows"]}
        return {"name": self.name, **rows, "metric": self.task.metric}

    @property
    def data_sha256(self) -> dict[str, dict[str, str]]:
        """As a task's: a run must not go on with other rows."""
        return {self.task.name: dict(self.task.sha256)}


def of_tasks(data_sha256: Mapping[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """What a run's state notes of its tasks' data, without the probe's: that has no splits."""
    return {name: sha256 for name, sha256 in data_sha256.items() if "rows" not in sha256}


def bundled_probe(
    *, name: str, metric: str = "exact_match", rows: int | None = 64, seed: int = 1
) -> Probe:
    """A probe of ours; it is home-made, so a stand-in.

    Args:
        name: of the file, ``general``.
        metric: see :class:`Probe`, as the others.
        rows: at most so many.
        seed: of the draw.
    """
    file = Path(__file__).parent / "probes" / f"{name}.jsonl"
    return Probe(name=name, file=file, metric=metric, rows=rows, seed=seed, stand_in=True)


class ProbeBatches(Dataset[Batch]):
    """The probe's test batches, each with what should have been answered.

    No answer is longer than the longest that is right: models that do not stop by themselves are
    not waited for.
    """

    def __init__(self, data: ContinualDataModule, task: Task) -> None:
        self.backbone = data.backbone
        self.batches = data.evaluation_batches(task)
        self.examples = data.test_examples(task)
        self.max_new_tokens = min(data.max_new_tokens, int(self.examples.answer_lengths.max()))

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Batch:
        batch = self.batches[index]
        rows = batch["rows"] or [0]  # a filler's losses are not looked at
        return {
            **batch,
            "max_new_tokens": self.max_new_tokens,
            "answered": self.backbone.training_batch([self.examples[row] for row in rows]),
        }


def probe_untrained(runner: StreamRunner) -> None:
    """Ask before the first task, unless that has been done before the run was cut."""
    probe, state = runner.parts.probe, runner.state
    if probe is None:
        return
    asked = len(probe.task.test)
    some = f" of {probe.num_found}, a seeded draw," if asked < probe.num_found else ""
    runner.console.say(
        f"General ability: {asked} rows{some} of the probe {probe.name} are asked before the first "
        f"task and after each{' (home-made, no published benchmark)' if probe.stand_in else ''}."
    )
    if state.probe_untrained is not None:
        return
    state.probe_untrained = _measure(runner, probe, "untrained", 0)
    runner.folder.save(state)
    runner.tracking.log(probe_numbers(state.probe_untrained), task=0, step=0)


def probe_learnt(runner: StreamRunner, task_index: int, label: str) -> None:
    """Ask after a task, once, keep it in the task's record and tell it."""
    probe, state = runner.parts.probe, runner.state
    if probe is None:
        return
    phase = state.phases[-1]
    if "probe" not in phase:
        newest = runner.parts.stream.num_seen(task_index, len(runner.tasks)) - 1
        phase["probe"] = _measure(runner, probe, label, newest)
        runner.folder.save(state)
    told = general_ability(_record(runner, probe))
    runner.console.say(f"{stamped(told, probe_stand_ins(runner.parts.stand_ins, probe.stand_in))}.")


def probe_record(runner: StreamRunner) -> dict[str, Any] | None:
    """The ``probe`` of results.json; None without one."""
    return None if runner.parts.probe is None else _record(runner, runner.parts.probe)


def _record(runner: StreamRunner, probe: Probe) -> dict[str, Any]:
    return {
        **probe.stamp(),
        "stand_in": probe.stand_in,
        "untrained": runner.state.probe_untrained,
        "after": [phase["probe"] for phase in runner.state.phases],
    }


def require_same_probe(probe: Probe, results: Mapping[str, Any], folder: Path) -> None:
    """Raise UserError unless a finished run was asked these very rows."""
    before = {probe.task.name: {"rows": results["probe"]["sha256"]}}
    require_same_data(before, probe.data_sha256, since=f"the run in {folder} ended")


def without_probe(phases: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The phases' records without what stands in the probe's."""
    return [{key: phase[key] for key in phase if key != "probe"} for phase in phases]


def _measure(runner: StreamRunner, probe: Probe, label: str, newest: int) -> Measured:
    """The present model's score and loss; keeps every prediction."""
    folder, model = runner.folder.path, runner.module.model
    stand_ins = probe_stand_ins(runner.parts.stand_ins, probe.stand_in)
    keep_inputs(folder / "test_rows" / "probe.jsonl", probe.task.test)
    found: Measured = {}
    scores = TaskScores(
        tasks=[probe.task],
        new_score=runner.parts.new_score,
        path=lambda _: folder / "predictions" / f"{label}__on_probe.jsonl",
        stamp={"stand_ins": stand_ins} if stand_ins else {},
        scored=lambda _, score: found.update(score=score),
        interruption=runner.interruption,
    )
    runner.module.begin_evaluation(1, lambda _: runner.parts.adapter.use_task(model, newest))
    shown = TaskProgress(label=f"{label} probe", hidden=runner.console.quiet)
    trainer = runner.new_trainer([shown, scores], training=False)
    trainer.test(runner.module, dataloaders=_loader(runner.data, probe.task), verbose=False)
    return {**found, "loss": scores.losses[0]}


def _loader(data: ContinualDataModule, task: Task) -> DataLoader[Any]:
    # A loader draws from torch's global generator at each start, unless it has one of its own.
    return DataLoader(
        ProbeBatches(data, task),
        batch_size=None,
        collate_fn=as_is,
        generator=torch.Generator(),
    )


def _check_ids(ids: Sequence[str], file: str | Path) -> None:
    name, number = Counter(ids).most_common(1)[0]
    if number > 1:
        raise UserError(f"{file}: {number} rows have the id {name!r}; give each one of its own.")

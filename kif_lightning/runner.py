"""Learns the tasks in their order: fit, boundary, evaluation, record, save."""

from __future__ import annotations

import resource
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
from torch import Tensor
from tqdm.auto import tqdm

from kif_lightning import ranks
from kif_lightning.assembly import Parts
from kif_lightning.backbones.fingerprint import require_same_base, weights_fingerprint
from kif_lightning.backbones.ranking import require_any_mask
from kif_lightning.batches import ELSEWHERE, PASS_OVERHEAD
from kif_lightning.boundaries import Keeping, require_kept
from kif_lightning.callbacks import StopBetweenSteps, TaskCheckpoint, TaskProgress
from kif_lightning.checkpoint_io import SafeCheckpointIO
from kif_lightning.continuing import first_run_state, require_fits, stream_record
from kif_lightning.datamodule import ContinualDataModule
from kif_lightning.errors import UserError
from kif_lightning.evaluation import TaskScores, keep_inputs
from kif_lightning.exporting.card import Told, write_card
from kif_lightning.exporting.facts import facts_of_run
from kif_lightning.exporting.forms import contents_of
from kif_lightning.interfaces import (
    ActsAtBoundary,
    ChecksModule,
    RehearsalContext,
    ReportsBoundary,
    Row,
    TakesOuterSteps,
    Task,
    count_weights,
)
from kif_lightning.interruption import Interrupted, Interruption
from kif_lightning.modes import evaluating
from kif_lightning.module import ContinualModule
from kif_lightning.probe import probe_learnt, probe_record, probe_untrained, without_probe
from kif_lightning.protocol import RunOptions, protocol_stamp
from kif_lightning.reporting.console import RunConsole, listed
from kif_lightning.reporting.results import boundary_record, describe_weights, results_record
from kif_lightning.run_state import RunFolder, RunState, require_same_data
from kif_lightning.seeding import derive_seed
from kif_lightning.sharding import (
    SHARDED,
    ShardedStrategy,
    require_shardable,
    whole_on_first,
)
from kif_lightning.storage import replacing_folder, write_json
from kif_lightning.tracking import RunTracking


class StreamRunner:
    """Runs a task stream in a run folder.

    Args:
        parts: what the run is made of.
        options: its plain settings.
        folder: where it writes, already claimed.
        console: where it speaks.
        tracking: tells loggers what the run does; None: there are none.
        interruption: says when to stop early; None: nobody asks.
    """

    def __init__(
        self,
        *,
        parts: Parts,
        options: RunOptions,
        folder: RunFolder,
        console: RunConsole,
        tracking: RunTracking | None = None,
        interruption: Interruption | None = None,
    ) -> None:
        self.interruption = interruption or Interruption()
        self.state = RunState(num_tasks=0)
        self.parts = parts
        self.options = options
        self.folder = folder
        self.console = console
        console.stand_ins = parts.stand_ins
        self.tracking = tracking or RunTracking()
        self.sharded = options.trainer.get("strategy") == SHARDED
        """Whether each rank holds but a part of every weight."""
        self.data_findings: Sequence[dict[str, Any]] | None = None
        """What the data doctor says of the rows, for the results; None: it did not look."""
        selection = parts.selection
        self.data = ContinualDataModule(
            benchmark=parts.benchmark,
            training_tasks=parts.stream.training_tasks(parts.benchmark.tasks),
            backbone=parts.backbone,
            batch_size=options.batch_size,
            micro_batch_size=options.micro_batch_size,
            length_grouping=options.length_grouping,
            evaluation_batch_size=options.evaluation_batch_size,
            evaluation_batch_tokens=options.evaluation_batch_tokens,
            max_new_tokens=options.max_new_tokens,
            decode=options.decode,
            num_held_out=selection.num_held_out if selection else None,
            held_out_share=selection.held_out_share if selection else None,
            look_at_dev=selection is not None and selection.rows == "dev",
            seed=options.seed,
        )
        self.tasks: Sequence[Task] = parts.benchmark.tasks
        self.module: ContinualModule
        self.base: dict[str, Any] = {}
        """Fingerprint of the base weights, after :meth:`build`."""

    def run(self) -> dict[str, Any]:
        """Learn all tasks that are not learnt yet; returns the content of ``results.json``.

        :meth:`build` comes first.

        Raises:
            UserError: a mistake that only training shows, a damaged state.
            Interrupted: the run was asked to stop; the same again goes on.
        """
        self._join()
        with self.tracking.running(self.parts.stand_ins):
            self.tracking.started(self.protocol)
            return self._run()

    @property
    def starts_ranks(self) -> bool:
        """Whether this process would start others, as no launcher outside has done so."""
        trainer = self.new_trainer([], training=False)
        return trainer.world_size > 1 and trainer.strategy.launcher is not None

    def require_startable(self) -> None:
        """Refuse processes that cannot be started from here as this one was.

        Raises:
            UserError: they would be forked, which hangs, or Lightning has no way to start them.
        """
        way = "use python -m kif_lightning, or trainer.devices=1 trainer.strategy=auto."
        try:
            trainer = self.new_trainer([], training=False)
        except MisconfigurationException as error:
            if "interactive environment" not in str(error):
                raise
            strategy = self.options.trainer.get("strategy")
            raise UserError(
                f"trainer.strategy={strategy} cannot be used from a notebook: {way}"
            ) from error
        launcher = trainer.strategy.launcher
        if trainer.world_size > 1 and isinstance(launcher, _MultiProcessingLauncher):
            raise UserError(f"Several processes cannot be started from a notebook: {way}")

    def _join(self) -> None:
        """Start the other ranks, if there are to be some, and let all know each other.

        Lightning would do so in the first fit; but what precedes it must know its rank already.
        """
        trainer = self.new_trainer([], training=False)
        strategy = trainer.strategy
        if trainer.world_size == 1:
            return
        if not isinstance(strategy, DDPStrategy | ShardedStrategy):
            raise UserError(
                f"Several processes train with trainer.strategy=ddp, or sharded for a model too "
                f"large for one device, got {self.options.trainer.get('strategy')}."
            )
        strategy.connect(self.module)
        if strategy.launcher is not None:
            strategy.launcher.launch(_nothing, trainer=trainer)
        strategy.setup_environment()
        if self.sharded:
            # Before a task begins: what is made of the weights is made of the parts.
            self.module.configure_model()
            self.console.say(
                "Each device holds a part of the weights: the state is saved between tasks alone, "
                "and a run stopped within a task begins it again."
            )

    def _run(self) -> dict[str, Any]:
        training = self._start()
        state, phases = self.state, self.data.training_tasks
        hidden = self.console.quiet or not (sys.stderr.isatty() and ranks.is_first())
        bar = tqdm(total=len(phases), initial=state.next_task, desc="tasks", position=0,
                   disable=hidden, dynamic_ncols=True)  # fmt: skip
        for task_index in range(state.next_task, len(phases)):
            if not state.learnt:
                self._learn(task_index, training)
                training = None
            self._judge(task_index)
            self.console.scores_so_far(
                [task.name for task in self.tasks],
                state.score_matrix,
                state.untrained,
                [phase["name"] for phase in state.phases],
                self.parts.stream.num_seen(task_index, len(self.tasks)),
            )
            bar.update(1)
        bar.close()
        return self._finish(state)

    def build(self) -> None:
        """Load the weights, attach the adapter, check that the method's parts fit; writes nothing.

        Raises:
            UserError: the model cannot be had, or adapter, units and penalties do not fit it.
        """
        parts, options = self.parts, self.options
        # The tokenizer first: it is small and tells soonest whether the model is there at all.
        self.data.new_tokens_cap(self.tasks[parts.num_learnt])
        base = parts.backbone.load_model()
        seed_everything(derive_seed(options.seed, "adapter"), verbose=False)
        self.base = weights_fingerprint(base)
        model = parts.adapter.attach(base, parts.backbone)
        self.module = ContinualModule(
            backbone=parts.backbone,
            model=model,
            optimizer=parts.optimizer,
            schedule=parts.schedule,
            penalties=list(parts.penalties.values()),
            identification=parts.identification,
            loss_mean=options.loss_mean,
            lr_factor=options.lr_factor,
            fused=options.fused,
            max_skipped_in_a_row=options.max_skipped_in_a_row,
        )
        self.data.pass_overhead = self._pass_overhead()
        # A checkpoint holds no frozen weights.
        self.module.strict_loading = False
        self.module.trainable_parameters = parts.adapter.trainable(model)
        for part in (
            *parts.penalties.values(),
            *parts.gradient.values(),
            *parts.boundary.values(),
        ):
            if isinstance(part, ChecksModule):
                part.check(self.module)
        if self.sharded:
            self._check_sharded()
        if parts.origin is not None:
            require_fits(parts.origin, self, options.settings)
        if any(self.data.decode_of(task) != "generate" for task in self.tasks):
            require_any_mask(model)
        self._uses_fused()
        self.console.say(describe_weights(self.weight_counts(), self.module.trainable_parameters))
        if self.data.look_at_dev:
            self._warn_of_dev_rows()
        if options.keep_boundaries:
            weights, phases = self.module.trainable_parameters, len(self.data.training_tasks)
            self.console.say(require_kept(parts.boundary, weights, phases, sharded=self.sharded))

    def _uses_fused(self) -> bool:
        """Whether the training's optimizer is a fused one, which its precision has a say in."""
        return bool(self.module.uses_fused(self.new_trainer([], training=True)))

    def _pass_overhead(self) -> int | None:
        """What parting a micro-batch costs, in tokens; None where its rows must stay together.

        Sharded weights are gathered by all ranks together, as often by each; a mask of the gradient
        looks at one pass; means of micro-batches are means over all their rows.
        """
        together = self.sharded or self.parts.gradient
        if together or self.options.loss_mean != "step_tokens":
            return None
        return PASS_OVERHEAD.get(self.device.type, ELSEWHERE)

    def _check_sharded(self) -> None:
        if self.new_trainer([], training=False).world_size == 1:
            raise UserError(
                "trainer=sharded spreads the weights over several devices, got one: set "
                "trainer.devices=N, or use trainer=default."
            )
        require_shardable(self.module.model)

    def _warn_of_dev_rows(self) -> None:
        rows, overlap = {task.name: len(task.dev) for task in self.tasks}, self.dev_rows_in_test
        listed = ", ".join(f"{name} {n} of {rows[name]}" for name, n in overlap.items() if n)
        self.console.say(
            "Warning: steps are selected by the data's own dev rows, which overlap test in the "
            f"public benchmarks. Dev rows whose input is in test here: {listed or 'none'}."
            + (" Use method/selection=held_out for scores to report." if listed else "")
        )

    @cached_property
    def dev_rows_in_test(self) -> dict[str, int]:
        """Task name -> number of its dev rows whose input is in its test rows."""
        return self.data.dev_rows_in_test()

    def _selection_stamp(self) -> dict[str, Any] | None:
        """What the steps are selected by."""
        if self.parts.selection is None:
            return None
        if not self.data.look_at_dev:
            return {"rows": "held_out"}
        return {"rows": "dev", "dev_rows_in_test": self.dev_rows_in_test}

    def begin_task(self, task_index: int) -> None:
        """Everything that precedes a task's fit."""
        parts, model = self.parts, self.module.model
        past = {t.name: len(t.train) for t in self.data.training_tasks[:task_index]}
        kept = parts.memory.rows if parts.memory else {}
        memory_rows = tuple(row for name in past for row in kept.get(name, ()))
        self.data.begin_task(task_index, memory_rows)
        task = self.data.task
        if parts.rehearsal is not None:
            # On the CPU since the last fit ended: the model may have to write.
            self.module.to(self.device)
            context = RehearsalContext(
                task=replace(task, train=self.data.training_rows()),
                past_tasks=past,
                memory_rows=memory_rows,
                backbone=parts.backbone,
                model=model,
                seed=self.options.seed,
            )
            self.data.rehearsed = ranks.from_first(tuple(parts.rehearsal.examples(context)))
        self._seed(task, task_index, "adapter")
        parts.adapter.begin_task(model, task_index)
        self.module.begin_task(parts.adapter.trainable(model), task_index)
        self._seed(task, task_index, "train")

    def _seed(self, task: Task, task_index: int, purpose: str) -> None:
        # Adapters begin alike on all ranks; in training each draws a dropout of its own.
        apart = (ranks.rank(),) if purpose == "train" and ranks.rank() else ()
        seed = derive_seed(self.options.seed, task.name, task_index, purpose, *apart)
        seed_everything(seed, verbose=False)

    def new_trainer(
        self, callbacks: Sequence[Callback], *, training: bool, epochs: int | None = None
    ) -> Trainer:
        """A fresh Trainer: a task boundary is a fit boundary (a second fit would train nothing)."""
        options = self.options.trainer
        if self.sharded:
            # What inference mode gathers, a later training could not use.
            options = {**options, "strategy": ShardedStrategy(), "inference_mode": False}
        if not training and self.options.evaluation_precision is not None:
            options = {**options, "precision": self.options.evaluation_precision}
        return Trainer(
            **options,
            max_epochs=epochs or self.options.epochs,
            accumulate_grad_batches=self.data.accumulate_grad_batches,
            gradient_clip_val=self.options.gradient_clip,
            logger=self.tracking.loggers if training else False,
            callbacks=list(callbacks),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            default_root_dir=str(self.folder.path),
            plugins=self._plugins(),
        )

    @staticmethod
    def _plugins() -> list[Any]:
        plugins: list[Any] = [SafeCheckpointIO()]
        if SLURMEnvironment.detect():
            # Lightning would save a checkpoint of its own, and load it into another task.
            plugins.append(SLURMEnvironment(auto_requeue=False))
        return plugins

    def evaluate(self, task_indices: Sequence[int], label: str) -> dict[int, float]:
        """Score the present model on the test rows of each task; keeps every prediction.

        A task that the same evaluation has scored already, before the run was cut, is left out.

        Args:
            task_indices: which tasks.
            label: says which model, in the progress bar and the file names.

        Returns:
            Task index -> score in percent.
        """
        found = {int(index): score for index, score in self.state.evaluated.items()}
        left = [index for index in task_indices if index not in found]
        if left:
            self._evaluate(left, label, found)
        return {index: found[index] for index in task_indices}

    def _evaluate(self, left: Sequence[int], label: str, found: dict[int, float]) -> None:
        def scored(index: int, score: float) -> None:
            found[index] = score
            self.state.evaluated = {str(index): value for index, value in found.items()}
            self.folder.save(self.state)

        for index in left:
            task = self.tasks[index]
            name = f"{index + 1:02d}_{task.name}.jsonl"
            keep_inputs(self.folder.path / "test_rows" / name, task.test)
        self.score_tasks(left, label, self.folder.path / "predictions", scored)

    def score_tasks(
        self,
        left: Sequence[int],
        label: str,
        folder: Path,
        scored: Callable[[int, float], None],
        stamp: Mapping[str, Any] | None = None,
    ) -> None:
        """Score the present model on the test rows of each task; changes nothing of the run.

        Args:
            left: which tasks.
            label: says which model, in the progress bar and the file names.
            folder: of the predictions.
            scored: called with a task's index and its score in percent as soon as it is known.
            stamp: added to every prediction, beside what only stands for something real.
        """
        stand_ins = self.parts.stand_ins

        def predictions(place: int) -> Path:
            return (
                folder / f"{label}__on_{left[place] + 1:02d}_{self.tasks[left[place]].name}.jsonl"
            )

        scores = TaskScores(
            tasks=[self.tasks[i] for i in left],
            new_score=self.parts.new_score,
            path=predictions,
            stamp={**(stamp or {}), **({"stand_ins": stand_ins} if stand_ins else {})},
            scored=lambda place, score: scored(left[place], score),
            interruption=self.interruption,
        )
        self.module.begin_evaluation(
            len(left), lambda place: self.parts.adapter.use_task(self.module.model, left[place])
        )
        trainer = self.new_trainer(
            [TaskProgress(label=label, hidden=self.console.quiet), scores], training=False
        )
        loaders = self.data.evaluation_dataloaders(left)
        trainer.test(self.module, dataloaders=loaders, verbose=False)

    def _start(self) -> Path | None:
        """Take up the state to go on from; returns the checkpoint within a task, if any."""
        training = self._take_up()
        if self.parts.origin is not None:
            # The model has them now: what a large state holds is not to be in memory twice.
            self.parts.origin = replace(self.parts.origin, parts={}, memory=None)
        if self.options.evaluate_untrained and self.state.untrained is None:
            scores = self.evaluate(range(len(self.tasks)), "untrained")
            self.state.untrained = [scores[i] for i in range(len(self.tasks))]
            self.state.evaluated = {}
            self.folder.save(self.state)
        probe_untrained(self)
        return training

    def _take_up(self) -> Path | None:
        resumed = self.folder.load(self.options.resume)
        sha256 = {task.name: dict(task.sha256) for task in self.tasks}
        sha256 |= self.parts.probe.data_sha256 if self.parts.probe else {}
        ranks.barrier()  # before the first one writes another state
        training = None
        origin, num_tasks = self.parts.origin, len(self.data.training_tasks)
        if resumed is None and origin is None:
            self.state = RunState(num_tasks=num_tasks, data_sha256=sha256)
        elif resumed is None and origin is not None:
            self.state = first_run_state(origin, num_tasks, sha256)
            self.take_up_origin()
            self.folder.save(self.state, self.parts_state())
            self.console.say(f"Going on after {listed([task.name for task in origin.tasks])}.")
        else:
            assert resumed is not None
            self.state, training = resumed.state, resumed.training
            require_same_data(self.state.data_sha256, sha256, since="this run began")
            if resumed.parts is not None:
                self._restore(resumed.parts)
            self.module.logged_steps = self.state.logged_steps
            reached = self.state.reached(training.name if training else None)
            self.console.say(f"Resuming after {reached}.")
        return training

    def take_up_origin(self) -> None:
        """Make the model that of the state to go on from, if there is one."""
        origin = self.parts.origin
        if origin is not None:
            self._restore({**origin.parts, "memory": origin.memory or {}})

    def _learn(self, task_index: int, training: Path | None) -> None:
        """One task: fit with its boundary, from its beginning or a checkpoint within it."""
        task, state = self.data.training_tasks[task_index], self.state
        label = _label(task_index, task)
        started = time.perf_counter()
        self.begin_task(task_index)
        parts = self.parts
        keeping: Keeping | None = None
        if self.options.keep_boundaries:
            keeping = Keeping(parts.boundary, self.folder.path, task_index, task.name)
        selection = {"selection": parts.selection} if parts.selection else {}
        method: dict[str, Callback] = {**parts.gradient, **selection, **parts.boundary}
        # Lightning would write weights that are spread with pickle, in files of its own.
        saves, options = not self.sharded, self.options
        checkpoint = TaskCheckpoint(
            keepers=method,
            save=self._save_training if saves else _nothing,
            interruption=self.interruption,
            every_steps=options.checkpoint_every_steps if saves else None,
            every_minutes=options.checkpoint_every_minutes if saves else None,
            started=started,
        )
        shown = TaskProgress(label=label, hidden=self.console.quiet)
        trainer = self.new_trainer([shown, *method.values(), checkpoint], training=True)
        self._fit(trainer, datamodule=self.data, ckpt_path=str(training) if training else None)
        fitted = time.perf_counter()
        replay_steps = self._at_boundary(label)
        boundaries = self._record_boundaries(task_index, task)
        self._record_curve(task_index, task)
        self.module.end_task(task_index, LearntRows(self.module.to(self.device), self.data))
        if parts.memory is not None:
            parts.memory.keep(task)
        bounded = time.perf_counter()
        kept = keeping.seconds if keeping else 0.0
        seconds = {
            "train": checkpoint.seconds + fitted - checkpoint.started,
            "boundary": bounded - fitted,
            "evaluate": 0.0,
        }
        if replay_steps is None:  # callbacks that fuse at the fit's end did so within it
            seconds["train"] -= boundaries + kept
            seconds["boundary"] += boundaries
        else:
            seconds["boundary"] -= kept
        record = self._phase_record(task, seconds)
        outer = [c for c in parts.boundary.values() if isinstance(c, TakesOuterSteps)]
        record["replay_steps"] = (replay_steps or 0) + sum(c.outer_steps for c in outer)
        state.phases.append(record)
        state.learnt = True
        state.logged_steps = self.module.logged_steps
        self.folder.keep_stream(lambda: stream_record(self))
        self.folder.save(state, self.parts_state())

    def _save_training(self, trainer: Trainer) -> None:
        def write(path: Path) -> None:
            trainer.save_checkpoint(path, weights_only=False)
            plugin: Any = trainer.strategy.checkpoint_io
            failure = ranks.from_first(plugin.failure)
            if failure is not None:
                raise failure

        self.folder.save_training(self.state, trainer.global_step, write)

    def _judge(self, task_index: int) -> None:
        """Evaluate what has just been learnt, and count the task as done."""
        state = self.state
        started = time.perf_counter()
        label = _label(task_index, self.data.training_tasks[task_index])
        scores = self.evaluate(self.tasks_to_judge(task_index), label)
        probe_learnt(self, task_index, label)
        state.phases[-1]["seconds"]["evaluate"] += time.perf_counter() - started
        state.score_matrix.append([scores.get(j) for j in range(len(self.tasks))])
        state.next_task = task_index + 1
        state.learnt, state.evaluated = False, {}
        names = [task.name for task in self.tasks]
        self.tracking.task_judged(state, names, self.parts.stream.num_seen(task_index, len(names)))
        self.folder.save(state)

    def tasks_to_judge(self, task_index: int) -> list[int]:
        """Which tasks are evaluated after a phase: the entries of its row of the score matrix."""
        stream, total = self.parts.stream, len(self.tasks)
        seen = stream.num_seen(task_index, total)
        newest = range(stream.num_seen(task_index - 1, total) if task_index > 0 else 0, seen)
        is_last = task_index + 1 == len(self.data.training_tasks)
        at_end: Sequence[int] = range(seen) if is_last else ()
        judged = {
            "full": range(seen),
            "final_row": at_end,
            "diagonal": newest,
            "diagonal_and_final_row": at_end or newest,
        }[self.options.evaluation_matrix]
        next_task = [seen] if self.options.evaluate_next_task and seen < total else []
        return [index for index in (*judged, *next_task) if self.tasks[index].at_hand]

    def _fit(self, trainer: Trainer, **data: Any) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")
            try:
                trainer.fit(self.module, **data)
            except SIGTERMException as error:
                # It came before the checkpoint callback listened: nothing had been done yet.
                raise Interrupted from error

    def _at_boundary(self, label: str) -> int | None:
        """What the method's callbacks do after the fit; the steps it took, None: nothing to do."""
        working = [c for c in self.parts.boundary.values() if isinstance(c, ActsAtBoundary)]
        if not working:
            return None
        steps = 0

        def fit_rows(rows: Sequence[Row], *, epochs: int, callbacks: Sequence[Any]) -> None:
            nonlocal steps
            listener = StopBetweenSteps(self.interruption)
            progress = TaskProgress(label=f"{label} replay", hidden=self.console.quiet)
            shown = [progress, *callbacks, listener]
            trainer = self.new_trainer(shown, training=True, epochs=epochs)
            with self.module.rehearsing() as counts:
                loader = self.data.rows_dataloader(rows, "replayed rows")
                self._fit(trainer, train_dataloaders=loader)
                steps += counts.optimizer_steps
            self.module.counts.skipped_steps += counts.skipped_steps
            self.module.counts.scaler_overflows += counts.scaler_overflows

        for callback in working:
            callback.at_boundary(self.module, self.data.memory_rows, fit_rows)
        return steps

    def _phase_record(self, task: Task, seconds: dict[str, float]) -> dict[str, Any]:
        counts = self.module.counts
        if counts.skipped_steps:
            self.console.say(
                f"{task.name}: {counts.skipped_steps} optimizer steps skipped, their loss or "
                "gradient was not finite."
            )
        selection = self.parts.selection
        return {
            "name": task.name,
            "train_rows": self.data.num_training_rows(task),
            "rehearsed_rows": len(self.data.rehearsed),
            "memory_rows": self._memory_rows(),
            "optimizer_steps": counts.optimizer_steps,
            "selected_step": selection.selected_step if selection else None,
            "stopped_early": selection is not None and selection.stopped_early,
            "skipped_steps": counts.skipped_steps,
            "scaler_overflows": counts.scaler_overflows,
            "last_loss": counts.losses[-1] if counts.losses else None,
            "seconds": seconds,
        }

    def _memory_rows(self) -> int:
        memory = self.parts.memory
        return sum(len(rows) for rows in memory.rows.values()) if memory else 0

    def _record_boundaries(self, task_index: int, task: Task) -> float:
        """Write what the boundary callbacks did; returns the seconds they took."""
        seconds = 0.0
        for name, callback in self.parts.boundary.items():
            if not isinstance(callback, ReportsBoundary) or callback.boundary is None:
                continue
            boundary = callback.boundary
            seconds += boundary.seconds
            path = self.folder.path / "importance" / f"{task_index + 1:02d}_{task.name}_{name}.json"
            record = boundary_record(task.name, asdict(boundary), self.parts.stand_in_parts)
            ranks.on_first(partial(write_json, path, record))
            if boundary.classes is not None and boundary.weight is not None:
                kinds = {c: boundary.classes.count(c) for c in sorted(set(boundary.classes))}
                listed = ", ".join(f"{number} {kind}" for kind, number in kinds.items())
                self.console.say(
                    f"Boundary after {task.name}: {len(boundary.unit_ids)} units, {listed}; mean "
                    f"weight of the past {float(boundary.weight.mean()):.3f}."
                )
        return seconds

    def _record_curve(self, task_index: int, task: Task) -> None:
        """The loss of each optimizer step of the task, on the run's axis."""
        losses = self.module.counts.losses
        path = self.folder.path / "curves" / f"{task_index + 1:02d}_{task.name}.json"
        record = {
            "task": task.name,
            "stand_ins": self.parts.stand_in_parts,
            "first_step": self.state.logged_steps + 1,
            "loss": losses,
        }
        ranks.on_first(lambda: write_json(path, record))

    def parts_state(self) -> dict[str, Any]:
        """What the next task needs of the method's parts."""
        parts = self.parts
        return {
            "base": self.base,
            "adapter": whole_on_first(parts.adapter.state_dict(self.module.model)),
            "penalties": {name: p.state_dict() for name, p in parts.penalties.items()},
            "gradient": {name: c.state_dict() for name, c in parts.gradient.items()},
            "boundary": {name: c.state_dict() for name, c in parts.boundary.items()},
            "memory": parts.memory.state_dict() if parts.memory else {},
        }

    def _restore(self, saved: dict[str, Any]) -> None:
        parts = self.parts
        # States of before there were fingerprints have none.
        require_same_base(
            saved.get("base", self.base),
            self.base,
            what="the run as it began",
            mend="put the old one back (backbone.path), choose another run_dir=FOLDER, or start "
            "anew with rerun=true",
        )
        parts.adapter.load_state_dict(self.module.model, saved["adapter"])
        for slot in ("penalties", "gradient", "boundary"):
            for name, part in getattr(parts, slot).items():
                part.load_state_dict(saved[slot][name])
        if parts.memory is not None:
            parts.memory.load_state_dict(saved["memory"])

    def _finish(self, state: RunState) -> dict[str, Any]:
        """Write the final adapter, then ``results.json``: its presence says the run is complete."""
        if self.options.save_model:
            # The card needs it, and all tasks may have been learnt by an earlier version.
            self.folder.keep_stream(lambda: stream_record(self))
            adapter, model = self.parts.adapter, self.module.model
            whole = whole_on_first(adapter.state_dict(model)) if self.sharded else None
            ranks.on_first(lambda: self._save_model(whole))
        results = results_record(
            score_matrix=state.score_matrix,
            untrained=state.untrained,
            tasks=[self._task_record(index) for index in range(len(self.tasks))],
            phases=without_probe(state.phases),
            stand_ins=self.parts.stand_ins,
            data_findings=self.data_findings,
            protocol=self.protocol(),
            cost=self._cost(state),
            probe=probe_record(self),
        )
        ranks.on_first(lambda: self.folder.write_results(results))
        self.tracking.finished()
        return results

    def _task_record(self, index: int) -> dict[str, Any]:
        """A task in the results; one whose rows are not at hand as it was answered at its time."""
        task, origin = self.tasks[index], self.parts.origin
        if origin is not None and not task.at_hand:
            before = origin.tasks[index]
            answered: dict[str, Any] = {
                "decode": before.decode,
                "max_new_tokens": before.max_new_tokens,
            }
        else:
            answered = {
                "decode": self.data.decode_of(task),
                "max_new_tokens": self.data.new_tokens_cap(task),
            }
        about = {"name": task.name, "kind": task.kind, "metric": task.metric}
        return {**about, "test_rows": len(task.test), **answered}

    def protocol(self) -> dict[str, Any]:
        """Under which conditions the run's numbers arise; after :meth:`build`."""
        return protocol_stamp(
            self.parts,
            self.options,
            self.data.micro_batch_size,
            self.device.type,
            self._selection_stamp(),
            {task.name: self.data.decode_of(task) for task in self.tasks},
            self._uses_fused(),
            self.parts.backbone.computation(self.module.model),
        )

    def _save_model(self, whole: dict[str, Any] | None) -> None:
        adapter, model = self.parts.adapter, self.module.model
        if whole is not None:
            # transformers and peft write whole models alone: the first rank makes one again.
            model = adapter.attach(self.parts.backbone.load_model(), self.parts.backbone)
            adapter.load_state_dict(model, whole)
        with replacing_folder(self.folder.path / "adapter") as folder:
            adapter.save(model, folder)
            facts = facts_of_run(
                self.folder.stream(),
                [phase["name"] for phase in self.state.phases],
                self.state.score_matrix,
                self.base,
                self.parts.backbone,
                model,
            )
            write_card(folder, facts, contents_of(folder), Told())

    @cached_property
    def device(self) -> torch.device:
        """The device that trains."""
        device: torch.device = self.new_trainer([], training=False).strategy.root_device
        return device

    def _cost(self, state: RunState) -> dict[str, Any]:
        phases = ("train", "boundary", "evaluate")
        own = state.phases[self.parts.num_learnt :]
        seconds = {p: sum(phase["seconds"][p] for phase in own) for p in phases}
        scale = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
        on_gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
        return {
            **self.weight_counts(),
            "learnt_weights": count_weights(self.parts.adapter.state_dict(self.module.model)),
            "memory_rows": self._memory_rows(),
            "seconds": {**seconds, "total": sum(seconds.values())},
            "peak_memory_bytes": peak,
            "peak_gpu_memory_bytes": on_gpu,
        }

    def weight_counts(self) -> dict[str, int]:
        """Numbers of trainable and frozen scalar weights."""
        trainable = count_weights(self.parts.adapter.trainable(self.module.model))
        total = count_weights(dict(self.module.model.named_parameters()))
        return {"trainable_weights": trainable, "frozen_weights": total - trainable}


@dataclass(frozen=True)
class LearntRows:
    """Losses of the present task's own train rows, for what a penalty keeps of the task."""

    module: ContinualModule
    data: ContinualDataModule

    def row_losses(self, num_rows: int) -> Iterator[Tensor]:
        """-log p(answer | prompt) of so many rows, one by one, without dropout."""
        with evaluating(self.module):
            for batch in self.data.sample_batches(num_rows, "rows of the learnt task"):
                on_device = self.module.transfer_batch_to_device(batch, self.module.device, 0)
                yield self.module.row_loss(on_device)


def _nothing(*_: Any) -> None:
    """All that is done where the other ranks start, or where a task cannot be saved within."""


def _label(task_index: int, task: Task) -> str:
    """Of the model after a phase, in file names and bars."""
    return f"after_{task_index + 1:02d}_{task.name}"

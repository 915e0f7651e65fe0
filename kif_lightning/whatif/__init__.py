"""``kif whatif``: one boundary of a run fused again with other settings, evaluated untrained."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf
from tqdm.auto import tqdm

from kif_lightning import launch
from kif_lightning.boundaries import KeptBoundary, find_boundary, folder_name, fusion_of
from kif_lightning.callbacks import KnowledgeFusion
from kif_lightning.composing import composed
from kif_lightning.errors import UserError
from kif_lightning.probe import of_tasks
from kif_lightning.reporting import stamp
from kif_lightning.reporting.console import RunConsole
from kif_lightning.reporting.what_if import BETA_NOTE, LABEL
from kif_lightning.run_state import RunFolder
from kif_lightning.runner import StreamRunner
from kif_lightning.storage import CONTENTS, read_json
from kif_lightning.whatif.book import Book
from kif_lightning.whatif.refusion import Refusion
from kif_lightning.whatif.ways import Asked, Way, ways

__all__ = ["Asked", "run_config", "what_if"]

BOOK = "what_if.json"
"""Not results.json, which marks a run."""


def what_if(run: Path, asked: Asked, console: RunConsole) -> Path:
    """Fuse one boundary again in every way asked for and evaluate the tasks learnt by then.

    Nothing is trained, and of the run's own files none is touched; what was evaluated before is
    not evaluated again.

    Returns:
        The ``what_if.json`` written, under ``whatif/`` in the run's folder.

    Raises:
        UserError: no such run or boundary, a method that cannot be fused again, other data,
            settings there are not, another process doing the same.
    """
    config = run_config(run)
    runner = launch.new_runner(config, console)
    callback, fusion = fusion_of(runner.parts.boundary)
    kept = find_boundary(run, asked.task)
    tried = ways(fusion, asked)
    _check_beta(runner, fusion, kept, asked)
    run_row = _run_row(runner, run, kept)
    folder = run / "whatif" / folder_name(kept.number, kept.task)
    with _alone(folder):
        runner.build()
        names = [task.name for task in runner.data.training_tasks]
        refusion = Refusion(
            run=run,
            callback=callback,
            fusion=fusion,
            kept=kept,
            tasks=names,
            device=runner.device,
        )
        refusion.check(tried[0])
        book = Book(
            path=folder / BOOK,
            tasks=names[: kept.number],
            own=tried[0],
            run_row=run_row,
            stand_ins=runner.parts.stand_ins,
            conditions=_conditions(runner, kept),
        )
        told = book.open()
        if told is not None:
            console.say(told)
        _evaluate(runner, refusion, tried, book)
        book.show(tried, console)
        drawn = book.draw(tried)
    if asked.beta is not None:
        console.say(BETA_NOTE)
    for path in (*drawn, book.path):
        console.say(f"Written: {path}")
    return book.path


def run_config(run: Path) -> DictConfig:
    """A run's config as it was, to be evaluated by one process.

    Raises:
        UserError: there is no run in the folder.
    """
    path = run / "config.yaml"
    if not path.is_file():
        raise UserError(
            f"Expected a run's folder, but there is no config.yaml in {run}: give the folder that "
            "a run named when it began."
        )
    default: Any = OmegaConf.to_container(composed())
    stored: Any = OmegaConf.to_container(OmegaConf.load(path))
    # What changes no result is not stored; groups are taken whole, not mixed with the defaults, but
    # for the evaluation's: what says nothing is left out of it.
    evaluation = {**default["evaluation"], **stored["evaluation"]}
    # The probe's rows are not asked here: they may be gone.
    own = {"evaluation": evaluation, "probe": default["probe"], "run_dir": str(run)}
    own["continue_from"] = None  # its digest, not its place, is stored
    config = OmegaConf.create({**default, **stored, **own})
    config.trainer.update({"devices": 1, "num_nodes": 1, "strategy": "auto"})
    return config


def _check_beta(
    runner: StreamRunner, fusion: KnowledgeFusion, kept: KeptBoundary, asked: Asked
) -> None:
    if asked.beta is None:
        return
    if kept.number == 2:
        raise UserError(
            "--beta has no effect after the second task, before which the importance of one task "
            "alone was accumulated: ask for a later --task."
        )
    if fusion not in runner.parts.boundary.values():
        raise UserError(
            "Another beta would have fixed other units in the replay before the fusion, which "
            "would need that training again: leave --beta out."
        )


def _run_row(runner: StreamRunner, run: Path, kept: KeptBoundary) -> list[float | None] | None:
    """The run's own scores after the boundary, None if it has not got there.

    Raises:
        UserError: the data are not those of the run.
    """
    folder = RunFolder(run)
    if (run / "results.json").is_file():
        results = folder.results()
        matrix, sha256 = results["score_matrix"], results["protocol"]["data_sha256"]
    else:
        state = folder.reached()
        matrix = state.score_matrix if state else []
        sha256 = of_tasks(state.data_sha256) if state else {}
    now = {task.name: dict(task.sha256) for task in runner.tasks}
    if now != sha256 or list(now) != list(sha256):
        changed = [name for name in {**sha256, **now} if now.get(name) != sha256.get(name)]
        raise UserError(
            f"The data of {', '.join(changed) or 'the tasks, their order,'} are not those that "
            f"the run in {run} learnt and was evaluated on: put the old files back."
        )
    return matrix[kept.number - 1][: kept.number] if len(matrix) >= kept.number else None


def _conditions(runner: StreamRunner, kept: KeptBoundary) -> dict[str, Any]:
    return {
        "weights": read_json(kept.folder / CONTENTS),
        "device": stamp.device(runner.device.type),
        **{key: stamp.software()[key] for key in ("kif_lightning", "packages")},
    }


def _evaluate(runner: StreamRunner, refusion: Refusion, tried: Sequence[Way], book: Book) -> None:
    left = [way for way in tried if way.key not in book.answers]
    if len(left) < len(tried):
        runner.console.say(f"Evaluated before: {len(tried) - len(left)} of {len(tried)} fusions.")
    learnt = range(refusion.kept.number)
    hidden = not sys.stderr.isatty()
    for way in tqdm(left, desc="fusions", position=0, disable=hidden, dynamic_ncols=True):
        share = refusion.share(way)
        runner.parts.adapter.load_state_dict(runner.module.model, refusion.fused(share))
        scores: dict[int, float] = {}
        predictions = book.path.parent / "predictions"
        label = {} if way.key == book.own.key else {"label": LABEL}
        runner.score_tasks(learnt, way.key, predictions, scores.__setitem__, label)
        book.add(way, [scores[index] for index in learnt], share)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """No other process may write the same results meanwhile; the run itself is free to go on."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"Another kif whatif works in {folder}: wait until it ends.") from None
    try:
        yield
    finally:
        lock.release()

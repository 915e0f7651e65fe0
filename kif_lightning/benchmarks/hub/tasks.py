"""Tasks of a collection: rows drawn from their public data sets, once, and kept."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
from tqdm.auto import tqdm

from kif_lightning.benchmarks.hub.drawing import (
    MOST_DEV_ROWS,
    MOST_HELD_OUT,
    PER_CLASS,
    PER_TASK,
    SIZES,
    TEST_ROWS_OF_CLASS,
    TRAIN_ROWS,
    Pair,
    all_of,
    draw,
    in_order,
    one_pool,
    train_and_dev,
)
from kif_lightning.benchmarks.hub.recipes import COLLECTIONS
from kif_lightning.benchmarks.hub.source import Source
from kif_lightning.benchmarks.rows import sha256_of, stored, write_arrow
from kif_lightning.errors import (
    UserError,
    collecting_errors,
    nearest_names,
    require_choice,
    require_count,
)
from kif_lightning.interfaces import Row, SourceTask, Split
from kif_lightning.paths import cache_dir
from kif_lightning.storage import write_json

log = logging.getLogger(__name__)

DRAWING_VERSION = 1
"""Raise it when the same recipe comes to draw other rows."""


def hub_tasks(
    collection: str,
    names: Sequence[str],
    *,
    size: str,
    draw_seed: int,
    mirror: str | None,
    cache: Path | None = None,
) -> list[SourceTask]:
    """Tasks with ``train``, ``test`` and, where train rows are left over, ``dev``.

    No input is twice in a task: of rows with the same input the first counts, and rows that are in
    test are in no other split. Long Sequence: 1000 train rows a task (drawn from all alike, as
    published) or a class, up to 500 dev rows of the others, 500 test rows a class; a class or set
    with fewer gives all it has. SuperNI: 1000, 100 and 100, of smaller tasks 8 : 1 : 1.

    Args:
        collection: ``long_sequence`` or ``superni``.
        names: of tasks, in the order wanted.
        size: ``1000_per_task`` or, for Long Sequence, ``1000_per_class``.
        draw_seed: of the draws.
        mirror: see :class:`~kif_lightning.benchmarks.hub.source.Source`; None: the hub.
        cache: where drawn rows are kept, one folder a task, in ``hub``; None: the user's cache.
            A change of anything that decides the rows is another folder; a data set of the hub
            that is pinned to no revision is looked at only once.

    Raises:
        MissingPartError: the hub cannot be reached.
        UserError: an unknown setting or task, or a data set that is not as expected.
    """
    # Raised here: with a setting that only was noted, much would be read in vain.
    with collecting_errors() as mistakes:
        require_choice("The collection of hub tasks", collection, COLLECTIONS)
        require_choice("benchmark.size", size, SIZES)
        require_count("benchmark.draw_seed", draw_seed, 0)
    if mistakes:
        raise UserError.joined(mistakes)
    recipes = COLLECTIONS[collection]
    for name in names:
        if name not in recipes:
            raise UserError(
                f"There is no recipe for task {name!r} of {collection}: "
                f"{nearest_names(name, recipes)}."
            )
        if size == PER_CLASS and recipes[name].test is None:
            raise UserError(
                f"benchmark.size={PER_CLASS} is for tasks of classes, {collection} has others: use "
                f"benchmark.size={PER_TASK}."
            )
    if mirror is not None and not Path(mirror).is_dir():
        raise UserError(f"benchmark.mirror must be an existing folder, got {mirror!r}.")
    folder = (cache or cache_dir()) / "hub"
    return [
        _task(source, size, draw_seed, folder) for source in _sources(collection, names, mirror)
    ]


def hub_origins(
    collection: str, names: Sequence[str], *, mirror: str | None
) -> dict[str, dict[str, str | None]]:
    """Task -> repository, config and revision of its rows; arguments as of :func:`hub_tasks`."""
    return {source.task: source.origin() for source in _sources(collection, names, mirror)}


def _sources(collection: str, names: Sequence[str], mirror: str | None) -> Iterator[Source]:
    folder = None if mirror is None else Path(mirror)
    for name in names:
        yield Source(task=name, recipe=COLLECTIONS[collection][name], mirror=folder)


def _task(source: Source, size: str, draw_seed: int, cache: Path) -> SourceTask:
    recipe = source.recipe
    decides = [DRAWING_VERSION, source.task, asdict(recipe), size, draw_seed, source.state()]
    fingerprint = hashlib.sha256(json.dumps(decides).encode()).hexdigest()
    folder = cache / f"{source.task}-{fingerprint[:24]}"
    splits = _kept(folder)
    if splits is None:
        _keep(
            folder,
            {
                split: [_row(source.task, pair) for pair in pairs]
                for split, pairs in _drawn(source, size, draw_seed).items()
            },
            _provenance(source, size, draw_seed),
        )
        splits = _kept(folder)
    if splits is None:
        raise UserError(
            f"The drawn rows of task {source.task} cannot be read back from {folder}: see to that "
            "disk, or set KIF_CACHE to a folder elsewhere."
        )
    return SourceTask(
        name=source.task,
        kind=recipe.kind,
        metric=recipe.metric,
        splits=splits,
        closed_answers=recipe.kind == "classification",
    )


_PROVENANCE = "provenance.json"


def _kept(folder: Path) -> dict[str, Split] | None:
    """The rows kept in a folder; None: there are none, or they are damaged."""
    try:
        sha256 = json.loads((folder / _PROVENANCE).read_text(encoding="utf-8"))["sha256"]
        return {
            split: Split(rows=stored(folder / f"{split}.arrow")[0], sha256=value)
            for split, value in sha256.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException):
        return None


def _drawn(source: Source, size: str, draw_seed: int) -> dict[str, list[Pair]]:
    """The rows of every split that has some."""
    recipe, task = source.recipe, source.task
    if recipe.test is None:
        pool = draw(
            _shown(source, recipe.train, draw_seed),
            seed=draw_seed,
            purpose=f"{task}/pool",
            most=TRAIN_ROWS + 2 * MOST_HELD_OUT,
        )
        train, dev, test = one_pool(pool)
    else:
        # Test first: train is drawn from what is not in it.
        test = in_order(
            all_of(
                draw(
                    _shown(source, recipe.test, draw_seed),
                    seed=draw_seed,
                    purpose=f"{task}/test",
                    most=TEST_ROWS_OF_CLASS,
                    classes=recipe.words,
                    part=recipe.part,
                )
            )
        )
        others = draw(
            _shown(source, recipe.train, draw_seed),
            seed=draw_seed,
            purpose=f"{task}/train",
            most=TRAIN_ROWS + MOST_DEV_ROWS,
            classes=recipe.words,
            without={text for text, _ in test},
            part=recipe.part,
        )
        train, dev = train_and_dev(others, size)
    if not train or not test:
        raise UserError(
            f"The data set {recipe.repository} of task {task} has too few different rows to make "
            f"train and test of: it gave {len(train)} and {len(test)}."
        )
    return {name: rows for name, rows in (("train", train), ("dev", dev), ("test", test)) if rows}


def _shown(source: Source, split: str, draw_seed: int) -> Iterator[Pair]:
    """The rows of a hub split, with a progress bar on a terminal."""
    log.info("Reading %s (%s) of %s", source.task, split, source.recipe.repository)
    bar = tqdm(
        source.rows(split, seed=draw_seed),
        desc=f"{source.task} {split}",
        unit=" rows",
        disable=not sys.stderr.isatty(),
        leave=False,
    )
    with bar:
        yield from bar


def _provenance(source: Source, size: str, draw_seed: int) -> dict[str, Any]:
    return {
        "task": source.task,
        **source.origin(),
        "from": "hub" if source.state() is None else "mirror",
        "size": size,
        "draw_seed": draw_seed,
    }


def _keep(folder: Path, splits: Mapping[str, Sequence[Row]], provenance: Mapping[str, Any]) -> None:
    """Write the rows of a task into a folder, whole or not at all."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        outer = tempfile.TemporaryDirectory(
            dir=folder.parent, prefix=f".{folder.name}.", ignore_cleanup_errors=True
        )
    except OSError as error:
        raise UserError(
            f"The drawn rows are kept in {folder.parent}, which cannot be written "
            f"({error.strerror or error}): set KIF_CACHE to a folder that can."
        ) from error
    with outer:
        # The outer folder is its user's alone; this one may be read by all that share the cache.
        temporary = Path(outer.name) / folder.name
        temporary.mkdir()
        for split, rows in splits.items():
            write_arrow(temporary / f"{split}.arrow", iter(rows))
        sha256 = {split: sha256_of(rows) for split, rows in splits.items()}
        write_json(temporary / _PROVENANCE, {**provenance, "sha256": sha256})
        try:
            temporary.rename(folder)
        except OSError:
            # Another process was faster, with the same rows; or what is there is damaged.
            if _kept(folder) is None:
                _replace(folder, temporary)


def _replace(folder: Path, new: Path) -> None:
    try:
        shutil.rmtree(folder)
        new.rename(folder)
    except OSError as error:
        raise UserError(
            f"{folder} holds no whole rows and cannot be replaced ({error.strerror or error}): "
            "remove it, or set KIF_CACHE to another folder."
        ) from error


def _row(task: str, pair: Pair) -> Row:
    """Named by its input, which no other row of the task has."""
    text, answer = pair
    return Row(
        id=f"{task}-{hashlib.sha256(text.encode()).hexdigest()[:16]}", input=text, output=answer
    )

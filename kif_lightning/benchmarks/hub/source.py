"""The rows of a public data set: streamed from the hub, or from a folder with a copy of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from datasets import ClassLabel, IterableDataset, load_dataset
from datasets.exceptions import DatasetsError
from datasets.utils.logging import CRITICAL, disable_progress_bar, set_verbosity
from huggingface_hub.errors import HTTPError

from kif_lightning.benchmarks.files import named
from kif_lightning.benchmarks.hub.drawing import Pair
from kif_lightning.benchmarks.hub.recipes import Recipe
from kif_lightning.errors import MissingPartError, UserError
from kif_lightning.online import hub_answers
from kif_lightning.seeding import generator

Record = Mapping[str, Any]
_CLONED = "allenai/natural-instructions"


class Source:
    """Where one task's rows come from.

    Args:
        task: its name.
        recipe: of the task.
        mirror: a folder with copies of the data sets, each in ``<owner>/<name>`` as the hub has it;
            for SuperNI a clone of allenai's natural-instructions repository, or a folder with one,
            does as well. None: the hub.

    Raises:
        UserError: the mirror has no such data set.
    """

    def __init__(self, *, task: str, recipe: Recipe, mirror: Path | None) -> None:
        self.task = task
        self.recipe = recipe
        self._folder = None if mirror is None else mirror / recipe.repository
        self._clone = None if mirror is None else _in_clone(mirror, recipe)
        if mirror is not None and self._clone is None and not (mirror / recipe.repository).is_dir():
            raise UserError(
                f"benchmark.mirror={mirror} has no folder {recipe.repository}, which holds the "
                f"rows of task {task}: copy it there as the hub has it ('hf download "
                f"{recipe.repository} --repo-type dataset --local-dir "
                f"{mirror / recipe.repository}')."
            )

    def state(self) -> list[list[Any]] | None:
        """What tells one copy of the files from another, without reading them; None: the hub."""
        if self._folder is None:
            return None
        files = [self._clone] if self._clone else sorted(self._folder.rglob("*"))
        return [[str(f), f.stat().st_size, f.stat().st_mtime_ns] for f in files]

    def origin(self) -> dict[str, str | None]:
        """Which data set the rows are of; what revision a copy is of is not known."""
        return {
            "repository": _CLONED if self._clone else self.recipe.repository,
            "config": self.recipe.config,
            "revision": self.recipe.revision if self._folder is None else None,
        }

    def rows(self, split: str, *, seed: int) -> Iterator[Pair]:
        """Rows of a hub split as (input, answer); those with nothing to ask or answer are left out.

        Args:
            split: a hub split.
            seed: of the order in which its files, or the pieces of a large set, are read.

        Raises:
            MissingPartError: the hub cannot be reached.
            UserError: a split, column or class is missing, or a value is not as expected.
        """
        place = f"{self._clone or self._folder or self.recipe.repository}"
        if self.recipe.config:
            place += f", config {self.recipe.config}"
        place += f", split {split}" if self._clone is None else ""
        records = self._streamed(split, seed, place) if self._clone is None else self._of_clone()
        columns = {*self.recipe.columns[0], self.recipe.answer}
        found: set[str] = set()
        with self._told(place):
            for number, record in enumerate(records, start=1):
                if number == 1 and not columns <= record.keys():
                    raise UserError(
                        f"{place}: expected the columns {named(sorted(columns))} of task "
                        f"{self.task}, but there is no {named(sorted(columns - record.keys()))}, "
                        f"only {named(record)}."
                    )
                try:
                    row = make_pair(self.recipe, record)
                except UserError as error:
                    raise UserError(f"{place}, row {number} read: {error}") from error
                if row is not None:
                    found.add(row[1])
                    yield row
        missing = [word for word in self.recipe.words if word not in found]
        if missing or not found:
            what = f"of the answer {named(missing)}" if missing else "to draw from"
            raise UserError(
                f"{place}: expected rows {what} in column '{self.recipe.answer}', got none; task "
                f"{self.task} needs the whole data set."
            )

    def _streamed(self, split: str, seed: int, place: str) -> Iterable[Record]:
        recipe = self.recipe
        if self._folder is None and not hub_answers():
            raise self._unreachable()
        # It logs what it raises, and shows bars of its own.
        set_verbosity(CRITICAL)
        disable_progress_bar()
        with self._told(place):
            data: IterableDataset = load_dataset(
                str(self._folder or recipe.repository),
                recipe.config,
                split=split,
                data_files=recipe.data_files,
                revision=None if self._folder else recipe.revision,
                streaming=True,
            )
            pieces = data.reshard() if recipe.part is not None else data
        label = (data.features or {}).get(recipe.answer)
        if (
            recipe.classes
            and isinstance(label, ClassLabel)
            and tuple(label.names) != recipe.classes
        ):
            raise UserError(
                f"{place}: expected the classes {named(recipe.classes)} in column "
                f"'{recipe.answer}', got {named(label.names)}."
            )
        # Parquet: a piece is about a thousand rows, from anywhere in the files; CSV is one piece.
        order = torch.randperm(pieces.num_shards, generator=generator(seed, self.task, split))
        return chain.from_iterable(
            pieces.shard(num_shards=pieces.num_shards, index=index) for index in order.tolist()
        )

    def _of_clone(self) -> Iterator[Record]:
        assert self._clone is not None
        task = json.loads(self._clone.read_text(encoding="utf-8"))
        if not isinstance(task, dict) or not isinstance(task["Instances"], list):
            raise UserError(
                f"{self._clone} must hold a JSON object with a list 'Instances', got "
                f"{task!r:.40}: copy it anew from {_CLONED}."
            )
        for number, instance in enumerate(task["Instances"], start=1):
            if not isinstance(instance, dict):
                raise UserError(
                    f"{self._clone}, instance {number} must be a JSON object with 'input' and "
                    f"'output', got {instance!r:.40}."
                )
            yield {
                "definition": _first(task["Definition"]),
                "inputs": instance["input"],
                "targets": _first(instance["output"]),
            }

    @contextmanager
    def _told(self, place: str) -> Iterator[None]:
        """Raise what the libraries raise as a sentence."""
        try:
            yield
        except UserError:
            raise
        except (
            OSError,
            ValueError,
            KeyError,
            RuntimeError,
            DatasetsError,
            pa.ArrowException,
            HTTPError,
        ) as error:
            if self._folder is None and not hub_answers():
                raise self._unreachable() from error
            told = " ".join(str(error).split())[:200]
            raise UserError(
                f"{place}: the rows of task {self.task} cannot be read as the hub lays them out "
                f"({type(error).__name__}: {told})."
            ) from error

    def _unreachable(self) -> MissingPartError:
        return MissingPartError(
            what=f"the data set {self.recipe.repository} of task {self.task}, as the hub cannot be "
            "reached",
            bring="connect, or give benchmark.mirror=FOLDER with local copies (<owner>/<name>/ as "
            "on the hub)",
            stand_in="benchmark=long_sequence_mini",
        )


def make_pair(recipe: Recipe, record: Record) -> Pair | None:
    """The row of a record; None where nothing stands in a column that must not be blank.

    Raises:
        UserError: a column holds something else than text, or an unknown class.
    """
    value = record[recipe.answer]
    if recipe.words:
        if isinstance(value, list | dict) or value not in recipe.word_of:
            raise UserError(
                f"'{recipe.answer}' is {value!r:.40}; expected a class from {recipe.first_class} "
                f"to {recipe.first_class + len(recipe.words) - 1}."
            )
        answer = recipe.word_of[value]
    else:
        answer = _text(record, recipe.answer)
        if not answer.strip():
            return None
    for prompt, columns in zip(recipe.prompts, recipe.columns, strict=True):
        filled = {name: _text(record, name) for name in columns}
        if all(v.strip() or name in recipe.may_be_blank for name, v in filled.items()):
            return prompt.format_map(filled), answer
    return None


def _text(record: Record, column: str) -> str:
    value = record[column]
    if value is not None and not isinstance(value, str):
        raise UserError(f"'{column}' must hold a text, got {type(value).__name__} {value!r:.40}.")
    return value or ""


def _first(texts: Any) -> Any:
    """Lists of texts stand where the hub's copy has their first."""
    return next(iter(texts), None) if isinstance(texts, list) else texts


def _in_clone(mirror: Path, recipe: Recipe) -> Path | None:
    """The task's file in a clone of natural-instructions, if the mirror is or has one."""
    if recipe.data_files is None:
        return None
    file = recipe.data_files.removeprefix("*/").removesuffix("_*.jsonl") + ".json"
    for folder in (mirror / "tasks", mirror / _CLONED / "tasks"):
        if (folder / file).is_file():
            return folder / file
    return None

"""What a yaml file says of the user's own tasks, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml

from kif_lightning.benchmarks.folder import KINDS
from kif_lightning.benchmarks.own.layout import Layout, Template
from kif_lightning.errors import UserError, nearest_names, require_between, require_choice
from kif_lightning.interfaces import TaskKind

METRIC_OF_KIND = {
    "classification": "exact_match",
    "multiple_choice": "exact_match",
    "generation": "rouge_l",
    "dialogue_state": "joint_goal_accuracy",
}
TASK_KEYS = (
    *("kind", "metric", "train", "dev", "test", "test_share"),
    *("prompt", "answer", "words", "choices", "answer_as", "id"),
)
PLACE_KEYS = ("path", "hub", "config", "split", "revision")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a split's records are: a file, a folder saved by ``datasets``, or a hub data set.

    ``split`` is one of those the folder or the data set has.
    """

    path: Path | None = None
    hub: str | None = None
    config: str | None = None
    split: str | None = None
    revision: str | None = None


@dataclass(frozen=True, kw_only=True)
class TaskDescription:
    """One task of the file."""

    name: str
    kind: TaskKind
    metric: str
    places: Mapping[str, Place]
    test_share: float
    layout: Layout

    @property
    def closed_answers(self) -> bool:
        """Whether all rows choose from the same few answers."""
        lettered = self.kind == "multiple_choice" and self.layout.answer_as == "letter"
        return self.kind == "classification" or lettered


def read_descriptions(file: Path) -> tuple[list[str], dict[str, TaskDescription]]:
    """The order and the tasks of a yaml file.

    Raises:
        UserError: everything that is wrong with it, one sentence a line.
    """
    content = _yaml(file)
    unknown = _unknown(content, ("order", "tasks", "defaults"))
    if unknown:
        raise UserError(f"{file}: {unknown}")
    defaults, tasks = content.get("defaults") or {}, content.get("tasks")
    if not isinstance(tasks, dict) or not tasks:
        raise UserError(f"{file}: expected 'tasks' with a name and a description for each task.")
    if not isinstance(defaults, dict):
        raise UserError(f"{file}: 'defaults' must hold keys that all tasks share.")
    found, errors = {}, []
    for name, entry in tasks.items():
        try:
            if not isinstance(entry, dict):
                raise UserError(f"expected its description, got {entry!r:.40}.")
            found[str(name)] = _task(str(name), {**defaults, **entry}, file.parent)
        except UserError as error:
            errors += [UserError(f"{file}, task {name}: {line}") for line in str(error).split("\n")]
    if errors:
        raise UserError.joined(errors)
    order = content.get("order") or list(found)
    if not isinstance(order, list):
        raise UserError(f"{file}: 'order' must be a list of tasks, got {order!r:.40}.")
    return [str(name) for name in order], found


def _yaml(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise UserError(f"Expected a yaml file that describes tasks, got {str(file)!r}.")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        told = " ".join(str(error).split())
        raise UserError(f"{file} must be yaml, but it does not parse: {told}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} must hold 'tasks', got {type(content).__name__}.")
    return content


def _task(name: str, entry: Mapping[str, Any], folder: Path) -> TaskDescription:
    unknown = _unknown(entry, TASK_KEYS)
    if unknown:
        raise UserError(unknown)
    for key in ("kind", "train", "prompt", "answer"):
        if key not in entry:
            raise UserError(f"'{key}' is missing; expected kind, train, prompt and answer.")
    kind = entry["kind"]
    require_choice("kind", kind, KINDS)
    share = entry.get("test_share", 0.2)
    require_between("test_share", share, 0.0, 0.9, low_open=True)
    if "test" in entry and "test_share" in entry:
        raise UserError("'test_share' is for a task without 'test': leave one of the two out.")
    return TaskDescription(
        name=name,
        kind=cast(TaskKind, kind),
        metric=str(entry.get("metric", METRIC_OF_KIND[kind])),
        places={s: _place(s, entry[s], folder) for s in ("train", "dev", "test") if s in entry},
        test_share=share,
        layout=_layout(name, kind, entry),
    )


def _layout(task: str, kind: str, entry: Mapping[str, Any]) -> Layout:
    words, choices = entry.get("words") or {}, entry.get("choices", [])
    answer_as = entry.get("answer_as", "letter")
    require_choice("answer_as", answer_as, ("letter", "text"))
    if not isinstance(words, dict):
        raise UserError(f"'words' must map values to answer words, got {words!r:.40}.")
    if not all(isinstance(word, str) for word in words.values()):
        raise UserError("'words' must map values to texts: put yes, no and numbers in quotes.")
    if (kind == "multiple_choice") != bool(choices):
        raise UserError("'choices' (columns, or one with a list) belongs to kind: multiple_choice.")
    if choices and words:
        raise UserError("'words' does not go with 'choices': use answer_as: letter or text.")
    layout = Layout(
        task=task,
        prompt=Template(str(entry["prompt"]), "prompt"),
        answer=Template(str(entry["answer"]), "answer"),
        # As columns are compared: yaml reads 1 and true as no texts.
        words={str(value): word for value, word in words.items()},
        choices=[choices] if isinstance(choices, str) else [str(c) for c in choices],
        answer_as=answer_as,
        id=entry.get("id"),
    )
    if not layout.prompt.columns:
        raise UserError("'prompt' must name a column in braces, as in 'Which? {question}'.")
    if not layout.answer.columns:
        raise UserError("'answer' must name a column in braces, as in '{label}'.")
    if choices and len(layout.answer.columns) != 1:
        raise UserError("with 'choices', 'answer' must name one column, as in '{label}'.")
    return layout


def _place(split: str, value: Any, folder: Path) -> Place:
    """A path (relative to the yaml file), ``hub:owner/name``, or a mapping."""
    if isinstance(value, str):
        value = {"hub": value[4:]} if value.startswith("hub:") else {"path": value}
    if not isinstance(value, dict) or ("path" in value) == ("hub" in value):
        raise UserError(
            f"'{split}' must be a file, a saved folder, hub:owner/name, or a mapping with path or "
            f"hub, got {value!r:.60}."
        )
    unknown = _unknown(value, PLACE_KEYS)
    if unknown:
        raise UserError(f"'{split}': {unknown}")
    texts = {key: str(item) for key, item in value.items() if key != "path"}
    path = folder / value["path"] if "path" in value else None
    return Place(**{"split": split, **texts}, path=path)


def _unknown(entry: Mapping[str, Any], known: tuple[str, ...]) -> str | None:
    for key in entry:
        if key not in known:
            return f"'{key}' is no key here; {nearest_names(str(key), known)}."
    return None

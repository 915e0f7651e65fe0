"""What a yaml file says of the user's own tasks, checked."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import yaml

from kif_lightning.benchmarks.files import SUFFIXES
from kif_lightning.benchmarks.folder import KINDS
from kif_lightning.benchmarks.own.layout import MOST_CHOICES, Layout, Template
from kif_lightning.errors import (
    UserError,
    collecting_errors,
    nearest_names,
    require_between,
    require_choice,
)
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
PLACE_KEYS = {"path": ("path", "split"), "hub": ("hub", "config", "split", "revision")}
_NEEDED = ("kind", "train", "prompt", "answer")
_NO_TEXTS = ("bool", "int", "float", "timestamp")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a split's records are: a file, a folder saved by ``datasets``, or a hub data set.

    ``split`` is one of those the folder or the data set has; None: the one that is named alike.
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
    tasks, defaults = content.get("tasks"), content.get("defaults") or {}
    order = content.get("order")
    errors = [f"{file}: {told}" for told in _unknown(content, ("order", "tasks", "defaults"))]
    if not isinstance(defaults, dict):
        errors.append(f"{file}: 'defaults' must hold keys that all tasks share.")
        defaults = {}
    if not isinstance(tasks, dict) or not tasks:
        errors.append(f"{file}: expected 'tasks' with a name and a description for each task.")
        tasks, order = {}, None
    found = {}
    for name, entry in tasks.items():
        try:
            found[name] = _task(name, entry, defaults, file.parent)
        except UserError as error:
            errors += [f"{file}, task {name}: {line}" for line in str(error).split("\n")]
    if order is not None:
        errors += [f"{file}: {told}" for told in _order_mistakes(order, tasks)]
    if errors:
        raise UserError("\n".join(errors))
    return list(found) if order is None else order, found


def _yaml(file: Path) -> dict[str, Any]:
    """The file's content; every value is a text, as it is written there."""
    if not file.is_file():
        inside = sorted(path.name for path in file.glob("*.y*ml")) if file.is_dir() else []
        hint = f"; did you mean {str(file / inside[0])!r}?" if inside else "."
        raise UserError(f"Expected a yaml file that describes tasks, got {str(file)!r}{hint}")
    try:
        loader = yaml.SafeLoader(file.read_text(encoding="utf-8-sig"))
        node = loader.get_single_node()
        _as_written(node)
        content = None if node is None else loader.construct_document(node)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        told = " ".join(str(error).split()).replace(' in "<unicode string>"', "")
        raise UserError(
            f"{file} must be yaml, but it does not parse: {told}. (A text with a colon or a brace "
            "wants quotes around it, or |- and lines of its own.)"
        ) from error
    if not isinstance(content, dict):
        raise UserError(
            f"{file} must be a yaml that says what the columns of your files mean (tasks: ..., as "
            f"examples/own_tasks/tasks.yaml), got {type(content).__name__}."
        )
    return content


def _as_written(node: yaml.Node | None) -> None:
    """Undo what yaml reads into texts: it makes no and yes truth values and 01 the number 1."""
    if isinstance(node, yaml.ScalarNode) and node.tag.rpartition(":")[2] in _NO_TEXTS:
        node.tag = "tag:yaml.org,2002:str"
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _as_written(item)
    elif isinstance(node, yaml.MappingNode):
        for item in chain.from_iterable(node.value):
            _as_written(item)
        lines: dict[str, list[str]] = defaultdict(list)
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                lines[key.value].append(str(key.start_mark.line + 1))
        for name, places in lines.items():
            if len(places) > 1:  # yaml would drop all but the last
                raise yaml.YAMLError(f"'{name}' is there twice, in lines {' and '.join(places)}")


def _order_mistakes(order: Any, tasks: Mapping[str, Any]) -> list[str]:
    if not isinstance(order, list) or not order or not all(isinstance(n, str) for n in order):
        return [f"'order' must be a list of tasks, got {order!r:.60}."]
    return [
        *(f"'order' names {n!r}; {nearest_names(n, tasks)}." for n in order if n not in tasks),
        *(f"'order' names {n!r} twice." for n in sorted(set(order)) if order.count(n) > 1),
    ]


def _task(name: Any, entry: Any, defaults: Mapping[str, Any], folder: Path) -> TaskDescription:
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w .+-]*", name):
        raise UserError("a task's name may hold letters, digits, spaces and _ . + - only.")
    if not isinstance(entry, dict):
        raise UserError(f"expected its description, got {entry!r:.60}.")
    entry = {key: value for key, value in {**defaults, **entry}.items() if value is not None}
    with collecting_errors() as mistakes:

        def attempt(check: Callable[..., Any], *arguments: Any) -> Any:
            try:
                return check(*arguments)
            except UserError as error:
                mistakes.append(error)

        mistakes += [UserError(told) for told in _unknown(entry, TASK_KEYS)]
        mistakes += [
            UserError(f"'{key}' is missing; expected {', '.join(_NEEDED)}.")
            for key in _NEEDED
            if key not in entry
        ]
        kind = entry.get("kind")
        if "kind" in entry:
            require_choice("kind", kind, KINDS)
        if "test" in entry and "test_share" in entry:
            attempt(_refuse, "'test_share' is for a task without 'test': leave one of the two out.")
        share = attempt(_share, entry.get("test_share", "0.2"))
        splits = [split for split in ("train", "dev", "test") if split in entry]
        places = {split: attempt(_place, split, entry[split], folder) for split in splits}
        mistakes += _same_places(places)
        prompt, answer = (attempt(_template, key, entry) for key in ("prompt", "answer"))
        words, choices = attempt(_words, entry), attempt(_choices, entry)
        if kind in KINDS and choices is not None:
            attempt(_require_choices_match, kind, entry, choices, prompt, answer)
        metric = attempt(_text, entry, "metric", METRIC_OF_KIND.get(str(kind), ""))
        ids = attempt(_text, entry, "id", "")
        answer_as = entry.get("answer_as", "letter")
        require_choice("answer_as", answer_as, ("letter", "text"))
    if mistakes:
        raise UserError.joined(mistakes)
    layout = Layout(
        task=name,
        prompt=prompt,
        answer=answer,
        words=words,
        choices=choices,
        answer_as=answer_as,
        id=ids or None,
        states=kind == "dialogue_state",
    )
    return TaskDescription(
        name=name, kind=kind, metric=metric, places=places, test_share=share, layout=layout
    )


def _refuse(told: str) -> None:
    raise UserError(told)


def _text(entry: Mapping[str, Any], key: str, default: str) -> str:
    value = entry.get(key, default)
    if not isinstance(value, str):
        raise UserError(f"'{key}' must be a text, got {value!r:.60}.")
    return value


def _share(value: Any) -> float:
    try:
        share = float(value)
    except (TypeError, ValueError):
        raise UserError(f"test_share must be a number, got {value!r:.60}.") from None
    require_between("test_share", share, 0.0, 0.9, low_open=True)
    return share


def _template(key: str, entry: Mapping[str, Any]) -> Template | None:
    example = {"prompt": "Which? {question}", "answer": "{label}"}[key]
    value = entry.get(key)
    if value is None:
        return None  # told already
    if not isinstance(value, str):
        # Without quotes, {label} is a mapping to yaml.
        raise UserError(f"'{key}' must be a text in quotes, as in \"{example}\".")
    # A block of yaml ends with a line feed, which no answer should.
    template = Template(value.strip() if key == "answer" else value, key)
    if not template.columns:
        raise UserError(f"'{key}' must name a column in braces, as in \"{example}\".")
    return template


def _words(entry: Mapping[str, Any]) -> dict[str, str]:
    words = entry.get("words", {})
    if not isinstance(words, dict):
        raise UserError(f"'words' must map values to answer words, got {words!r:.60}.")
    if not all(isinstance(text, str) for text in chain.from_iterable(words.items())):
        raise UserError(f"'words' must map each value to one text, got {words!r:.60}.")
    return words


def _choices(entry: Mapping[str, Any]) -> list[str]:
    choices = entry.get("choices", [])
    columns = [choices] if isinstance(choices, str) else choices
    if not isinstance(columns, list) or not all(isinstance(c, str) and c for c in columns):
        raise UserError(f"'choices' must be columns, or one with a list, got {choices!r:.60}.")
    if len(columns) > MOST_CHOICES:
        raise UserError(f"'choices' must be at most {MOST_CHOICES} columns, got {len(columns)}.")
    return columns


def _require_choices_match(
    kind: str,
    entry: Mapping[str, Any],
    choices: list[str],
    prompt: Template | None,
    answer: Template | None,
) -> None:
    if kind == "multiple_choice" and not choices:
        raise UserError("'choices' is missing: name the columns of the choices, or one of lists.")
    if kind != "multiple_choice" and choices:
        raise UserError("'choices' goes with kind: multiple_choice only: leave it out.")
    if not choices:
        if "answer_as" in entry:
            raise UserError("'answer_as' goes with 'choices' only: leave it out.")
        return
    if "words" in entry:
        raise UserError("'words' does not go with 'choices': use answer_as: letter or text.")
    if answer is not None and answer.text != f"{{{answer.columns[0]}}}":
        raise UserError("with 'choices', 'answer' must be one column alone, as in \"{label}\".")
    shown = {"choices", *choices}
    if prompt is not None and not shown & set(prompt.columns):
        raise UserError("'prompt' shows no choices: put {choices} where they shall be listed.")


def _place(split: str, value: Any, folder: Path) -> Place:
    """A path (relative to the yaml file), ``hub:owner/name``, or a mapping."""
    if isinstance(value, str):
        value = {"hub": value[4:].strip()} if value.startswith("hub:") else {"path": value}
    if not isinstance(value, dict) or ("path" in value) == ("hub" in value):
        raise UserError(
            f"'{split}' must be a file, a saved folder, hub:owner/name, or a mapping with path or "
            f"hub, got {value!r:.60}."
        )
    for told in _unknown(value, PLACE_KEYS["path" if "path" in value else "hub"]):
        raise UserError(f"'{split}': {told}")
    texts = {key: _text(value, key, "") for key, item in value.items() if item is not None}
    path = texts.pop("path", None)
    if not path and not texts.get("hub"):
        raise UserError(f"'{split}' names neither a file nor a data set.")
    if path and "split" in texts and Path(path).suffix.lower() in SUFFIXES:
        raise UserError(f"'{split}': a file has no splits of its own: leave 'split' out.")
    return Place(path=None if path is None else folder / Path(path).expanduser(), **texts)


def _same_places(places: Mapping[str, Place | None]) -> list[UserError]:
    """Two splits of the same rows."""
    known = [(split, _rows_of(split, place)) for split, place in places.items() if place]
    return [
        UserError(
            f"'{a}' and '{b}' are the same rows: name other ones"
            + (
                ", or leave 'test' out and a share of train is held out for it."
                if (a, b) == ("train", "test")
                else "."
            )
        )
        for (a, first), (b, second) in combinations(known, 2)
        if first == second
    ]


def _rows_of(split: str, place: Place) -> tuple[object, ...]:
    """What is equal for the same rows."""
    if place.path is None:
        return place.hub, place.config, place.split or split, place.revision
    path = place.path.resolve()
    # ``datasets`` knows a folder of splits by this file.
    alone = path.is_dir() and not (path / "dataset_dict.json").is_file()
    alone = alone or path.suffix.lower() in SUFFIXES
    return (path,) if alone else (path, place.split or split)


def _unknown(entry: Iterable[Any], known: tuple[str, ...]) -> list[str]:
    return [
        f"'{key}' is no key here; {nearest_names(str(key), known)}."
        for key in entry
        if key not in known
    ]

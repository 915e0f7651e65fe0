"""The configuration reference: every file under conf/ as a table of its keys.

Nothing is imported and nothing composed: values and comments are read from the yaml text, the words
for a constructor's arguments from its class's docstring.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import griffe
import yaml

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf"
PACKAGE = "kif_lightning"
GROUPS: dict[str, str] = {
    "backbone": "The pretrained language model: its family, where its weights come from, limits.",
    "benchmark": "The stream of tasks: rows, order, how many.",
    "method/stream": "Slot of a method: one task after another, or all at once.",
    "method/adapter": "Slot of a method: which weights learn.",
    "method/importance": "Slot of a method: how the importance of weights is tracked.",
    "method/units": "Slot of a method: what is scored and fused as one.",
    "method/rule": "Slot of a method: the weight of the past, per unit.",
    "method/penalty": "Slot of a method: terms added to the loss.",
    "method/gradient": "Slot of a method: what changes gradients before the step.",
    "method/memory": "Slot of a method: rows kept of past tasks.",
    "method/rehearsal": "Slot of a method: examples that join the task's own.",
    "method/boundary": "Slot of a method: what happens where a task ends.",
    "method/selection": "Slot of a method: keeping the best step by rows not trained on.",
    "optim": "Learning rate, epochs, batches, optimizer, schedule.",
    "trainer": "Devices and precision, handed to lightning.pytorch.Trainer.",
    "evaluation": "Which scores are measured, on which rows, how.",
    "probe": "Rows of no task, asked before the first task and after each.",
    "logger": "Where curves and scores are sent while a run goes on.",
    "experiment": "Ready settings; an experiment only overrides.",
    "experiment/paper": "The settings of the authors' public code.",
    "sweep": "Ready sweeps, for -m.",
}
"""Each group of options, in the reference's order, and what it is."""


@dataclass(frozen=True, kw_only=True)
class Key:
    """One key of a yaml file."""

    path: tuple[str, ...]
    value: str
    """As it is written; empty where other keys stand below it."""
    comment: str


@dataclass(frozen=True, kw_only=True)
class OptionFile:
    """One yaml file: its head comment, what it builds on, and its own keys."""

    path: Path
    header: tuple[str, ...]
    defaults: tuple[str | dict[str, str], ...]
    keys: tuple[Key, ...]


def read_option(path: Path) -> OptionFile:
    """Read a yaml file with its comments."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    header = []
    for line in lines:
        if not line.startswith("#"):
            break
        header.append(line.removeprefix("#").removeprefix(" "))
    loaded = yaml.safe_load(text) or {}
    root = yaml.compose(text)
    keys = tuple(_keys(root, text, lines)) if isinstance(root, yaml.MappingNode) else ()
    return OptionFile(
        path=path,
        header=tuple(header),
        defaults=tuple(loaded.get("defaults", ())),
        keys=keys,
    )


def _keys(
    node: yaml.MappingNode, text: str, lines: list[str], above: tuple[str, ...] = ()
) -> Iterator[Key]:
    for key, value in node.value:
        path = (*above, key.value)
        if path == ("defaults",):
            continue
        nested = isinstance(value, yaml.MappingNode) and not value.flow_style
        mark = key.end_mark if nested else value.end_mark
        yield Key(
            path=path,
            value="" if nested else text[value.start_mark.index : value.end_mark.index],
            comment=_comment(lines, mark.line, mark.column),
        )
        if nested:
            yield from _keys(value, text, lines, path)


def _comment(lines: list[str], line: int, column: int) -> str:
    """The comment behind a value, with the lines of comment alone that go on with it."""
    found = re.match(r"[^#]*#\s*(.*)", lines[line][column:])
    words = [found[1]] if found else []
    for follower in lines[line + 1 :]:
        more = re.fullmatch(r"\s+#\s*(.*)", follower)
        if more is None:
            break
        words.append(more[1])
    return " ".join(words)


@cache
def _package() -> Any:
    return griffe.load(PACKAGE, search_paths=[ROOT], allow_inspection=False)


@cache
def _documentation(target: str) -> tuple[str, dict[str, str]]:
    """First sentence of a class's docstring, and what it says of each argument.

    Of another package's class nothing is known.
    """
    if not target.startswith(f"{PACKAGE}."):
        return "", {}
    found = _package()[target.removeprefix(f"{PACKAGE}.")]
    arguments: dict[str, str] = {}
    summary = ""
    classes = [found, *(found.mro() if found.is_class else [])]
    for documented in classes:
        if documented.docstring is None:
            continue
        summary = summary or documented.docstring.value.split("\n\n")[0]
        for section in documented.docstring.parse("google"):
            if section.kind is griffe.DocstringSectionKind.parameters:
                for argument in section.value:
                    arguments.setdefault(argument.name, argument.description)
    return " ".join(summary.split()), arguments


def explained(option: OptionFile) -> list[tuple[Key, str]]:
    """Each key with its explanation: the yaml's comment, else the class's docstring, else ''."""
    targets = {key.path[:-1]: key.value for key in option.keys if key.path[-1] == "_target_"}
    targets = {**_inherited_targets(option), **targets}
    found = []
    for key in option.keys:
        words = key.comment
        if not words and key.path[-1] == "_target_":
            words = _documentation(key.value)[0]
        elif not words and key.path[:-1] in targets:
            words = _documentation(targets[key.path[:-1]])[1].get(key.path[-1], "")
        found.append((key, plain(words)))
    return found


def plain(words: str) -> str:
    """A docstring's words on one line, without its marks for code and for references."""
    return " ".join(re.sub(r"(?::\w+:)?`{1,2}~?([^`]+)`{1,2}", r"\1", words).split())


def _inherited_targets(option: OptionFile) -> dict[tuple[str, ...], str]:
    found: dict[tuple[str, ...], str] = {}
    for entry in option.defaults:
        if not isinstance(entry, str) or "/" in entry or entry == "_self_":
            continue
        base = option.path.with_name(f"{entry}.yaml")
        if base.is_file():
            parent = read_option(base)
            found |= _inherited_targets(parent)
            found |= {k.path[:-1]: k.value for k in parent.keys if k.path[-1] == "_target_"}
    return found


def prefix(option: OptionFile) -> tuple[str, ...]:
    """What stands before a file's keys on the command line: its group, or what its head says."""
    for line in option.header:
        if line.startswith("@package"):
            package = line.split()[1]
            return () if package == "_global_" else (package,)
    return option.path.relative_to(CONF).parent.parts


def key_table(option: OptionFile) -> str:
    """The keys as an HTML table: Markdown's own would trip over the bars in the comments."""
    if not option.keys:
        return ""
    before = prefix(option)
    rows = [
        f"<tr><td><code>{escape('.'.join((*before, *key.path)))}</code></td>"
        f"<td>{f'<code>{escape(key.value)}</code>' if key.value else ''}</td>"
        f"<td>{escape(words)}</td></tr>"
        for key, words in explained(option)
    ]
    head = "<tr><th>key</th><th>default</th><th>what</th></tr>"
    table = f"<table><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<div class="keys">{table}</div>'


def section(option: OptionFile, group: str) -> str:
    """One option file as a section of its group's page."""
    name = option.path.stem
    title = f"{name} (shared base)" if name.startswith("_") else name
    parts = [f"### {title} {{ #{anchor(group, name)} }}"]
    header = [line for line in option.header if not line.startswith("@package")]
    if header:
        parts.append("\n".join(["```text", *header, "```"]))
    built = _built_on(option)
    if built:
        parts.append(f"Builds on {built}.")
    parts.append(key_table(option) or "No keys.")
    return "\n\n".join(parts)


def _built_on(option: OptionFile) -> str:
    words = []
    for entry in option.defaults:
        if isinstance(entry, str) and entry != "_self_":
            words.append(f"`{entry}`")
        elif isinstance(entry, dict):
            words += [f"`{key.removeprefix('override ')}={value}`" for key, value in entry.items()]
    return ", ".join(words)


def anchor(group: str, name: str) -> str:
    """Of an option's section on its page."""
    return f"{group.replace('/', '-')}-{name.strip('_')}"


def page_of(group: str) -> str:
    """The page on which a group stands: a method's slots share one."""
    return (
        f"configuration/{'method-slots' if group.startswith('method/') else group.split('/')[0]}.md"
    )


def options_of(group: str) -> list[OptionFile]:
    """A group's files, shared bases first."""
    return [read_option(path) for path in sorted((CONF / group).glob("*.yaml"))]


def pages() -> dict[str, str]:
    """Page -> its Markdown, for all groups and for config.yaml."""
    found = {"configuration/run.md": _run_page()}
    for group, what in GROUPS.items():
        page = page_of(group)
        if page not in found:
            title = "a method's slots" if group.startswith("method/") else group
            found[page] = f"# Configuration: {title}\n"
        parts = [f"## {group}\n\n{what} Choose with {_chosen(group)}."]
        parts += [section(option, group) for option in options_of(group)]
        found[page] += "\n" + "\n\n".join(parts) + "\n"
    return found


def _chosen(group: str) -> str:
    new = "+" if group.split("/")[0] in ("experiment", "sweep") else ""
    name = "paper/NAME" if group == "experiment/paper" else "NAME"
    return f"`{new}{group.removesuffix('/paper')}={name}`"


def _run_page() -> str:
    option = read_option(CONF / "config.yaml")
    return (
        "# Configuration: the run\n\nKeys of no group (`conf/config.yaml`), such as `seed=2` or "
        f"`plan=true`.\n\n{key_table(option)}\n"
    )


def group_list() -> str:
    """All groups of options, with links to their pages."""
    lines = ["| group | what it is | options |", "|---|---|---|"]
    for group, what in GROUPS.items():
        page = page_of(group).removeprefix("configuration/")
        options = [
            f"[`{option.path.stem}`]({page}#{anchor(group, option.path.stem)})"
            for option in options_of(group)
            if not option.path.stem.startswith("_")
        ]
        lines.append(f"| `{group}` | {what} | {', '.join(options)} |")
    return "\n".join(lines)

"""Method cards: what a method's yaml says of itself, above the words that were written by hand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from configuration import CONF, anchor, page_of

METHODS = CONF / "method"
ABLATIONS = METHODS / "ablation"
COSTS = {
    "needs_memory": "rows of past tasks are kept",
    "needs_task_id": "the task id is told at test time",
    "grows_with_tasks": "weights are added with every task",
}


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method's yaml with all it inherits."""

    slots: dict[str, str]
    """Slot -> chosen option, ``none`` where it is empty."""
    keys: dict[str, Any]


def read_method(path: Path) -> Method:
    """Follow the defaults lists, as Hydra does for these files."""
    loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    slots: dict[str, str] = {}
    keys: dict[str, Any] = {}
    for entry in loaded.pop("defaults", ()):
        if isinstance(entry, dict):
            for slot, option in entry.items():
                slots[slot.removeprefix("override ")] = option
        elif entry != "_self_":
            name = entry.split("@")[0].removeprefix("/method/")
            parent = read_method(METHODS / f"{name}.yaml")
            slots |= parent.slots
            keys |= parent.keys
    return Method(slots=slots, keys=_merged(keys, loaded))


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def method_files() -> dict[str, Path]:
    """Name -> yaml of every method that has a card of its own; ablations share a page."""
    return {p.stem: p for p in sorted(METHODS.glob("*.yaml")) if not p.stem.startswith("_")}


def card(written: str, path: Path) -> str:
    """The hand-written page with the facts below its title and the yaml at its end."""
    title, _, words = written.partition("\n")
    source = path.read_text(encoding="utf-8").rstrip()
    place = path.relative_to(CONF.parent)
    return (
        f"{title}\n\n{facts(read_method(path))}\n{words}\n\n## All of its yaml\n\n"
        f'```yaml title="{place.as_posix()}"\n{source}\n```\n'
    )


def facts(method: Method) -> str:
    """What the yaml declares, as a Markdown table."""
    keys = method.keys
    costs = [words for key, words in COSTS.items() if keys[key]]
    rows = {
        "What it is": keys["title"],
        "Paper": keys["paper"],
        "Costs": "; ".join(costs) or "no rows kept, no task id, no growth",
        "Slots filled": _slots(method.slots),
        "Searched by `kif tune`": _strength(keys["strength"]),
        "Published settings": keys["published"] or "none given",
    }
    insists = {key: value for key, value in keys["fixes"].items() if value not in (None, 1.0)}
    insists = {k: v for k, v in insists.items() if (k, v) != ("loss_mean", "step_tokens")}
    if insists:
        rows["Insists on"] = ", ".join(f"`{key}={value}`" for key, value in insists.items())
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines, ""])


def _slots(slots: dict[str, str]) -> str:
    return ", ".join(
        f"[`{slot}={option}`](../{page_of(f'method/{slot}')}#{anchor(f'method/{slot}', option)})"
        for slot, option in slots.items()
        if option != "none"
    )


def _strength(strength: dict[str, Any] | None) -> str:
    if strength is None:
        return "the learning rate alone"
    # YAML 1.1 takes 1e-4 for a word.
    low, high = float(strength["low"]), float(strength["high"])
    return f"the learning rate, and `{strength['key']}` from {low:g} to {high:g}"


def method_list() -> str:
    """All methods with a card, as a Markdown table of links."""
    lines = ["| method | what it is | memory | task id | grows |", "|---|---|---|---|---|"]
    for name, path in method_files().items():
        keys = read_method(path).keys
        costs = " | ".join("yes" if keys[cost] else "" for cost in COSTS)
        lines.append(f"| [`{name}`]({name}.md) | {keys['title']} | {costs} |")
    return "\n".join(lines)


def ablation_list() -> str:
    """All ablations: the parent, and what differs from it."""
    lines = ["| `method=` | what it is | differs from | in |", "|---|---|---|---|"]
    for path in sorted(ABLATIONS.glob("*.yaml")):
        parent, changes = _difference(path)
        title = read_method(path).keys["title"]
        lines.append(
            f"| `ablation/{path.stem}` | {title} | [`{parent}`]({parent}.md) | {changes} |"
        )
    return "\n".join(lines)


WORDS = ("name", "title", "paper", "published", "strength")


def _difference(path: Path) -> tuple[str, str]:
    loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    parent = ""
    changes = []
    for entry in loaded.pop("defaults"):
        if isinstance(entry, dict):
            changes += [f"`{k.removeprefix('override ')}={v}`" for k, v in entry.items()]
        elif entry != "_self_":
            parent = entry.split("@")[0].removeprefix("/method/")
    settings = {key: value for key, value in loaded.items() if key not in WORDS}
    changes += [f"`{key}={value}`" for key, value in _flat(settings)]
    return parent, ", ".join(changes)


def _flat(settings: dict[str, Any], above: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in settings.items():
        name = f"{above}{key}"
        found += _flat(value, f"{name}.") if isinstance(value, dict) else [(name, value)]
    return found

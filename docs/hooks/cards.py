"""Method cards: what a method's yaml says of itself, above the words that were written by hand."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from configuration import CONF, anchor, page_of
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

METHODS = CONF / "method"
ABLATIONS = METHODS / "ablation"
COSTS = {
    "needs_memory": "rows of past tasks are kept",
    "needs_task_id": "the task id is told at test time",
    "grows_with_tasks": "weights are added with every task",
}


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method as Hydra composes it with the defaults of everything else."""

    slots: dict[str, str]
    """Slot -> chosen option, ``none`` where it is empty."""
    keys: dict[str, Any]


@cache
def read_method(name: str) -> Method:
    """Compose ``method=name``."""
    with initialize_config_dir(CONF.as_posix(), version_base="1.3"):
        config = compose("config", overrides=[f"method={name}"], return_hydra_config=True)
    slots = {
        group.removeprefix("method/"): option
        for group, option in reversed(config.hydra.runtime.choices.items())
        if group.startswith("method/")
    }
    keys: Any = OmegaConf.to_container(config.method, resolve=True)
    return Method(slots=slots, keys=keys)


def method_files() -> dict[str, Path]:
    """Name -> yaml of every method that has a card of its own; ablations share a page."""
    return {p.stem: p for p in sorted(METHODS.glob("*.yaml")) if not p.stem.startswith("_")}


def card(written: str, path: Path) -> str:
    """The hand-written page with the facts below its title and the yaml at its end."""
    title, _, words = written.partition("\n")
    source = path.read_text(encoding="utf-8").rstrip()
    place = path.relative_to(CONF.parent)
    return (
        f"{title}\n\n{facts(read_method(path.stem))}\n{words}\n\n## All of its yaml\n\n"
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
    low, high = strength["low"], strength["high"]
    return f"the learning rate, and `{strength['key']}` from {low:g} to {high:g}"


def method_list() -> str:
    """All methods with a card, as a Markdown table of links."""
    lines = ["| method | what it is | memory | task id | grows |", "|---|---|---|---|---|"]
    for name in method_files():
        keys = read_method(name).keys
        costs = " | ".join("yes" if keys[cost] else "" for cost in COSTS)
        lines.append(f"| [`{name}`]({name}.md) | {keys['title']} | {costs} |")
    return "\n".join(lines)


def ablation_list() -> str:
    """All ablations: the parent, and what differs from it."""
    lines = ["| `method=` | what it is | differs from | in |", "|---|---|---|---|"]
    for path in sorted(ABLATIONS.glob("*.yaml")):
        title, parent, changes = _difference(path)
        lines.append(
            f"| `ablation/{path.stem}` | {title} | [`{parent}`]({parent}.md) | {changes} |"
        )
    return "\n".join(lines)


WORDS = ("name", "title", "paper", "published", "strength")


def _difference(path: Path) -> tuple[str, str, str]:
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
    return loaded["title"], parent, ", ".join(changes)


def _flat(settings: dict[str, Any], above: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in settings.items():
        name = f"{above}{key}"
        found += _flat(value, f"{name}.") if isinstance(value, dict) else [(name, value)]
    return found

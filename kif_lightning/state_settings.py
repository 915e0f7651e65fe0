"""Which settings of a continual state are taken: a state may come from anybody.

It can say how a model is made, of parts that this package knows; no place on the disk and no code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from kif_lightning.continual_state import ContinualState
from kif_lightning.errors import UserError, require_count
from kif_lightning.paths import conf_dir

TAKEN = ("backbone", "method", "optim", "trainer", "evaluation", "seed", "lora", "save_model")
"""The keys of a state's settings that count; others are left where they are."""
MAKES = "_target_"
"""The key by which Hydra finds what to call."""


def settings_of(
    state: ContinualState, overrides: Sequence[str] = (), *, built: Sequence[str] = TAKEN
) -> dict[str, Any]:
    """The state's settings, once they are known to run nothing but this package's parts.

    Args:
        state: may have been made by anybody.
        overrides: of the user: a part of their own that they name there is taken.
        built: dotted keys of which parts will be made.

    Raises:
        UserError: a missing key, a name that is a path, a value that is to be looked up, code that
            the package's own settings do not name.
    """
    missing = [key for key in TAKEN if key not in state.config]
    if missing:
        raise UserError(f"The state's settings lack {', '.join(missing)}: take another copy.")
    settings = {key: state.config[key] for key in TAKEN}
    require_count("The state's seed", settings["seed"], 0)
    for what, name in _names(state, settings):
        if not isinstance(name, str) or not name or ".." in name or set(name) & set("/\\\0"):
            raise UserError(
                f"The state's {what} must be a plain name, for files are named by it, got {name!r}:"
                " do not use this state."
            )
    for key, value in _leaves(settings):
        if isinstance(value, str) and "${" in value:
            raise UserError(
                f"The state's {key} must be a plain value, got {value!r}, which would be looked up "
                "on this machine: do not use this state."
            )
    _require_known_parts(settings, overrides, built)
    return settings


def _names(state: ContinualState, settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield "backbone.name", settings["backbone"].get("name")
    yield "method.name", settings["method"].get("name")
    for task in state.tasks:
        yield "task", task.name
    for protocol in state.protocols:
        yield "method", protocol.get("method")


def _require_known_parts(
    settings: Mapping[str, Any], overrides: Sequence[str], built: Sequence[str]
) -> None:
    said = [text.partition("=") for text in overrides]
    known = known_parts() | {value for key, _, value in said if key.endswith(f".{MAKES}")}
    for key, value in _leaves(settings):
        is_made = any(key.startswith(f"{part}.") for part in built)
        if is_made and key.endswith(f".{MAKES}") and value not in known:
            raise UserError(
                f"The state would run {value} (its {key}), which is no part of this package: if it "
                f"is your own, say so by adding {key}={value}."
            )


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every plain value with its dotted key; list items by their place."""
    if isinstance(value, Mapping | list):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, item in items:
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


@cache
def known_parts() -> frozenset[str]:
    """All that the package's own yamls name as ``_target_``."""
    return frozenset(
        value
        for file in Path(conf_dir()).rglob("*.yaml")
        for key, value in _leaves(OmegaConf.to_container(OmegaConf.load(file)))
        if key.rpartition(".")[2] == MAKES
    )

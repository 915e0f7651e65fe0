"""Which run it is: how trackers name, group and tag it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MOST_LETTERS = 40
"""Of an order that is no name but a list of tasks."""


@dataclass(frozen=True, kw_only=True)
class RunIdentity:
    """What a run is known by."""

    folder: Path
    settings: Mapping[str, Any]
    """The resolved config without the keys that change no result."""
    stand_ins: tuple[str, ...] = ()
    """Which parts only stand for real ones."""

    @property
    def method(self) -> str:
        """The method's name."""
        return str(self.settings["method"]["name"])

    @property
    def order(self) -> str:
        """The order's name; a long list of tasks is cut, its digest tells it from others."""
        order = self.settings["benchmark"]["order"]
        text = "-".join(map(str, order)) if isinstance(order, list) else str(order)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        return text if len(text) <= MOST_LETTERS else f"{text[: MOST_LETTERS - 9]}-{digest}"

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.method}-{self.order}-seed{self.settings['seed']}"

    @property
    def group(self) -> str:
        """Runs of one experiment on the same tasks in the same order, whatever the method."""
        experiment = self.settings["experiment_name"]
        return f"{experiment}/{self.settings['benchmark']['name']}/{self.order}"

    @property
    def tags(self) -> list[str]:
        """Method, backbone, benchmark, order and what only stands for something real."""
        names = [self.settings[part]["name"] for part in ("backbone", "benchmark")]
        return list(dict.fromkeys([self.method, *names, self.order, *self.stand_ins]))

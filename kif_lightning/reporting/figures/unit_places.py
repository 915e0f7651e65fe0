"""Where in the model a skill unit lies, read from its name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

_RANK = re.compile(r"/rank:\d+$")
_SAYS_NOTHING = {
    *("base_model", "model", "transformer", "weight", "default"),
    *("block", "blocks", "layer", "layers", "h"),
}
Parts = tuple[str, ...]
"""A dotted name in its parts, without the layer's number."""
MOST_MODULES = 36
"""More kinds of modules are not told apart by their further numbers (experts, say)."""
ELSEWHERE = "not in a layer"
OTHERS = "other modules"


@dataclass(frozen=True)
class Place:
    """``row``: number of the layer, or the whole name of what has none."""

    module: str
    row: int | str


def places(unit_ids: Sequence[str]) -> list[Place]:
    """Module and layer of each unit: the first number in a dotted name is the layer's.

    ``encoder.block.3.layer.0.SelfAttention.q/rank:5`` is in layer 3 of ``encoder.SelfAttention.q``.
    Words that say nothing are left out where the names stay different without them.
    """
    split = [_split(unit_id) for unit_id in unit_ids]
    labels = _labels({rest for number, rest in split if number is not None})
    if len(labels) > MOST_MODULES:
        labels = {rest: _brief(rest) for rest in labels}
    in_order = list(dict.fromkeys(labels[rest] for number, rest in split if number is not None))
    kept = set(in_order[:MOST_MODULES])
    return [
        Place(ELSEWHERE, ".".join(rest))
        if number is None
        else Place(labels[rest] if labels[rest] in kept else OTHERS, number)
        for number, rest in split
    ]


def _split(unit_id: str) -> tuple[int | None, Parts]:
    """The layer's number, if any, and the other parts of the name."""
    parts = _RANK.sub("", unit_id).split(".")
    for place, part in enumerate(parts):
        if part.isdecimal():
            return int(part), (*parts[:place], *parts[place + 1 :])
    return None, tuple(parts)


def _labels(names: set[Parts]) -> dict[Parts, str]:
    """The shortest way to call each that is nobody else's, else the whole name."""
    ways = [{name: way(name) for name in names} for way in (_brief, _numbered)]
    used = [Counter(found.values()) for found in ways]
    return {
        name: next(
            (found[name] for found, uses in zip(ways, used, strict=True) if uses[found[name]] == 1),
            ".".join(name),
        )
        for name in names
    }


def _brief(parts: Parts) -> str:
    """Without further numbers, which mostly repeat what the words say."""
    return _numbered(tuple(part for part in parts if not part.isdecimal()))


def _numbered(parts: Parts) -> str:
    said = [part for part in parts if part not in _SAYS_NOTHING]
    return ".".join(said or parts) or "weights"

"""Which runs may stand side by side: what their protocol stamps must agree in.

Method, backbone, order and seed are what a comparison is about: in these runs may differ.

- Within a backbone, runs must agree in every key of :data:`MUST_MATCH`; of the order only in which
  tasks it holds, as runs of different orders are never averaged.
- Between backbones, what is asked must be the same: benchmark, tasks, rows, metrics, way to answer.
  What belongs to a model (:data:`OF_THE_BACKBONE`) may differ with it, as published protocols
  choose it for each, and is shown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from kif_lightning.errors import UserError
from kif_lightning.storage import flat

MUST_MATCH = (
    "benchmark", "order", "data_sha256", "rows", "metrics", "backbone", "weights", "lora", "optim",
    "prompt_and_decoding", "decode", "epochs", "effective_batch",
)  # fmt: skip
"""Keys of the protocol stamp in which runs must agree for their methods to be comparable.

Imported runs do not have all of them: of each pair, the keys that both have are compared.
"""
DEV_FILES = "data_sha256 of dev"
STEPS_BY_LENGTH = "length_grouping"
EVALUATED_IN = "evaluation_precision"
EVALUATED_ON = "evaluation_rows"
BACKBONE, ORDER, TASKS = "backbone", "order", "tasks"
OF_THE_BACKBONE = (
    "weights", "backbone_dtype", "lora", "optim", "prompt_and_decoding", "epochs",
    "effective_batch", STEPS_BY_LENGTH, EVALUATED_IN,
)  # fmt: skip
"""Keys that may differ between runs of different backbones, never within one."""
Results = Mapping[str, Any]
ABSENT = "absent"


def is_imported(found: Results) -> bool:
    """Whether the run comes from other code, so that its protocol is known in part."""
    return bool(found["protocol"].get("imported"))


def check_same_protocol(results: Mapping[Path, Results]) -> None:
    """Hold every pair of stamps against each other: an imported run may lack what others differ in.

    Raises:
        UserError: two runs differ in what they must agree in; the keys are named.
    """
    for reference, folder in combinations(_representatives(results).items(), 2):
        differing = _differing(reference[1], folder[1])
        if differing:
            imported = any(is_imported(results[run]) for run in (reference[0], folder[0]))
            names = " (kif import --rename THEIRS=OURS gives their tasks our names)"
            raise UserError(
                f"{folder[0]} was measured under another protocol than {reference[0]} (different: "
                f"{', '.join(differing)}): compare runs that differ in method, backbone, order and "
                "seed alone, or see the differences with --show-differences"
                f"{names if imported and TASKS in differing else ''}."
            )


def variants(results: Mapping[Path, Results]) -> dict[Path, str]:
    """Run -> letter of its protocol; runs of one letter agree. Empty where all runs agree."""
    stamps = {folder: _comparable(found["protocol"]) for folder, found in results.items()}
    kinds: list[dict[str, dict[str, Any]]] = []
    places: dict[Path, int] = {}
    for folder, stamp in stamps.items():
        text = _text(stamp)
        place = next(
            (
                number
                for number, kind in enumerate(kinds)
                if text in kind or not any(_differing(stamp, other) for other in kind.values())
            ),
            len(kinds),
        )
        if place == len(kinds):
            kinds.append({})
        kinds[place][text] = stamp
        places[folder] = place
    if len(kinds) < 2:
        return {}
    return {folder: _letter(place) for folder, place in places.items()}


def _letter(place: int) -> str:
    """A to Z, AA, AB, ..."""
    last = chr(ord("A") + place % 26)
    return last if place < 26 else _letter(place // 26 - 1) + last


def differences(results: Mapping[Path, Results], letters: Mapping[Path, str]) -> dict[str, Any]:
    """Every value in which runs of different letters must agree and do not.

    Returns:
        Dotted key of the stamp -> letter -> the values of its runs, as text.
    """
    stamps = {folder: _comparable(results[folder]["protocol"]) for folder in letters}
    kinds = {_text(stamp): (letters[folder], stamp) for folder, stamp in stamps.items()}
    keys: dict[str, None] = {}
    for (one, first), (other, second) in combinations(kinds.values(), 2):
        if one != other:
            keys.update(dict.fromkeys(_differing(first, second)))
    return _told(list(kinds.values()), list(keys))


def by_backbone(results: Mapping[Path, Results]) -> dict[str, Any]:
    """What differs between backbones and may: dotted key -> backbone -> value as text."""
    stamps = [_comparable(found["protocol"]) for found in results.values()]
    distinct = {
        (stamp[BACKBONE], _text(stamp)): (str(stamp[BACKBONE]), stamp)
        for stamp in stamps
        if BACKBONE in stamp
    }
    return _told(list(distinct.values()), OF_THE_BACKBONE)


def _told(kinds: Sequence[tuple[str, dict[str, Any]]], keys: Sequence[str]) -> dict[str, Any]:
    """Of the keys those values that differ between the names: dotted key -> name -> value."""
    flats = [
        (name, {k: v for key in keys if key in stamp for k, v in flat(stamp[key], key).items()})
        for name, stamp in kinds
    ]
    found: dict[str, dict[str, str]] = {}
    for key in dict.fromkeys(key for _, values in flats for key in values):
        told: dict[str, dict[str, None]] = {}
        for name, values in flats:
            told.setdefault(name, {})[_value(values.get(key, ABSENT))] = None
        cells = {name: " / ".join(sorted(values)) for name, values in told.items()}
        if len(set(cells.values())) > 1:
            found[key] = cells
    return found


def _value(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    # Of a fingerprint, the beginning tells as much.
    return f"{text[:12]}..." if len(text) == 64 and text.isalnum() else text


def _text(stamp: Mapping[str, Any]) -> str:
    """Of what is compared alone: methods and seeds make no other protocol."""
    more = (TASKS, STEPS_BY_LENGTH, DEV_FILES, "backbone_dtype", EVALUATED_IN, EVALUATED_ON)
    keys = (*MUST_MATCH, *more, "precision")
    kept = {key: stamp[key] for key in keys if key in stamp and key != ORDER}
    return json.dumps([kept, bool(stamp.get("imported"))], sort_keys=True)


def _representatives(results: Mapping[Path, Results]) -> dict[Path, dict[str, Any]]:
    """The first run of each stamp: hundreds of runs have few."""
    distinct: dict[str, tuple[Path, dict[str, Any]]] = {}
    for folder, found in results.items():
        stamp = _comparable(found["protocol"])
        distinct.setdefault(_text(stamp), (folder, stamp))
    return dict(distinct.values())


def _differing(expected: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Keys in which two stamps must agree and do not."""
    imported = bool(expected.get("imported") or other.get("imported"))
    both = expected.keys() & other.keys()
    keys = [TASKS if key == ORDER else key for key in MUST_MATCH if key != BACKBONE]
    keys = [key for key in keys if not imported or key in both]
    keys += [EVALUATED_ON] if imported else [EVALUATED_ON, STEPS_BY_LENGTH]
    # Earlier results do not tell in which dtype their weights were.
    keys += [key for key in (DEV_FILES, "backbone_dtype") if key in both]
    differing = [key for key in keys if other.get(key) != expected.get(key)]
    if not imported and not _evaluated_alike(expected, other):
        differing.append(EVALUATED_IN)
    if BACKBONE in both and expected[BACKBONE] != other[BACKBONE]:
        return [key for key in differing if key not in OF_THE_BACKBONE]
    return differing


def _evaluated_alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """In the same precision, or each in that of its training, which a method may fix."""
    as_in_training = all(run[EVALUATED_IN] == run.get("precision") for run in (one, other))
    return as_in_training or one[EVALUATED_IN] == other[EVALUATED_IN]


def _comparable(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """The stamp without what decides no number of this comparison.

    That is truncation, which a method may fix as a part of itself, and the files of dev rows;
    those stand apart where steps were selected by them, as only runs that both do so need the same.
    Grouping by length decides which rows meet in a step only across steps.
    """
    found = dict(protocol)
    order = found.get(ORDER)
    if ORDER in found:
        found[TASKS] = sorted(order) if isinstance(order, list) else order
    if isinstance(prompt := found.get("prompt_and_decoding"), dict):
        found["prompt_and_decoding"] = _without(prompt, "truncation")
    found[EVALUATED_IN] = found.get(EVALUATED_IN) or found.get("precision")
    found[STEPS_BY_LENGTH] = found.get(STEPS_BY_LENGTH) == "across_steps"
    if isinstance(data := found.get("data_sha256"), dict):
        found["data_sha256"] = {task: _without(splits, "dev") for task, splits in data.items()}
        if selects_by_dev(protocol):
            found[DEV_FILES] = {task: splits.get("dev") for task, splits in data.items()}
    if "decode" not in found and not protocol.get("imported"):
        # From before there was a choice.
        found["decode"] = dict.fromkeys(found.get(ORDER, ()), "generate")
    found.setdefault(EVALUATED_ON, "test")
    return found


def selects_by_dev(protocol: Mapping[str, Any]) -> bool:
    """Whether the run chose its steps by rows of dev."""
    return (protocol.get("selection") or {}).get("rows") == "dev"


def _without(values: Mapping[str, Any], left_out: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != left_out}

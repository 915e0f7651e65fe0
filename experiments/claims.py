"""Which published claims our runs confirm: computed from claims.yaml and the results it names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from studies import EXPERIMENTS, SHORT, Difference, Run, groups, paired, read_runs, table

HOLDS, DOES_NOT, UNDECIDED, TOO_FEW = "holds", "does not hold", "undecided", "too few runs"
DECIDING = 3
"""Pairs from which on a setting counts."""


@dataclass(frozen=True)
class Setting:
    """What the runs of one file, backbone and benchmark say of one test."""

    test: dict[str, Any]
    study: str
    place: str
    """Backbone, benchmark and precision."""
    stand_ins: bool
    difference: Difference
    verdict: str


def verdict(difference: Difference, at_least: float) -> str:
    """Whether the interval lies above ``at_least``, below it or around it."""
    if difference.n < DECIDING or difference.low is None or difference.high is None:
        return TOO_FEW
    if difference.low > at_least:
        return HOLDS
    return DOES_NOT if difference.high < at_least else UNDECIDED


def status(settings: Sequence[Setting], tests: Sequence[Mapping[str, Any]]) -> str:
    """Of a whole claim: confirmed where each test has a setting of enough pairs and all hold."""
    if not settings:
        return "not tested"
    deciding = [one for one in settings if one.difference.n >= DECIDING]
    decided = all(any(one.test == test for one in deciding) for test in tests)
    if not decided or any(one.verdict != HOLDS for one in deciding):
        return "not confirmed"
    return "confirmed, on stand-ins alone" if all(s.stand_ins for s in deciding) else "confirmed"


def settings_of(claim: Mapping[str, Any], results: Mapping[str, Sequence[Run]]) -> list[Setting]:
    """All settings that have a pair of the claim's methods.

    Args:
        claim: an entry of claims.yaml.
        results: the name of a file, of which the first folder is the study -> its runs.
    """
    found = []
    for test in claim["tests"]:
        if test["metric"] not in SHORT:
            raise SystemExit(
                f"claims.yaml, {claim['id']}: expected a metric of {', '.join(SHORT)}, "
                f"got {test['metric']}: name one of these."
            )
        for name, runs in results.items():
            for place, own in groups(runs, "backbone", "benchmark", "precision").items():
                difference = paired(own, test["metric"], test["higher"], test.get("lower"))
                if difference is None:
                    continue
                found.append(
                    Setting(
                        test=test,
                        study=Path(name).parts[0],
                        place=", ".join(place),
                        stand_ins=any(run.stand_ins for run in own),
                        difference=difference,
                        verdict=verdict(difference, test.get("at_least", 0)),
                    )
                )
    return found


def claims_tables(folder: Path = EXPERIMENTS) -> tuple[str, str]:
    """All claims with all that the runs say, for the experiments' README; and how each fares."""
    listed = yaml.safe_load((folder / "claims.yaml").read_text(encoding="utf-8"))
    results = {name: read_runs(folder / name) for name in listed["results"]}
    rows = []
    for claim in listed["claims"]:
        settings = settings_of(claim, results)
        found = status(settings, claim["tests"])
        rows.append([claim["claim"], claim["source"], f"**{found}**", _told(settings)])
    missing = ", ".join(f"`{name}`" for name, runs in results.items() if not runs)
    head = f"No runs yet in {missing}.\n\n" if missing else ""
    columns = ["claim", "source", "status", "what our runs say"]
    return head + table(columns, rows), table(columns[:3], [row[:3] for row in rows])


def _told(settings: Sequence[Setting]) -> str:
    """Each test with its settings, a line each."""
    lines: dict[str, None] = {}
    for setting in settings:
        test = setting.test
        lower = f" - `{test['lower']}`" if test.get("lower") else ""
        mark = ", stand-ins" if setting.stand_ins else ""
        lines[f"`{test['higher']}`{lower}, {SHORT[test['metric']]}:"] = None
        lines[
            f"[{setting.study}]({setting.study}) ({setting.place}{mark}) "
            f"{setting.difference}: {setting.verdict}"
        ] = None
    return "<br>".join(lines) or "no run"

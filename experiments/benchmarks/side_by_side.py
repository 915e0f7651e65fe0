"""What the benchmarks share: variants timed in turn in one run, ratios with their spread, the JSON.

A ratio is taken within a round, in which every variant ran once under the same load; what is told
is the median over the rounds with the smallest and the largest, or the value alone of one round.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch

import kif_lightning
from kif_lightning.reporting.stamp import commit

RESULTS = Path(__file__).parent / "results"


def timed(work: Callable[[], Any]) -> float:
    """Seconds that it takes."""
    started = perf_counter()
    work()
    return perf_counter() - started


def in_turn(
    variants: Mapping[str, Callable[[], float]], rounds: int, *, warm_up: bool = True
) -> dict[str, list[float]]:
    """Seconds of each variant in each round: A B, B A, A B ...; each returns what it measured.

    A first round that is not counted fills caches and allocators.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    if warm_up:
        for work in variants.values():
            work()
    for number in range(rounds):
        order = list(variants.items())
        for name, work in order if number % 2 == 0 else reversed(order):
            seconds[name].append(work())
    return seconds


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": median(values), "min": min(values), "max": max(values)}


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> dict[str, float]:
    """Round by round."""
    return spread([a / b for a, b in zip(numerator, denominator, strict=True)])


def entry(
    what: str,
    value: Mapping[str, float],
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    unit: str = "x",
    **details: Any,
) -> dict[str, Any]:
    """One line of the table: a measured value (median, min, max) beside its target, if it has one.

    Args:
        what: the claim in words; of a ratio they say which side is better where it is large:
            "A is x times as fast as B", or "seconds of A as a share of B's".
        value: as :func:`ratio` or :func:`spread` gives it.
        at_least: target for the median.
        at_most: target for the median.
        unit: of the value: ``x`` (a ratio), ``%``, ``s``.
        details: whatever else is worth keeping.
    """
    met = None
    if at_least is not None:
        met = value["median"] >= at_least
    if at_most is not None:
        met = value["median"] <= at_most
    target = {"at_least": at_least, "at_most": at_most}
    return {"what": what, "value": dict(value), "unit": unit, **target, "met": met, **details}


def machine() -> dict[str, Any]:
    """What it was measured on, without names of its owner, and what was measured."""
    return {
        "kif_lightning": kif_lightning.__version__,
        "commit": commit(apart_from=RESULTS),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "load_average": round(os.getloadavg()[0], 2),
        **{name: version(name) for name in ("torch", "transformers", "peft", "lightning")},
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def write_result(
    name: str,
    entries: Sequence[Mapping[str, Any]],
    *,
    started_on: Mapping[str, Any],
    output: Path | None = None,
    **others: Any,
) -> None:
    """Print the entries and write ``results/NAME.json``.

    Args:
        name: the benchmark's.
        entries: the lines of the table.
        started_on: :func:`machine` as it was before the measurement.
        output: another file.
        others: settings and raw numbers.
    """
    result = {
        "benchmark": name,
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": dict(started_on),
        "entries": list(entries),
        **others,
    }
    for line in entries:
        print(describe(line), flush=True)
    path = output or RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def describe(line: Mapping[str, Any]) -> str:
    """An entry in words."""
    return f"{line['what']}: {measured(line, '{:.3g}'.format)}{_verdict(line)}"


def measured(line: Mapping[str, Any], number: Callable[[float], str]) -> str:
    """Median with its unit and, of several rounds, the smallest and the largest value."""
    value = line["value"]
    median, least, most = (number(value[key]) for key in ("median", "min", "max"))
    around = "" if value["min"] == value["max"] else f" ({least} to {most})"
    return f"{median} {line['unit']}{around}"


def _verdict(line: Mapping[str, Any]) -> str:
    for key, words in (("at_least", "at least"), ("at_most", "at most")):
        if line[key] is not None:
            return f"; target {words} {line[key]:g}: {'met' if line['met'] else 'MISSED'}"
    return ""

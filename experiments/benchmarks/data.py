"""Speed and memory of reading a large file of rows and of the data doctor.

The rows are generated: ordinary words, three labels, about 290 bytes a row. Each measurement is a
process of its own on one core, so that its peak memory is its own; datasets' JSON loader on the
same file stands beside it.

    python experiments/benchmarks/data.py
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from time import perf_counter
from typing import Any

WORDS = """
the of and to in a is that for it was on are as with his they at be this from have or by one had
not but what all were when we there can an your which their said if do will each about how up out
them then she many some so these would other into has more her two like him see time could no make
than first been its who now people made over did down only way find use may water long little very
""".split()


def write_rows(path: Path, number: int) -> None:
    """Rows whose last letter is not ASCII, as real text often has some."""
    random = Random(0)
    with path.open("w", encoding="utf-8") as file:
        for index in range(number):
            text = f"What is it?\n{' '.join(random.choices(WORDS, k=53))} é"
            row = {
                "id": f"r{index}",
                "input": text,
                "output": random.choice(["yes", "no", "maybe"]),
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read(path: Path) -> None:
    from kif_lightning.benchmarks.rows import read_split

    read_split(path)


def read_with_datasets(path: Path) -> None:
    from datasets import load_dataset

    load_dataset("json", data_files=str(path), split="train", cache_dir=os.environ["KIF_CACHE"])


def examine(path: Path) -> None:
    """The doctor alone: the rows are in Arrow already."""
    from kif_lightning.benchmarks.doctor import examine
    from kif_lightning.benchmarks.rows import read_split
    from kif_lightning.interfaces import SourceTask

    split = read_split(path)
    task = SourceTask(
        name="large",
        kind="classification",
        metric="exact_match",
        splits={"train": split},
        closed_answers=True,
    )
    started = perf_counter()
    examine(task)
    print(perf_counter() - started)


MEASUREMENTS = {"read": read, "read_with_datasets": read_with_datasets, "doctor": examine}


def child(name: str, path: Path) -> None:
    """Seconds and bytes beyond what the imports take."""
    import datasets  # noqa: F401
    import pandas  # noqa: F401

    import kif_lightning.benchmarks.rows  # noqa: F401

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = perf_counter()
    MEASUREMENTS[name](path)
    seconds = perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"seconds": seconds, "megabytes": (peak - before) * 1024 / 1e6}))


def measure(name: str, path: Path, cache: Path) -> dict[str, Any]:
    """In a process of its own, on one core where the system can bind it."""
    command = [sys.executable, __file__, "--child", name, "--path", str(path)]
    if hasattr(os, "sched_getaffinity"):
        core = str(max(os.sched_getaffinity(0)))
        command = ["taskset", "-c", core, *command]
    environment = {**os.environ, "KIF_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(  # noqa: S603
        command, env=environment, capture_output=True, text=True, check=True
    )
    *own, last = done.stdout.splitlines()
    found = json.loads(last)
    seconds = float(own[-1]) if own else found["seconds"]
    return {
        "seconds": round(seconds, 3),
        "megabytes_a_second": round(path.stat().st_size / seconds / 1e6, 1),
        "peak_megabytes": round(found["megabytes"], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[250_000, 1_000_000])
    default = Path(__file__).parent / "results" / "data.json"
    parser.add_argument("--output", type=Path, default=default, help="the JSON to write")
    parser.add_argument("--child", choices=MEASUREMENTS, help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.path)
        return
    found: dict[str, Any] = {}
    for rows in arguments.rows:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.jsonl"
            write_rows(path, rows)
            found[str(rows)] = {"megabytes": round(path.stat().st_size / 1e6, 1)}
            # Reading comes first: the doctor finds the rows in Arrow.
            for name in MEASUREMENTS:
                found[str(rows)][name] = measure(name, path, Path(folder) / "cache")
                print(f"{rows:>9,} rows  {name:20}{found[str(rows)][name]}")
    result = {
        "rows": found,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "date": datetime.now(UTC).date().isoformat(),
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

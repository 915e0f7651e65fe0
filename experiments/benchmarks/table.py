"""One Markdown table of everything that was measured: ``results/*.json`` of side_by_side's form.

python experiments/benchmarks/table.py            # prints it
python experiments/benchmarks/table.py --write    # also puts it into README.md
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from side_by_side import RESULTS

README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- benchmarks -->", "<!-- end benchmarks -->"
SAME_MACHINE = ("processor", "cores", "threads", "gpu", "python", "torch")
"""Two results stand side by side if these agree."""


def read_results(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """Every result of side_by_side's form, by name; files of another form are left out."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    return [result for result in found if {"benchmark", "entries", "machine"} <= result.keys()]


def markdown(results: Sequence[Mapping[str, Any]]) -> str:
    """The table, after a line on the machine that most was measured on, before the others."""
    machines = [_machine(result["machine"]) for result in results]
    usual = Counter(machines).most_common(1)[0][0] if machines else ""
    others = list(dict.fromkeys(machine for machine in machines if machine != usual))
    lines = [
        *(
            [f"Measured on {usual}; median (smallest to largest) of the rounds.", ""]
            if usual
            else []
        ),
        "| what | measured | target | met |",
        "| --- | --- | --- | --- |",
    ]
    for result, machine in zip(results, machines, strict=True):
        mark = "" if machine == usual else f" [{others.index(machine) + 1}]"
        lines += [_row(line, mark) for line in result["entries"]]
    if others:
        notes = (
            f"[{place}] Measured on another machine: {m}." for place, m in enumerate(others, 1)
        )
        lines += ["", *notes]
    return "\n".join(lines)


def _machine(machine: Mapping[str, Any]) -> str:
    known = {key: machine.get(key) for key in SAME_MACHINE}
    gpu = f", {known['gpu']}" if known["gpu"] else ""
    return (
        f"{known['processor']}, {known['cores']} cores, {known['threads']} threads{gpu}, Python "
        f"{known['python']}, torch {known['torch']}"
    )


def _row(line: Mapping[str, Any], mark: str) -> str:
    value, unit = line["value"], line["unit"]
    median, least, most = (_number(value[key]) for key in ("median", "min", "max"))
    target = ""
    for key, sign in (("at_least", "≥"), ("at_most", "≤")):
        if line.get(key) is not None:
            target = f"{sign} {_number(line[key])} {unit}"
    met = {True: "yes", False: "MISSED", None: ""}[line["met"]]
    what = line["what"].replace("|", "\\|")
    return f"| {what}{mark} | {median} {unit} ({least} to {most}) | {target} | {met} |"


def _number(value: float) -> str:
    """Three digits, as people write them."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def written(text: str, table: str) -> str:
    """The text with the table between its two marks.

    Raises:
        SystemExit: it does not have both of them, once and in this order.
    """
    before, begin, rest = text.partition(BEGIN)
    old, end, after = rest.partition(END)
    if not (begin and end) or BEGIN in old + after or END in before + after:
        raise SystemExit(f"README.md must have {BEGIN} and then {END}, once each: put them there.")
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description="The benchmarks' results as a Markdown table.")
    parser.add_argument("--write", action="store_true", help="into README.md, between its marks")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    results = read_results(arguments.results)
    if not results:
        parser.error(f"{arguments.results} holds no result yet: run make bench first")
    table = markdown(results)
    print(table)
    if arguments.write:
        text = written(README.read_text(encoding="utf-8"), table)
        README.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

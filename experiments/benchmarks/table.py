"""One Markdown table of everything that was measured: ``results/*.json`` of side_by_side's form.

python experiments/benchmarks/table.py            # prints it
python experiments/benchmarks/table.py --write    # also into the two READMEs that show it
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from side_by_side import RESULTS, measured

README = Path(__file__).parents[2] / "README.md"
"""Shows the lines that have a target; the benchmarks' own README shows all."""
BEGIN, END = "<!-- benchmarks -->", "<!-- end benchmarks -->"


def read_results(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """Every result of side_by_side's form, by name; files of another form are left out."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    return [result for result in found if {"benchmark", "entries", "machine"} <= result.keys()]


def markdown(results: Sequence[Mapping[str, Any]], *, targets_only: bool = False) -> str:
    """The table, after lines on where, of which commit and when most of it was measured.

    What was measured elsewhere, of another commit or on another day is marked, and told below.

    Args:
        results: of side_by_side's form.
        targets_only: leave out what is told without a target.
    """
    places = [_circumstances(result) for result in results]
    usual = Counter(places).most_common(1)[0][0] if places else ()
    others = list(dict.fromkeys(place for place in places if place != usual))
    lines = ["| what | measured | target | met |", "| --- | --- | --- | --- |"]
    for result, place in zip(results, places, strict=True):
        mark = "" if place == usual else f" [{others.index(place) + 1}]"
        lines += [
            _row(line, mark)
            for line in result["entries"]
            if line["met"] is not None or not targets_only
        ]
    if not usual:
        return "\n".join(lines)
    machine, commit, day = usual
    head = [
        f"Measured on {machine}; median (smallest to largest) of the rounds, or the value of one.",
        f"Commit {commit}, {day}.",
    ]
    notes = []
    for number, place in enumerate(others, 1):
        differing = (one for one, most in zip(place, usual, strict=True) if one != most)
        notes.append(f"[{number}] Measured otherwise: {'; '.join(differing)}.")
    return "\n".join([*head, "", *lines, *([""] if notes else []), *notes])


def _circumstances(result: Mapping[str, Any]) -> tuple[str, str, str]:
    """Machine, commit and day: two results stand side by side if these agree."""
    machine = result["machine"]
    gpu = f", {machine['gpu']}" if machine["gpu"] else ""
    told = (
        f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads{gpu}, "
        f"Python {machine['python']}, torch {machine['torch']}"
    )
    head, changes, _ = (machine.get("commit") or "unknown").partition("+")
    return told, f"{head[:9]}{' with changes' if changes else ''}", result["measured"][:10]


def _row(line: Mapping[str, Any], mark: str) -> str:
    target = ""
    for key, sign in (("at_least", "≥"), ("at_most", "≤")):
        if line.get(key) is not None:
            target = f"{sign} {_number(line[key])} {line['unit']}"
    met = {True: "yes", False: "MISSED", None: ""}[line["met"]]
    what = line["what"].replace("|", "\\|")
    return f"| {what}{mark} | {measured(line, _number)} | {target} | {met} |"


def _number(value: float) -> str:
    """Three digits, as people write them."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    # What hardly differs from 1 differs in the fourth digit.
    return f"{value:.4g}" if 0.9 < value < 1.1 else f"{value:.3g}"


def written(text: str, table: str) -> str:
    """The text with the table between its two marks.

    Raises:
        SystemExit: it does not have both of them, once and in this order.
    """
    before, begin, rest = text.partition(BEGIN)
    old, end, after = rest.partition(END)
    if not (begin and end) or BEGIN in old + after or END in before + after:
        raise SystemExit(f"The README must have {BEGIN} and then {END}, once each: put them there.")
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
        short = markdown(results, targets_only=True)
        for readme, shown in ((README, short), (Path(__file__).with_name("README.md"), table)):
            text = written(readme.read_text(encoding="utf-8"), shown)
            readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

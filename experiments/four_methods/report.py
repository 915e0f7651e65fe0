"""Tables and figures of this study's README."""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib.figure import Figure
from studies import differences_table, read_runs, summary_table, table, usual_images
from study_figures import usual_figures

COMPARISON = Path(__file__).parent / "results" / "comparison.json"
RUNS = read_runs(COMPARISON)


def resampled_table() -> str:
    """The comparison's own differences: their intervals resample the test rows."""
    found = json.loads(COMPARISON.read_text(encoding="utf-8"))["paired"]
    rows = []
    for entry in found["entries"]:
        pooled, seeds = entry["pooled"], entry["between_seeds"]
        rows.append(
            [
                *(f"`{entry['label']}`", f"{pooled['difference']:+.1f}"),
                f"{pooled['low']:+.1f} to {pooled['high']:+.1f}",
                f"{seeds['standard_deviation']:.1f} (n = {seeds['n']})",
            ]
        )
    interval = f"{found['interval']}% interval"
    header = ["method", f"less `{found['baseline']}`", interval, "sd between seeds"]
    return table(header, rows)


def blocks() -> dict[str, str]:
    return {
        "table": summary_table(RUNS),
        "figures": usual_images(RUNS),
        "resampled": resampled_table(),
        "differences": differences_table(RUNS, "seq_lora"),
    }


def figures() -> dict[str, Figure]:
    return usual_figures(RUNS)

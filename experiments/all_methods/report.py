"""Tables and figures of this study's README."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from statistics import mean

from matplotlib.figure import Figure
from studies import AVERAGE, Run, differences_table, read_runs, summary_table, table, usual_images
from study_figures import usual_figures

RESULTS = Path(__file__).parent / "results"
RUNS = read_runs(RESULTS / "runs.json")
CHOSEN = {
    "l2p": ("fixes", "lr_factor"),
    "prog_prompt": ("fixes", "lr_factor"),
    "seq_full": ("fixes", "lr_factor"),
    "kif_ia3": ("fixes", "lr_factor"),
    "ewc": ("penalty", "elastic_weights", "coefficient"),
    "lfpt5": ("rehearsal", "writing_share"),
}
"""Method -> where its method settings hold the one that was chosen."""


def settings_table(runs: Iterable[Run]) -> str:
    """Each value tried with its score: the mean over the runs with it."""
    scores: dict[str, dict[float, list[float]]] = {method: {} for method in CHOSEN}
    for run in runs:
        if run.method in CHOSEN:
            value = run.protocol["method_settings"]
            for key in CHOSEN[run.method]:
                value = value[key]
            scores[run.method].setdefault(value, []).append(run.metrics[AVERAGE])
    rows = []
    for method, tried in scores.items():
        shown = [f"{value:g} -> {mean(tried[value]):.1f}" for value in sorted(tried)]
        rows.append([f"`{method}`", CHOSEN[method][-1].replace("_", " "), ", ".join(shown)])
    return table(["method", "setting", "values -> score"], rows)


def blocks() -> dict[str, str]:
    return {
        "table": summary_table(RUNS),
        "figures": usual_images(RUNS),
        "differences": differences_table(RUNS, "seq_lora"),
        "settings": settings_table(read_runs(RESULTS / "settings.json")),
    }


def figures() -> dict[str, Figure]:
    return usual_figures(RUNS)

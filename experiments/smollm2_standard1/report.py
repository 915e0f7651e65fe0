"""Tables and figures of this study's README."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from studies import differences_table, image, matrix_table, read_runs, summary_table, usual_images
from study_figures import score_maps, usual_figures

RESULTS = Path(__file__).parent / "results"
EARLIER = read_runs(RESULTS / "runs_bf16.json")
"""One seed, in bfloat16."""
RUNS = read_runs(RESULTS / "runs.json") or EARLIER


def blocks() -> dict[str, str]:
    maps = image("score_matrices", "Score matrix of each method")
    return {
        "table": summary_table(RUNS),
        "figures": f"{usual_images(RUNS)}\n{maps}",
        "differences": differences_table(RUNS, "seq_lora"),
        "from averaging": differences_table(RUNS, "mean"),
        "matrices": matrix_table(RUNS),
        "earlier": "These are the runs above." if RUNS is EARLIER else summary_table(EARLIER),
    }


def figures() -> dict[str, Figure]:
    return {**usual_figures(RUNS), "score_matrices": score_maps(RUNS)}

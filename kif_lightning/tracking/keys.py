"""Names of what a run logs, for the trackers and for dashboards."""

STEP = "running_step"
"""Optimizer steps of the whole run: Lightning's own begin anew with each task."""
TASK = "task"
"""Tasks learnt, from 1."""
AXES = (STEP, TASK)

TRAINING = ("train/loss", "train/learning_rate")
HELD_OUT = "held_out_loss"
SCORE = "score/"
"""Before a task's name."""
TRANSFER = "transfer/"
"""Before a metric of ``metrics.transfer``, of the tasks learnt so far."""
FINAL = "final/"
"""Before a metric of ``results.json``, in the summary."""
BOUNDARY = "boundary/"
"""Before what fusion did at the boundary after the task."""
MEAN_WEIGHT = f"{BOUNDARY}mean_weight_of_the_past"
UNITS = f"{BOUNDARY}units_"
"""Before the class of units that are counted."""
PROBE = "probe/"
"""Before ``score`` and ``loss`` of the general-ability probe, if there is one."""
COST = "cost/"
"""Before ``<phase>_seconds`` (of the last task) and ``total_seconds`` (so far)."""
MATRIX = "score_matrix"
IMPORTANCE = "importance/"
"""Before the name of an importance file: its units as a table."""
FIGURES = "figures/"
"""Before the name of a figure."""

ON_STEPS = ("train/*", HELD_OUT)
ON_TASKS = tuple(f"{prefix}*" for prefix in (SCORE, TRANSFER, BOUNDARY, PROBE, COST))

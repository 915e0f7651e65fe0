"""Transfer metrics, all from the score matrix.

``a[i][j]`` is the score on task j after training task i (0-based, T tasks, percent); ``None``
where task j was not evaluated after task i.
"""

from __future__ import annotations

from collections.abc import Sequence

ScoreMatrix = Sequence[Sequence[float | None]]

FORMULAS: dict[str, str] = {
    "average_performance": "mean_j a[T-1][j]",
    "forgetting_rate": "mean_{j<T-1} max_{j<=i<T-1} a[i][j] - a[T-1][j]",
    "backward_transfer": "mean_{j<T-1} a[T-1][j] - a[j][j]",
    "forward_transfer_vs_single_task": "mean_j a[j][j] - single[j]",
    "forward_transfer_zero_shot": "mean_{j>=1} a[j-1][j] - untrained[j]",
}
"""Name of each metric -> its formula, to print beside every figure."""
PEER_FORMULAS: dict[str, str] = {
    "backward_transfer_sapt": "1/T sum_{j<T-1} a[T-1][j] - a[j][j]",
    "forgetting_rate_sapt": "mean_{j<T-1} max_{i<T-1} p[i][j] - a[T-1][j], p[i][j]: 0 for i<j",
    "forward_transfer_sapt": "mean_j a[j][j] - 50.94",
}
"""The same for what SAPT's score script prints, to check published figures against; never ours."""


def average_performance(matrix: ScoreMatrix) -> float | None:
    """``mean_j a[T-1][j]`` (AP, also called OP)."""
    return _mean(matrix[-1])


def average_so_far(matrix: ScoreMatrix) -> list[float | None]:
    """``mean over j <= i of a[i][j]`` for each i: the tasks learnt so far, after each of them."""
    return [_mean(row[: i + 1]) for i, row in enumerate(matrix)]


def best_by_task(matrix: ScoreMatrix) -> list[float | None]:
    """``max_{j <= i < T-1} a[i][j]`` for each j < T-1: the task's best before the last one."""
    last = len(matrix) - 1
    return [_best([matrix[i][j] for i in range(j, last)]) for j in range(last)]


def forgetting_by_task(matrix: ScoreMatrix) -> list[float | None]:
    """``max_{j <= i < T-1} a[i][j] - a[T-1][j]`` for each j < T-1: what the task lost since."""
    return [_difference(*both) for both in zip(best_by_task(matrix), matrix[-1], strict=False)]


def forgetting_rate(matrix: ScoreMatrix) -> float | None:
    """``mean over j < T-1 of max_{j <= i < T-1} a[i][j] - a[T-1][j]`` (F.Ra); lower is better."""
    return _mean(forgetting_by_task(matrix))


def backward_transfer(matrix: ScoreMatrix) -> float | None:
    """``mean over j < T-1 of a[T-1][j] - a[j][j]`` (BWT)."""
    last = len(matrix) - 1
    return _mean([_difference(matrix[last][j], matrix[j][j]) for j in range(last)])


def forward_transfer_vs_single_task(
    matrix: ScoreMatrix, single_task: Sequence[float | None]
) -> float | None:
    """``mean_j a[j][j] - single[j]``; single[j]: the same budget on task j alone."""
    return _mean([_difference(matrix[j][j], single_task[j]) for j in range(len(matrix))])


def forward_transfer_zero_shot(
    matrix: ScoreMatrix, untrained: Sequence[float | None]
) -> float | None:
    """``mean over j >= 1 of a[j-1][j] - untrained[j]``; untrained: the model before any task."""
    return _mean([_difference(matrix[j - 1][j], untrained[j]) for j in range(1, len(matrix))])


def transfer_metrics(
    matrix: ScoreMatrix,
    *,
    single_task: Sequence[float | None] | None = None,
    untrained: Sequence[float | None] | None = None,
) -> dict[str, float]:
    """Every metric of :data:`FORMULAS` whose inputs are there; the others are absent, never zero.

    Args:
        matrix: (T, T) scores in percent; entries above the diagonal may be ``None``. A single row
            (1, T) of tasks learnt all at once has an average performance alone.
        single_task: (T,) scores of per-task training.
        untrained: (T,) scores of the model before the first task.

    Raises:
        ValueError: the matrix is empty or not square, or a vector has another length than T.
    """
    num_tasks = len(matrix[0]) if len(matrix) > 0 else 0
    at_once = len(matrix) == 1
    fits = all(len(row) == num_tasks for row in matrix) and len(matrix) in (1, num_tasks)
    if num_tasks == 0 or not fits:
        raise ValueError(f"The score matrix must be square, got rows {[len(r) for r in matrix]}.")
    for name, vector in (("single_task", single_task), ("untrained", untrained)):
        if vector is not None and len(vector) != num_tasks:
            raise ValueError(f"{name} must hold {num_tasks} scores, got {len(vector)}.")
    found = {"average_performance": average_performance(matrix)}
    if num_tasks > 1 and not at_once:
        found["forgetting_rate"] = forgetting_rate(matrix)
        found["backward_transfer"] = backward_transfer(matrix)
        if single_task is not None:
            found["forward_transfer_vs_single_task"] = forward_transfer_vs_single_task(
                matrix, single_task
            )
        if untrained is not None:
            found["forward_transfer_zero_shot"] = forward_transfer_zero_shot(matrix, untrained)
    return {name: value for name, value in found.items() if value is not None}


def backward_transfer_sapt(matrix: ScoreMatrix) -> float | None:
    """``1/T sum over j < T-1 of a[T-1][j] - a[j][j]``: divided by T, not by T-1."""
    ours = backward_transfer(matrix)
    return None if ours is None else ours * (len(matrix) - 1) / len(matrix)


def forgetting_rate_sapt(matrix: ScoreMatrix) -> float | None:
    """``mean over j < T-1 of max_{i < T-1} p[i][j] - a[T-1][j]``; p: a, but 0 above the diagonal.

    It differs from :func:`forgetting_rate` only where scores are negative.
    """
    last = len(matrix) - 1
    padded = [[row[j] if j <= i else 0.0 for j in range(last)] for i, row in enumerate(matrix)]
    return _mean(
        [_difference(_best([row[j] for row in padded[:-1]]), padded[-1][j]) for j in range(last)]
    )


def forward_transfer_sapt(matrix: ScoreMatrix) -> float | None:
    """``mean_j a[j][j] - 50.94``: a constant for the mean of the single-task scores."""
    return _difference(_mean([row[i] for i, row in enumerate(matrix)]), 50.94)


def peer_variants(matrix: ScoreMatrix) -> dict[str, float]:
    """Every metric of :data:`PEER_FORMULAS` whose inputs are there; none of a single task.

    As in the score script of circle-hit/SAPT.

    Args:
        matrix: (T, T) scores in percent; entries above the diagonal are not read.
    """
    if len(matrix) < 2:
        return {}
    found = {
        "backward_transfer_sapt": backward_transfer_sapt(matrix),
        "forgetting_rate_sapt": forgetting_rate_sapt(matrix),
        "forward_transfer_sapt": forward_transfer_sapt(matrix),
    }
    return {name: value for name, value in found.items() if value is not None}


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    return sum(known) / len(known)


def _best(scores: Sequence[float | None]) -> float | None:
    """The highest; a missing one could have been it, so it is then unknown, not smaller."""
    known = [score for score in scores if score is not None]
    return max(known) if len(known) == len(scores) else None

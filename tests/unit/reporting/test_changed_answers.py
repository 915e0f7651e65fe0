from __future__ import annotations

import json
from pathlib import Path

import pytest

from kif_lightning.reporting.changed_answers import MOST_SAMPLES, MOST_TASKS, changed_answers
from kif_lightning.reporting.run_record import read_run
from tests.helpers.fake_runs import fake_run


def answers(folder: Path, phase: int, task: int, scores: dict[str, float]) -> None:
    """Write what was answered to ``task`` after ``phase``, in place of what is there."""
    names = ["task_a", "task_b", "task_c", "task_d"]
    name = f"after_{phase + 1:02d}_{names[phase]}__on_{task + 1:02d}_{names[task]}.jsonl"
    rows = [
        {"id": key, "prediction": f"{key} {score:g}", "reference": f"right {key}", "score": score}
        for key, score in scores.items()
    ]
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    (folder / "predictions" / name).write_text(text)


def test_counts_and_the_first_fall_by_hand(tmp_path: Path) -> None:
    folder = fake_run(tmp_path, num_tasks=4)
    answers(folder, 0, 0, {"early": 100, "late": 100, "back": 100, "won": 0, "kept": 100, "no": 0})
    answers(folder, 1, 0, {"early": 0, "late": 100, "back": 0, "won": 0, "kept": 100, "no": 0})
    answers(folder, 2, 0, {"early": 0, "late": 100, "back": 100, "won": 0, "kept": 100, "no": 0})
    answers(folder, 3, 0, {"early": 0, "late": 0, "back": 100, "won": 100, "kept": 100, "no": 0})
    found = changed_answers(read_run(folder))[0]
    assert (found.compared, found.broke, found.mended, found.kept) == (6, 2, 1, 3)
    samples = {sample.id: sample for sample in found.samples}
    assert {key: one.first_broke_after for key, one in samples.items()} == {"early": 1, "late": 3}
    late = samples["late"]
    assert (late.reference, late.just_learnt, late.at_end) == ("right late", "late 100", "late 0")
    assert (late.score_just_learnt, late.score_at_end) == (100, 0)


@pytest.mark.parametrize(("end", "broke"), [(40.0, 1), (40.1, 0), (0.0, 1), (100.0, 0)])
def test_a_graded_answer_breaks_by_fifty_points(tmp_path: Path, end: float, broke: int) -> None:
    folder = fake_run(tmp_path, num_tasks=2)
    answers(folder, 0, 0, {"one": 90.0})
    answers(folder, 1, 0, {"one": end})
    assert changed_answers(read_run(folder))[0].broke == broke


def test_where_tasks_between_were_not_tested_it_is_not_known_when(tmp_path: Path) -> None:
    folder = fake_run(tmp_path, num_tasks=3)
    answers(folder, 0, 0, {"one": 100})
    (folder / "predictions" / "after_02_task_b__on_01_task_a.jsonl").unlink()
    answers(folder, 2, 0, {"one": 0})
    (sample,) = changed_answers(read_run(folder))[0].samples
    assert sample.first_broke_after is None


def test_only_rows_asked_at_both_times_count(tmp_path: Path) -> None:
    folder = fake_run(tmp_path, num_tasks=2)
    answers(folder, 0, 0, {"one": 100, "gone": 100})
    answers(folder, 1, 0, {"one": 0, "new": 0})
    assert changed_answers(read_run(folder))[0].compared == 1


def test_samples_are_the_same_each_time_and_others_with_another_seed(tmp_path: Path) -> None:
    drawn = []
    for seed in (1, 1, 2):
        folder = fake_run(tmp_path / f"{len(drawn)}", num_tasks=2, seed=seed)
        answers(folder, 0, 0, {f"{n}": 100 for n in range(50)})
        answers(folder, 1, 0, {f"{n}": 0 for n in range(50)})
        drawn.append([sample.id for sample in changed_answers(read_run(folder))[0].samples])
    assert len(drawn[0]) == MOST_SAMPLES
    assert drawn[0] == drawn[1] != drawn[2]


def test_of_many_tasks_the_worst_have_samples(tmp_path: Path) -> None:
    found = changed_answers(read_run(fake_run(tmp_path, num_tasks=40, test_rows=8)))
    assert len(found) == 39, "all are counted"
    sampled = [one.broke for one in found if one.samples]
    assert 0 < len(sampled) <= MOST_TASKS
    assert min(sampled) >= max(one.broke for one in found if not one.samples)


def test_nothing_of_tasks_learnt_at_once_or_without_answers(tmp_path: Path) -> None:
    assert changed_answers(read_run(fake_run(tmp_path / "joint", joint=True))) == []
    none_kept = fake_run(tmp_path / "bare", num_tasks=2, matrix=[[50.0, None], [40.0, 60.0]])
    assert changed_answers(read_run(none_kept)) == []

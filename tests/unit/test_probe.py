"""The probe's rows: read, capped, stamped; their loss by hand."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from kif_lightning import launch
from kif_lightning.errors import UserError
from kif_lightning.probe import Probe, ProbeBatches, bundled_probe
from kif_lightning.reporting.console import RunConsole, general_ability
from tests.helpers.probes import by_hand, written
from tests.helpers.streams import tiny_config


def own(file: Path | None, **settings: Any) -> Probe:
    return Probe(**{"name": "own", "file": file, "metric": "exact_match", "rows": 64, **settings})


def test_all_rows_are_asked_in_the_files_order(tmp_path: Path) -> None:
    probe = own(written(tmp_path / "rows.jsonl"))
    assert [row.id for row in probe.task.test] == [f"row{i}" for i in range(9)]
    assert probe.num_found == 9
    assert not probe.stand_in


def test_the_cap_is_a_draw_by_its_own_seed(tmp_path: Path) -> None:
    file = written(tmp_path / "rows.jsonl", 40)
    first, again, other = (own(file, rows=8, seed=seed) for seed in (1, 1, 2))
    ids = [row.id for row in first.task.test]
    assert len(ids) == len(set(ids)) == 8
    assert ids != [f"row{i}" for i in range(8)]
    assert ids == [row.id for row in again.task.test]
    assert ids != [row.id for row in other.task.test]
    assert first.stamp() == again.stamp()
    assert first.stamp()["sha256"] != other.stamp()["sha256"]
    assert (first.stamp()["rows"], first.num_found) == (8, 40)


def test_the_bundled_rows_are_balanced_over_skills_and_home_made() -> None:
    probe = bundled_probe(name="general")
    skills = Counter(row.id.rpartition("-")[0] for row in probe.task.test)
    assert set(skills) == {
        *("arithmetic", "facts", "opposites", "grammar"),
        *("copying", "completion", "sequences", "reading"),
    }
    assert set(skills.values()) == {8}
    assert len({row.input for row in probe.task.test}) == 64
    assert all(row.output.strip() for row in probe.task.test)
    assert probe.stand_in
    copied = [row for row in probe.task.test if row.id.startswith("copying")]
    assert all(row.output in row.input for row in copied)


def test_exact_match_forces_one_form_of_each_bundled_answer() -> None:
    rows = bundled_probe(name="general").task.test
    articles = {"the", "a", "an"}
    for row in rows:
        words = row.output.lower().split()
        if not row.id.startswith("copying"):
            assert len(words) == 1, f"{row.id}: an article or a preposition could be left out"
        # A number in words or digits, as the question has it or says.
        if row.output.isdigit():
            assert "in digits" in row.input or any(c.isdigit() for c in row.input), row.id
        if row.id.startswith("completion"):
            assert "with one word" in row.input
    assert all(row.output not in articles or " or an:" in row.input for row in rows)


GOOD = '{"id": "a", "input": "What?", "output": "that"}'


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (f'{GOOD}\n{{"id": "b", "input": "What?"}}', r"line 2: the row has no 'output'"),
        (f"{GOOD}\n[1]", r"line 2: expected a JSON object, got a list"),
        (f"{GOOD}\n{GOOD}", r"2 rows have the id 'a'; give each one of its own"),
        ("", r"holds no row: expected one a line"),
        (None, r"there is no such file"),
    ],
)
def test_a_bad_file_is_told_in_one_sentence(tmp_path: Path, content: str | None, told: str) -> None:
    file = tmp_path / "rows.jsonl"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=told) as error:
        own(file)
    assert "rows.jsonl" in str(error.value)
    assert "\n" not in str(error.value)


def test_own_rows_need_a_file_and_a_count() -> None:
    with pytest.raises(UserError, match=r"give probe\.file=ROWS\.jsonl .* or take probe=general"):
        own(None)
    with pytest.raises(UserError, match=r"probe\.rows \(null for all\) must be a whole number"):
        own(Path("rows.jsonl"), rows=0)


def test_an_unknown_metric_is_refused_before_anything_is_loaded(
    tiny_t5: Path, toy_data: Path, tmp_path: Path
) -> None:
    config = tiny_config(tiny_t5, toy_data, tmp_path, "probe=general", "probe.metric=exact")
    with pytest.raises(UserError, match=r"The probe is scored by 'exact'.* mean 'exact_match'"):
        launch.new_runner(config, RunConsole())


def test_without_a_probe_nothing_of_a_runs_settings_is_new(
    tiny_t5: Path, toy_data: Path, tmp_path: Path
) -> None:
    without, general, fewer = (
        tiny_config(tiny_t5, toy_data, tmp_path, "run_dir=null", *extra)
        for extra in ([], ["probe=general"], ["probe=general", "probe.rows=8"])
    )
    assert "probe" not in launch.run_settings(without)
    assert launch.run_settings(general)["probe"]["name"] == "general"
    assert len({launch.run_path(config) for config in (without, general, fewer)}) == 3


@pytest.mark.parametrize("model", ["tiny_t5", "tiny_llama"])
def test_the_loss_of_a_batch_is_each_rows_own_by_hand(
    model: str, request: pytest.FixtureRequest, toy_data: Path, tmp_path: Path
) -> None:
    folder = request.getfixturevalue(model)
    file = written(tmp_path / "rows.jsonl")
    config = tiny_config(
        folder, toy_data, tmp_path / "run", "probe=own", f"probe.file={file}",
        "evaluation.batch_size=4",
    )  # fmt: skip
    runner = launch.new_runner(config, RunConsole())
    runner.build()
    probe = runner.parts.probe
    assert probe is not None
    runner.module.eval()
    batches, found = ProbeBatches(runner.data, probe.task), {}
    for index in range(len(batches)):
        batch = batches[index]
        with torch.no_grad():
            losses = runner.module.token_losses(batch["answered"])
        found.update(zip(batch["rows"], losses.tolist(), strict=True))
    examples = [runner.data.backbone.encode(row) for row in probe.task.test]
    assert len(batches) == 3
    assert len({len(e.answer_ids) for e in examples}) > 1
    expected = [by_hand(folder, e.prompt_ids, e.answer_ids) for e in examples]
    assert [found[row] for row in range(9)] == pytest.approx(expected, rel=1e-5)
    assert batches.max_new_tokens == max(len(e.answer_ids) for e in examples)


def test_the_line_tells_what_is_not_finite() -> None:
    record = {
        "name": "own",
        "rows": 9,
        "untrained": {"score": 12.5, "loss": 2.314},
        "after": [{"score": 50.0, "loss": 1.0}, {"score": 10.94, "loss": None}],
    }
    assert general_ability(record) == (
        "General ability (own, 9 rows): loss 2.31 -> not finite nats a token (lower is better), "
        "score 12.5 -> 10.9%"
    )

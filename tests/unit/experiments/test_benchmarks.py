"""The benchmarks' inner parts at tiny sizes: what they compare is the same work, told rightly."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch

from tests.helpers.tiny import save_tiny_t5, save_toy_tasks

FOLDER = Path(__file__).parents[3] / "experiments" / "benchmarks"
SHORT_MIX = {"long": (30, 0.1, 1, ("good", "bad")), "short": (5, 0.1, 1, ("good", "bad"))}
MODULES = ("data", "evaluation", "fine_tuning", "our_side", "side_by_side", "startup", "table")


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(FOLDER)
    yield
    for name in MODULES:  # plain names: nobody else shall find them
        sys.modules.pop(name, None)


@pytest.fixture
def tiny(tmp_path: Path) -> tuple[str, ...]:
    """Overrides: a tiny T5 and two toy tasks of 20 train rows."""
    model = save_tiny_t5(tmp_path / "t5")
    data = save_toy_tasks(tmp_path / "data", train=20, test=7)
    return (
        *("backbone=t5_base", f"backbone.path={model}"),
        *("benchmark=long_sequence", f"benchmark.data_dir={data}"),
        "benchmark.order=[colour,shape]",
    )


class TestFineTuning:
    def test_both_sides_do_the_same_on_equal_batches(
        self, tiny: tuple[str, ...], tmp_path: Path
    ) -> None:
        from fine_tuning import Ours, Theirs
        from our_side import settings

        path = tmp_path / "t5" / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "dropout_rate": 0.0}))
        exact = ("method=seq_lora", "lora.dropout=0", "optim.weight_decay=0.01", "optim.lr=0.01")
        config = settings(tmp_path / "run", *tiny, *exact, "optim.batch_size=8")
        ours = Ours(config)
        theirs = Theirs(ours, config, tmp_path)
        theirs.model.load_state_dict(ours.runner.module.model.state_dict())
        before = {n: w.clone() for n, w in theirs.model.state_dict().items()}

        examples, order = ours.examples(), ours.order()
        assert sorted(order) == list(range(20))
        assert ours.epoch() > 0
        assert theirs.epoch([examples[i] for i in order], "sequential") > 0

        mine, other = ours.runner.module.model.state_dict(), theirs.model.state_dict()
        assert ours.runner.module.counts.optimizer_steps == 3
        changed = [name for name in other if not torch.equal(before[name], other[name])]
        assert changed
        assert all("lora" in name for name in changed)
        for name in changed:
            torch.testing.assert_close(mine[name], other[name], rtol=1e-3, atol=1e-5)

    def test_the_trainer_groups_by_length_when_asked_to(
        self, tiny: tuple[str, ...], tmp_path: Path
    ) -> None:
        from fine_tuning import Ours, Theirs, padding_percent
        from our_side import settings

        config = settings(tmp_path / "run", *tiny, "method=seq_lora", "optim.batch_size=2")
        ours = Ours(config)
        theirs = Theirs(ours, config, tmp_path)
        short, long = ours.examples()[:2]
        long = type(long)(prompt_ids=[5] * 50, answer_ids=long.answer_ids)
        mixed = [short, long] * 20
        padding = {
            how: padding_percent(theirs.trainer(mixed, how).get_train_dataloader())
            for how in ("sequential", "group_by_length")
        }
        width = len(short.prompt_ids)
        assert padding["sequential"] == pytest.approx(100 * (1 - (width + 50) / 100))
        assert padding["group_by_length"] < padding["sequential"] / 3

    def test_the_mix_is_as_long_as_the_tasks_it_stands_for(self, tmp_path: Path) -> None:
        from fine_tuning import MIX, write_mix
        from transformers import AutoTokenizer

        from kif_lightning.backbones import bundled_folder

        write_mix(tmp_path, 650)
        lines = (tmp_path / "mix" / "train.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        assert len(rows) == 650
        tokenizer = AutoTokenizer.from_pretrained(bundled_folder("t5_nano"))
        for task in ("agnews", "cb"):  # whose answers are theirs alone
            tokens, _, share, answers = MIX[task]
            own = [len(tokenizer(r["input"]).input_ids) for r in rows if r["output"] in answers]
            assert len(own) == 650 * share / 13
            assert median(own) == pytest.approx(tokens, rel=0.15)

    def test_every_grouping_is_measured(
        self, tiny: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from fine_tuning import GROUPINGS, mixed_lengths

        backbone = tuple(setting for setting in tiny if setting.startswith("backbone"))
        monkeypatch.setattr("fine_tuning.MIX", SHORT_MIX)
        entries = mixed_lengths("tiny", backbone, tmp_path / "mix", 13, 1, None)
        targets = [(e["what"].rpartition(" ")[2], e["at_least"]) for e in entries]
        assert targets == [
            *[(name, None) for name in GROUPINGS[:2] for _ in range(2)],
            *[("across_steps", least) for least in (1.5, 1.0)],
        ]
        padding = entries[0]["padding_percent"]
        assert padding.keys() == {
            *("Trainer", "Trainer, grouped"),
            *(f"ours, {grouping}" for grouping in GROUPINGS),
        }

    def test_the_mix_of_real_rows(self, tmp_path: Path) -> None:
        from fine_tuning import MIX, write_mix

        data = save_toy_tasks(tmp_path / "real", tuple(MIX), train=3)
        write_mix(tmp_path, 650, data)
        lines = (tmp_path / "mix" / "train.jsonl").read_text().splitlines()
        assert len(lines) == 3 * len(MIX)
        assert all("What is the" in json.loads(line)["input"] for line in lines)


class TestEvaluation:
    def test_both_ways_answer_the_same(self, tiny: tuple[str, ...], tmp_path: Path) -> None:
        from evaluation import compare

        compared = compare("tiny", [*tiny, "method=seq_lora"], tmp_path / "run", 1, 5.0)
        first = compared[0]
        assert first["different_answers"] == 0
        assert (first["tasks"], first["rows"]) == (2, 14)
        assert first["at_least"] == 5.0
        assert first["value"]["median"] == pytest.approx(
            first["seconds"]["row by row"]["median"] / first["seconds"]["batched"]["median"]
        )

    def test_different_answers_are_counted(self) -> None:
        from evaluation import num_different

        one = {"a": ["x", "y"], "b": ["z"]}
        assert num_different(one, one) == 0
        assert num_different(one, {"a": ["y", "y"], "b": ["w"]}) == 2


class TestStartup:
    def test_the_first_step_is_seen_from_outside(
        self, tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from startup import to_first_step

        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(FOLDER.parents[1])]))
        seconds = to_first_step([*tiny, "trainer.accelerator=cpu"])
        assert seconds > 0

    def test_a_run_that_takes_no_step_is_no_measurement(self) -> None:
        from startup import to_first_step

        with pytest.raises(RuntimeError, match="before its first step"):
            to_first_step(["--help"])


def result(
    name: str, *entries: dict[str, Any], processor: str = "A", torch: str = "2"
) -> dict[str, Any]:
    machine = {"processor": processor, "cores": 2, "threads": 2, "gpu": None, "python": "3.11"}
    return {"benchmark": name, "machine": {**machine, "torch": torch}, "entries": list(entries)}


def line(what: str, median: float, unit: str = "x", **target: float) -> dict[str, Any]:
    from side_by_side import entry

    value = {"median": median, "min": median / 2, "max": 2 * median}
    return entry(what, value, unit=unit, **target)  # type: ignore[arg-type]


class TestTable:
    def test_targets_met_missed_and_none(self) -> None:
        from table import markdown

        results = [
            result("one", line("fast", 6.0, at_least=5), line("slow", 4.0, at_least=5)),
            result("two", line("late", 13.0, "s", at_most=12), line("told", 1234.5)),
        ]
        assert markdown(results).splitlines() == [
            "Measured on A, 2 cores, 2 threads, Python 3.11, torch 2; median (smallest to largest) "
            "of the rounds.",
            "",
            "| what | measured | target | met |",
            "| --- | --- | --- | --- |",
            "| fast | 6 x (3 to 12) | ≥ 5 x | yes |",
            "| slow | 4 x (2 to 8) | ≥ 5 x | MISSED |",
            "| late | 13 s (6.5 to 26) | ≤ 12 s | MISSED |",
            "| told | 1,234 x (617 to 2,469) |  |  |",
        ]

    def test_another_machine_is_marked(self) -> None:
        from table import markdown

        results = [
            result("one", line("a", 1.0)),
            result("two", line("b", 1.0), processor="B"),
            result("three", line("c", 1.0)),
        ]
        told = markdown(results).splitlines()
        assert told[0].startswith("Measured on A,")
        assert [row.split(" | ")[0] for row in told[4:7]] == ["| a", "| b [1]", "| c"]
        assert told[-1].startswith("[1] Measured on another machine: B,")

    def test_files_of_another_form_are_left_out(self, tmp_path: Path) -> None:
        from table import read_results

        (tmp_path / "b.json").write_text(json.dumps(result("b")))
        (tmp_path / "a.json").write_text(json.dumps({"date": "2026"}))
        (tmp_path / "c.json").write_text(json.dumps(result("c")))
        assert [found["benchmark"] for found in read_results(tmp_path)] == ["b", "c"]

    def test_only_the_part_between_the_marks_is_rewritten(self) -> None:
        from table import BEGIN, END, written

        once = written(f"before\n{BEGIN}\nold\n{END}\nafter\n", "new")
        assert once == f"before\n{BEGIN}\nnew\n{END}\nafter\n"
        assert written(once, "new") == once

    @pytest.mark.parametrize(
        "text", ["", "{begin}", "{end}{begin}", "{begin}{end}{end}", "{begin}{begin}{end}"]
    )
    def test_marks_that_are_not_there_once(self, text: str) -> None:
        from table import BEGIN, END, written

        with pytest.raises(SystemExit, match="once each"):
            written(text.format(begin=BEGIN, end=END), "new")

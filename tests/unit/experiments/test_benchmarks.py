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
MODULES = (
    *("data", "evaluation", "fine_tuning", "growth", "our_side", "precision"),
    *("side_by_side", "startup", "stream", "table"),
)


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
        together = "optim.length_grouping=none"
        config = settings(tmp_path / "run", *tiny, *exact, together, "optim.batch_size=8")
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

    def test_ours_carries_the_callbacks_of_a_run(
        self, tiny: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from fine_tuning import Ours
        from our_side import settings

        from kif_lightning.runner import StreamRunner

        kinds: list[list[str]] = []
        new_trainer = StreamRunner.new_trainer

        def spy(runner: Any, callbacks: Any, **options: Any) -> Any:
            kinds.append([type(callback).__name__ for callback in callbacks])
            return new_trainer(runner, callbacks, **options)

        monkeypatch.setattr(StreamRunner, "new_trainer", spy)
        ours = Ours(settings(tmp_path / "run", *tiny, "method=kif"))
        kinds.clear()
        assert ours.epoch() > 0
        timed, *_ = kinds
        kinds.clear()
        ours.runner._learn(0, None)
        assert [kind for kind in timed if kind != "Ours"] == kinds[0]
        assert "KnowledgeFusion" in kinds[0]

    def test_equal_batches_are_equal(
        self, tiny: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from fine_tuning import equal_batches

        from kif_lightning.batches import PASS_OVERHEAD

        # Were rows parted by their length, it would be at the slightest difference.
        monkeypatch.setitem(PASS_OVERHEAD, "cpu", 0)

        backbone = tuple(setting for setting in tiny if setting.startswith("backbone"))
        first, second = equal_batches("tiny", backbone, tmp_path / "run", 20, 1)
        # One pass a step: our side does not part a step's rows by their length.
        assert first["steps"] == first["passes"] == 3
        assert (first["at_least"], second["at_least"]) == (0.97, None)

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
        from fine_tuning import GROUPINGS, STRATEGIES, mixed_lengths

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
            *STRATEGIES,
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


class TestGrowth:
    def test_a_task_costs_all_but_its_evaluation(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        from growth import Watch

        from kif_lightning.run_state import RunFolder, RunState

        # Begun, 1st learnt, looked at, 2nd learnt, looked at.
        clock = iter([0.0, 7.0, 8.0, 15.0, 16.0])
        monkeypatch.setattr("growth.perf_counter", lambda: next(clock))
        saved = []
        watch = Watch(lambda *given: saved.append(given))
        folder, state = RunFolder(tmp_path), RunState(num_tasks=2)
        for _ in range(2):
            state.phases.append({"memory_rows": 0, "seconds": {"evaluate": 0.0}})
            watch(folder, state, {})
            state.phases[-1]["seconds"]["evaluate"] = 3.0
            watch(folder, state)
        assert watch.seconds == [7.0, 15.0 - 8.0 - 3.0]
        assert len(saved) == 4


class TestStream:
    def test_our_config_says_what_the_scripts_do(self) -> None:
        from our_side import composed
        from stream import overrides, require_written_in

        settings = overrides("standard1", 240, 96)
        require_written_in(composed(*settings))
        for changed in ("optim.warmup_steps=5", "lora_targets=[q]", "optim.gradient_clip=1.0"):
            key = changed if changed.startswith("optim") else f"backbone.{changed}"
            with pytest.raises(AssertionError, match=key.partition("=")[0]):
                require_written_in(composed(*settings, key))


class TestShapes:
    def test_weights_of_the_public_models(self) -> None:
        import torch
        from our_side import random_model

        with torch.device("meta"):
            numbers = {
                shape: sum(weight.numel() for weight in random_model(shape).parameters())
                for shape in ("t5_small", "t5_base", "t5_large", "smollm2", "llama_7b")
            }
        # As their model cards say, in millions.
        millions = {name: number // 1_000_000 for name, number in numbers.items()}
        assert millions == {
            "t5_small": 60, "t5_base": 222, "t5_large": 737, "smollm2": 134, "llama_7b": 6738,
        }  # fmt: skip


class TestSideBySide:
    def test_one_round_is_told_as_its_value_alone(self) -> None:
        from side_by_side import describe, entry, spread

        assert describe(entry("a", spread([1.5]))) == "a: 1.5 x"
        assert describe(entry("a", spread([1.5, 2.0, 1.0]), unit="s")) == "a: 1.5 s (1 to 2)"

    def test_results_do_not_count_as_changes_of_the_commit(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import subprocess

        import kif_lightning
        from kif_lightning.reporting.stamp import commit

        def git(*words: str) -> None:
            who = ("-c", "user.name=a", "-c", "user.email=a")
            subprocess.run(["git", "-C", str(tmp_path), *who, *words], check=True)

        (tmp_path / "package").mkdir()
        (tmp_path / "package" / "code.py").write_text("")
        git("init", "--quiet")
        git("add", ".")
        git("commit", "--quiet", "--message=a")
        monkeypatch.setattr(kif_lightning, "__file__", str(tmp_path / "package" / "code.py"))
        results = tmp_path / "results"
        results.mkdir()
        (results / "a.json").write_text("{}")
        head = commit(apart_from=results)
        assert head is not None
        assert len(head) == 40
        assert commit() == f"{head}+changes"
        (tmp_path / "package" / "code.py").write_text("changed")
        assert commit(apart_from=results) == f"{head}+changes"


def result(
    name: str,
    *entries: dict[str, Any],
    processor: str = "A",
    commit: str = 40 * "c",
    day: str = "2026-11-25",
) -> dict[str, Any]:
    machine = {"processor": processor, "cores": 2, "threads": 2, "gpu": None, "python": "3.11"}
    return {
        "benchmark": name,
        "measured": f"{day}T10:00:00+00:00",
        "machine": {**machine, "torch": "2", "commit": commit},
        "entries": list(entries),
    }


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
            "of the rounds, or the value of one.",
            "Commit ccccccccc, 2026-11-25.",
            "",
            "| what | measured | target | met |",
            "| --- | --- | --- | --- |",
            "| fast | 6 x (3 to 12) | ≥ 5 x | yes |",
            "| slow | 4 x (2 to 8) | ≥ 5 x | MISSED |",
            "| late | 13 s (6.5 to 26) | ≤ 12 s | MISSED |",
            "| told | 1,234 x (617 to 2,469) |  |  |",
        ]

    def test_the_short_table_has_the_lines_with_a_target(self) -> None:
        from table import markdown

        results = [result("one", line("fast", 6.0, at_least=5), line("told", 1.0))]
        rows = markdown(results, targets_only=True).splitlines()[5:]
        assert rows == ["| fast | 6 x (3 to 12) | ≥ 5 x | yes |"]

    def test_another_machine_commit_or_day_is_marked(self) -> None:
        from table import markdown

        results = [
            result("one", line("a", 1.0)),
            result("two", line("b", 1.0), processor="B"),
            result("three", line("c", 1.0), commit="d" * 40 + "+changes"),
            result("four", line("d", 1.0), day="2026-11-26"),
            result("five", line("e", 1.0)),
        ]
        told = markdown(results).splitlines()
        assert told[0].startswith("Measured on A,")
        rows = [row.split(" | ")[0] for row in told[5:10]]
        assert rows == ["| a", "| b [1]", "| c [2]", "| d [3]", "| e"]
        assert told[11:] == [
            "[1] Measured otherwise: B, 2 cores, 2 threads, Python 3.11, torch 2.",
            "[2] Measured otherwise: ddddddddd with changes.",
            "[3] Measured otherwise: 2026-11-26.",
        ]

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

"""The studies' report: what is written is what the results say; pairs and verdicts by hand."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
EXPERIMENTS = ROOT / "experiments"
MODULES = ("claims", "gather", "report", "side_by_side", "studies", "study_figures")


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(EXPERIMENTS)
    for name in MODULES:  # a benchmark has the same name as the report
        sys.modules.pop(name, None)
    yield
    for name in MODULES:
        sys.modules.pop(name, None)


def stored(
    method: str, seed: int, ap: float, *, order: str = "one", lr: float = 1e-3, **more: Any
) -> dict[str, Any]:
    """A run of two tasks as gather.py keeps it; just learnt 80, forgetting and BWT by the AP."""
    tasks = ["a", "b"] if order == "one" else ["b", "a"]
    rows = {task: {"train": 10, "test": 5} for task in tasks}
    setting = {"benchmark": "toy", "backbone": "tiny", "rows": rows, "optim": {"lr": lr}}
    own = {"method": method, "order_name": order, "order": tasks, "seed": seed, "commit": "old"}
    return {
        "stand_ins": ["stand-in data"],
        "metrics": {"average_performance": ap, "backward_transfer": ap - 80},
        "score_matrix": [[80.0, None], [2 * ap - 80, 80.0]],
        "cost": {"seconds": {"total": 60.0}},
        "protocol": {**setting, **own, **more},
    }


def results(found: dict[str, Any]) -> dict[str, Any]:
    """What a run leaves, of that stored form."""
    names = found["protocol"]["order"]
    return {**found, "tasks": [{"name": name, "metric": "exact_match"} for name in names]}


def write(path: Path, runs: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(runs))
    return path


def finished(folder: Path, *runs: dict[str, Any]) -> Path:
    for number, run in enumerate(runs):
        path = folder / str(number) / "results.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(results(run)))
    return folder


def test_what_stands_in_the_readmes_is_what_the_results_say() -> None:
    from report import report

    assert report(EXPERIMENTS, ROOT / "README.md", check=True) == []


class TestGather:
    def test_runs_that_are_gone_stay_and_a_repeated_one_is_replaced(self, tmp_path: Path) -> None:
        from gather import main

        target = tmp_path / "results" / "runs.json"
        first = finished(tmp_path / "first", stored("m", 2, 60.0), stored("m", 1, 50.0))
        main([first], target)
        second = finished(tmp_path / "second", stored("m", 2, 61.0, commit="new"))
        third = finished(tmp_path / "third", stored("m", 2, 70.0, lr=1e-2))
        main([second, third], target)

        runs = json.loads(target.read_text())
        told = [(r["protocol"]["seed"], r["protocol"]["commit"]) for r in runs]
        assert sorted(told) == [(1, "old"), (2, "new"), (2, "old")]
        assert [seed for seed, _ in told] == [1, 2, 2]
        assert runs[0]["tasks"][0] == {"name": "a", "metric": "exact_match"}
        assert len(target.read_text().splitlines()) == len(runs) + 2

        text = target.read_text()
        main([third, second], target)
        assert target.read_text() == text

    def test_a_result_of_an_old_version_is_the_same_run(self) -> None:
        from gather import identity

        old = stored("m", 1, 50.0)
        decode = {"a": "generate", "b": "generate"}
        new = stored("m", 1, 50.0, decode=decode, evaluation_rows="test", commit="new")
        assert identity(old) == identity(new)
        ranked = stored("m", 1, 50.0, decode=dict.fromkeys(decode, "rank_labels"))
        held_out = stored("m", 1, 50.0, evaluation_rows="held_out")
        assert len({identity(run) for run in (old, ranked, held_out)}) == 3

    def test_a_setting_that_an_old_version_did_not_have_is_its_default(self) -> None:
        from gather import identity

        def rehearsing(part: str, **settings: int) -> str:
            rehearsal = {"_target_": f"kif_lightning.memory.{part}", **settings}
            return identity(stored("m", 1, 50.0, method_settings={"rehearsal": rehearsal}))

        old = rehearsing("MemoryRehearsal")
        assert old == rehearsing("MemoryRehearsal", times=1)
        assert old != rehearsing("MemoryRehearsal", times=4)
        assert rehearsing("PseudoSamples") != rehearsing("PseudoSamples", times=1)

    def test_an_empty_root_is_told(self, tmp_path: Path) -> None:
        from gather import main

        with pytest.raises(SystemExit, match=r"found no results\.json: name another"):
            main([tmp_path], tmp_path / "runs.json")
        assert not (tmp_path / "runs.json").exists()


class TestPairs:
    def test_by_hand(self, tmp_path: Path) -> None:
        from studies import paired, read_runs

        runs = [stored("high", seed, ap) for seed, ap in ((1, 52.0), (2, 55.0), (3, 58.0))]
        runs += [stored("low", seed, 50.0) for seed in (1, 2, 3, 4)]
        found = paired(
            read_runs(write(tmp_path / "r.json", runs)), "average_performance", "high", "low"
        )
        assert found is not None
        # Differences 2, 5, 8: sd 3, error 3 / sqrt(3), t of two degrees of freedom 4.303.
        assert (found.n, found.mean) == (3, 5.0)
        assert found.error == pytest.approx(1.7321, abs=1e-4)
        assert (found.low, found.high) == pytest.approx((-2.4532, 12.4532), abs=1e-3)

    def test_only_runs_of_one_protocol_order_and_seed_are_pairs(self, tmp_path: Path) -> None:
        from studies import paired, read_runs

        runs = [
            *(stored("high", 1, 60.0), stored("low", 1, 50.0)),
            *(stored("high", 1, 70.0, order="other"), stored("low", 2, 10.0)),
            *(stored("high", 3, 90.0, lr=1e-2), stored("low", 3, 10.0)),
            *(stored("high", 4, 90.0, precision="bf16-mixed"), stored("low", 4, 10.0)),
        ]
        found = paired(
            read_runs(write(tmp_path / "r.json", runs)), "average_performance", "high", "low"
        )
        assert found is not None
        assert (found.n, found.mean, found.error, found.low) == (1, 10.0, None, None)

    def test_two_runs_in_one_cell_are_refused(self, tmp_path: Path) -> None:
        from studies import paired, read_runs

        runs = read_runs(write(tmp_path / "r.json", [stored("m", 1, 50.0), stored("m", 1, 51.0)]))
        with pytest.raises(SystemExit, match="got two: keep runs of other method settings"):
            paired(runs, "average_performance", "m", None)

    def test_what_was_just_learnt_is_the_diagonal(self, tmp_path: Path) -> None:
        from studies import read_runs, summary_table

        (run,) = read_runs(write(tmp_path / "r.json", [stored("m", 1, 50.0)]))
        assert run.metric("just_learnt") == 80.0
        assert run.metric("forgetting_rate") is None
        assert "**On stand-in data.**" in summary_table([run])
        assert "| `m` | 1 | 50.0 | 80.0 | -30.0 | 1.0 |" in summary_table([run])

    def test_a_table_of_unlike_seeds_says_so(self, tmp_path: Path) -> None:
        from studies import read_runs, summary_table

        both = [stored(name, seed, 50.0) for name in ("a", "b") for seed in (1, 2)]
        runs = read_runs(write(tmp_path / "r.json", both))
        assert "compare pairs, not rows" not in summary_table(runs)
        assert "compare pairs, not rows" in summary_table(runs[1:])


class TestClaims:
    def settings(self, tmp_path: Path, *aps: float, at_least: float = 0) -> Any:
        from claims import settings_of
        from studies import read_runs

        runs = [stored("high", seed, ap) for seed, ap in enumerate(aps)]
        runs += [stored("low", seed, 50.0) for seed in range(len(aps))]
        test = {"metric": "average_performance", "higher": "high", "lower": "low"}
        claim = {"id": "c", "tests": [{**test, "at_least": at_least}]}
        return settings_of(claim, {"study/r.json": read_runs(write(tmp_path / "r.json", runs))})

    @pytest.mark.parametrize(
        ("aps", "at_least", "verdict", "status"),
        [
            ((60.0, 61.0, 62.0), 0, "holds", "confirmed, on stand-ins alone"),
            ((60.0, 61.0, 62.0), 10, "undecided", "not confirmed"),
            ((40.0, 41.0, 42.0), 0, "does not hold", "not confirmed"),
            ((40.0, 60.0, 62.0), 0, "undecided", "not confirmed"),
            ((60.0, 61.0), 0, "too few runs", "not confirmed"),
        ],
    )
    def test_verdicts(
        self, tmp_path: Path, aps: tuple[float, ...], at_least: float, verdict: str, status: str
    ) -> None:
        import claims

        (found,) = self.settings(tmp_path, *aps, at_least=at_least)
        assert (found.verdict, found.stand_ins) == (verdict, True)
        assert claims.status([found], [found.test]) == status

    def test_settings_with_too_few_runs_do_not_decide(self, tmp_path: Path) -> None:
        from claims import status

        (holds,) = self.settings(tmp_path, 60.0, 61.0, 62.0)
        (few,) = self.settings(tmp_path, 40.0)
        (not_so,) = self.settings(tmp_path, 40.0, 41.0, 42.0)
        tests = [holds.test]
        assert status([holds, few], tests) == "confirmed, on stand-ins alone"
        assert status([holds, not_so], tests) == "not confirmed"
        assert status([], tests) == "not tested"
        assert status([holds], [*tests, {"metric": "other"}]) == "not confirmed", "one is undecided"

    def test_the_table_without_any_results(self, tmp_path: Path) -> None:
        from claims import claims_tables

        (tmp_path / "claims.yaml").write_text((EXPERIMENTS / "claims.yaml").read_text())
        full, short = claims_tables(tmp_path)
        rows = full.splitlines()
        assert rows[0].startswith("No runs yet in `")
        assert len(rows) > 15
        assert all("**not tested** | no run" in row for row in rows[4:])
        assert [line.count("|") for line in short.splitlines()] == [4] * (len(rows) - 2)

    def test_claims_name_methods_that_exist(self) -> None:
        listed = yaml.safe_load((EXPERIMENTS / "claims.yaml").read_text())["claims"]
        tests = [test for claim in listed for test in claim["tests"]]
        named = {test[side] for test in tests for side in ("higher", "lower") if side in test}
        assert len({claim["id"] for claim in listed}) == len(listed)
        for name in named:
            places = [ROOT / "conf/method" / folder / f"{name}.yaml" for folder in ("", "ablation")]
            places += EXPERIMENTS.glob(f"*/conf/method/{name}.yaml")
            assert any(path.is_file() for path in places), name


class TestBlocks:
    TEXT = "# Title\n<!-- table -->\nold\n<!-- end table -->\nprose\n"

    def test_a_block_takes_its_place(self) -> None:
        from report import with_blocks

        text, differing = with_blocks(self.TEXT, {"table": "new"}, "README.md")
        assert text == self.TEXT.replace("old", "new")
        assert differing == ["table"]
        assert with_blocks(text, {"table": "new"}, "README.md") == (text, [])

    @pytest.mark.parametrize("text", ["# Title\n", TEXT + TEXT, "<!-- table -->\nold\n"])
    def test_a_missing_place_is_told(self, text: str) -> None:
        from report import with_blocks

        sentence = "README.md must have <!-- table --> and then <!-- end table -->, once each"
        with pytest.raises(SystemExit, match=sentence):
            with_blocks(text, {"table": "new"}, "README.md")

    def test_a_place_without_a_block_is_told(self) -> None:
        from report import with_blocks

        with pytest.raises(SystemExit, match="a place for table, which no report makes"):
            with_blocks(self.TEXT, {}, "README.md")

    def test_checking_writes_nothing_and_writing_settles(self, tmp_path: Path) -> None:
        from report import report

        study = tmp_path / "experiments" / "study"
        study.mkdir(parents=True)
        (study / "README.md").write_text(self.TEXT)
        (study / "report.py").write_text(
            "from matplotlib.figure import Figure\n"
            "def blocks():\n    return {'table': 'new'}\n"
            "def figures():\n    return {'shape': Figure(figsize=(1, 1))}\n"
        )
        (tmp_path / "experiments" / "claims.yaml").write_text("{results: [], claims: []}")
        (study.parent / "README.md").write_text("<!-- claims -->\n<!-- end claims -->\n")
        readme = tmp_path / "README.md"
        readme.write_text(
            "<!-- claims -->\n<!-- end claims -->\n"
            "<!-- study/table -->\nold\n<!-- end study/table -->\n"
        )
        expected = [
            "experiments/README.md, block claims",
            "experiments/study/README.md, block table",
            "experiments/study/figures/shape.png",
            "README.md, block claims",
            "README.md, block study/table",
        ]
        assert report(study.parent, readme, check=True) == expected
        assert (study / "README.md").read_text() == self.TEXT
        assert not (study / "figures").exists()
        assert report(study.parent, readme, check=False) == expected
        assert "\nnew\n" in readme.read_text()
        picture = (study / "figures" / "shape.png").read_bytes()
        assert report(study.parent, readme, check=False) == []
        assert (study / "figures" / "shape.png").read_bytes() == picture

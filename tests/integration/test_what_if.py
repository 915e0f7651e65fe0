"""Boundaries kept in real runs, and one of them fused again: against the run, and by hand."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

from kif_lightning import boundaries, probe
from kif_lightning.adapters import PeftAdapter
from kif_lightning.backbones.seq2seq import Seq2SeqBackbone
from kif_lightning.boundaries import KeptBoundary
from kif_lightning.cli import app
from kif_lightning.errors import UserError
from kif_lightning.reporting.console import RunConsole
from kif_lightning.run_state import RunFolder
from kif_lightning.runner import StreamRunner
from kif_lightning.storage import save_state
from kif_lightning.whatif import Asked, what_if
from tests.helpers.streams import run_stream, tiny_config
from tests.helpers.tiny import save_toy_tasks

NAMES = ("colour", "shape", "size")
State = dict[str, Tensor]


def told_by_every_bit(self: Any, model: Any, batch: Any, cap: int) -> list[str]:
    """Answers that change with the last bits of the weights: scores agree only if these do."""
    start = torch.zeros(len(batch["input_ids"]), 1, dtype=torch.long)
    logits = model(**batch, decoder_input_ids=start).logits
    sums = logits.double().abs().sum(dim=(1, 2))
    return ["good" if bits % 2 else "bad" for bits in (sums * 1e6).long().tolist()]


@pytest.fixture(scope="module", autouse=True)
def sensitive_answers() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Seq2SeqBackbone, "generate", told_by_every_bit)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_toy_tasks(tmp_path_factory.mktemp("data"), NAMES, test=11)


@pytest.fixture(scope="module")
def config(tiny_t5: Path, data: Path) -> Any:
    def make(folder: Path, *overrides: str) -> DictConfig:
        order = f"benchmark.order=[{','.join(NAMES)}]"
        return tiny_config(tiny_t5, data, folder, order, "optim.lr=0.05", *overrides)

    return make


HOUR = 3600.0


@contextmanager
def slow_keeping() -> Iterator[None]:
    """To keep a boundary takes an hour, by the clock that runs are timed with."""
    real, late = time.perf_counter, 0.0

    def slow(folder: Path, state: Any) -> None:
        nonlocal late
        late += HOUR
        save_state(folder, state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(boundaries, "save_state", slow)
        patch.setattr(time, "perf_counter", lambda: real() + late)
        yield
    assert late > 0


@pytest.fixture(scope="module")
def kept(config: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with its boundaries; only read."""
    folder: Path = tmp_path_factory.mktemp("kept") / "run"
    with slow_keeping():
        run_stream(config(folder, "keep_boundaries=true", "probe=general", "probe.rows=2"))
    return folder


@pytest.fixture
def run(kept: Path, tmp_path: Path) -> Path:
    """A copy to write in."""
    return Path(shutil.copytree(kept, tmp_path / "run"))


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[State]:
    """Every state that is loaded into an adapter."""
    found: list[State] = []
    load = PeftAdapter.load_state_dict

    def noting(self: PeftAdapter, model: Any, state: Any) -> None:
        found.append({name: tensor.clone() for name, tensor in state.items()})
        load(self, model, state)

    monkeypatch.setattr(PeftAdapter, "load_state_dict", noting)
    return found


def listening_console() -> tuple[RunConsole, io.StringIO]:
    said = io.StringIO()
    return RunConsole(Console(file=said, width=200, highlight=False, soft_wrap=True)), said


def fuse_again(run: Path, task: str = "3", **asked: str) -> dict[str, Any]:
    path = what_if(run, Asked(task=task, **asked), listening_console()[0])
    answers: dict[str, Any] = json.loads(path.read_text())
    return answers


def results(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "results.json").read_text())
    return found


def weights(run: Path, name: str = "03_size") -> tuple[State, State]:
    return KeptBoundary(number=3, task="size", folder=run / "boundaries" / name).weights()


def record(run: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "importance" / f"{name}_fusion.json").read_text())
    return found


def checksums(run: Path) -> dict[str, str]:
    """Of all files of the run itself."""
    return {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(run.rglob("*"))
        if path.is_file() and path.relative_to(run).parts[0] != "whatif"
    }


def by_hand(run: Path, share: np.ndarray) -> State:
    """Rank by rank, in the order of the unit ids."""
    before, after = weights(run)
    found = {name: tensor.clone() for name, tensor in after.items()}
    for unit, lam in zip(record(run, "03_size")["unit_ids"], share.tolist(), strict=True):
        module, _, rank = unit.partition("/rank:")
        for name in found:
            if name.startswith(f"{module}.lora_"):
                place = int(rank) if ".lora_A" in name else (slice(None), int(rank))
                found[name][place] = lam * before[name][place] + (1 - lam) * after[name][place]
    return found


def assert_close(found: State, expected: State) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def assert_costs_nothing(run: Path) -> None:
    """The hours that its boundaries were kept for are none of the run's."""
    seconds = [phase["seconds"] for phase in results(run)["phases"]]
    assert all(0 <= value < HOUR / 2 for phase in seconds for value in phase.values()), seconds
    for path in run.glob("importance/*"):
        assert json.loads(path.read_text())["seconds"] < HOUR / 2


def norm(values: Any) -> np.ndarray:
    array = np.array(values)
    return (array - array.min()) / (array.max() - array.min())


def test_keeping_changes_no_result_and_is_told(config: Any, kept: Path, tmp_path: Path) -> None:
    assert_costs_nothing(kept)
    _, said = run_stream(config(tmp_path / "plain", "probe=general", "probe.rows=2"))
    assert not (tmp_path / "plain" / "boundaries").exists()
    assert "boundaries" not in said
    same = ("score_matrix", "metrics", "protocol")
    assert [results(kept)[key] for key in same] == [
        results(tmp_path / "plain")[key] for key in same
    ]
    ours, plain = (checksums(folder) for folder in (kept, tmp_path / "plain"))
    assert {
        n: s for n, s in ours.items() if n.startswith(("adapter", "predictions", "config"))
    } == {n: s for n, s in plain.items() if n.startswith(("adapter", "predictions", "config"))}
    assert sorted(path.name for path in (kept / "boundaries").iterdir()) == ["02_shape", "03_size"]


def test_the_runs_own_settings_give_exactly_its_row_and_weights(
    run: Path, loaded: list[State]
) -> None:
    found = fuse_again(run, "2")
    (answer,) = found["answers"].values()
    assert answer["scores"] == results(run)["score_matrix"][1][:2]
    assert len(set(results(run)["score_matrix"][2])) > 1  # not the same for whatever weights
    assert found["original_equals_run"] is True
    before_next, _ = weights(run)
    torch.testing.assert_close(loaded[0], before_next, rtol=0, atol=0)
    found = fuse_again(run, "size")
    (answer,) = found["answers"].values()
    assert answer["scores"] == results(run)["score_matrix"][2]
    final = load_file(run / "adapter" / "adapter_model.safetensors")
    ours = {f"base_model.model.{name}": tensor for name, tensor in loaded[1].items()}
    torch.testing.assert_close(ours, final, rtol=0, atol=0)


def test_small_and_large_tau_and_the_mean_by_hand(run: Path, loaded: list[State]) -> None:
    found = fuse_again(run, tau="1e-12,1e12", rule="adaptive,mean")
    _, hard, soft, mean = loaded
    past, present = (np.array(record(run, "03_size")[key]) for key in ("previous", "current"))
    share = np.where(past > present, 1.0, np.where(past < present, 0.0, 0.5))
    assert_close(hard, by_hand(run, share))
    before, after = weights(run)
    average = {name: (before[name] + after[name]) / 2 for name in before}
    assert_close(soft, average)
    assert_close(mean, average)
    told = list(found["answers"].values())
    assert [a["settings"]["rule"] for a in told] == ["adaptive", "adaptive", "adaptive", "mean"]
    assert told[1]["mean_weight"] == pytest.approx(share.mean())
    assert told[1]["entropy"] == pytest.approx((share == 0.5).mean())
    assert told[3]["entropy"] == pytest.approx(1.0)
    for answer in told:
        scores = answer["scores"]
        assert answer["average"] == pytest.approx(sum(scores) / 3)
        assert answer["old_mean"] == pytest.approx(sum(scores[:2]) / 2)
        assert answer["new"] == scores[2]


def test_another_beta_accumulates_the_past_anew(run: Path, loaded: list[State]) -> None:
    fuse_again(run, beta="0.2")
    first, second, third = (record(run, n)["score"] for n in ("01_colour", "02_shape", "03_size"))
    past = norm(0.2 * norm(norm(first)) + 0.8 * norm(second))
    share = 1 / (1 + np.exp(-(norm(past) - norm(third)) / 0.15))
    assert_close(loaded[1], by_hand(run, share))
    assert max(float((loaded[0][n] - loaded[1][n]).abs().max()) for n in loaded[0]) > 1e-4


def test_static_fusion_by_hand(run: Path, loaded: list[State]) -> None:
    fuse_again(run, rule="static", gamma="0.9", top="40")
    past, present = (np.array(record(run, "03_size")[key]) for key in ("previous", "current"))
    high = [values > np.percentile(values, 60) for values in (past, present)]
    share = np.select([high[0] & high[1], high[0], high[1]], [0.9, 1.0, 0.0], 0.5)
    assert_close(loaded[1], by_hand(run, share))


def test_what_is_known_is_not_evaluated_again_and_the_run_stays_as_it_is(
    run: Path, loaded: list[State]
) -> None:
    before = checksums(run)
    first = fuse_again(run, tau="0.5")
    again = fuse_again(run, tau="0.5,0.9")
    assert len(loaded) == 3
    assert {key: again["answers"][key] for key in first["answers"]} == first["answers"]
    assert checksums(run) == before
    folder = run / "whatif" / "03_size"
    assert not list(folder.rglob("results.json")), "comparisons would take it for a run"
    own = next(iter(first["answers"]))
    for path in (folder / "predictions").iterdir():
        label = None if path.name.startswith(f"{own}__") else "counterfactual, single boundary"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert [row.get("label") for row in rows] == [label] * len(rows)
    assert len(list((folder / "predictions").iterdir())) == 9
    for ending in ("png", "svg", "pdf"):
        assert (folder / f"by_tau__adaptive,beta=0.7.{ending}").stat().st_size > 1000
    changed = {**again, "conditions": {**again["conditions"], "device": "another"}}
    (folder / "what_if.json").write_text(json.dumps(changed))
    console, said = listening_console()
    what_if(run, Asked(task="3"), console)
    assert "evaluated anew" in said.getvalue()
    assert len(json.loads((folder / "what_if.json").read_text())["answers"]) == 1


def test_nothing_is_said_to_be_equal_where_nothing_was_measured(run: Path) -> None:
    changed = results(run)
    changed["score_matrix"][1] = [None, None, None]  # as with evaluation.matrix=final_row
    (run / "results.json").write_text(json.dumps(changed))
    console, said = listening_console()
    path = what_if(run, Asked(task="2"), console)
    assert json.loads(path.read_text())["original_equals_run"] is None
    assert "its own row cannot be compared" in said.getvalue()
    assert "as measured by the run" not in said.getvalue()


def test_a_row_that_differs_is_told(run: Path) -> None:
    changed = results(run)
    changed["score_matrix"][2][1] += 1.0
    (run / "results.json").write_text(json.dumps(changed))
    result = CliRunner().invoke(app, ["whatif", str(run), "--task", "3", "--tau", "0.5"])
    assert result.exit_code == 0
    assert "NOT the run's own (shape" in result.output
    assert "counterfactual, single boundary" in result.output
    found = json.loads((run / "whatif" / "03_size" / "what_if.json").read_text())
    assert found["original_equals_run"] is False


@pytest.mark.parametrize("where", ["_record_boundaries", "_judge"])
def test_a_kill_leaves_a_boundary_that_can_be_fused_again(
    config: Any, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    run, settings = tmp_path / "run", config(tmp_path / "run", "keep_boundaries=true")
    whole = getattr(StreamRunner, where)

    def dies(self: Any, task_index: int, *rest: Any) -> Any:
        if task_index == 1:
            raise KeyboardInterrupt
        return whole(self, task_index, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(StreamRunner, where, dies)
        with pytest.raises(KeyboardInterrupt):
            run_stream(settings)
    assert (run / "boundaries" / "02_shape").is_dir()
    if where == "_judge":
        found = fuse_again(run, "2", tau="0.5")
        assert (found["run_row"], found["original_equals_run"]) == (None, None)
        first = next(iter(found["answers"].values()))
        assert first["scores"] == results(kept)["score_matrix"][1][:2]
    run_stream(settings)
    for name in ("02_shape", "03_size"):
        ours, theirs = (weights(folder, name) for folder in (run, kept))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert results(run)["score_matrix"] == results(kept)["score_matrix"]
    assert fuse_again(run, "2")["original_equals_run"] is True


def test_a_run_in_progress_is_not_disturbed(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # No probe is asked, so its file is not read.
    monkeypatch.setattr(probe, "read_split", lambda _: pytest.fail("it may be gone"))
    (run / "results.json").unlink()  # as if its last evaluation were still to come
    before = checksums(run)
    assert fuse_again(run, "2")["original_equals_run"] is True
    assert checksums(run) == before
    state = RunFolder(run).reached()
    assert state is not None
    assert state.next_task == 3


REFUSED = [
    ({"task": "1"}, "--task must be the number or the name"),
    ({"task": "sise"}, "got sise: the run has 2 shape, 3 size"),
    ({}, "none was named"),
    ({"task": "2", "beta": "0.5"}, "--beta has no effect after the second task"),
    ({"task": "3", "beta": "1.5"}, "--beta must lie in [0, 1]"),
    ({"task": "3", "tau": "0"}, "rule.tau must lie in (0, inf]"),
    *(
        (
            {"task": "3", "tau": given},
            f"--tau must be one finite number or several parted by commas, got {given}",
        )
        for given in ("a,1", "0.5,inf", "nan")
    ),
    ({"task": "3", "gamma": "0.5"}, "--gamma is no setting of the rule adaptive"),
    ({"task": "3", "rule": "best"}, "--rule must be 'adaptive' or "),
]


@pytest.mark.parametrize(("asked", "told"), REFUSED)
def test_mistakes_are_told_in_one_sentence(run: Path, asked: dict[str, str], told: str) -> None:
    options = [part for name, value in asked.items() for part in (f"--{name}", value)]
    result = CliRunner().invoke(app, ["whatif", str(run), *options])
    assert result.exit_code == 2
    assert told in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert not (run / "whatif").exists()


def test_other_data_are_refused(run: Path, config: Any, tmp_path: Path, data: Path) -> None:
    other = Path(shutil.copytree(data, tmp_path / "data"))
    lines = (other / "shape" / "test.jsonl").read_text().splitlines()
    (other / "shape" / "test.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace(str(data), str(other)))
    with pytest.raises(UserError, match="The data of shape are not those that the run"):
        fuse_again(run)


def test_runs_without_a_boundary_to_fuse_again_are_refused(
    config: Any, kept: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"there is no config\.yaml in"):
        fuse_again(tmp_path)
    bare = Path(shutil.copytree(kept, tmp_path / "bare"))
    shutil.rmtree(bare / "boundaries")
    with pytest.raises(UserError, match="run it with keep_boundaries=true"):
        fuse_again(bare)
    plain = config(
        tmp_path / "plain", "method=seq_lora", "keep_boundaries=true", "save_model=false"
    )
    _, said = run_stream(plain)
    assert "keep_boundaries=true has no effect" in said
    with pytest.raises(UserError, match="got one with 0 fusions there"):
        fuse_again(tmp_path / "plain")
    refused = {
        "recurrent_kif": "many times within",
        "kif_m": "after each fusion",
        "kif_fitted": "fits its fusion weights",
    }
    for method, told in refused.items():
        with pytest.raises(UserError, match=told):
            run_stream(config(tmp_path / method, f"method={method}", "keep_boundaries=true"))
        assert not (tmp_path / method).exists()


def test_fusion_after_a_replay_can_be_made_again(config: Any, tmp_path: Path) -> None:
    position = "method.boundary.fusion.position=before_fusion"
    with slow_keeping():
        run_stream(config(tmp_path / "run", "method=kif_m", position, "keep_boundaries=true"))
    assert_costs_nothing(tmp_path / "run")
    assert fuse_again(tmp_path / "run", tau="0.9")["original_equals_run"] is True
    with pytest.raises(UserError, match="leave --beta out"):
        fuse_again(tmp_path / "run", beta="0.5")

"""The study of fusion variants: its parts by hand, and that its report tells runs apart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import nn

from kif_lightning.assembly import build_parts
from kif_lightning.identification import Identification
from kif_lightning.kif import ImportanceTracker, matrix_units
from kif_lightning.paths import conf_dir
from tests.helpers.scripts import EXPERIMENTS, scripts_of

METHODS = EXPERIMENTS / "fusion_variants" / "conf" / "method"


@pytest.fixture
def script() -> Iterator[Any]:
    with scripts_of("fusion_variants", "identification") as found:
        yield found


def any_share(previous: torch.Tensor, current: torch.Tensor) -> torch.Tensor:
    raise AssertionError("These fusions use no rule.")


def fusion(kind: Any, **settings: Any) -> Any:
    """A fusion at a boundary that has something to fuse."""
    found = kind(rule=any_share, units=lambda _: None, **settings)
    found.boundary = SimpleNamespace(weight=torch.zeros(1))
    return found


def test_the_most_important_weights_take_their_new_value(script: Any) -> None:
    found = fusion(script("lab_parts").WeightTop, keep=0.5)
    found.snapshot = {"a": torch.zeros(2), "b": torch.zeros(2)}
    found.scores = {"a": torch.tensor([1.0, 4.0]), "b": torch.tensor([3.0, 2.0])}
    weights = {name: nn.Parameter(torch.ones(2)) for name in "ab"}
    found.fuse(weights)
    assert weights["a"].tolist() == [0.0, 1.0]
    assert weights["b"].tolist() == [1.0, 0.0]


@pytest.mark.parametrize("by_inputs", [False, True])
def test_each_task_keeps_the_outputs_on_its_own_inputs(script: Any, by_inputs: bool) -> None:
    parts = script("lab_parts")
    parts.RIDGE = 1e-9
    found = fusion(parts.RegMean, balance=10.0, by_inputs=by_inputs)
    draw = torch.Generator().manual_seed(0)
    names = ("m.lora_A.weight", "m.lora_B.weight")
    sizes = ((2, 4), (3, 2))
    old = [torch.randn(size, generator=draw) for size in sizes]
    # The new product has the columns of the old one: the fused one is of their rank.
    new = [torch.randn(2, 4, generator=draw), old[1]]
    weights = {name: nn.Parameter(w.clone()) for name, w in zip(names, new, strict=True)}
    found.snapshot = dict(zip(names, old, strict=True))
    found.hooks = []
    found.old = {"model.m": torch.diag(torch.tensor([1.0, 2.0, 0.0, 0.0])).double()}
    found.sums = {"model.m": 4 * torch.diag(torch.tensor([0.0, 0.0, 3.0, 1.0]))}
    found.counts = {"model.m": 4}
    found.fuse(weights)
    product = weights[names[1]] @ weights[names[0]]
    assert torch.allclose(product[:, :2], (old[1] @ old[0])[:, :2], atol=1e-4)
    assert torch.allclose(product[:, 2:], (new[1] @ new[0])[:, 2:], atol=1e-4)
    assert found.old["model.m"].diagonal().tolist() == [1.0, 2.0, 3.0, 1.0]


def test_a_weight_is_held_by_its_part_in_the_fall_of_the_loss(script: Any) -> None:
    parts = script("lab_parts")
    tracker = parts.SharedPathTracker()
    penalty = parts.LabElastic(coefficient=4.0)
    weights = {"w": nn.Parameter(torch.zeros(3))}
    context = SimpleNamespace(parameters=weights, logits=torch.zeros(1))
    assert penalty(context) == 0
    tracker.reset(weights)
    penalty.begin_task(weights, 0)
    # The loss falls by 2 along the first weight, rises by 1 along the second; the third stays.
    for step, gradient in (([1.0, 1.0, 0.0], [-2.0, 1.0, 5.0]), ([0.0, 0.0, 0.0], [9.0, 9.0, 9.0])):
        tracker.update(weights, {"w": torch.tensor(gradient)})
        weights["w"].data += torch.tensor(step)
    assert tracker.path["w"].tolist() == [2.0, -1.0, 0.0]
    penalty.end_task(weights, 0, None)
    assert penalty(context) == 0
    weights["w"].data += torch.tensor([0.5, 7.0, 7.0])
    assert penalty(context).item() == pytest.approx(4 / 2 * 2 / 1.001 * 0.25)


class TestShares:
    """Other shares of the past than the paper's."""

    @pytest.mark.parametrize("scores", ["min_max", "ranks", "logarithms"])
    @pytest.mark.parametrize("entropy", [0.2, 0.9])
    def test_tau_gives_the_shares_that_entropy(
        self, script: Any, scores: str, entropy: float
    ) -> None:
        shares = script("lab_shares")
        draw = torch.Generator().manual_seed(0)
        # Skewed, as scores are.
        previous, current = torch.rand(2, 200, generator=draw, dtype=torch.float64) ** 8
        found = shares.ScaledRule(scores=scores, entropy=entropy)(previous, current)
        bits = -(found * found.log2() + (1 - found) * (1 - found).log2())
        assert bits.nan_to_num().mean().item() == pytest.approx(entropy, abs=1e-6)
        assert torch.equal(found > 0.5, scaled(shares, scores, previous, current) > 0)

    def test_logarithms_have_mean_0_and_deviation_1(self, script: Any) -> None:
        scores = torch.tensor([1.0, 0.1, 0.01], dtype=torch.float64)
        assert script("lab_shares").logarithms(scores).tolist() == pytest.approx([1.0, 0.0, -1.0])

    def test_ranks_with_a_tau_count_places_alone(self, script: Any) -> None:
        rule = script("lab_shares").ScaledRule(scores="ranks", tau=0.5)
        small, large = torch.tensor([0.0, 0.1, 0.2]), torch.tensor([0.3, 1.0, 0.9])
        share = rule(small, large)
        assert share.tolist() == pytest.approx(
            torch.sigmoid(torch.tensor([0.0, -1.0, 1.0])).tolist()
        )

    def test_every_task_weighs_the_same_in_a_running_mean(self, script: Any) -> None:
        found = fusion_of(script("lab_shares").RunningMean, by_importance)
        seen = run_tasks(found, [1.0, 4.0, 10.0])
        assert seen == pytest.approx([1.0, 2.5, 5.0])

    def test_each_of_several_fusions_is_with_the_weights_before_the_task(self, script: Any) -> None:
        found = fusion_of(script("lab_shares").SeveralFusions, by_importance, times=2)
        module = learner(4.0)
        weight = module.trainable_parameters["w"]

        def train(values: list[float]) -> list[float]:
            """The weight after each batch of a task of four steps, the first of two batches."""
            found.begin(module)
            after = []
            for step, value in zip([0, 1, 2, 2, 3, 4], values, strict=True):
                weight.data.fill_(value)
                found.on_train_batch_end(trainer(step, 4), module, None, None, 0)
                after.append(weight.item())
            found.on_train_end(None, module)
            return [*after, weight.item()]

        assert train([4.0] * 6) == [4.0] * 7, "nothing to fuse with"
        # The importance gives a quarter of the weight to the past. At half of the steps, once:
        for _ in range(2):
            weight.data.fill_(4.0)
            seen = train([8.0, 8.0, 8.0, 8.0, 10.0, 12.0])
            assert seen == [8.0, 8.0, 7.0, 8.0, 10.0, 12.0, 10.0]

    def test_the_product_is_averaged(self, script: Any) -> None:
        parts = script("lab_parts")
        parts.RIDGE = 1e-9
        found = fusion(script("lab_shares").MeanProduct)
        names = ("m.lora_A.weight", "m.lora_B.weight")
        old, new = torch.tensor([[3.0, 1.0]]), torch.tensor([[1.0, 3.0]])
        b = torch.tensor([[2.0], [4.0]])
        found.snapshot = {names[0]: old, names[1]: b}
        weights = {names[0]: nn.Parameter(new.clone()), names[1]: nn.Parameter(-b)}
        # Averaged factors would have B = 0.
        found.fuse(weights)
        product = weights[names[1]] @ weights[names[0]]
        assert torch.allclose(product, b @ (old - new) / 2, atol=1e-5)

    def test_single_weights_are_shared_by_their_squared_gradients(self, script: Any) -> None:
        shares = script("lab_shares")
        found = fusion(shares.FisherMean)
        tracker = shares.SquaresTracker()
        weights = {"w": nn.Parameter(torch.tensor([1.0, 1.0, 1.0]))}
        tracker.reset(weights)
        tracker.update(weights, {"w": torch.tensor([1.0, 0.0, 2.0])})
        tracker.update(weights, {"w": torch.tensor([1.0, 0.0, 0.0])})
        found.squares = tracker.squares
        found.past = {"w": torch.tensor([6.0, 0.0, 0.0])}
        found.snapshot = {"w": torch.zeros(3)}
        found.fuse(weights)
        assert weights["w"].tolist() == [0.25, 0.5, 1.0]
        assert found.past["w"].tolist() == [8.0, 0.0, 4.0]


def scaled(shares: Any, scores: str, previous: torch.Tensor, current: torch.Tensor) -> torch.Tensor:
    """What the rule compares, past less present."""
    if scores == "min_max":
        return previous - current
    return getattr(shares, scores)(previous) - getattr(shares, scores)(current)


def by_importance(previous: torch.Tensor, current: torch.Tensor) -> torch.Tensor:
    """A quarter, for the more important of two units that were so in the past too."""
    return 0.25 * previous * current


def fusion_of(kind: Any, rule: Any, **settings: Any) -> Any:
    return kind(rule=rule, units=matrix_units, **settings)


def learner(value: float) -> Any:
    """A module with a weight w of that value and one of less importance, which is read already."""
    weights = {name: nn.Parameter(torch.full((1, 1), x)) for name, x in (("w", value), ("v", 3.0))}
    identification = Identification(tracker=ImportanceTracker())
    for gradient, weight in zip((2.0, 1.0), weights.values(), strict=True):
        weight.grad = torch.full((1, 1), gradient)
    identification.begin_task()
    identification.before_step(weights)
    return SimpleNamespace(trainable_parameters=weights, identification=identification)


def trainer(step: int, steps: int) -> Any:
    return SimpleNamespace(global_step=step, estimated_stepping_batches=steps)


def run_tasks(found: Any, values: list[float]) -> list[float]:
    """The weight after each task, which trains it to that value."""
    module = learner(1.0)
    weight = module.trainable_parameters["w"]
    seen = []
    for value in values:
        found.begin(module)
        weight.data.fill_(value)
        found.on_train_end(None, module)
        seen.append(weight.item())
    return seen


@pytest.mark.parametrize("name", [path.stem for path in sorted(METHODS.glob("*.yaml"))])
@pytest.mark.usefixtures("script")
def test_a_method_of_the_study_builds(name: str, tiny_t5: Path, toy_data: Path) -> None:
    overrides = [
        *(f"hydra.searchpath=[file://{METHODS.parent}]", f"method={name}"),
        *(f"backbone.path={tiny_t5}", f"benchmark.data_dir={toy_data}"),
        "benchmark.order=[colour,shape]",
    ]
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        config = compose("config", overrides=overrides)
    assert config.method.name == name
    assert [task.name for task in build_parts(config).benchmark.tasks] == ["colour", "shape"]


class TestReport:
    def test_settings_tell_runs_of_one_method_apart(self, script: Any) -> None:
        report = script("report")
        names = [report.variant(run) for run in report.RUNS]
        assert len(set(names)) == len(names)
        assert {"lab_replay_fitted", "lab_replay_fitted, one share"} <= set(names)

    def test_rows_stand_by_memory_then_by_ap(self, script: Any) -> None:
        report = script("report")
        rows = report.variants_table(report.RUNS).splitlines()[4:]
        cells = [row.strip("| ").split(" | ") for row in rows]
        placed = [(int(cell[2]) > 0, -float(cell[3])) for cell in cells]
        assert len(placed) == len(report.RUNS)
        assert placed == sorted(placed)

    def test_two_runs_that_would_read_the_same_are_refused(self, script: Any) -> None:
        report = script("report")
        with pytest.raises(SystemExit, match="2 times"):
            report.variants_table([*report.RUNS, report.RUNS[0]])

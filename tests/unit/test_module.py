"""The module in a real Lightning fit, against plain torch loops on whole batches."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor
from torch.nn.functional import log_softmax
from torch.optim import AdamW
from torch.utils._python_dispatch import TorchDispatchMode

from kif_lightning import module
from kif_lightning.callbacks import SelectBestStep
from kif_lightning.errors import UserError
from kif_lightning.identification import Identification
from kif_lightning.kif import ImportanceTracker
from kif_lightning.module import ContinualModule, token_loss
from tests.helpers.fits import BreaksAt, Squares, TinyFit, assert_near, padded, squares
from tests.helpers.streams import toy_task, unequal_task

SPLITS = pytest.mark.parametrize("micro", [8, 4, 1])


class Gradients(Callback):
    """What the optimizer steps with."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        parameters = pl_module.trainable_parameters
        self.steps.append({name: p.grad.clone() for name, p in parameters.items()})


class States(Callback):
    """Weights, optimizer state and importance after each batch."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
        averages = pl_module.identification.state_dict()
        weights = {name: p.detach() for name, p in pl_module.trainable_parameters.items()}
        state = trainer.optimizers[0].state_dict()["state"]
        self.seen.append(copy.deepcopy((weights, state, averages)))


def adamw(parameters: Any) -> AdamW:
    # A large eps: the first steps are no mere signs, which rounding could turn.
    return AdamW(parameters, lr=0.01, weight_decay=0.1, eps=1e-3)


def tracked(timing: Any) -> Identification:
    return Identification(tracker=ImportanceTracker(), timing=timing)


@SPLITS
@pytest.mark.parametrize("full", [False, True])
def test_accumulation_trains_as_the_whole_batch_does(tiny_t5: Path, micro: int, full: bool) -> None:
    gradients = Gradients()
    fit = TinyFit(tiny_t5, micro=micro, full=full, epochs=2, callbacks=[gradients])
    found = fit.fit()
    plain = fit.plain()
    assert len(gradients.steps) == 6  # 8 + 8 + 3 rows, twice
    for seen, (_, expected) in zip(gradients.steps, plain.before, strict=True):
        assert_near(seen, expected)
    assert_near(found, plain.weights, 1e-5)
    assert fit.module.counts.losses == pytest.approx(plain.losses, rel=1e-5)
    assert fit.module.counts.optimizer_steps == 6


@SPLITS
def test_penalties_count_once_a_step(tiny_t5: Path, micro: int) -> None:
    gradients = Gradients()
    options = {"penalties": [Squares()]}
    fit = TinyFit(tiny_t5, micro=micro, callbacks=[gradients], module_options=options)
    fit.fit()
    plain = fit.plain(penalty=squares)
    for seen, (_, expected) in zip(gradients.steps, plain.before, strict=True):
        assert_near(seen, expected)
    assert fit.module.counts.losses == pytest.approx(plain.losses, rel=1e-5)


@pytest.mark.parametrize("micro", [None, 4])
def test_parts_of_similar_length_train_as_the_whole_batch_does(
    tiny_t5: Path, micro: int | None
) -> None:
    gradients, seen_parts = Gradients(), []
    fit = TinyFit(
        tiny_t5,
        micro=micro,
        task=unequal_task(),
        callbacks=[gradients],
        module_options={"penalties": [Squares()]},
        data_options={"length_grouping": "within_step", "pass_overhead": 8},
    )
    step_loss = fit.module.step_loss
    fit.module.step_loss = lambda batch: (seen_parts.append(batch), step_loss(batch))[1]
    fit.fit()
    plain = fit.plain(penalty=squares)
    assert len(seen_parts) > len(fit.data.train_dataloader())
    assert len(gradients.steps) == 3
    for seen, (_, expected) in zip(gradients.steps, plain.before, strict=True):
        assert_near(seen, expected)
    assert fit.module.counts.losses == pytest.approx(plain.losses, rel=1e-5)


def test_clipping_is_the_trainers(tiny_t5: Path) -> None:
    fit = TinyFit(tiny_t5, micro=4, clip=0.01)
    found = fit.fit()
    assert_near(found, fit.plain().weights, 1e-6)
    moved = TinyFit(tiny_t5, micro=4).fit()
    assert any(not torch.allclose(found[name], moved[name], atol=1e-4) for name in found)


@pytest.mark.parametrize("micro", [4, 2])
def test_mean_of_micro_batch_means(tiny_t5: Path, micro: int) -> None:
    gradients = Gradients()
    options = {"loss_mean": "micro_batches"}
    fit = TinyFit(tiny_t5, micro=micro, callbacks=[gradients], module_options=options)
    fit.fit()
    plain = fit.plain(parts_mean="means")
    for seen, (_, expected) in zip(gradients.steps, plain.before, strict=True):
        assert_near(seen, expected)
    assert fit.module.counts.losses == pytest.approx(plain.losses, rel=1e-5)
    assert plain.losses != pytest.approx(fit.plain().losses, rel=1e-4)


@pytest.mark.parametrize("timing", ["before_step", "after_step"])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_step_with_one_broken_micro_batch_is_skipped_whole(
    tiny_t5: Path, where: str, timing: Any
) -> None:
    states = States()
    broken = BreaksAt([3], where)  # second micro-batch of the second of three steps
    fit = TinyFit(
        tiny_t5,
        micro=4,
        optimizer=adamw,
        callbacks=[states],
        module_options={"penalties": [broken], "identification": tracked(timing)},
    )
    found = fit.fit()
    after_first, after_second = states.seen[1], states.seen[3]
    torch.testing.assert_close(after_second, after_first, rtol=0, atol=0)
    assert fit.module.counts.skipped_steps == 1
    assert fit.module.counts.optimizer_steps == len(fit.module.counts.losses) == 2
    plain = fit.plain(skip=[1])
    assert_near(found, plain.weights, 1e-5)
    tracker = fit.module.identification.tracker
    assert tracker.num_steps == 2
    assert_near(tracker.sensitivity, plain.averages(timing.removesuffix("_step"))[0], 1e-3)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_persisting_trouble_stops_the_run(tiny_t5: Path, where: str) -> None:
    options = {"penalties": [BreaksAt(range(2, 99), where)], "max_skipped_in_a_row": 3}
    fit = TinyFit(tiny_t5, batch=4, module_options=options)
    with pytest.raises(UserError) as caught:
        fit.fit()
    assert str(caught.value).startswith(
        f"The {where} was not finite in 3 optimizer steps in a row, after 2 good ones: "
    )
    assert caught.value.__cause__ is None


def test_single_broken_steps_do_not_add_up(tiny_t5: Path) -> None:
    options = {"penalties": [BreaksAt([0, 2, 4])], "max_skipped_in_a_row": 2}
    fit = TinyFit(tiny_t5, batch=4, module_options=options)
    fit.fit()
    assert fit.module.counts.skipped_steps == 3
    assert fit.module.counts.optimizer_steps == 2


def test_training_mode_in_fit_and_evaluation_mode_in_generation(tiny_t5: Path) -> None:
    looks = SelectBestStep(num_held_out=3, every_steps=1)
    fit = TinyFit(tiny_t5, held_out=3, callbacks=[looks])
    modes: dict[str, set[bool]] = {"answer_logits": set(), "generate": set(), "held out": set()}
    logits, generate = fit.backbone.answer_logits, fit.backbone.generate

    def spy_logits(model: Any, batch: Any) -> Any:
        phase = "answer_logits" if torch.is_grad_enabled() else "held out"
        modes[phase] |= {layer.training for layer in model.modules()}
        return logits(model, batch)

    def spy_generate(model: Any, batch: Any, cap: int) -> Any:
        modes["generate"] |= {layer.training for layer in model.modules()}
        return generate(model, batch, cap)

    fit.backbone.answer_logits, fit.backbone.generate = spy_logits, spy_generate
    for _ in range(2):  # the second task comes from an evaluation
        fit.fit()
        fit.module.begin_evaluation(1)
        loaders = fit.data.evaluation_dataloaders([0])
        fit.trainer.test(fit.module, dataloaders=loaders, verbose=False)
        assert modes == {"answer_logits": {True}, "generate": {False}, "held out": {False}}
        assert sorted(fit.module.answers[0]) == list(range(6))


def test_the_label_of_the_highest_probability_answers_and_of_equal_ones_the_first(
    tiny_t5: Path,
) -> None:
    fit = TinyFit(tiny_t5)
    ranked = torch.tensor([[-3.0, -1.0, -2.0], [-1.0, -1.0, -5.0], [-4.0, -2.0, -2.0]])
    fit.backbone.label_log_probabilities = lambda *_: ranked  # type: ignore[method-assign]
    fit.module.begin_evaluation(1)
    batch = {"inputs": {}, "rows": (5, 0, 3), "labels": ("a", "b", "c"), "label_ids": [[1]] * 3}
    fit.module.test_step(batch, 0)
    assert fit.module.answers[0] == {5: "b", 0: "a", 3: "b"}


def test_token_loss_sums_in_float32_over_counted_tokens() -> None:
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0)).bfloat16()
    labels = torch.tensor([[1, 4, -100], [2, -100, -100]])
    expected = -sum(
        float(log_softmax(logits[n, place].double(), dim=0)[labels[n, place]])
        for n, place in ((0, 0), (0, 1), (1, 0))
    )
    loss = token_loss(logits, labels)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(expected, rel=1e-6)


@SPLITS
@pytest.mark.parametrize("loss_mean", ["step_tokens", "micro_batches"])
def test_losses_of_micro_batches_add_up_to_the_steps(
    tiny_t5: Path, micro: int, loss_mean: str
) -> None:
    options = {"penalties": [Squares(), Squares()], "loss_mean": loss_mean}
    fit = TinyFit(tiny_t5, micro=micro, module_options=options)
    fit.module.begin_task(fit.adapter.trainable(fit.module.model), 0)
    batches = list(fit.data.train_dataloader())
    found = [float(fit.module.step_loss(batch)) for batch in batches]
    penalty = 2 * float(squares(fit.module.trainable_parameters))
    place = 0
    for parts in fit.steps():
        with torch.no_grad():
            means = [(float(fit.before(**padded(rows)).loss), tokens(rows)) for rows in parts]
        weights = [size if loss_mean == "step_tokens" else 1 for _, size in means]
        mean = sum(loss * w for (loss, _), w in zip(means, weights, strict=True)) / sum(weights)
        step = sum(found[place : place + len(parts)])
        assert step == pytest.approx(mean + penalty, rel=1e-5)
        place += len(parts)
    assert place == len(batches)
    assert penalty > 0.01


def tokens(rows: Any) -> int:
    return sum(len(row.answer_ids) for row in rows)


def test_loss_of_a_row_is_the_sum_over_its_tokens(tiny_t5: Path) -> None:
    fit = TinyFit(tiny_t5, module_options={"penalties": [Squares()]})
    fit.module.begin_task(fit.adapter.trainable(fit.module.model), 0)
    rows = [fit.backbone.encode(row) for row in fit.task.train[:3]]
    batch = {"inputs": fit.backbone.training_batch(rows)}
    with torch.no_grad():
        expected = sum(float(fit.before(**padded([row])).loss) * tokens([row]) for row in rows)
    loss = fit.module.row_loss(batch)
    assert float(loss) == pytest.approx(expected, rel=1e-5)  # without penalties
    loss.backward()
    assert all(p.grad is not None for p in fit.module.trainable_parameters.values())


def test_rehearsing_measures_nothing_and_counts_apart(tiny_t5: Path) -> None:
    identification = tracked("before_step")
    fit = TinyFit(tiny_t5, micro=4, module_options={"identification": identification})
    trained = copy.deepcopy(fit.fit())
    module, counts = fit.module, fit.module.counts
    averages, expected = copy.deepcopy(identification.state_dict()), copy.deepcopy(counts)
    module.eval()
    with module.rehearsing() as apart:
        assert module.counts is apart
        assert apart.optimizer_steps == 0
        assert module.identification is None
        assert all(layer.training for layer in module.modules())
        fit.trainer.fit_loop.max_epochs = 2  # one more
        loader = fit.data.rows_dataloader(fit.task.train[:9], "replayed rows")
        fit.trainer.fit(module, train_dataloaders=loader)
    assert (apart.optimizer_steps, len(apart.losses)) == (2, 2)
    assert any(not torch.equal(p, trained[n]) for n, p in module.trainable_parameters.items())
    assert module.counts is counts
    assert counts == expected
    assert module.identification is identification
    torch.testing.assert_close(identification.state_dict(), averages, rtol=0, atol=0)


def test_rehearsing_ends_with_an_exception_too(tiny_t5: Path) -> None:
    identification = tracked("before_step")
    module = TinyFit(tiny_t5, module_options={"identification": identification}).module
    counts = module.counts

    def breaks() -> None:
        with module.rehearsing():
            raise ValueError("in the replay")

    with pytest.raises(ValueError, match="in the replay"):
        breaks()
    assert module.identification is identification
    assert module.counts is counts


class Rates(Callback):
    """The learning rate of each step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_start(self, trainer: Any, *rest: Any) -> None:
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


def test_factor_multiplies_the_schedules_learning_rates(tiny_t5: Path) -> None:
    seen = {}
    for factor in (1.0, 0.3):
        rates = Rates()
        TinyFit(tiny_t5, callbacks=[rates], module_options={"lr_factor": factor}).fit()
        seen[factor] = rates.seen
    assert seen[1.0] == pytest.approx([0.1, 0.1 * 2 / 3, 0.1 / 3])
    assert seen[0.3] == pytest.approx([0.3 * rate for rate in seen[1.0]])


@pytest.mark.parametrize("factor", [0, -1.0, 1e5, float("nan")])
def test_factor_out_of_range_is_told(tiny_t5: Path, factor: float) -> None:
    with pytest.raises(UserError, match=r"lr_factor"):
        TinyFit(tiny_t5, module_options={"lr_factor": factor})


def test_a_task_is_prepared_once_and_before_its_first_batch(tiny_t5: Path) -> None:
    fit = TinyFit(tiny_t5)
    fit.fit()
    events: list[Any] = []
    generate = fit.backbone.generate

    def spy(*args: Any) -> list[str]:
        events.append("batch")
        return generate(*args)

    fit.backbone.__dict__["generate"] = spy
    loaders = fit.data.evaluation_dataloaders([0, 0])  # 4 + 2 rows each
    for prepare, expected in (
        (events.append, [0, "batch", "batch", 1, "batch", "batch"]),
        (None, ["batch"] * 4),  # nothing is left of an evaluation before
    ):
        events.clear()
        fit.module.begin_evaluation(2, prepare)
        fit.trainer.test(fit.module, dataloaders=loaders, verbose=False)
        assert events == expected
    assert [sorted(answers) for answers in fit.module.answers] == [list(range(6))] * 2


def test_a_filler_adds_nothing(tiny_t5: Path) -> None:
    for broken in ([], [0]):  # calls of the penalty that give nan
        fit = TinyFit(tiny_t5, module_options={"penalties": [Squares(), BreaksAt(broken)]})
        fit.module.begin_task(fit.adapter.trainable(fit.module.model), 0)
        batch = next(iter(fit.data.train_dataloader()))
        loss = fit.module.step_loss({**batch, "weight": 0.0})
        assert float(loss.detach()) == 0
        if not broken:
            loss.backward()
            gradients = [p.grad for p in fit.module.trainable_parameters.values()]
            # There is one for each weight: processes exchange them.
            assert all(g is not None and not g.any() for g in gradients)


def test_answers_of_a_batch_without_rows_are_dropped(tiny_t5: Path) -> None:
    fit = TinyFit(tiny_t5)
    first, second = fit.data.evaluation_dataloaders([0])[0]
    fit.module.begin_evaluation(1)
    fit.module.test_step({**first, "rows": ()}, 0)
    assert fit.module.answers == [{}]
    fit.module.test_step(second, 1)
    assert sorted(fit.module.answers[0]) == sorted(second["rows"])


def test_state_within_a_task_comes_back(tiny_t5: Path) -> None:
    options = {"penalties": [BreaksAt([1])], "max_skipped_in_a_row": 9}

    def new_fit() -> TinyFit:
        identification = tracked("before_step")
        return TinyFit(tiny_t5, module_options={**options, "identification": identification})

    fit, other = new_fit(), new_fit()
    fit.fit()
    state = copy.deepcopy(fit.module.task_state())
    assert state["counts"]["skipped_steps"] == 1
    assert (state["logged_steps"], state["identification"]["tracker"]["num_steps"]) == (2, 2)
    assert other.module.task_state()["counts"]["losses"] == []
    other.module.load_task_state(state)
    torch.testing.assert_close(other.module.task_state(), state, rtol=0, atol=0)
    assert other.module.counts == fit.module.counts
    without = TinyFit(tiny_t5).module
    assert without.task_state()["identification"] is None
    without.load_task_state(without.task_state())


def test_unknown_loss_mean_is_refused(tiny_t5: Path) -> None:
    with pytest.raises(UserError, match="'step_tokens' or 'micro_batches', got 'sum'"):
        TinyFit(tiny_t5, module_options={"loss_mean": "sum"})


def test_labels_differ_in_length() -> None:
    # Otherwise the two loss means would be the same and this file would tell them apart nowhere.
    assert len({len(row.output) for row in toy_task().train}) == 2
    assert ContinualModule.automatic_optimization


class Meetings(TorchDispatchMode):
    """Counts how often the host asks a tensor for a number: on a GPU, it would wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("micro", [8, 2])
def test_host_and_device_meet_once_a_step(
    tiny_t5: Path, micro: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # tolist() reads a CPU's memory past the dispatcher: an item() beside it makes it seen.
    read: Any = Tensor.tolist
    monkeypatch.setattr(Tensor, "tolist", lambda self: (torch.ones(()).item(), read(self))[1])
    with Meetings() as none:
        torch.ones(3).sum()
    with Meetings() as three:
        found = float(torch.ones(())), bool(torch.ones(())), torch.ones(2).tolist()
    assert found == (1.0, True, [1.0, 1.0])
    assert (none.number, three.number) == (0, 3)
    meetings: list[int] = []

    class Counting(Callback):
        # From the last backward pass on: within the passes transformers looks at its masks.
        mode: Meetings | None = None

        def on_before_optimizer_step(self, trainer: Any, *rest: Any) -> None:
            self.mode = Meetings()
            self.mode.__enter__()

        def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
            if self.mode is not None:
                self.mode.__exit__(None, None, None)
                meetings.append(self.mode.number)
            self.mode = None

    options = {"identification": tracked("before_step"), "penalties": [Squares()]}
    fit = TinyFit(tiny_t5, micro=micro, callbacks=[Counting()], module_options=options)
    fit.fit()
    assert meetings == [1, 1, 1]


@pytest.mark.parametrize(
    ("asked", "from_weights", "expected"),
    [(None, 1, True), (None, 10**9, False), (True, 10**9, True), (False, 1, False)],
)
def test_fused_by_number_of_weights_or_by_hand(
    tiny_t5: Path,
    asked: bool | None,
    from_weights: int,
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "FUSED_FROM", from_weights)
    fit = TinyFit(tiny_t5, full=True, optimizer=fusable, module_options={"fused": asked})
    found = fit.fit()
    assert bool(fit.trainer.optimizers[0].defaults["fused"]) is expected
    assert fit.module.uses_fused(fit.trainer) is expected
    assert_near(found, fit.plain().weights, 1e-4)


def fusable(parameters: Any, fused: bool | None = None) -> AdamW:
    return AdamW(parameters, lr=0.01, weight_decay=0.1, eps=1e-3, fused=fused)


def test_fused_where_the_optimizer_has_no_choice(tiny_t5: Path) -> None:
    fit = TinyFit(tiny_t5)
    fit.fit()
    assert fit.module.uses_fused(fit.trainer) is None
    with pytest.raises(UserError, match=r"optim\.fused=true needs an optimizer with an argument"):
        TinyFit(tiny_t5, module_options={"fused": True}).fit()


@pytest.mark.parametrize("preset", [False, True])
def test_fused_never_with_a_loss_scale(tiny_t5: Path, preset: bool) -> None:
    fit = TinyFit(tiny_t5, optimizer=partial(fusable, fused=True) if preset else fusable)
    scaling: Any = SimpleNamespace(precision_plugin=SimpleNamespace(scaler=object()))
    fit.module.fused = None if preset else True
    with pytest.raises(UserError, match=r"a loss scale \(trainer\.precision=16-mixed"):
        fit.module.uses_fused(scaling)
    if not preset:
        fit.module.fused = None
        assert fit.module.uses_fused(scaling) is False


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_fused_does_not_meet_clipping_in_mixed_precision(
    tiny_t5: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning refuses the two there, with a loss scale or without."""
    monkeypatch.setattr(module, "FUSED_FROM", 1)
    settings: dict[str, Any] = {"optimizer": fusable, "clip": 0.1, "precision": precision}
    fit = TinyFit(tiny_t5, **settings)
    fit.fit()
    mixed = precision == "bf16-mixed"
    assert bool(fit.trainer.optimizers[0].defaults["fused"]) is not mixed
    asked = TinyFit(tiny_t5, **settings, module_options={"fused": True})
    if not mixed:
        asked.fit()
        return
    with pytest.raises(UserError, match=r"optim\.gradient_clip in mixed precision"):
        asked.fit()


@pytest.mark.parametrize("asked", [None, False, True])
def test_the_optimizer_hears_of_fused_only_if_it_is_to(tiny_t5: Path, asked: bool | None) -> None:
    """False is more than nothing: it keeps torch from choosing a fast way of its own."""
    heard: list[bool | None] = []

    def listening(parameters: Any, fused: bool | None = None) -> AdamW:
        heard.append(fused)
        return fusable(parameters, fused)

    TinyFit(tiny_t5, optimizer=listening, module_options={"fused": asked}).fit()
    assert heard == [asked]


def test_a_way_that_the_optimizers_settings_name_stays(
    tiny_t5: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FUSED_FROM", 1)
    fit = TinyFit(tiny_t5, optimizer=partial(AdamW, lr=0.01, foreach=True))
    fit.fit()
    defaults = fit.trainer.optimizers[0].defaults
    assert (defaults["foreach"], defaults["fused"]) == (True, None)
    assert fit.module.uses_fused(fit.trainer) is False
    fit.module.fused = True
    with pytest.raises(UserError, match="foreach=true among its settings"):
        fit.module.uses_fused(fit.trainer)


def test_fused_resumes_bit_by_bit_and_skips_weights_without_gradient() -> None:
    weights = [torch.nn.Parameter(torch.randn(5, 3)) for _ in range(3)]

    def step(parameters: list[torch.nn.Parameter], optimizer: AdamW, number: int) -> None:
        generator = torch.Generator().manual_seed(number)
        for parameter in parameters[:2]:
            parameter.grad = torch.randn(5, 3, generator=generator)
        optimizer.step()

    untouched = weights[2].detach().clone()
    optimizer = fusable(weights, fused=True)
    step(weights, optimizer, 0)
    resumed = [torch.nn.Parameter(w.detach().clone()) for w in weights]
    again = fusable(resumed, fused=True)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for number in (1, 2):
        step(weights, optimizer, number)
        step(resumed, again, number)
    assert all(map(torch.equal, weights, resumed))
    assert torch.equal(weights[2], untouched)

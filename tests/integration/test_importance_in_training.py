"""The importance read in a real Lightning fit, against plain torch loops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kif_lightning.errors import UserError
from kif_lightning.identification import Identification
from kif_lightning.kif import ImportanceTracker, lora_rank_units
from tests.helpers.fits import Squares, TinyFit, assert_near, squares

Averages = tuple[dict[str, Tensor], dict[str, Tensor]]


def tracked_fit(folder: Path, **options: Any) -> TinyFit:
    """Trained with tracking; what belongs to the identification is picked out of ``options``."""
    own = {key: options.pop(key) for key in ("timing", "skip_first_step") if key in options}
    penalties = options.pop("penalties", [])
    identification = Identification(tracker=ImportanceTracker(), **own)
    fit = TinyFit(
        folder,
        module_options={"identification": identification, "penalties": penalties},
        **options,
    )
    fit.fit()
    return fit


def averages(fit: TinyFit) -> Averages:
    tracker = fit.module.identification.tracker
    return tracker.sensitivity, tracker.uncertainty


def assert_averages(fit: TinyFit, expected: Averages, tolerance: float = 1e-4) -> None:
    for found, wanted in zip(averages(fit), expected, strict=True):
        assert min(float(tensor.max()) for tensor in wanted.values()) > 0
        assert_near(found, wanted, tolerance)


def distance(one: Averages, other: Averages) -> float:
    """Largest difference of the sensitivities, relative to each tensor's largest element."""
    return max(float((one[0][n] - t).abs().max() / t.abs().max()) for n, t in other[0].items())


@pytest.mark.parametrize("micro", [8, 4, 1])
def test_accumulation_changes_nothing(tiny_t5: Path, micro: int) -> None:
    fit = tracked_fit(tiny_t5, micro=micro, epochs=2)
    assert fit.module.identification.tracker.num_steps == 6
    assert_averages(fit, fit.plain().averages())


@pytest.mark.parametrize("micro", [8, 2])
def test_gradient_of_the_penalty_is_part(tiny_t5: Path, micro: int) -> None:
    fit = tracked_fit(tiny_t5, micro=micro, penalties=[Squares()])
    expected = fit.plain(penalty=squares).averages()
    assert_averages(fit, expected)
    assert distance(fit.plain().averages(), expected) > 0.01


def test_before_the_step_gradients_are_not_clipped(tiny_t5: Path) -> None:
    fit = tracked_fit(tiny_t5, micro=4, clip=0.01)
    plain = fit.plain()
    assert_averages(fit, plain.averages())
    assert distance(plain.averages("after"), plain.averages()) > 0.01


def test_after_the_step_weights_are_new_and_gradients_clipped(tiny_t5: Path) -> None:
    fit = tracked_fit(tiny_t5, micro=4, clip=0.5, timing="after_step")
    plain = fit.plain()
    assert_averages(fit, plain.averages("after"))
    new_unclipped = [(w, g) for (w, _), (_, g) in zip(plain.after, plain.before, strict=True)]
    old_clipped = [(w, g) for (w, _), (_, g) in zip(plain.before, plain.after, strict=True)]
    plain.mixed, plain.other = new_unclipped, old_clipped
    for wrong in ("before", "mixed", "other"):
        assert distance(plain.averages(wrong), plain.averages("after")) > 0.001


@pytest.mark.parametrize("timing", ["before_step", "after_step"])
def test_first_step_can_be_left_out(tiny_t5: Path, timing: str) -> None:
    fit = tracked_fit(tiny_t5, timing=timing, skip_first_step=True)
    assert fit.module.identification.tracker.num_steps == 2
    plain = fit.plain()
    when = timing.removesuffix("_step")
    assert_averages(fit, plain.averages(when, first=1))
    assert distance(plain.averages(when), plain.averages(when, first=1)) > 0.01


@pytest.mark.parametrize("micro", [8, 4])
def test_mixed_precision_on_the_cpu(tiny_t5: Path, micro: int) -> None:
    fit = tracked_fit(tiny_t5, micro=micro, precision="bf16-mixed")
    found = averages(fit)
    assert {tensor.dtype for tensor in found[0].values()} == {torch.float32}
    autocast = fit.plain(autocast=True, parts_mean="tokens").averages()
    full = TinyFit(tiny_t5).plain().averages()
    assert distance(full, autocast) > 0.003
    assert distance(found, autocast) < 1e-4


def test_each_task_starts_from_zero(tiny_t5: Path) -> None:
    identification = Identification(tracker=ImportanceTracker(), skip_first_step=True)
    fit = TinyFit(tiny_t5, module_options={"identification": identification})
    fit.fit()
    start = {name: p.detach().clone() for name, p in fit.module.trainable_parameters.items()}
    fit.fit()
    fit.adapter.load_state_dict(fit.before, start)
    assert_averages(fit, fit.plain().averages(first=1))
    assert identification.tracker.num_steps == 2


def test_no_counted_step_is_told(tiny_t5: Path) -> None:
    fit = tracked_fit(tiny_t5, batch=19, skip_first_step=True)
    units = lora_rank_units(fit.module.trainable_parameters)
    with pytest.raises(UserError, match="No optimizer step of this task was counted"):
        fit.module.identification.unit_scores(units)


def test_state_goes_on_bitwise(tiny_t5: Path) -> None:
    fit = tracked_fit(tiny_t5)
    identification = fit.module.identification
    copied = Identification(tracker=ImportanceTracker(), skip_first_step=True)
    copied.load_state_dict(identification.state_dict())
    parameters = fit.module.trainable_parameters
    for one in (identification, copied):
        one.before_step(parameters)  # the last gradients are still there
        one.after_step(parameters)  # no second reading
    torch.testing.assert_close(copied.state_dict(), identification.state_dict(), rtol=0, atol=0)
    assert identification.tracker.num_steps == 4


def test_unknown_timing_is_refused() -> None:
    with pytest.raises(UserError, match="'before_step' or 'after_step', got 'now'"):
        Identification(tracker=ImportanceTracker(), timing="now")

"""When, within an optimizer step, the importance is read."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from kif_lightning.errors import UserError, require_choice
from kif_lightning.interfaces import Parameters
from kif_lightning.kif import ImportanceTracker, SkillUnits


class Identification:
    """Feeds the importance tracker at one point of every optimizer step.

    Args:
        tracker: the running averages.
        timing: ``before_step``: old weights, accumulated, unscaled, unclipped gradients;
            ``after_step``: new weights, clipped gradients, as the authors' code reads them.
        skip_first_step: leave a task's first optimizer step out, as the authors' code does.

    Raises:
        UserError: an unknown timing.
    """

    def __init__(
        self,
        *,
        tracker: ImportanceTracker,
        timing: Literal["before_step", "after_step"] = "before_step",
        skip_first_step: bool = False,
    ) -> None:
        require_choice("importance.timing", timing, ("before_step", "after_step"))
        self.tracker = tracker
        self.timing = timing
        self.skip_first_step = skip_first_step
        self._steps_seen = 0

    def begin_task(self) -> None:
        """Start from zero: importance belongs to one task.

        The averages are allocated at the first step: only then are the weights on their device.
        """
        self._steps_seen = 0
        self.tracker.reset({})

    def before_step(self, parameters: Parameters) -> None:
        """Called with gradients complete, before clipping and the optimizer."""
        if self.timing == "before_step":
            self._read(parameters)

    def after_step(self, parameters: Parameters) -> None:
        """Called after the optimizer has stepped, gradients still there."""
        if self.timing == "after_step":
            self._read(parameters)

    def _read(self, parameters: Parameters) -> None:
        if self._steps_seen == 0:
            self.tracker.reset(parameters)
        self._steps_seen += 1
        if self.skip_first_step and self._steps_seen == 1:
            return
        self.tracker.update(parameters, {name: p.grad for name, p in parameters.items()})

    def unit_scores(self, units: SkillUnits) -> Tensor:
        """Raw scores (U,) of the present task.

        Raises:
            UserError: no optimizer step was counted, so there is nothing to score.
        """
        if self.tracker.num_steps == 0:
            raise UserError(
                "No optimizer step of this task was counted, so its importance is unknown: train "
                "on more rows or epochs, or set method.importance.skip_first_step=false."
            )
        return self.tracker.unit_scores(units)

    def state_dict(self) -> dict[str, Any]:
        """The averages and the steps seen."""
        return {"steps_seen": self._steps_seen, "tracker": self.tracker.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
        self._steps_seen = state["steps_seen"]
        self.tracker.load_state_dict(state["tracker"])

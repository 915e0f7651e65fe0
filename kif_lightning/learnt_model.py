"""A model as a run or a continual state left it, loaded to answer or to be exported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from kif_lightning.assembly import build_learner
from kif_lightning.backbones.fingerprint import weights_fingerprint
from kif_lightning.continual_state import ContinualState
from kif_lightning.errors import UserError
from kif_lightning.extending import config_of
from kif_lightning.interfaces import Adapter, Backbone
from kif_lightning.packing import open_state


@dataclass(frozen=True, kw_only=True)
class LearntModel:
    """The adapted model in evaluation mode, and what belongs to it."""

    state: ContinualState
    backbone: Backbone
    adapter: Adapter
    model: nn.Module


def load(
    place: str | Path, *, after: str | None = None, overrides: Sequence[str] = ()
) -> LearntModel:
    """Load the model of a continual state's folder or of a run's.

    Args:
        place: the folder.
        after: of a run: the task (number or name) whose state is wanted; None: the last one learnt.
        overrides: settings of this machine, as ``backbone.path=FOLDER`` or
            ``backbone.dtype=bfloat16``.

    Raises:
        UserError: no state there, a damaged one, base weights that cannot be had or are others.
    """
    state = open_state(Path(place), after)
    backbone, adapter = build_learner(config_of(state, overrides))
    backbone.require_available()
    base = backbone.load_model()
    if weights_fingerprint(base) != state.parts["base"]:
        raise UserError(
            f"The state in {place} was learnt on other base weights than those of backbone "
            f"{backbone.name} here: give the same model (backbone.path=FOLDER)."
        )
    model = adapter.attach(base, backbone)
    adapter.load_state_dict(model, state.parts["adapter"])
    return LearntModel(state=state, backbone=backbone, adapter=adapter, model=model.eval())

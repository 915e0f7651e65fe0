"""What a model card tells, gathered from a continual state or from a run that has just ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from torch import nn

from kif_lightning.continual_state import ContinualState, PastTask, past_task
from kif_lightning.interfaces import Backbone, PlainUse
from kif_lightning.paths import conf_dir


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """Of a model that has learnt tasks; nothing in it comes from the machine or from rows.

    ``matrix``: percent on task j after phase i, None where it was not evaluated. ``base``: the base
    weights' fingerprint. ``protocols``: the conditions, of which each task names one.
    """

    backbone: str
    base_name: str
    base: Mapping[str, Any]
    tasks: tuple[PastTask, ...]
    phases: tuple[str, ...]
    matrix: Sequence[Sequence[float | None]]
    protocols: Sequence[Mapping[str, Any]]
    stand_ins: Sequence[str]
    use: PlainUse
    prompt: Mapping[str, Any]
    """What decides the prompt's tokens and the decoding: the backbone's ``protocol``."""
    dtype: str
    """Of the base weights, as they are loaded."""
    digest: str | None = None
    """Of the continual state; None: it is a run's own adapter."""

    @property
    def method(self) -> str:
        """Its name."""
        return str(self.protocols[-1]["method"])

    @property
    def declared(self) -> Mapping[str, str]:
        """``title`` and ``paper`` of the method, as its yaml declares them; empty: no such yaml."""
        file = Path(conf_dir()) / "method" / f"{self.method}.yaml"
        if not file.is_file():
            return {}
        found: Any = OmegaConf.load(file)
        return {key: str(found[key]) for key in ("title", "paper") if key in found}

    @property
    def weights(self) -> Mapping[str, Any]:
        """Where the base weights came from."""
        found: Mapping[str, Any] = self.protocols[-1]["weights"]
        return found

    def of_task(self, place: int) -> CardFacts:
        """Of the weights that answer this one task."""
        task = self.tasks[place]
        return replace(
            self,
            tasks=(replace(task, protocol=0, data=own_data(task, [t.name for t in self.tasks])),),
            phases=(self.phases[-1],),
            matrix=[[self.matrix[-1][place]]],
            protocols=[self.protocols[task.protocol]],
        )


def own_data(task: PastTask, names: Sequence[str]) -> dict[str, Any]:
    """Where the task's rows came from; of what is told by the tasks' ``names``, its own alone."""
    found: dict[str, Any] = {}
    for key, value in task.data.items():
        by_task = isinstance(value, Mapping) and not value.keys() - set(names)
        if not by_task or task.name in value:
            found[key] = value[task.name] if by_task else value
    return found


def facts_of_state(state: ContinualState, backbone: Backbone, model: nn.Module) -> CardFacts:
    """Of a continual state, and the model that it was loaded into."""
    return CardFacts(
        base=state.parts["base"],
        tasks=state.tasks,
        phases=tuple(task.name for task in state.tasks),
        matrix=state.score_matrix,
        protocols=state.protocols,
        stand_ins=state.stand_ins,
        digest=state.digest or None,
        **_of_backbone(backbone, model),
    )


def facts_of_run(
    stream: Mapping[str, Any],
    phases: Sequence[str],
    matrix: Sequence[Sequence[float | None]],
    base: Mapping[str, Any],
    backbone: Backbone,
    model: nn.Module,
) -> CardFacts:
    """Of a run that has ended.

    Args:
        stream: what the run's folder keeps of its tasks (``RunFolder.stream``).
        phases: names of what was trained on, phase by phase.
        matrix: the scores, a row a phase.
        base: the base weights' fingerprint.
        backbone: of the run.
        model: adapted.
    """
    return CardFacts(
        base=base,
        tasks=tuple(past_task(task) for task in stream["tasks"]),
        phases=tuple(phases),
        matrix=matrix,
        protocols=stream["protocols"],
        stand_ins=stream["stand_ins"],
        **_of_backbone(backbone, model),
    )


def _of_backbone(backbone: Backbone, model: nn.Module) -> dict[str, Any]:
    return {
        "backbone": backbone.name,
        "base_name": backbone.public_name,
        "use": backbone.plain_use(model),
        "prompt": backbone.protocol(),
        "dtype": backbone.computation(model)["backbone_dtype"],
    }

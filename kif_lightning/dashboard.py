"""The wandb workspace that a team looks at: the same panels for everybody, defined in code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kif_lightning.errors import UserError
from kif_lightning.kif.fusion import UnitClass
from kif_lightning.metrics.transfer import FORMULAS
from kif_lightning.reporting.figures import RUN_FIGURES
from kif_lightning.tracking.keys import (
    COST,
    FIGURES,
    FINAL,
    HELD_OUT,
    MATRIX,
    MEAN_WEIGHT,
    PROBE,
    SCORE,
    STEP,
    TASK,
    TRAINING,
    TRANSFER,
    UNITS,
)

AVERAGE, FORGETTING, BACKWARD = list(FORMULAS)[:3]
LINES, SCORE_LINES, BARS, TABLE, IMAGES = "lines", "score_lines", "bars", "table", "images"


@dataclass(frozen=True, kw_only=True)
class PanelPlan:
    """One panel: what it shows, of which keys (of :mod:`~kif_lightning.tracking.keys`)."""

    title: str
    kind: str
    keys: tuple[str, ...]
    axis: str = TASK


def panel_plans() -> dict[str, Sequence[PanelPlan]]:
    """Section -> its panels."""
    average, forgetting, backward = AVERAGE, FORGETTING, BACKWARD
    phases = ("train", "boundary", "evaluate")
    classes = tuple(f"{UNITS}{kind.name.lower()}" for kind in UnitClass)
    drawn = [figure.name for figure in RUN_FIGURES]
    of_units = [name for name in drawn if name.startswith(("importance", "fusion"))]
    others = [name for name in drawn if name not in of_units]
    return {
        "Scores": [
            _lines("Average performance of the tasks learnt so far", f"{TRANSFER}{average}"),
            PanelPlan(title="Score of each task", kind=SCORE_LINES, keys=(SCORE,)),
            PanelPlan(title="Final average", kind=BARS, keys=(f"{FINAL}{average}",)),
            PanelPlan(title="Score matrix (percent)", kind=TABLE, keys=(MATRIX,)),
            *_images("Figures", others),
        ],
        "Forgetting": [
            _lines("Forgetting so far", f"{TRANSFER}{forgetting}"),
            _lines("Backward transfer so far", f"{TRANSFER}{backward}"),
            PanelPlan(title="Final forgetting", kind=BARS, keys=(f"{FINAL}{forgetting}",)),
        ],
        "Training": [
            *[_lines(key, key, axis=STEP) for key in TRAINING],
            _lines("Held-out loss (with method/selection)", HELD_OUT, axis=STEP),
        ],
        "Importance": [
            _lines("Mean fusion weight of the past", MEAN_WEIGHT),
            _lines("Units of each class", *classes),
            *_images("Figures of importance and fusion", of_units),
        ],
        "General ability (with a probe)": [
            _lines("Loss of the probe, nats a token", f"{PROBE}loss"),
            _lines("Score of the probe, percent", f"{PROBE}score"),
        ],
        "Cost": [
            _lines("Seconds so far", f"{COST}total_seconds"),
            _lines("Seconds of each task", *[f"{COST}{phase}_seconds" for phase in phases]),
        ],
    }


def build_workspace(*, entity: str, project: str, name: str) -> Any:
    """A ``wandb_workspaces.workspaces.Workspace``, runs grouped by order, then method; not saved.

    Raises:
        UserError: wandb-workspaces is not installed.
    """
    try:
        import wandb_workspaces.reports.v2 as reports
        import wandb_workspaces.workspaces as workspaces
        from wandb_workspaces import expr
    except ImportError as error:
        raise UserError(
            "kif dashboard needs the package wandb-workspaces: "
            "pip install 'kif-lightning[dashboards]'."
        ) from error

    def panel(plan: PanelPlan) -> Any:
        keys: list[Any] = list(plan.keys)
        if plan.kind == BARS:
            return reports.BarPlot(title=plan.title, metrics=keys)
        if plan.kind == TABLE:
            return reports.WeavePanelSummaryTable(table_name=keys[0])
        if plan.kind == IMAGES:
            return reports.MediaBrowser(title=plan.title, media_keys=keys)
        if plan.kind == SCORE_LINES:
            pattern = f"^{keys[0]}"
            return reports.LinePlot(title=plan.title, x=plan.axis, metric_regex=pattern)
        return reports.LinePlot(title=plan.title, x=plan.axis, y=keys)

    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[
            workspaces.Section(name=title, panels=[panel(plan) for plan in plans], is_open=True)
            for title, plans in panel_plans().items()
        ],
        # The trackers' group is the experiment's order, their job type the method.
        runset_settings=workspaces.RunsetSettings(
            groupby=[expr.Metric("Group"), expr.Metric("JobType")]
        ),
    )


def save_workspace(*, entity: str, project: str, name: str) -> str:
    """Build the workspace and save it on wandb's server; returns its address.

    Raises:
        UserError: no package, no key, or the server cannot be reached or refuses.
    """
    from kif_lightning.tracking.wandb_tracker import has_key

    workspace = build_workspace(entity=entity, project=project, name=name)
    if not has_key():
        raise UserError(
            "kif dashboard saves on wandb's server, but there is no key: run wandb login or set "
            "WANDB_API_KEY."
        )
    try:
        workspace.save()
    except Exception as error:  # its client raises errors of several libraries
        raise UserError(
            f"The workspace could not be saved in {entity}/{project} ({error}): check the "
            "network, the key and the two names."
        ) from error
    return str(workspace.url)


def _images(title: str, names: Sequence[str]) -> list[PanelPlan]:
    keys = tuple(f"{FIGURES}{name}" for name in names)
    return [PanelPlan(title=title, kind=IMAGES, keys=keys)] if keys else []


def _lines(title: str, *keys: str, axis: str = TASK) -> PanelPlan:
    return PanelPlan(title=title, kind=LINES, keys=keys, axis=axis)

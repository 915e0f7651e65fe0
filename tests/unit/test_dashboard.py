from __future__ import annotations

import sys
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from typer.testing import CliRunner

from kif_lightning import dashboard
from kif_lightning.cli import app
from kif_lightning.dashboard import build_workspace, panel_plans
from kif_lightning.errors import UserError
from kif_lightning.reporting.figures import RunFigure

PROBE = "General ability (with a probe)"
SECTIONS = ["Scores", "Forgetting", "Training", "Importance", PROBE, "Cost"]


@pytest.fixture(autouse=True)
def figures(monkeypatch: pytest.MonkeyPatch) -> None:
    made = [
        RunFigure(name=name, title="", caption="", draw=lambda _: Figure())
        for name in ("matrix", "fusion_classes")
    ]
    monkeypatch.setattr(dashboard, "RUN_FIGURES", tuple(made))


def test_the_workspace_has_every_promised_panel() -> None:
    made = build_workspace(entity="team", project="kif-lightning", name="Ours")
    assert [section.name for section in made.sections] == SECTIONS
    for section, plans in zip(made.sections, panel_plans().values(), strict=True):
        assert len(section.panels) == len(plans)
        assert section.is_open
    # As it would be sent: each panel with its keys, axes and the grouping.
    sent = made._to_model().model_dump_json()
    for plans in panel_plans().values():
        for plan in plans:
            assert all(f'"{key}"' in sent or f'"^{key}"' in sent for key in plan.keys), plan
    lines = [panel for section in made.sections for panel in section.panels if hasattr(panel, "x")]
    assert {panel.x for panel in lines} == {"task", "running_step"}
    assert '"name":"group"' in sent
    assert '"name":"jobType"' in sent
    scores, importance = made.sections[0].panels[-1], made.sections[3].panels[-1]
    assert scores.media_keys == ["figures/matrix"]
    assert importance.media_keys == ["figures/fusion_classes"]


def test_without_the_package_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    with pytest.raises(UserError, match=r"kif-lightning\[dashboards\]"):
        build_workspace(entity="team", project="p", name="n")


def test_without_a_key_the_command_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    ended = CliRunner().invoke(app, ["dashboard", "--entity", "team"])
    assert ended.exit_code == 2
    assert "there is no key" in ended.output

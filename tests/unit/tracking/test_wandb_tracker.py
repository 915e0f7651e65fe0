from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb

from kif_lightning.errors import UserError
from kif_lightning.tracking.wandb_tracker import WandbTracker, has_key
from tests.unit.tracking.test_identity import identity


@pytest.fixture(autouse=True)
def netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No key anywhere; this would be the file of ``wandb login``."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return tmp_path / "netrc"


@pytest.fixture
def tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., WandbTracker]:
    monkeypatch.chdir(tmp_path)

    def made(*stand_ins: str, **options: Any) -> WandbTracker:
        known = identity("order1", *stand_ins)
        return WandbTracker(project="p", identity=known, say=lambda _: None, **options)

    return made


def test_a_key_is_found(netrc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not has_key()
    netrc.write_text("machine elsewhere.example login user password secret\n")
    assert not has_key()
    netrc.write_text("machine api.wandb.ai login user password secret\n")
    assert has_key()
    netrc.write_text("not a netrc file {")
    assert not has_key()
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    assert has_key()


@pytest.mark.parametrize("host", ["wandb.our-lab.example", "localhost:8080"])
def test_a_login_to_wandbs_cloud_is_none_to_a_server_of_ones_own(
    host: str, netrc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SimpleNamespace(base_url=f"https://{host}")
    monkeypatch.setattr(wandb, "setup", lambda: SimpleNamespace(settings=settings))
    netrc.write_text("machine api.wandb.ai login user password secret\n")
    assert not has_key()
    netrc.write_text(f"machine {host} login user password secret\n")
    assert has_key()


def test_online_only_with_a_key(
    tracker: Callable[..., WandbTracker], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tracker().mode == "offline"
    monkeypatch.setenv("WANDB_MODE", "online")
    assert tracker().mode == "offline"  # wandb would ask for a key
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    assert tracker().mode == "online"
    assert tracker(offline=True).mode == "offline"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert tracker().mode == "offline"
    assert tracker(offline=False).mode == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert tracker().mode == "disabled"


def test_online_without_a_key_is_refused_never_asked_for(
    tracker: Callable[..., WandbTracker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wandb, "init", lambda **_: pytest.fail("it would ask for a key"))
    with pytest.raises(UserError, match="offline=false needs a key"):
        tracker(offline=False).start()


def test_a_server_out_of_reach_is_told_with_the_way_out(
    tracker: Callable[..., WandbTracker], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(**_: Any) -> None:
        raise wandb.errors.CommError("no route")

    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setattr(wandb, "init", unreachable)
    with pytest.raises(UserError, match=r"no route.*offline=true"):
        tracker().start()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the newest run was to be opened with; none is."""
    found: dict[str, Any] = {}

    def refuse(**options: Any) -> None:
        found.update(options)
        raise wandb.errors.UsageError("enough")

    monkeypatch.setattr(wandb, "init", refuse)
    return found


def test_only_a_stand_in_shows_no_more_than_that_the_method_runs(
    tracker: Callable[..., WandbTracker], asked: dict[str, Any]
) -> None:
    notes = {
        ("stand-in data",): "On stand-in data: shows that the method runs, no more.",
        ("held-out rows of train, not test",): "On held-out rows of train, not test.",
        (): "",
    }
    for stand_ins, expected in notes.items():
        with pytest.raises(UserError):
            tracker(*stand_ins).start()
        assert asked["notes"] == expected


def test_long_names_are_cut_to_what_wandb_takes(
    tracker: Callable[..., WandbTracker], asked: dict[str, Any]
) -> None:
    made = tracker(name="n" * 200, group="g" * 200)
    with pytest.raises(UserError):
        made.start()
    assert (len(asked["name"]), len(asked["group"])) == (128, 128)
    assert asked["id"] == tracker().id  # the same at the next start
    assert asked["mode"] == "offline"

"""Pushing, with a stub of the hub's client: nothing here ever reached a hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalTokenNotFoundError

from kif_lightning.errors import UserError
from kif_lightning.exporting import hub


class StubApi:
    """Notes what is asked of it; ``error`` is raised by the upload."""

    def __init__(self, error: Exception | None = None) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.error = error

    def create_repo(self, name: str, **options: Any) -> str:
        self.calls.append((name, options))
        return f"https://hub.test/{name}"

    def upload_folder(self, **options: Any) -> None:
        self.calls.append((options["repo_id"], options))
        if self.error is not None:
            raise self.error


def use(monkeypatch: pytest.MonkeyPatch, api: StubApi, *, answers: bool = True) -> StubApi:
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
    monkeypatch.setattr(hub, "hub_answers", lambda: answers)
    return api


@pytest.mark.parametrize("private", [True, False])
def test_the_folder_goes_up_in_one_commit(
    private: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    api = use(monkeypatch, StubApi())
    assert hub.push(tmp_path, "me/model", private=private) == "https://hub.test/me/model"
    (made, uploaded) = api.calls
    assert made == ("me/model", {"private": private, "exist_ok": True})
    assert uploaded[1]["folder_path"] == str(tmp_path)


def test_without_a_hub_the_folder_stays_and_nothing_is_tried(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    api = use(monkeypatch, StubApi(), answers=False)
    with pytest.raises(UserError, match=f"whole in {tmp_path}, but was not pushed") as told:
        hub.push(tmp_path, "me/model")
    assert f"hf upload me/model {tmp_path}" in str(told.value)
    assert (api.calls, tmp_path.is_dir()) == ([], True)


@pytest.mark.parametrize(
    ("error", "part"),
    [
        (LocalTokenNotFoundError("Token is required\nand more"), "hf auth login"),
        (OSError("403 Forbidden.\ntrace"), r"\(403 Forbidden\)"),
        (RuntimeError("the line went dead"), "the line went dead"),
    ],
)
def test_a_refusal_is_one_sentence(
    error: Exception, part: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(monkeypatch, StubApi(error))
    with pytest.raises(UserError, match=part) as told:
        hub.push(tmp_path, "me/model")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("name", ["model", "a/b/c", "me/..", "me/mo del", ""])
def test_a_name_that_is_none(name: str) -> None:
    with pytest.raises(UserError, match="--push must be OWNER/NAME"):
        hub.require_name(name)


def test_a_name_that_is_one() -> None:
    hub.require_name("me/model-1.0")

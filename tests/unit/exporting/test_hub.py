"""Pushing, with a stub of the hub's client: nothing here ever reached a hub."""

from __future__ import annotations

import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalTokenNotFoundError

from kif_lightning.errors import UserError
from kif_lightning.exporting import hub


class StubApi:
    """Notes what is asked of it; ``error`` is raised by the upload, ``public``: it was there."""

    def __init__(self, error: Exception | None = None, *, public: bool = False) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.error = error
        self.public = public

    def repo_info(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(private=not self.public)

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
    assert uploaded[1]["delete_patterns"] == "*"


def test_what_shall_be_private_is_not_uploaded_to_a_public_repository(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    api = use(monkeypatch, StubApi(public=True))
    with pytest.raises(UserError, match="me/model is there and is public"):
        hub.push(tmp_path, "me/model", private=True)
    assert len(api.calls) == 1
    hub.push(tmp_path, "me/model")
    assert len(api.calls) == 3


@pytest.mark.parametrize("private", [True, False])
def test_without_a_hub_the_folder_stays_and_nothing_is_tried(
    private: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "my model"
    folder.mkdir()
    api = use(monkeypatch, StubApi(), answers=False)
    with pytest.raises(UserError, match=f"whole in {folder}, but was not pushed") as told:
        hub.push(folder, "me/model", private=private)
    advice = shlex.split(str(told.value).partition("run: ")[2])
    same = ["hf", "upload", "me/model", str(folder), ".", "--delete", "*"]
    assert advice == [*same, *["--private"] * private]
    assert (api.calls, folder.is_dir()) == ([], True)


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

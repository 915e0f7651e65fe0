"""Takes an exported folder to the model hub."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id

from kif_lightning.errors import UserError
from kif_lightning.online import hub_answers


def require_name(repository: str) -> None:
    """Raise UserError unless it is ``OWNER/NAME`` as the hub takes it."""
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        told = str(error).partition("\n")[0].rstrip(".")
        raise UserError(f"--push must be OWNER/NAME, got {repository} ({told}).") from error
    if "/" not in repository:
        raise UserError(
            f"--push must be OWNER/NAME, got {repository}: put the user's or organisation's name "
            "and a slash before it."
        )


def push(folder: Path, repository: str, *, private: bool = False) -> str:
    """Upload all files of the folder, in one commit; returns the repository's address.

    Args:
        folder: what was exported; it stays as it is.
        repository: ``OWNER/NAME``, made unless it is there.
        private: of a new one.

    Raises:
        UserError: the hub is not within reach, or does not let the user in.
    """
    if not hub_answers():
        raise _not_pushed(folder, repository, "the hub does not answer")
    api = huggingface_hub.HfApi()
    try:
        address = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=str(folder),
            commit_message="Export of kif-lightning",
        )
    except LocalTokenNotFoundError as error:
        raise _not_pushed(folder, repository, "there is no token: run 'hf auth login'") from error
    except Exception as error:  # its errors are of whichever HTTP package it uses
        told = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise _not_pushed(folder, repository, told) from error
    return str(address)


def _not_pushed(folder: Path, repository: str, why: str) -> UserError:
    return UserError(
        f"The export is whole in {folder}, but was not pushed to {repository} ({why}); later, 'hf "
        f"upload {repository} {folder}' does that."
    )

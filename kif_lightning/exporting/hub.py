"""Takes an exported folder to the model hub."""

from __future__ import annotations

import shlex
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
    """Upload the folder in one commit, in place of all that is there; returns the address.

    Args:
        folder: what was exported; it stays as it is.
        repository: ``OWNER/NAME``, made unless it is there.
        private: no one else shall see it; refused of a public repository.

    Raises:
        UserError: the hub is not within reach, does not let the user in, or the repository is
            public.
    """
    retry = f"hf upload {repository} {shlex.quote(str(folder))} . --delete '*'"
    if private:
        retry += " --private"

    def not_pushed(why: str) -> UserError:
        return UserError(
            f"The export is whole in {folder}, but was not pushed to {repository} ({why}); later, "
            f"run: {retry}"
        )

    if not hub_answers():
        raise not_pushed("the hub does not answer")
    api = huggingface_hub.HfApi()
    try:
        address = api.create_repo(repository, private=private, exist_ok=True)
        # The hub leaves one that is there as it is.
        is_public = private and not api.repo_info(repository).private
        if not is_public:
            api.upload_folder(
                repo_id=repository,
                folder_path=str(folder),
                commit_message="Export of kif-lightning",
                delete_patterns="*",
            )
    except LocalTokenNotFoundError as error:
        raise not_pushed("there is no token: run 'hf auth login'") from error
    except Exception as error:  # its errors are of whichever HTTP package it uses
        told = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise not_pushed(told) from error
    if is_public:
        raise UserError(
            f"--private was asked, but {repository} is there and is public, so nothing was "
            f"uploaded (the export is whole in {folder}): make it private, or name another one."
        )
    return str(address)

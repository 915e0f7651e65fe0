"""Shared fixtures: everything tiny is made once a session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.states import Workshop
from tests.helpers.tiny import save_tiny_llama, save_tiny_t5, save_toy_tasks


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KIF_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tiny_t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a tiny random T5."""
    return save_tiny_t5(tmp_path_factory.mktemp("tiny_t5"))


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a tiny random LLaMA."""
    return save_tiny_llama(tmp_path_factory.mktemp("tiny_llama"))


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data folder with the tasks colour and shape."""
    return save_toy_tasks(tmp_path_factory.mktemp("toy_data"))


@pytest.fixture(scope="session")
def workshop(tiny_t5: Path, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """Makes runs and states of the toy tasks colour, shape and size; their names are shared."""
    folder = tmp_path_factory.mktemp("workshop")
    save_toy_tasks(folder / "data", ("colour", "shape"), train=12, test=3)
    save_toy_tasks(folder / "data", ("size",), train=12, test=3, labels=("round", "flat"))
    return Workshop(tiny_t5, folder / "data", folder)

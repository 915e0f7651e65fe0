"""Shared fixtures: everything tiny is made once a session.

What takes seconds to import is imported where it is used: pytest-xdist's main process, which
everybody waits for, reads this file too and runs no test.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.helpers.states import Workshop


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KIF_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def packages_read_once() -> Iterator[None]:
    """Each new Trainer would read what all installed packages offer, to find no callbacks."""
    from lightning.fabric.utilities import registry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "entry_points", cache(registry.entry_points))
        yield


@pytest.fixture(scope="session")
def tiny_t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a tiny random T5."""
    from tests.helpers.tiny import save_tiny_t5

    return save_tiny_t5(tmp_path_factory.mktemp("tiny_t5"))


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a tiny random LLaMA."""
    from tests.helpers.tiny import save_tiny_llama

    return save_tiny_llama(tmp_path_factory.mktemp("tiny_llama"))


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data folder with the tasks colour and shape."""
    from tests.helpers.tiny import save_toy_tasks

    return save_toy_tasks(tmp_path_factory.mktemp("toy_data"))


@pytest.fixture(scope="session")
def workshop(tiny_t5: Path, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """Makes runs and states of the toy tasks colour, shape and size; their names are shared."""
    from tests.helpers.states import Workshop
    from tests.helpers.tiny import save_toy_tasks

    folder = tmp_path_factory.mktemp("workshop")
    save_toy_tasks(folder / "data", ("colour", "shape"), train=12, test=3)
    save_toy_tasks(folder / "data", ("size",), train=12, test=3, labels=("round", "flat"))
    return Workshop(tiny_t5, folder / "data", folder)

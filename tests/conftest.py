"""Shared fixtures: everything tiny is made once a session."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.tiny import save_tiny_llama, save_tiny_t5, save_toy_tasks


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

"""Scripts below experiments/, imported as they import one another."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@contextmanager
def scripts_of(*studies: str) -> Iterator[Callable[[str], ModuleType]]:
    """Imports a script of the studies, or one that studies share, by name; none stays known."""
    # In this order: each has a report.py.
    folders = (*(EXPERIMENTS / study for study in studies), EXPERIMENTS)
    names = {path.stem for folder in folders for path in folder.glob("*.py")}
    with pytest.MonkeyPatch.context() as patch:
        for folder in reversed(folders):
            patch.syspath_prepend(folder)
        for name in names:
            patch.delitem(sys.modules, name, raising=False)
        yield importlib.import_module
        for name in names:
            sys.modules.pop(name, None)

"""KIF (knowledge identification and fusion) for continual learning of language models."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kif_lightning.learnt_model import load as load

__version__ = "0.1.0"

_SHOWN = {"load": "kif_lightning.learnt_model"}
"""Name -> where it is; brought when first asked for, so that importing the package is instant."""


def __getattr__(name: str) -> Any:
    if name not in _SHOWN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_SHOWN[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_SHOWN])

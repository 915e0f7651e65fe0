"""KIF (knowledge identification and fusion) for continual learning of language models."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kif_lightning.api import Run as Run
    from kif_lightning.api import UserError as UserError
    from kif_lightning.api import build_parts as build_parts
    from kif_lightning.api import build_stream as build_stream
    from kif_lightning.api import compare as compare
    from kif_lightning.api import comparison_report as comparison_report
    from kif_lightning.api import compose as compose
    from kif_lightning.api import doctor as doctor
    from kif_lightning.api import export as export
    from kif_lightning.api import extend as extend
    from kif_lightning.api import load as load
    from kif_lightning.api import pack as pack
    from kif_lightning.api import run as run
    from kif_lightning.api import stream_table as stream_table

__version__ = "0.1.0"

_API = (
    *("Run", "UserError", "build_parts", "build_stream", "compare", "comparison_report"),
    *("compose", "doctor", "export", "extend", "load", "pack", "run", "stream_table"),
)
"""Of the api; brought when first asked for, so that importing the package is instant."""


def __getattr__(name: str) -> Any:
    if name not in _API:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("kif_lightning.api"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_API])

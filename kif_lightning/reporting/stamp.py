"""The protocol stamp: under which conditions a number was obtained."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import kif_lightning

_PACKAGES = ("torch", "lightning", "transformers", "peft", "torchmetrics", "hydra-core")


def software() -> dict[str, Any]:
    """Versions and, in a checkout, the commit ('+changes' where files differ from it)."""
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {
        "kif_lightning": kif_lightning.__version__,
        "commit": commit(),
        "python": platform.python_version(),
        "packages": versions,
    }


def device(accelerator: str) -> str:
    """The device in words, without the machine's name."""
    if accelerator == "cuda" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{accelerator} ({platform.machine()}, {torch.get_num_threads()} threads)"


def commit(*, apart_from: Path | None = None) -> str | None:
    """The checkout's commit, or None for an installed package or without git.

    Args:
        apart_from: a folder in it whose changes do not count.
    """
    root = Path(kif_lightning.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    head = _git(root, "rev-parse", "HEAD")
    if head is None:
        return None
    but = [] if apart_from is None else [":(top)", f":(exclude){apart_from.resolve()}"]
    return head + ("+changes" if _git(root, "status", "--porcelain", "--", *but) else "")


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(  # noqa: S603
            ["git", "-C", str(root), *arguments],  # noqa: S607
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()

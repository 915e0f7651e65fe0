"""Configs made of the yamls and of overrides, as ``python -m kif_lightning`` makes them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from kif_lightning.errors import UserError
from kif_lightning.paths import conf_dir


def composed(overrides: Sequence[str] = ()) -> DictConfig:
    """The config of a run; within an application of Hydra too, whose own is left alone.

    Args:
        overrides: ``group=option`` and ``key=value``, as on the command line.

    Raises:
        UserError: one of them does not fit.
    """
    try:
        with _own_hydra(), initialize_config_dir(conf_dir(), version_base="1.3"):
            return compose("config", list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        told = str(error).partition("\n")[0].rstrip(".")
        raise UserError(f"{shlex.join(overrides)}: {told}; kif list names the choices.") from error


@contextmanager
def _own_hydra() -> Iterator[None]:
    """Hydra knows one config tree at a time: the caller's is laid aside and put back."""
    known = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = known

"""The ways of fusing that were asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from math import isfinite
from pathlib import Path
from typing import Any

from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from kif_lightning.callbacks import KnowledgeFusion
from kif_lightning.errors import UserError, require_between, require_choice
from kif_lightning.paths import conf_dir, option_names

FIELDS = {"tau": "tau", "gamma": "gamma", "top": "top_percent"}
"""Option of the command -> field of the rules that have it."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The command's options as they came: numbers and names parted by commas, None: not given."""

    task: str | None = None
    rule: str | None = None
    tau: str | None = None
    gamma: str | None = None
    top: str | None = None
    beta: str | None = None

    def values(self, option: str) -> list[str]:
        """The parts of an option; none if it was not given."""
        text: str | None = getattr(self, option)
        return [] if text is None else [part.strip() for part in text.split(",")]

    def numbers(self, option: str) -> list[float]:
        """The same as numbers.

        Raises:
            UserError: one is none, or not finite.
        """
        with suppress(ValueError):
            numbers = [float(part) for part in self.values(option)]
            if all(map(isfinite, numbers)):
                return numbers
        raise UserError(
            f"--{option} must be one finite number or several parted by commas, got "
            f"{getattr(self, option)}."
        )


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to fuse; ``name`` is of its rule."""

    name: str
    rule: Callable[[Tensor, Tensor], Tensor]
    beta: float

    @property
    def settings(self) -> dict[str, Any]:
        """What sets it apart from others, in plain values."""
        return {"rule": self.name, **_fields(self.rule), "beta": float(self.beta)}

    @property
    def key(self) -> str:
        """The settings as a name, exactly."""
        told = [f"{key}={value}" for key, value in self.settings.items() if key != "rule"]
        return ",".join([self.name, *told])


def ways(fusion: KnowledgeFusion, asked: Asked) -> list[Way]:
    """The run's own way of fusing, then every combination of what was asked for, each once.

    A rule of the run's own kind keeps the run's other settings, another has its config's.

    Raises:
        UserError: a rule there is not, a number that no rule asked for has, one out of range.
    """
    configs = _rule_configs()
    own = Way(name=_own_name(fusion.rule, configs), rule=fusion.rule, beta=fusion.beta)
    given = {field: asked.numbers(option) for option, field in FIELDS.items()}
    given = {field: values for field, values in given.items() if values}
    betas = asked.numbers("beta") or [fusion.beta]
    for beta in betas:
        require_between("--beta", beta, 0.0, 1.0)
    names = asked.values("rule") or [own.name]
    found, used = [own], set()
    for name in names:
        require_choice("--rule", name, sorted({*configs, own.name}))
        rule: Any = fusion.rule if name == own.name else instantiate(configs[name])
        fields = [field for field in given if field in _fields(rule)]
        used.update(fields)
        for *picked, beta in product(*(given[field] for field in fields), betas):
            changed = dict(zip(fields, picked, strict=True))
            other = dataclasses.replace(rule, **changed) if changed else rule
            found.append(Way(name=name, rule=other, beta=beta))
    for option, field in FIELDS.items():
        if field in given.keys() - used:
            having = [name for name, config in configs.items() if field in config]
            raise UserError(
                f"--{option} is no setting of the rule {', '.join(names)}: leave it out, or ask "
                f"for --rule {' or '.join(having)}."
            )
    unique: dict[str, Way] = {}
    for way in found:
        unique.setdefault(way.key, way)
    return list(unique.values())


def _fields(rule: Any) -> dict[str, Any]:
    found: Mapping[str, Any] = dataclasses.asdict(rule) if dataclasses.is_dataclass(rule) else {}  # type: ignore[arg-type]
    numbers = {key: float(v) for key, v in found.items() if isinstance(v, int | float)}
    return {**found, **numbers}


def _rule_configs() -> dict[str, DictConfig]:
    """Every rule there is a config of, by its name."""
    folder = Path(conf_dir()) / "method" / "rule"
    found: dict[str, Any] = {
        name: OmegaConf.load(folder / f"{name}.yaml") for name in option_names("method/rule")
    }
    return {name: config for name, config in found.items() if "_target_" in config}


def _own_name(rule: Any, configs: Mapping[str, DictConfig]) -> str:
    kinds = {name: get_class(config["_target_"]) for name, config in configs.items()}
    kind = type(rule)
    return next((name for name, each in kinds.items() if each is kind), kind.__name__)

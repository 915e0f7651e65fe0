"""Which weights of any project learn, and what of its Trainer the importance cannot work with."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import nn
from torch.optim import Optimizer

from kif_lightning.errors import UserError

_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:base_model\.model|_orig_mod)\.")
"""What peft and ``torch.compile`` put before the names of what they wrap."""


def the_optimizer(trainer: Trainer) -> Optimizer:
    """The only one, whose gradients are unscaled before it steps.

    Raises:
        UserError: there are several, or a fused one with a loss scale.
    """
    if len(trainer.optimizers) != 1:
        raise UserError(
            f"Expected one optimizer, got {len(trainer.optimizers)}: importance is read once a "
            "step of all weights, so put them into one optimizer with several parameter groups."
        )
    optimizer = trainer.optimizers[0]
    scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
    if scaled and getattr(optimizer, "_step_supports_amp_scaling", False):
        raise UserError(
            f"Expected an optimizer that is not fused with precision={trainer.precision}, got "
            f"{type(optimizer).__name__}(fused=True), whose gradients stay scaled: use fused=False."
        )
    return optimizer


def require_whole_weights(trainer: Trainer) -> None:
    """Raise UserError for a strategy that spreads weights, or whose processes end with the fit."""
    strategy: Any = trainer.strategy
    if isinstance(strategy, DeepSpeedStrategy | FSDPStrategy | ModelParallelStrategy):
        raise UserError(
            "Expected a strategy that keeps whole weights on each device, got "
            f"{type(strategy).__name__}, which spreads them: use strategy='ddp'."
        )
    if getattr(strategy, "_start_method", "popen") != "popen":
        raise UserError(
            "Expected processes that live on after the fit, got "
            f"start_method={strategy._start_method!r}, with which the importance is lost: use "
            "strategy='ddp'."
        )


def learnt_parameters(module: nn.Module, optimizer: Optimizer) -> dict[str, nn.Parameter]:
    """Stable name -> parameter that requires a gradient and is in the optimizer.

    Raises:
        UserError: there is none; two adapters of one layer learn.
    """
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    adapters = sorted({name for part in module.modules() for name in _adapters(part)})
    found: dict[str, nn.Parameter] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad or id(parameter) not in held:
            continue
        stable = stable_name(name, adapters)
        if stable in found:
            raise UserError(
                f"Expected one adapter that learns, got several in {stable}: let only the active "
                "one require gradients."
            )
        found[stable] = parameter
    if not found:
        raise UserError(
            "Expected weights that learn, but no parameter of the module that requires a gradient "
            "is in its optimizer: look at requires_grad and configure_optimizers."
        )
    return found


def stable_name(name: str, adapters: Iterable[str] = ()) -> str:
    """The name without the prefixes of wrappers and without the adapter's name.

    Args:
        name: as ``named_parameters`` gives it.
        adapters: names of the adapters that the model has.
    """
    name = _WRAPPERS.sub("", name)
    for adapter in adapters:
        # The last one: a layer may have the same name.
        found = list(re.finditer(rf"\.{re.escape(adapter)}(?=\.|$)", name))
        if found:
            return name[: found[-1].start()] + name[found[-1].end() :]
    return name


def _adapters(part: nn.Module) -> Iterable[str]:
    config = getattr(part, "peft_config", None)
    return config if isinstance(config, dict) else ()

"""Which weights of any project learn, and what of its Trainer the importance cannot work with."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from lightning.pytorch import Callback, Trainer, callbacks
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import nn
from torch.optim import LBFGS, Optimizer

from kif_lightning.errors import UserError

_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:base_model\.model|_orig_mod)\.")
"""What peft and ``torch.compile`` put before the names of what they wrap."""
_AVERAGING: tuple[type[Callback], ...] = (
    callbacks.StochasticWeightAveraging,
    # Lightning 2.5 began without it.
    *([callbacks.WeightAveraging] if hasattr(callbacks, "WeightAveraging") else []),
)


def the_optimizer(trainer: Trainer) -> Optimizer:
    """The only one, whose gradients are unscaled before it steps.

    Raises:
        UserError: there are several, a fused one with a loss scale, or LBFGS.
    """
    if len(trainer.optimizers) != 1:
        raise UserError(
            f"Expected one optimizer, got {len(trainer.optimizers)}: importance is read once a "
            "step of all weights, so put them into one optimizer with several parameter groups."
        )
    optimizer = trainer.optimizers[0]
    if isinstance(optimizer, LBFGS):
        raise UserError(
            "Expected an optimizer that takes one gradient a step, got LBFGS, which "
            "tries several and would have each counted as a step: use AdamW or SGD."
        )
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


def require_averaging_before(trainer: Trainer, callback: Callback) -> None:
    """Raise UserError if a callback that averages weights would overwrite what this one leaves."""
    all_of_them: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    behind = all_of_them[all_of_them.index(callback) + 1 :]
    for other in behind:
        if isinstance(other, _AVERAGING):
            raise UserError(
                f"Expected no callback that averages weights behind {type(callback).__name__}, got "
                f"{type(other).__name__}, which would overwrite the fused weights: put it before "
                f"{type(callback).__name__}."
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
    known = "|".join(map(re.escape, adapters))
    # The last one, as far on as any adapter's: a layer may have the same name.
    return re.sub(rf"^(.+)\.(?:{known})(?=\.|$)", r"\1", _WRAPPERS.sub("", name))


def _adapters(part: nn.Module) -> Iterable[str]:
    config = getattr(part, "peft_config", None)
    return config if isinstance(config, dict) else ()

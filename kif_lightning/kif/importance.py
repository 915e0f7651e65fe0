"""Knowledge identification: how much each weight, and each skill unit, matters to the current task.

Shapes: U number of units; weights and gradients have any shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor

from kif_lightning.errors import UserError, require_between, require_choice
from kif_lightning.kif import shards
from kif_lightning.kif.units import SkillUnits, UnitMember

CPU_BUCKET_ELEMENTS = 1 << 19
"""Weights updated together: what is used of them seven times stays in the cache."""
GPU_BUCKET_ELEMENTS = 1 << 24
"""The same where few kernel launches matter more; 64 MiB of float32."""
SLOWEST_BFLOAT16 = 0.99
"""At 1 - 1/256 and above an average in bfloat16 no longer falls: its changes are rounded away."""


class ImportanceTracker:
    """Running averages of the per-weight importance (KIF: knowledge identification; TaSL eq. 2-6).

    At optimizer step t, for a weight w with gradient g::

        order 1:  I_t = | w g |              order 2:  I_t = | w g - (w g)^2 / 2 |
        sensitivity  Ibar_t = alpha1 Ibar_{t-1} + (1 - alpha1) I_t               Ibar_0 = 0
        uncertainty  U_t    = alpha2 U_{t-1} + (1 - alpha2) | I_t - Ibar_t |     U_0 = 0
        weight score s      = Ibar * U       (Ibar alone with use_uncertainty=False, an ablation)

    Two averages per weight are kept. Of weights spread over ranks, each rank tracks its part.

    Args:
        order: of the importance.
        alpha1: share of the past in the sensitivity, in [0, 1].
        alpha2: share of the past in the uncertainty, in [0, 1].
        use_uncertainty: whether it counts in the scores.
        average_dtype: ``float32`` (float64 for float64 weights) or ``bfloat16``: half the memory,
            8 bits of every average; each step is still computed in float32.
        offload: the averages live in the CPU's memory and visit the weights' device in pieces.

    Raises:
        UserError: order not 1 or 2, a smoothing factor outside [0, 1], an unknown dtype, or a
            smoothing factor that bfloat16 cannot follow.
    """

    def __init__(
        self,
        *,
        order: Literal[1, 2] = 2,
        alpha1: float = 0.85,
        alpha2: float = 0.85,
        use_uncertainty: bool = True,
        average_dtype: Literal["float32", "bfloat16"] = "float32",
        offload: bool = False,
    ) -> None:
        require_choice("importance.order", order, (1, 2))
        require_between("importance.alpha1", alpha1, 0.0, 1.0)
        require_between("importance.alpha2", alpha2, 0.0, 1.0)
        require_choice("importance.average_dtype", average_dtype, ("float32", "bfloat16"))
        if average_dtype == "bfloat16":
            _require_followable(alpha1=alpha1, alpha2=alpha2)
        self.order = order
        self.alpha1 = alpha1
        self.alpha2 = alpha2
        self.use_uncertainty = use_uncertainty
        self.average_dtype = average_dtype
        self.offload = offload
        self.num_steps = 0
        self.sensitivity: dict[str, Tensor] = {}
        self.uncertainty: dict[str, Tensor] = {}
        self._loaded = False
        self._rooms: dict[torch.dtype, Tensor] = {}

    def reset(self, weights: Mapping[str, Tensor]) -> None:
        """Start a task: both averages of every weight at 0."""
        self.num_steps = 0
        self._loaded = False
        self.sensitivity = {name: self._zeros(weight) for name, weight in weights.items()}
        self.uncertainty = {name: self._zeros(weight) for name, weight in weights.items()}

    def _zeros(self, weight: Tensor) -> Tensor:
        dtype = torch.promote_types(weight.dtype, torch.float32)
        return shards.zeros_like(
            weight,
            dtype=torch.bfloat16 if self.average_dtype == "bfloat16" else dtype,
            device=torch.device("cpu") if self.offload else weight.device,
            pin_memory=self.offload and torch.cuda.is_available(),
        )

    def _settle(self, weights: Mapping[str, Tensor]) -> None:
        """Bring loaded averages to where, and how, those of these weights are kept."""
        for averages in (self.sensitivity, self.uncertainty):
            for name, weight in weights.items():
                settled = self._zeros(weight)
                shards.part(settled).copy_(shards.part_as(averages[name], weight))
                averages[name] = settled
        self._loaded = False

    @torch.no_grad()
    def update(self, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor | None]) -> None:
        """Count one optimizer step.

        Args:
            weights: the tensors given to :meth:`reset`, with the values the importance is taken at.
            gradients: their gradients (same shapes, accumulated, unscaled); ``None`` counts as 0.
        """
        assert self.sensitivity.keys() == weights.keys(), "reset() with these weights comes first"
        if self._loaded:
            self._settle(weights)
        self.num_steps += 1
        for weight, gradient, sensitivity, uncertainty in self._buckets(weights, gradients):
            importance = self._products(weight, gradient)
            if self.order == 2:
                torch._foreach_addcmul_(importance, importance, importance, value=-0.5)
            torch._foreach_abs_(importance)
            torch._foreach_lerp_(sensitivity, importance, 1.0 - self.alpha1)
            torch._foreach_sub_(importance, sensitivity)
            torch._foreach_abs_(importance)
            torch._foreach_lerp_(uncertainty, importance, 1.0 - self.alpha2)

    def _products(self, weights: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
        """``w g`` of a bucket's tensors, to be changed at will until the next bucket comes."""
        if weights[0].device.type != "cpu":
            return list(torch._foreach_mul(weights, gradients))
        # Without an allocator that keeps it, fresh memory costs more than the arithmetic.
        products: list[Tensor] = []
        start = 0
        for weight, gradient in zip(weights, gradients, strict=True):
            if weight.dtype not in self._rooms:
                self._rooms[weight.dtype] = weight.new_empty(2 * CPU_BUCKET_ELEMENTS)
            room = self._rooms[weight.dtype][start : start + weight.numel()]
            products.append(torch.mul(weight, gradient, out=room))
            start += weight.numel()
        return products

    def _buckets(
        self, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor | None]
    ) -> Iterator[tuple[list[Tensor], ...]]:
        """Flat (w, g, Ibar, U) on the weights' device, in groups of one to two buckets' size.

        What the caller makes of Ibar and U in place is kept.
        """
        bucket: tuple[list[Tensor], ...] = ([], [], [], [])
        homes: list[tuple[Tensor, Tensor]] = []
        size = 0
        for name, sensitivity in self.sensitivity.items():
            weight, gradient = shards.part(weights[name]), gradients[name]
            # The zeros of a weight without a gradient are one number, seen many times.
            slope = weight.new_zeros(()).expand_as(weight) if gradient is None else gradient
            tensors = (weight, slope, sensitivity, self.uncertainty[name])
            flat = [shards.part(t).reshape(-1) for t in tensors]
            dtype = torch.promote_types(sensitivity.dtype, torch.float32)
            on_cpu = weight.device.type == "cpu"
            limit = CPU_BUCKET_ELEMENTS if on_cpu else GPU_BUCKET_ELEMENTS
            for start in range(0, weight.numel(), limit):
                pieces = [t[start : start + limit] for t in flat]
                for into, piece in zip(bucket, pieces, strict=True):
                    # Across first, then wider: half the traffic of bfloat16 averages.
                    into.append(piece.to(weight.device, non_blocking=True).to(dtype))
                homes += zip(pieces[2:], (bucket[2][-1], bucket[3][-1]), strict=True)
                size += pieces[2].numel()
                if size >= limit:
                    yield bucket
                    _bring_home(homes)
                    bucket, homes, size = ([], [], [], []), [], 0
        if size:
            yield bucket
            _bring_home(homes)
        if self.offload and self.sensitivity and weight.device.type == "cuda":
            # The copies home are under way; who reads them next is not on the GPU's queue.
            torch.cuda.current_stream(weight.device).synchronize()

    @torch.no_grad()
    def weight_scores(self) -> dict[str, Tensor]:
        """Score s of every weight, in float64: new tensors of the weights' shapes."""
        scores = {}
        for name, sensitivity in self.sensitivity.items():
            score = _with_float64(sensitivity).to(torch.float64, copy=True)
            if self.use_uncertainty:
                score *= _with_float64(self.uncertainty[name])
            scores[name] = score
        return scores

    @torch.no_grad()
    def unit_scores(self, units: SkillUnits) -> Tensor:
        """Raw score of every unit, float64, shape (U,), in the order of ``units.ids``.

        ``matrix``: mean of s over the tensor. ``lora_rank``: the mean over the (O, I) outer product
        of the scores of column r of B and row r of A, in closed form: the product of the two means.
        All products are taken in float64: 1e-24 * 1e-24 is 0 in float32.
        """
        scores = []
        for group in units.groups:
            first, *others = (self._member_means(member) for member in group.members)
            scores.append(prod(others, start=first))
        return torch.cat(scores).cpu()

    def _member_means(self, member: UnitMember) -> Tensor:
        """Mean weight score over all of a tensor but the member's axis: (U_group,), float64."""
        tensor = self.sensitivity[member.parameter]
        factors = [shards.part(tensor)]
        if self.use_uncertainty:
            factors.append(shards.part(self.uncertainty[member.parameter]))
        num_units = 1 if member.axis is None else tensor.shape[member.axis]
        sums = shards.whole(_summed(factors, member.axis), tensor, member.axis)
        return sums / (tensor.numel() // num_units)

    def state_dict(self) -> dict[str, Any]:
        """The averages and the step count, as tensors and numbers."""
        return {
            "num_steps": self.num_steps,
            "sensitivity": dict(self.sensitivity),
            "uncertainty": dict(self.uncertainty),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
        self.num_steps = state["num_steps"]
        self.sensitivity = {name: t.clone() for name, t in state["sensitivity"].items()}
        self.uncertainty = {name: t.clone() for name, t in state["uncertainty"].items()}
        self._loaded = True


def _bring_home(homes: list[tuple[Tensor, Tensor]]) -> None:
    """Copy what was computed elsewhere, or in a wider dtype, to where it is kept."""
    for home, piece in homes:
        if home is not piece:
            # To another device narrower first; update() waits for all copies from a GPU at once.
            moved = piece if home.device == piece.device else piece.to(home.dtype)
            home.copy_(moved, non_blocking=piece.device.type == "cuda")


def _require_followable(**factors: float) -> None:
    """Refuse smoothing so slow that a step's change of an average is below its rounding."""
    for name, factor in factors.items():
        if SLOWEST_BFLOAT16 < factor < 1.0:
            raise UserError(
                f"importance.{name} must be at most {SLOWEST_BFLOAT16} (or 1) with averages in "
                f"bfloat16, whose rounding hides slower changes, got {factor}: use "
                "importance.average_dtype=float32."
            )


def _with_float64(tensor: Tensor) -> Tensor:
    """The tensor where float64 exists: Apple's GPUs have none."""
    return tensor.cpu() if tensor.device.type == "mps" else tensor


def _summed(factors: Sequence[Tensor], axis: int | None) -> Tensor:
    """Product of tensors of one shape, summed over all dimensions but one, in float64: (size,)."""
    factors = [_with_float64(factor) for factor in factors]
    if axis is None:
        factors, axis = [factor.reshape(1, -1) for factor in factors], 0
    shape = factors[0].shape
    others = [dim for dim in range(len(shape)) if dim != axis]
    if shape.numel() <= CPU_BUCKET_ELEMENTS:
        return _product(factors).sum(others)
    # Of a large tensor there is no more than a piece in float64.
    cut = max(others, key=shape.__getitem__)
    step = max(1, CPU_BUCKET_ELEMENTS * shape[cut] // shape.numel())
    pieces = zip(*(torch.split(factor, step, cut) for factor in factors), strict=True)
    return torch.stack([_product(piece).sum(others) for piece in pieces]).sum(dim=0)


def _product(factors: Sequence[Tensor]) -> Tensor:
    first, *others = factors
    return prod(others, start=first.double())

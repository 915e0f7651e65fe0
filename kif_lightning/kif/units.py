"""Skill units: how the trainable weights are split into parts that are scored and fused as one.

Shapes: R LoRA rank, O output features, I input features, U number of units.
``lora_A`` is (R, I), ``lora_B`` is (O, R).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from kif_lightning.errors import UserError
from kif_lightning.kif import shards

_LORA_NAME = re.compile(r"^(?P<module>.+)\.lora_(?:embedding_)?(?P<side>[AB])(?:\.weight)?$")


@dataclass(frozen=True)
class UnitMember:
    """One tensor's share in a group of units.

    ``axis``: unit u of the group owns index u of this axis; ``None``: one unit owns all of it.
    """

    parameter: str
    axis: int | None

    def spread(self, per_unit: Tensor, tensor: Tensor) -> Tensor:
        """Shape values (U_group,) to broadcast over ``tensor`` along this member's axis.

        Of a tensor spread over ranks: the values, and the shape, of this rank's part.
        """
        shape = [1] * tensor.ndim
        if self.axis is not None:
            shape[self.axis] = -1
        return shards.along(per_unit, tensor, self.axis).reshape(shape)


@dataclass(frozen=True)
class UnitGroup:
    """Units that live in the same tensors: the ranks of one LoRA module, or one whole tensor."""

    ids: tuple[str, ...]
    members: tuple[UnitMember, ...]


@dataclass(frozen=True)
class SkillUnits:
    """A partition of the trainable weights; unit order is group order, then index in the group."""

    groups: tuple[UnitGroup, ...]

    @property
    def ids(self) -> tuple[str, ...]:
        """Stable names, ``<module>/rank:<r>`` or the parameter's name."""
        return tuple(unit_id for group in self.groups for unit_id in group.ids)

    def __len__(self) -> int:
        return sum(len(group.ids) for group in self.groups)

    def slices(self) -> Iterator[tuple[UnitGroup, slice]]:
        """Each group with its place in a vector of all U units."""
        start = 0
        for group in self.groups:
            yield group, slice(start, start + len(group.ids))
            start += len(group.ids)


def matrix_units(parameters: Mapping[str, Tensor]) -> SkillUnits:
    """Each trainable tensor is one unit (KIF, skill units as matrices; any PEFT kind or full).

    Args:
        parameters: exported parameter name -> trainable tensor of any shape.

    Raises:
        UserError: nothing is trainable.
    """
    if not parameters:
        raise UserError(
            "Units 'matrix' need at least one trainable tensor, got none: choose another adapter."
        )
    return SkillUnits(
        tuple(UnitGroup(ids=(n,), members=(UnitMember(n, None),)) for n in parameters)
    )


def lora_rank_units(parameters: Mapping[str, Tensor]) -> SkillUnits:
    """Each pair (row r of A, column r of B) of a LoRA module is one unit (KIF, LoRA skill units).

    Args:
        parameters: exported parameter name -> tensor; A is (R, I...), B is (O, R...).

    Raises:
        UserError: no LoRA at all, or trainable tensors that belong to no LoRA pair.
    """
    sides, others = _lora_pairs(parameters)
    if others or not sides:
        raise UserError(_not_only_lora(others))
    return _rank_units(sides, parameters)


def fitting_units(parameters: Mapping[str, Tensor]) -> SkillUnits:
    """Rank units where LoRA pairs alone are trainable, else :func:`matrix_units`.

    Where LoRA is not alone it warns: the scores of ranks and of whole tensors do not compare.

    Args:
        parameters: exported parameter name -> trainable tensor.

    Raises:
        UserError: nothing is trainable.
    """
    sides, others = _lora_pairs(parameters)
    if sides and not others:
        return _rank_units(sides, parameters)
    if sides:
        warnings.warn(
            f"LoRA is not all that is trainable, {others[0]} is too: each whole tensor is one "
            "skill unit, not each LoRA rank.",
            stacklevel=2,
        )
    return matrix_units(parameters)


def _lora_pairs(parameters: Iterable[str]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Module -> side -> name of each whole pair, and the names that belong to none."""
    sides: dict[str, dict[str, str]] = {}
    others: list[str] = []
    for name in parameters:
        match = _LORA_NAME.match(name)
        if match is None:
            others.append(name)
        else:
            sides.setdefault(match["module"], {})[match["side"]] = name
    for module, pair in list(sides.items()):
        if set(pair) != {"A", "B"}:
            others.extend(pair.values())
            del sides[module]
    return sides, others


def _rank_units(
    sides: Mapping[str, Mapping[str, str]], parameters: Mapping[str, Tensor]
) -> SkillUnits:
    return SkillUnits(
        tuple(_rank_group(module, pair, parameters) for module, pair in sides.items())
    )


def _rank_group(
    module: str, pair: Mapping[str, str], parameters: Mapping[str, Tensor]
) -> UnitGroup:
    rank = parameters[pair["A"]].shape[0]
    if parameters[pair["B"]].shape[1] != rank:
        raise UserError(
            f"Units 'lora_rank' expect A (R, in) and B (out, R) of one rank in {module}, got "
            f"{tuple(parameters[pair['A']].shape)} and {tuple(parameters[pair['B']].shape)}: "
            "use method/units=matrix."
        )
    return UnitGroup(
        ids=tuple(f"{module}/rank:{r}" for r in range(rank)),
        members=(UnitMember(pair["A"], 0), UnitMember(pair["B"], 1)),
    )


def _not_only_lora(others: list[str]) -> str:
    if not others:
        return (
            "Units 'lora_rank' need LoRA pairs (lora_A, lora_B), but nothing trainable is there: "
            "use method/adapter=lora."
        )
    shown = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
    return (
        "Units 'lora_rank' cover only LoRA's A and B, but these are trainable too: "
        f"{shown}. Use method/units=matrix (matrix_units), which covers every trainable tensor."
    )

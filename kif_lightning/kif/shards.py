"""Tensors of which each rank holds a part (torch's DTensor); any other tensor is its own part.

Elementwise work is done on the parts alone; :func:`whole` joins what is summed along the rest.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Placement,
    Replicate,
    Shard,
    distribute_tensor,
)


def is_sharded(tensor: Tensor) -> bool:
    """Whether the tensor is spread over ranks."""
    return isinstance(tensor, DTensor)


def part(tensor: Tensor) -> Tensor:
    """This rank's part, without its graph, in the tensor's own memory."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def zeros_like(
    tensor: Tensor, *, dtype: torch.dtype, device: torch.device, pin_memory: bool = False
) -> Tensor:
    """Zeros of the tensor's shape, spread as it is; the parts may lie on another device."""
    return torch.zeros_like(
        tensor.detach(),
        dtype=dtype,
        device=device,
        pin_memory=pin_memory,
        memory_format=torch.contiguous_format,
    )


def part_as(whole_tensor: Tensor, tensor: Tensor) -> Tensor:
    """This rank's part of a tensor that is not spread yet, cut as ``tensor`` is; no messages."""
    if is_sharded(whole_tensor) or not isinstance(tensor, DTensor):
        return part(whole_tensor)
    return _cut(whole_tensor, tensor, list(tensor.placements))


def along(per_index: Tensor, tensor: Tensor, axis: int | None) -> Tensor:
    """Of values (U,), one for each index of the tensor's axis, those of this rank's part."""
    if axis is None or not isinstance(tensor, DTensor):
        return per_index
    return _cut(
        per_index,
        tensor,
        [Shard(0) if place.is_shard(axis) else Replicate() for place in tensor.placements],
    )


def whole(sums: Tensor, tensor: Tensor, axis: int | None) -> Tensor:
    """Each rank's sums (U_part,) over its part of ``tensor``, joined to (U,) on every rank.

    Args:
        sums: over all of the rank's part but ``axis``; one number if that is ``None``.
        tensor: what was summed; every rank must call.
        axis: of the tensor.
    """
    if not isinstance(tensor, DTensor):
        return sums
    places: list[Placement] = []
    for place in tensor.placements:
        spread = place.is_shard()
        along_axis = axis is not None and place.is_shard(axis)
        places.append(Shard(0) if along_axis else Partial() if spread else Replicate())
    size = torch.Size([1 if axis is None else tensor.shape[axis]])
    mesh = tensor.device_mesh
    joined: Tensor = DTensor.from_local(
        sums.to(mesh.device_type), mesh, places, run_check=False, shape=size, stride=(1,)
    ).full_tensor()
    return joined


def _cut(tensor: Tensor, like: DTensor, places: list[Placement]) -> Tensor:
    # Without a source rank every rank cuts its own copy.
    mesh = like.device_mesh
    spread = distribute_tensor(tensor.to(mesh.device_type), mesh, places, src_data_rank=None)
    return spread.to_local().to(tensor.device)

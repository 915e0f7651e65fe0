"""The processes of a distributed run, seen from one of them; a run of one process needs no cases.

A rank is a process's number. All functions but :func:`is_first` must be called by every rank.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from kif_lightning.errors import UserError

T = TypeVar("T")
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
"""Where launchers tell a process its rank before the processes know each other."""

BUCKET_ELEMENTS = 1 << 24
"""Numbers that are summed together: few exchanges, 64 MiB of float32 at a time."""


def _joined() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def rank() -> int:
    """This process's number, from 0."""
    return distributed.get_rank() if _joined() else 0


def world_size() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if _joined() else 1


def is_first() -> bool:
    """Whether this is the process that writes and speaks, known before the processes join."""
    if _joined():
        return rank() == 0
    return int(next((os.environ[v] for v in RANK_VARIABLES if v in os.environ), "0")) == 0


def _device() -> torch.device:
    nccl = distributed.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")


def summed(tensor: Tensor) -> Tensor:
    """The sum of all ranks' tensors, on this rank's device; a new tensor if there are others."""
    if world_size() == 1:
        return tensor
    total = tensor.detach().to(_device(), copy=True)
    distributed.all_reduce(total)
    return total.to(tensor.device)


def sum_(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by the sum of all ranks', many of them in one exchange.

    Tensors of an exchange take its widest dtype meanwhile.
    """
    if world_size() == 1:
        return
    bucket: list[Tensor] = []
    for number, tensor in enumerate(tensors, start=1):
        bucket.append(tensor)
        if number == len(tensors) or sum(map(torch.numel, bucket)) >= BUCKET_ELEMENTS:
            flat = torch.cat([each.detach().reshape(-1).to(_device()) for each in bucket])
            distributed.all_reduce(flat)
            sizes = [each.numel() for each in bucket]
            for each, total in zip(bucket, flat.split(sizes), strict=True):
                each.detach().copy_(total.view(each.shape))
            bucket = []


def any_rank(*flags: bool) -> tuple[bool, ...]:
    """For each flag, whether it is set on any rank."""
    if world_size() == 1:
        return flags
    found = torch.tensor(flags, dtype=torch.int32, device=_device())
    distributed.all_reduce(found, op=distributed.ReduceOp.MAX)
    return tuple(bool(flag) for flag in found.tolist())


def gathered(value: T) -> list[T]:
    """Every rank's (picklable) value, in the order of ranks."""
    if world_size() == 1:
        return [value]
    found: list[Any] = [None] * world_size()
    distributed.all_gather_object(found, value)
    return found


def from_first(value: T) -> T:
    """The first rank's (picklable) value, on all ranks."""
    if world_size() == 1:
        return value
    shared: list[Any] = [value]
    distributed.broadcast_object_list(shared, src=0)
    found: T = shared[0]
    return found


def barrier() -> None:
    """Wait until every rank is here."""
    if world_size() > 1:
        gathered(None)


def on_first(write: Callable[[], object]) -> None:
    """Let the first rank write; all wait, and all raise if it could not.

    Raises:
        OSError, UserError: as the first rank; RuntimeError on the others for anything else.
    """
    failure: Exception | None = None
    told: Exception | None = None
    if is_first():
        try:
            write()
        except Exception as error:
            failure = error
            known = isinstance(error, OSError | UserError)
            told = error if known else RuntimeError(f"The first process failed: {error!r}")
    told = from_first(told)
    if failure is not None:
        raise failure
    if told is not None:
        raise told

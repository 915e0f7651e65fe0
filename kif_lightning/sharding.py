"""A model spread over ranks: each holds a part of every weight (torch's fully_shard)."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

from kif_lightning.errors import UserError

DATA_DIMENSION = "data_parallel"
"""What Lightning calls the dimension of its mesh along which weights are spread."""
INSTEAD = "use trainer.strategy=ddp, which keeps the whole model on each device"


def shard_model(model: nn.Module, mesh: DeviceMesh) -> None:
    """Spread the weights over the ranks, in place: each transformer block, then the rest.

    The parameters are replaced: whoever holds some must fetch them anew. Between forward and
    backward passes every rank has its part alone; ``generate`` counts as a forward pass, and all
    ranks must make equally many. A model that is spread already stays as it is.

    Args:
        model: adapted already, on any device.
        mesh: of one dimension, or Lightning's of two.

    Raises:
        UserError: tensor parallelism, quantised weights, weights without a dimension, trainable
            weights of several dtypes, one weight in two blocks, no blocks.
    """
    if isinstance(model, FSDPModule):
        return
    mesh = _data_mesh(mesh)
    blocks = list(transformer_blocks(model))
    _require_shardable(model, blocks)
    for block in blocks:
        fully_shard(block, mesh=mesh)
    # Left whole after a forward pass, the rest would miss what fusion writes to the parts.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    if hasattr(model, "generate"):
        register_fsdp_forward_method(model, "generate")


def transformer_blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The members of the outermost module lists (the lists within a T5 block are its sublayers)."""
    for child in model.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from transformer_blocks(child)


def _data_mesh(mesh: DeviceMesh) -> DeviceMesh:
    if mesh.ndim == 1:
        return mesh
    names = mesh.mesh_dim_names or ()
    if DATA_DIMENSION not in names or mesh.size() != mesh[DATA_DIMENSION].size():
        raise UserError(
            f"Weights are spread over one dimension of ranks, got a mesh of {tuple(mesh.shape)}: "
            "set trainer.strategy.tensor_parallel_size=1 and trainer.strategy.data_parallel_size "
            "to the number of devices."
        )
    return mesh[DATA_DIMENSION]


def _require_shardable(model: nn.Module, blocks: list[nn.Module]) -> None:
    parameters = dict(model.named_parameters())
    if not blocks:
        raise UserError(
            f"A model spread over ranks must be made of blocks (torch.nn.ModuleList), got none in "
            f"{type(model).__name__}: {INSTEAD}."
        )
    for name, parameter in parameters.items():
        if not parameter.is_floating_point():
            raise UserError(
                f"Quantised weights cannot be spread over ranks, got {parameter.dtype} in {name}: "
                f"load the model unquantised, or {INSTEAD}."
            )
        if parameter.ndim == 0:
            raise UserError(
                f"A single number cannot be spread over ranks, got {name} of no dimension: "
                f"{INSTEAD}."
            )
    dtypes = {str(p.dtype) for p in parameters.values() if p.requires_grad}
    if len(dtypes) > 1:
        raise UserError(
            "Trainable weights spread over ranks must share one dtype, got "
            f"{' and '.join(sorted(dtypes))}: set trainer.precision=32-true, or {INSTEAD}."
        )
    homes: dict[int, set[int]] = {}
    for number, block in enumerate(blocks):
        for parameter in block.parameters():
            homes.setdefault(id(parameter), set()).add(number)
    for name, parameter in model.named_parameters():
        if len(homes.get(id(parameter), ())) > 1:
            raise UserError(
                f"A weight that several blocks share cannot be spread over ranks, got {name}: "
                f"{INSTEAD}."
            )

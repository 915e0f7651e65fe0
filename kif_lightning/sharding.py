"""A model spread over ranks: each holds a part of every weight (torch's fully_shard)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

from kif_lightning import ranks
from kif_lightning.errors import UserError
from kif_lightning.kif.shards import is_sharded

SHARDED = "sharded"
"""As ``trainer.strategy``: see :class:`ShardedStrategy`."""
DATA_DIMENSION = "data_parallel"
"""What Lightning calls the dimension of its mesh along which weights are spread."""
INSTEAD = "use trainer.strategy=ddp, which keeps the whole model on each device"


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's strategy, with the weights spread over all processes there are."""

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1)

    def setup_environment(self) -> None:
        """Only here is it known how many there are."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


def check_strategy(name: Any, precision: Any) -> None:
    """Raise UserError for other ways of spreading weights, and what this way cannot do.

    Args:
        name: of Lightning's strategy.
        precision: of the training.
    """
    if not isinstance(name, str):
        raise UserError(f"trainer.strategy must be a name, got {name}: use auto, ddp or {SHARDED}.")
    if name.startswith(("fsdp", "deepspeed", "model_parallel")):
        raise UserError(
            f"Weights are spread over devices with trainer=sharded (torch's FSDP2), got "
            f"trainer.strategy={name}, whose weights importance and fusion cannot read."
        )
    if name == SHARDED and precision in ("16-mixed", "16", 16):
        raise UserError(
            f"With trainer=sharded each device would scale the loss for itself at "
            f"trainer.precision={precision}: use bf16-mixed or 32-true."
        )


def whole_on_first(state: Any) -> Any:
    """Nested dicts with each tensor that is spread put together on the first rank's CPU.

    One at a time, and the other ranks get None for it; all of them must call.
    """
    if isinstance(state, dict):
        return {key: whole_on_first(value) for key, value in state.items()}
    if isinstance(state, Tensor) and is_sharded(state):
        spread: Any = state
        tensor: Tensor = spread.full_tensor()
        return tensor.cpu() if ranks.is_first() else None
    return state


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
    require_shardable(model)
    for block in transformer_blocks(model):
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


def require_shardable(model: nn.Module) -> None:
    """Raise UserError, as :func:`shard_model` would, for a model that cannot be spread."""
    blocks = list(transformer_blocks(model))
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

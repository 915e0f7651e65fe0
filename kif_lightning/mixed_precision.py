"""Frozen weights cast to the autocast dtype once, not in every forward pass.

Autocast keeps the cast of a weight only if the weight learns. A frozen linear layer's is cast anew
each time, which in decoding, a token a pass, is most of the work.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from kif_lightning.kif.shards import is_sharded

AUTOCAST_DTYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
"""Lightning's name of a precision -> what it casts the inputs of matrix products to."""


class _CastOnce(nn.Linear):
    """A frozen linear layer with a copy of its weight (O, I) in the autocast dtype.

    The weight itself stays: what reads it (DoRA's norms, merging, saving, a tied embedding) and
    what runs without autocast sees no difference.
    """

    cast_from: tuple[Tensor]
    """The weight; in a tuple, so that it gets no second name."""
    cast: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """What autocast gives, bit for bit."""
        weight: Tensor = self.weight
        device = input.device.type
        # functional_call puts another weight in the place of this one.
        if (
            weight is self.cast_from[0]
            and torch.is_autocast_enabled(device)
            and torch.get_autocast_dtype(device) == self.cast.dtype
        ):
            weight = self.cast
        return linear(input, weight, self.bias)


def keep_casts_(model: nn.Module, dtype: torch.dtype) -> None:
    """Give every frozen float32 ``nn.Linear`` of the model a cast of its weight, as it is now.

    Until :func:`drop_casts_` nobody may change those weights or move them to another device. The
    casts take half the memory of the weights. A training pass without them holds as much for its
    graph; decoding without them holds those of a layer or two at a time. Names, ``state_dict`` and
    parameters stay as they are. Layers of other classes (packed ones, say), sharded weights and
    those that learn are left alone.
    """
    drop_casts_(model)
    for layer in model.modules():
        if type(layer) is not nn.Linear or layer.weight.dtype != torch.float32:
            continue
        if layer.weight.requires_grad or is_sharded(layer.weight):
            continue
        # The class, not the instance's forward: torch.compile tells the two states apart by it.
        kept: Any = layer
        kept.__class__ = _CastOnce
        kept.cast_from = (layer.weight,)
        # An ordinary tensor also where inference mode is on.
        with torch.inference_mode(mode=False):
            kept.cast = layer.weight.detach().to(dtype)


def drop_casts_(model: nn.Module) -> None:
    """Undo :func:`keep_casts_`."""
    for layer in model.modules():
        if isinstance(layer, _CastOnce):
            kept: Any = layer
            del kept.cast, kept.cast_from
            kept.__class__ = nn.Linear

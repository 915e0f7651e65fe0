"""Log probabilities of fixed answers: packed side by side in one row, each blind to the others.

Shapes: N rows, K labels, T tokens of the labels of one pass together, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kif_lightning import ranks
from kif_lightning.backbones.decoding import attention_of, base_model, is_spread
from kif_lightning.errors import UserError

MAX_LOGITS = 2**26
"""Of one pass, N * T * V, where more than one label is in it (256 MiB in float32)."""


@dataclass(frozen=True)
class PackedLabels:
    """Some labels in one row: column t reads token ``inputs[t]`` and predicts ``targets[t]``.

    ``places`` is the column's place within its label; ``sees[t, s]``: t may look at s, which is of
    the same label and not later.
    """

    inputs: Tensor
    targets: Tensor
    places: Tensor
    sees: Tensor
    lengths: list[int]
    """Columns of each label, T together."""

    def sums(self, logits: Tensor) -> Tensor:
        """Log p of each label's targets, summed: (N, labels) in float32.

        Args:
            logits: (N, T, V).
        """
        logits = logits.float()
        targets = self.targets.expand(len(logits), -1)[..., None]
        found = logits.gather(2, targets)[..., 0] - logits.logsumexp(dim=2)
        # Not index_add_: on a GPU its order of summation changes from run to run.
        return torch.stack([part.sum(dim=1) for part in found.split(self.lengths, dim=1)], dim=1)

    def mask(self, seen: Tensor, dtype: torch.dtype) -> Tensor:
        """What is added to the attention's scores, (N, 1, T, S + T): 0, or the least number.

        Args:
            seen: (N, S), which of the columns before all labels see; S may be 0.
            dtype: of the scores.
        """
        rows, width = len(seen), len(self.inputs)
        before = seen.bool()[:, None].expand(-1, width, -1)
        sees = torch.cat([before, self.sees.expand(rows, -1, -1)], dim=2)
        hidden = torch.zeros(sees.shape, dtype=dtype, device=seen.device)
        return hidden.masked_fill_(~sees, torch.finfo(dtype).min)[:, None]


def require_any_mask(model: nn.Module) -> None:
    """Raise UserError if the model's attention takes no mask of one's own, as labels need."""
    attention = attention_of(model)
    if "flash" in attention or "flex" in attention:
        raise UserError(
            f"evaluation.decode=rank_labels needs attention that takes any mask, got {attention}: "
            "use sdpa or eager, or evaluation.decode=generate."
        )


def packed_labels(
    model: nn.Module, sequences: Sequence[Sequence[int]], like: Tensor
) -> Iterator[PackedLabels]:
    """The labels in their order, as many in a pass as :data:`MAX_LOGITS` lets, one at least.

    The labels' own lengths and N decide, so memory does not grow with K. Where the weights are
    spread over ranks all make equally many passes.

    Args:
        model: with or without peft's wrapper.
        sequences: token ids; each predicts all of its tokens but the first.
        like: (N, ...), on the device that computes.

    Raises:
        UserError: the model's attention takes no mask of its own.
    """
    require_any_mask(model)
    config = base_model(model).config
    limit = MAX_LOGITS // (len(like) * config.get_text_config().vocab_size)
    if is_spread(model):
        limit = min(ranks.gathered(limit))
    piece: list[Sequence[int]] = []
    for sequence in sequences:
        if piece and sum(len(s) - 1 for s in [*piece, sequence]) > limit:
            yield _packed(piece, like.device)
            piece = []
        piece.append(sequence)
    yield _packed(piece, like.device)


def _packed(sequences: Sequence[Sequence[int]], device: torch.device) -> PackedLabels:
    def tensor(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=device)

    lengths = [len(sequence) - 1 for sequence in sequences]
    owners = tensor([k for k, length in enumerate(lengths) for _ in range(length)])
    places = tensor([place for length in lengths for place in range(length)])
    return PackedLabels(
        inputs=tensor([token for sequence in sequences for token in sequence[:-1]]),
        targets=tensor([token for sequence in sequences for token in sequence[1:]]),
        places=places,
        sees=(owners[:, None] == owners) & (places[:, None] >= places),
        lengths=lengths,
    )


def score_dtype(model: nn.Module) -> torch.dtype:
    """That of the embeddings, which a mask of one's own must have; autocast casts both."""
    embeddings: Any = base_model(model).get_input_embeddings()
    dtype: torch.dtype = embeddings.weight.dtype
    return dtype

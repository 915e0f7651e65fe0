"""Terms added to the loss, one file each."""

from kif_lightning.penalties.orthonormality import OrthonormalityPenalty

__all__ = ["OrthonormalityPenalty"]

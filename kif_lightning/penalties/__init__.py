"""Terms added to the loss, one file each."""

from kif_lightning.penalties.cross_task_orthogonality import CrossTaskOrthogonality
from kif_lightning.penalties.distillation import Distillation
from kif_lightning.penalties.elastic_weights import ElasticWeights
from kif_lightning.penalties.key_pull import KeyPull
from kif_lightning.penalties.orthonormality import OrthonormalityPenalty

__all__ = [
    "CrossTaskOrthogonality",
    "Distillation",
    "ElasticWeights",
    "KeyPull",
    "OrthonormalityPenalty",
]

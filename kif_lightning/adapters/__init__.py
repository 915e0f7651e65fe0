"""Which weights learn: a PEFT adapter shared by all tasks, or the whole model."""

from kif_lightning.adapters.full import FullAdapter
from kif_lightning.adapters.peft_adapter import PeftAdapter

__all__ = ["FullAdapter", "PeftAdapter"]

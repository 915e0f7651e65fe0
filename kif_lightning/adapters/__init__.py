"""Which weights learn: a PEFT adapter shared by all tasks, or the whole model."""

from kif_lightning.adapters.full import FullAdapter
from kif_lightning.adapters.peft_adapter import PeftAdapter
from kif_lightning.adapters.prompts import ProgressivePrompts, PromptPool
from kif_lightning.adapters.task_loras import TaskLoras

__all__ = ["FullAdapter", "PeftAdapter", "ProgressivePrompts", "PromptPool", "TaskLoras"]

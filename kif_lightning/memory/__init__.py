"""What is rehearsed of past tasks: rows that were kept, or rows the model writes itself."""

from kif_lightning.memory.episodic import EpisodicMemory, choose_rows
from kif_lightning.memory.rehearsal import MemoryRehearsal, PseudoSamples

__all__ = ["EpisodicMemory", "MemoryRehearsal", "PseudoSamples", "choose_rows"]

"""KIF (knowledge identification and fusion) for continual learning of language models."""

__version__ = "0.1.0"

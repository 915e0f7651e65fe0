"""Greedy generation that owes nothing to the model's own generation settings."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import GenerationConfig


def base_model(model: nn.Module) -> Any:
    """The transformers model, without peft's wrapper."""
    wrapped: Any = model
    return wrapped.get_base_model() if hasattr(wrapped, "get_base_model") else wrapped


def greedy_ids(
    model: nn.Module, *, input_ids: Tensor, attention_mask: Tensor, **settings: Any
) -> Tensor:
    """Token ids of greedy generation, (N, prompt or start + new tokens).

    transformers fills what a GenerationConfig leaves open from the model's own (a repetition
    penalty, say): it is set aside meanwhile, so that every backbone is decoded alike.
    """
    base = base_model(model)
    own = base.generation_config
    base.generation_config = GenerationConfig()
    greedy = GenerationConfig(do_sample=False, num_beams=1, **settings)
    generate: Any = model.generate
    try:
        ids: Tensor = generate(
            input_ids=input_ids, attention_mask=attention_mask, generation_config=greedy
        )
    finally:
        base.generation_config = own
    return ids

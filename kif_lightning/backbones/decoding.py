"""Generation that owes nothing to the model's own generation settings."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import GenerationConfig

from kif_lightning import ranks


def base_model(model: nn.Module) -> Any:
    """The transformers model, without peft's wrapper."""
    wrapped: Any = model
    return wrapped.get_base_model() if hasattr(wrapped, "get_base_model") else wrapped


def attention_of(model: nn.Module) -> str:
    """The attention that the model really uses, by transformers' name; empty: it has no choice."""
    return str(getattr(base_model(model).config, "_attn_implementation", None) or "")


def is_spread(model: nn.Module) -> bool:
    """Whether ranks hold parts of the weights and must make each forward pass together."""
    # Asked for every batch: the walk through all modules is only for several processes.
    return ranks.world_size() > 1 and any(isinstance(m, FSDPModule) for m in model.modules())


def answer_ids(
    model: nn.Module,
    *,
    top_k: int | None,
    input_ids: Tensor,
    attention_mask: Tensor,
    **settings: Any,
) -> Tensor:
    """Token ids, (N, prompt or start + new tokens): greedy, or drawn from the ``top_k`` likeliest.

    transformers fills what a GenerationConfig leaves open from the model's own (a repetition
    penalty, say): it is set aside meanwhile, so that every backbone is decoded alike.
    """
    base = base_model(model)
    own = base.generation_config
    base.generation_config = GenerationConfig()
    drawn = {} if top_k is None else {"top_k": top_k}
    settings = {"do_sample": top_k is not None, "num_beams": 1, **drawn, **settings}
    generate: Any = model.generate
    try:
        with eagerly(model):
            ids: Tensor = generate(
                input_ids=input_ids,
                attention_mask=attention_mask,
                generation_config=GenerationConfig(**settings),
                # A rank that has its answers goes on until all have: each pass needs the others'
                # weights.
                **({"synced_gpus": True} if is_spread(model) else {}),
            )
    finally:
        base.generation_config = own
    return ids


def eagerly(model: nn.Module) -> AbstractContextManager[Any]:
    """Answers are made without the compiler.

    A compiled model would be compiled again for passes with a cache or a mask of another kind, and
    gain little there.
    """
    compiled = model._compiled_call_impl is not None
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()

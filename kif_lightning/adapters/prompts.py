"""Soft prompts as adapters: one more each task, or a pool from which each input chooses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PromptTuningConfig
from safetensors.torch import save_file
from torch import Tensor, nn

from kif_lightning.adapters.peft_adapter import copy_exactly
from kif_lightning.adapters.prompted_model import KeyedPrompts, PromptedModel, PromptStack
from kif_lightning.errors import UserError, require_count
from kif_lightning.interfaces import Backbone
from kif_lightning.storage import write_json


class ProgressivePrompts:
    """A new prompt each task before the frozen ones of all tasks past; the task id is given.

    Rows of task j get ``[P_j, P_{j-1}, ..., P_0, text]`` (Progressive Prompts, arXiv 2301.12314),
    so that what was learnt cannot be forgotten. The paper's residual MLP, a reparametrisation that
    is dropped after training, is left out.

    Args:
        num_tokens: T, the tokens of each prompt.

    Raises:
        UserError: fewer than one token.
    """

    shared = False
    needs_task_id = True

    def __init__(self, *, num_tokens: int = 10) -> None:
        require_count("method.adapter.num_tokens", num_tokens)
        self.num_tokens = num_tokens
        self._backbone: Backbone | None = None

    def attach(self, model: nn.Module, backbone: Backbone) -> nn.Module:
        """The frozen model with the first task's prompt."""
        self._backbone = backbone
        return PromptedModel(model, PromptStack(vocabulary_draw(model, self.num_tokens)))

    def begin_task(self, model: nn.Module, task_index: int) -> None:
        """Add the task's prompt, unless it is there, and use it."""
        stack = _source(model, PromptStack)
        assert task_index <= len(stack.prompts)
        if task_index == len(stack.prompts):
            fresh = vocabulary_draw(_prompted(model).base, self.num_tokens)
            stack.hold([*stack.prompts, nn.Parameter(fresh)])
        stack.task = task_index

    def use_task(self, model: nn.Module, task_index: int) -> None:
        """Prompts up to the task's; up to the newest, if the task has not been learnt."""
        stack = _source(model, PromptStack)
        stack.task = min(task_index, len(stack.prompts) - 1)

    def trainable(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The newest prompt."""
        return {"prompt": _source(model, PromptStack).prompts[-1]}

    def state_dict(self, model: nn.Module) -> dict[str, Tensor]:
        """The prompts of all tasks."""
        return {name: p.detach() for name, p in _source(model, PromptStack).named_parameters()}

    def load_state_dict(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        """As many prompts as are given, bit for bit; the newest learns."""
        stack = _source(model, PromptStack)
        held = list(stack.prompts)[: max(1, len(state))]
        more = [nn.Parameter(torch.zeros_like(held[0])) for _ in range(len(state) - len(held))]
        stack.hold([*held, *more])
        copy_exactly(dict(stack.named_parameters()), state)

    def save(self, model: nn.Module, folder: Path) -> None:
        """A standard PEFT folder of prompt tuning for each task: ``task_001``, ..."""
        stack = _source(model, PromptStack)
        assert self._backbone is not None
        for task in range(len(stack.prompts)):
            joined = stack.joined(task).detach().cpu()
            config = PromptTuningConfig(
                task_type=self._backbone.task_type,
                base_model_name_or_path=self._backbone.public_name,
                num_virtual_tokens=joined.shape[0],
                token_dim=joined.shape[1],
                num_transformer_submodules=1,
                inference_mode=True,
            )
            task_folder = folder / f"task_{task + 1:03d}"
            config.save_pretrained(str(task_folder))
            weights = str(task_folder / "adapter_model.safetensors")
            save_file({"prompt_embeddings": joined}, weights, metadata={"format": "pt"})


class PromptPool:
    """A pool of prompts shared by all tasks; each row gets those whose keys fit its text best.

    L2P (arXiv 2112.08654) carried over to text. A row's query is the frozen model's own feature of
    its text (:func:`~kif_lightning.adapters.prompted_model.queries`), so no task id is needed; each
    row chooses for itself, without the paper's optional penalty on prompts often chosen. The loss
    does not reach the keys: ``KeyPull`` moves them. Prompts start as embeddings of drawn tokens,
    keys uniform in [-1, 1): in all directions.

    Args:
        pool_size: prompts in the pool.
        num_tokens: tokens of each prompt.
        num_chosen: prompts before each text.

    Raises:
        UserError: counts below one, more chosen than there are.
    """

    shared = True
    needs_task_id = False

    def __init__(self, *, pool_size: int = 10, num_tokens: int = 5, num_chosen: int = 4) -> None:
        require_count("method.adapter.pool_size", pool_size)
        require_count("method.adapter.num_tokens", num_tokens)
        require_count("method.adapter.num_chosen", num_chosen)
        if isinstance(pool_size, int) and isinstance(num_chosen, int) and num_chosen > pool_size:
            raise UserError(
                f"method.adapter.num_chosen must be at most method.adapter.pool_size, got "
                f"{num_chosen} of {pool_size}: choose fewer, or make the pool larger."
            )
        self.pool_size = pool_size
        self.num_tokens = num_tokens
        self.num_chosen = num_chosen
        self._backbone: Backbone | None = None

    def attach(self, model: nn.Module, backbone: Backbone) -> nn.Module:
        """The frozen model with the pool."""
        self._backbone = backbone
        drawn = vocabulary_draw(model, self.pool_size * self.num_tokens)
        prompts = drawn.unflatten(0, (self.pool_size, self.num_tokens))
        keys = 2 * torch.rand(self.pool_size, drawn.shape[1], device=drawn.device) - 1
        return PromptedModel(model, KeyedPrompts(prompts, keys, self.num_chosen))

    def begin_task(self, model: nn.Module, task_index: int) -> None:
        """Nothing: the pool is shared."""

    def use_task(self, model: nn.Module, task_index: int) -> None:
        """Nothing: the text chooses."""

    def trainable(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """``prompts`` (pool_size, num_tokens, d) and ``keys`` (pool_size, d)."""
        return dict(_source(model, KeyedPrompts).named_parameters())

    def state_dict(self, model: nn.Module) -> dict[str, Tensor]:
        """Prompts and keys."""
        return {name: parameter.detach() for name, parameter in self.trainable(model).items()}

    def load_state_dict(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Copy prompts and keys back, bit for bit."""
        copy_exactly(self.trainable(model), state)

    def save(self, model: nn.Module, folder: Path) -> None:
        """``prompts.safetensors`` and ``prompts.json``: peft has no form for a pool."""
        assert self._backbone is not None
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: tensor.cpu() for name, tensor in self.state_dict(model).items()}
        save_file(state, str(folder / "prompts.safetensors"), metadata={"format": "pt"})
        use = (
            "For each text: rank the keys by cosine similarity to the base model's feature of the "
            "text, and put the num_chosen best prompts, best first, before its input embeddings. "
            "See kif_lightning.adapters.prompted_model."
        )
        write_json(
            folder / "prompts.json",
            {
                "base_model_name_or_path": self._backbone.public_name,
                "task_type": self._backbone.task_type,
                "pool_size": self.pool_size,
                "num_tokens": self.num_tokens,
                "num_chosen": self.num_chosen,
                "how_to_use": use,
            },
        )


def vocabulary_draw(model: nn.Module, number: int) -> Tensor:
    """Embeddings of tokens drawn by torch's global generator, (number, d) in float32."""
    base: Any = model
    embedding = base.get_input_embeddings()
    ids = torch.randint(embedding.num_embeddings, (number,)).to(embedding.weight.device)
    drawn: Tensor = embedding(ids).detach().float()
    return drawn


def _prompted(model: nn.Module) -> PromptedModel:
    assert isinstance(model, PromptedModel)
    return model


def _source(model: nn.Module, kind: type[Any]) -> Any:
    source = _prompted(model).source
    assert isinstance(source, kind)
    return source

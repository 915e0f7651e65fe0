"""Soft prompts before the input of a frozen language model.

Shapes: N rows, S text tokens, P prompt tokens of a row, T tokens of one prompt, K chosen prompts,
Q prompts in a pool, d width of the embeddings, H tokens of a text's head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from kif_lightning.modes import evaluating

HEAD_TOKENS = 16
"""H: the text tokens that a decoder's query is made of."""
GOES_ON = {"encoder_outputs", "cache", "past_key_values"}
"""Arguments that hold what an earlier forward pass made of the prompts and the text."""


class PromptedModel(nn.Module):
    """A transformers model whose input embeddings follow soft prompts; only the prompts learn.

    An encoder-decoder gets them before its encoder's input. A decoder gets them in the first
    columns, before the padding on the left, which stays masked; the text's positions follow the
    prompts'. The prompts have no dropout of their own (T5's, on its input embeddings, reaches them
    as it does text). The logits are the base model's, so a decoder's begin with P columns of the
    prompts: count from the end, or give ``logits_to_keep``.

    Args:
        base: the model; its weights are frozen.
        source: called with (base, input_ids, attention_mask, num_answer_tokens); gives prompts
            (N, P, d). ``num_answer_tokens`` (N,) at each row's end are the answer, None: none.
    """

    def __init__(self, base: nn.Module, source: nn.Module) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.source = source

    @property
    def config(self) -> Any:
        """The base model's."""
        return self.base.config

    @property
    def key_distance(self) -> Tensor:
        """Distance of the last training batch's queries from their keys, if prompts have keys."""
        source: Any = self.source
        return source.key_distance()

    def get_base_model(self) -> Any:
        """The transformers model."""
        return self.base

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        num_answer_tokens: Tensor | None = None,
        **others: Any,
    ) -> Any:
        """The base model's output; a decoder's batch tells how long each row's answer is.

        What goes on from ``encoder_outputs`` or a cache has its prompts in them.
        """
        if input_ids is None or not GOES_ON.isdisjoint(others):
            return self.base(
                input_ids=input_ids,
                attention_mask=attention_mask,
                **({} if position_ids is None else {"position_ids": position_ids}),
                **others,
            )
        embeddings, mask = self._prompted(input_ids, attention_mask, num_answer_tokens)
        if position_ids is not None:
            width = embeddings.shape[1] - input_ids.shape[1]
            before = torch.arange(width, device=input_ids.device).expand(len(input_ids), -1)
            others["position_ids"] = torch.cat([before, position_ids + width], dim=1)
        return self.base(inputs_embeds=embeddings, attention_mask=mask, **others)

    @torch.no_grad()
    def generate(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **settings: Any
    ) -> Tensor:
        """Token ids as the base model gives them for ``input_ids``; prompts are chosen once."""
        embeddings, mask = self._prompted(input_ids, attention_mask)
        base: Any = self.base
        ids: Tensor = base.generate(inputs_embeds=embeddings, attention_mask=mask, **settings)
        # Given embeddings, a decoder returns the new tokens alone.
        return ids if self.config.is_encoder_decoder else torch.cat([input_ids, ids], dim=1)

    def _prompted(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        num_answer_tokens: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Embeddings (N, P + S, d) and mask (N, P + S)."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        base: Any = self.base
        text = base.get_input_embeddings()(input_ids)
        prompts = self.source(base, input_ids, mask, num_answer_tokens).to(text.dtype)
        seen = mask.new_ones(prompts.shape[:2])
        return torch.cat([prompts, text], dim=1), torch.cat([seen, mask], dim=1)


class PromptStack(nn.Module):
    """One prompt (T, d) a task; all rows get ``[P_j, P_{j-1}, ..., P_0]``; the newest learns."""

    def __init__(self, first: Tensor) -> None:
        super().__init__()
        self.hold([nn.Parameter(first)])

    def hold(self, prompts: Sequence[nn.Parameter]) -> None:
        """Keep these, oldest first, and use all."""
        self.prompts = nn.ParameterList(prompts)
        for prompt in prompts:
            prompt.requires_grad_(prompt is prompts[-1])
        self.task = len(prompts) - 1
        """j, the task whose rows are answered."""

    def joined(self, task: int) -> Tensor:
        """Prompts of the tasks up to this one, newest first: ((task + 1) T, d)."""
        return torch.cat(list(self.prompts)[task::-1])

    def forward(
        self, base: nn.Module, input_ids: Tensor, mask: Tensor, num_answer_tokens: Tensor | None
    ) -> Tensor:
        """(N, P, d), the same for all rows."""
        return self.joined(self.task).expand(len(input_ids), -1, -1)


class KeyedPrompts(nn.Module):
    """A pool of prompts (Q, T, d) with keys (Q, d); each row gets those whose keys fit its text."""

    def __init__(self, prompts: Tensor, keys: Tensor, num_chosen: int) -> None:
        super().__init__()
        self.prompts = nn.Parameter(prompts)
        self.keys = nn.Parameter(keys)
        self.num_chosen = num_chosen
        self._last: tuple[Tensor, Tensor] | None = None

    def forward(
        self, base: nn.Module, input_ids: Tensor, mask: Tensor, num_answer_tokens: Tensor | None
    ) -> Tensor:
        """(N, K T, d), the best prompt first."""
        asked = queries(base, input_ids, mask, num_answer_tokens)
        chosen = choose(asked, self.keys, self.num_chosen)
        if self.training:
            # Without a graph: a model that keeps one could not be copied.
            self._last = asked, chosen
        return self.prompts[chosen].flatten(1, 2)

    def key_distance(self) -> Tensor:
        """:func:`key_distance` of the last training forward."""
        assert self._last is not None
        asked, chosen = self._last
        return key_distance(asked, self.keys, chosen)


def choose(queries: Tensor, keys: Tensor, num_chosen: int) -> Tensor:
    """Indices (N, K) of the keys of highest cosine similarity to each query, best first.

    Args:
        queries: (N, d).
        keys: (Q, d).
        num_chosen: K, at most Q.
    """
    similarity = cosine_similarity(queries[:, None], keys.detach()[None], dim=-1)
    return similarity.topk(num_chosen, dim=1).indices


def key_distance(queries: Tensor, keys: Tensor, chosen: Tensor) -> Tensor:
    """``mean over rows of sum over chosen k of (1 - cos(query, key_k))``, a scalar.

    The surrogate loss of L2P (arXiv 2112.08654) with cosine distance; the gradient reaches the
    chosen keys alone.

    Args:
        queries: (N, d), without gradient.
        keys: (Q, d).
        chosen: (N, K).
    """
    distances = 1 - cosine_similarity(queries[:, None], keys[chosen], dim=-1)
    return distances.sum(dim=1).mean()


@torch.no_grad()
def queries(base: Any, input_ids: Tensor, mask: Tensor, num_answer_tokens: Tensor | None) -> Tensor:
    """The frozen model's own feature of each text, (N, d) in float32; no prompts, no dropout.

    Encoder-decoder: mean of the encoder's output over the text. Decoder: mean of the last hidden
    states over the text's first H tokens, or as many as it has. In training the answer follows the
    text, and a query that saw it would be another one than in the test: states are causal, and the
    head stops before the answer.
    """
    with evaluating(base):
        if base.config.is_encoder_decoder:
            states = base.get_encoder()(input_ids=input_ids, attention_mask=mask).last_hidden_state
        else:
            input_ids, mask = text_head(input_ids, mask, num_answer_tokens)
            states = base.base_model(
                input_ids=input_ids, attention_mask=mask, use_cache=False
            ).last_hidden_state
    weight = mask[:, :, None].float()
    return (states.float() * weight).sum(dim=1) / weight.sum(dim=1)


def text_head(
    input_ids: Tensor, mask: Tensor, num_answer_tokens: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The first ``min(H, max(1, n - num_answer_tokens))`` of each row's n tokens, padded right.

    Args:
        input_ids: (N, S), padded on either side.
        mask: (N, S); 1 for tokens.
        num_answer_tokens: (N,), how many at the end are the answer; None: none.

    Returns:
        Ids and mask, (N, min(H, S)).
    """
    places = torch.arange(min(HEAD_TOKENS, mask.shape[1]), device=mask.device)
    columns = mask.argmax(dim=1, keepdim=True) + places
    lengths = mask.sum(dim=1)
    if num_answer_tokens is not None:
        lengths = (lengths - num_answer_tokens).clamp(min=1)
    head_mask = (places < lengths[:, None]).to(mask.dtype)
    return input_ids.gather(1, columns.clamp(max=mask.shape[1] - 1)), head_mask

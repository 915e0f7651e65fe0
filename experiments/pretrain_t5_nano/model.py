"""The architecture of ``t5_nano``, its initialisation, and the learning rate of each weight."""

from __future__ import annotations

import torch
from transformers import T5Config, T5ForConditionalGeneration

PAD, END = 0, 1
HEADS, HEAD_SIZE = 6, 32
MATCHING = 3 * HEAD_SIZE  # rows of q and k of heads 0, 1 and 2
SHARPNESS = 0.35  # of the matching heads' attention


def new_model(vocabulary: int) -> T5ForConditionalGeneration:
    """A T5 of 4 encoder and 2 decoder layers that starts with a taste for equal tokens."""
    config = T5Config(
        vocab_size=vocabulary, d_model=192, d_kv=HEAD_SIZE, d_ff=512, num_layers=4,
        num_decoder_layers=2, num_heads=HEADS, dropout_rate=0.0, feed_forward_proj="relu",
        pad_token_id=PAD, eos_token_id=END, decoder_start_token_id=PAD,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config)
    _start_matching(model)
    return model


@torch.no_grad()
def _start_matching(model: T5ForConditionalGeneration) -> None:
    """Some heads start by attending to equal tokens and copying them, two by looking to neighbours.

    Mimetic initialisation (arXiv 2305.09828) for so small a budget: with q = s k a head matches
    like with like, with o = v' it copies. Head 3 starts on the token before, head 4 on the one
    after, so that "the word that followed last time" is two layers away from the first step on.
    """
    encoder = [block.layer[0].SelfAttention for block in model.encoder.block]
    for attention in encoder:
        attention.q.weight[:MATCHING] = SHARPNESS * attention.k.weight[:MATCHING]
        attention.o.weight[:, :MATCHING] = attention.v.weight[:MATCHING].T
    encoder[0].o.weight[:, 3 * HEAD_SIZE : 5 * HEAD_SIZE] *= 2.5
    for block in model.decoder.block:
        attention = block.layer[1].EncDecAttention
        attention.q.weight[:MATCHING] = SHARPNESS * attention.k.weight[:MATCHING]
        attention.o.weight[:] = attention.v.weight.T
    bias = encoder[0].relative_attention_bias.weight  # (buckets, heads); 0: itself
    before, after = 1, encoder[0].relative_attention_num_buckets // 2 + 1
    bias[0, :3] = -5.0
    bias[before, 3] = 6.0
    bias[after, 4] = 6.0


def new_optimizer(model: T5ForConditionalGeneration) -> torch.optim.AdamW:
    """AdamW with a group for each weight, as :func:`set_learning_rates` needs them."""
    groups = [{"params": [parameter]} for parameter in model.parameters()]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), weight_decay=0.0, fused=True)


def set_learning_rates(optimizer: torch.optim.AdamW, rate: float) -> None:
    """``rate`` times each weight's root mean square: T5's weights differ widely in scale."""
    weights = [group["params"][0] for group in optimizer.param_groups]
    with torch.no_grad():
        norms = torch.stack(torch._foreach_norm(weights)).tolist()
    for group, weight, norm in zip(optimizer.param_groups, weights, norms, strict=True):
        group["lr"] = rate * max(1e-3, norm / weight.numel() ** 0.5)

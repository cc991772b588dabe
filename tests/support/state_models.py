"""Small random models some of whose layers keep a state: hybrids of attention with Mamba-2 or a gated delta net."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.random_models import save_model

MAMBA: dict[str, Any] = {"mamba_n_heads": 4, "mamba_d_head": 32, "mamba_n_groups": 1, "mamba_d_state": 16}
FAMILIES: dict[str, dict[str, Any]] = {
    "granite": {
        **MAMBA,
        "architecture": "granitemoehybrid",
        "layer_types": ["mamba", "attention"] * 2,
        "num_layers": 4,
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
        "shared_intermediate_size": 128,
    },
    # Both in every layer.
    "falcon_h1": {**MAMBA, "architecture": "falcon_h1", "mamba_d_ssm": 128},
    # vLLM's operations for CPUs take no smaller heads than these, and bfloat16 alone.
    "qwen3_5": {
        "architecture": "qwen3_5_text",
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "num_layers": 4,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_conv_kernel_dim": 4,
        "head_dim": 64,
    },
}


def save_state_model(path: Path, family: str, *, seed: int, **overrides: Any) -> str:
    """Save one, with its tokenizer, and say where; see `save_model`."""
    return save_model(path, seed=seed, **{**FAMILIES[family], **overrides})

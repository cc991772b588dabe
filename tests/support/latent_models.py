"""Small random models whose attention keeps latents (MLA), of the sizes that vLLM's CPU backend takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.random_models import save_model

YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 256,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 0.707,
    "mscale_all_dim": 0.707,
}
"""As published models have it. Plain RoPE is refused on a CPU."""

_COMMON: dict[str, Any] = {
    "num_key_value_heads": 2,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "head_dim": 64,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
    "rope_parameters": YARN,
    "tie_word_embeddings": False,
    # The second of two layers has experts.
    "first_k_dense_replace": 1,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 64,
    "topk_group": 1,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "deepseek_v2": {"q_lora_rank": None, "n_group": 1},
    "deepseek_v3": {
        "q_lora_rank": 48,
        "n_group": 2,
        "routed_scaling_factor": 1.5,
        "norm_topk_prob": True,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
    },
}


def save_latent_model(path: Path, family: str = "deepseek_v2", **overrides: Any) -> str:
    """Save a random model of a family and its tokenizer; overrides are arguments of `save_model`."""
    return save_model(path, architecture=family, **{**_COMMON, **FAMILIES[family], **overrides})

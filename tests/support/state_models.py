"""Small random models some of whose layers keep a state: hybrids of attention with Mamba-2 or a gated delta net."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

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


def add_mtp_module(model: str, *, seed: int) -> None:
    """Give a Qwen3.5 by `save_state_model` an MTP module, a copy of its first layer with attention behind a random projection.

    transformers reads the same model as before, without the module.
    """
    file = Path(model) / "config.json"
    config = json.loads(file.read_text())
    config["mtp_num_hidden_layers"] = 1
    file.write_text(json.dumps(config))
    weights = load_file(Path(model) / "model.safetensors")
    layer = f"model.layers.{config['layer_types'].index('full_attention')}."
    for name in [name for name in weights if name.startswith(layer)]:
        weights[name.replace(layer, "mtp.layers.0.")] = weights[name].clone()
    torch.manual_seed(seed)
    hidden = config["hidden_size"]
    weights["mtp.fc.weight"] = torch.randn(hidden, 2 * hidden) * 0.15
    # Norms multiply by one more than their weights.
    weights |= {
        f"mtp.{name}.weight": torch.zeros(hidden) for name in ("norm", "pre_fc_norm_hidden", "pre_fc_norm_embedding")
    }
    save_file(weights, Path(model) / "model.safetensors", metadata={"format": "pt"})

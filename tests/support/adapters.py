"""Random LoRA adapters in PEFT's format, and the same as merged weights for a reference."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from support.reference_models import model_class

TARGETS = ("q_proj", "v_proj", "down_proj")
EMBEDDING = "embed_tokens"
WITH_BASE = (EMBEDDING, "lm_head")
"""Modules of which PEFT saves the model's own weight beside the adapter's."""


def save_adapter(
    path: Path,
    model: str,
    *,
    seed: int,
    rank: int = 8,
    scale: float = 0.2,
    targets: tuple[str, ...] = TARGETS,
    **config: Any,
) -> str:
    """Save an adapter of a model by `save_model` that changes every row it makes; with other fields of PEFT's `LoraConfig`."""
    weights = {}
    torch.manual_seed(seed)
    for name, weight in model_class(model).from_pretrained(model, dtype=torch.float32).named_parameters():
        module = name.removesuffix(".weight")
        kind = module.rpartition(".")[2]
        if "vis" not in module and kind in targets:
            outputs, inputs = weight.shape
            its_rank = _of_pattern(config.get("rank_pattern"), module, rank)
            prefix = f"base_model.model.{module}"
            first, second = f"{prefix}.lora_A.weight", f"{prefix}.lora_B.weight"
            if kind == EMBEDDING:
                outputs, inputs = inputs, outputs
                first, second = f"{prefix}.lora_embedding_A", f"{prefix}.lora_embedding_B"
            weights[first] = torch.randn(its_rank, inputs) * scale
            weights[second] = torch.randn(outputs, its_rank) * scale
            if kind in WITH_BASE:
                weights[f"{prefix}.base_layer.weight"] = weight.detach().clone()
    path.mkdir()
    save_file(weights, path / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": list(targets),
        "task_type": "CAUSAL_LM",
        "bias": "none",
        "lora_dropout": 0.0,
        **config,
    }
    (path / "adapter_config.json").write_text(json.dumps(config))
    return str(path)


def save_merged(path: Path, model: str, adapter: str) -> str:
    """Save the model with the adapter merged into its weights."""
    weights = load_file(Path(adapter) / "adapter_model.safetensors")
    config = json.loads((Path(adapter) / "adapter_config.json").read_text())
    merged = model_class(model).from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        for name, weight in merged.named_parameters():
            module = name.removesuffix(".weight")
            prefix = f"base_model.model.{module}"
            rank = _of_pattern(config.get("rank_pattern"), module, config["r"])
            alpha = _of_pattern(config.get("alpha_pattern"), module, config["lora_alpha"])
            scaling = alpha / (rank**0.5 if config.get("use_rslora") else rank)
            if f"{prefix}.lora_A.weight" in weights:
                weight += scaling * (weights[f"{prefix}.lora_B.weight"] @ weights[f"{prefix}.lora_A.weight"])
            if f"{prefix}.lora_embedding_A" in weights:
                weight += scaling * (weights[f"{prefix}.lora_embedding_B"] @ weights[f"{prefix}.lora_embedding_A"]).T
    merged.save_pretrained(path)
    return str(path)


def _of_pattern(pattern: Mapping[str, int] | None, module: str, default: int) -> int:
    """What PEFT's rank_pattern or alpha_pattern has for a module: the first name that the module's ends with."""
    names = (name for name in pattern or {} if f".{module}".endswith(f".{name}"))
    return next(((pattern or {})[name] for name in names), default)

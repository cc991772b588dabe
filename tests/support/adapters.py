"""Random LoRA adapters in PEFT's format, and the same as merged weights for a reference."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from support.reference_models import model_class

TARGETS = ("q_proj", "v_proj", "down_proj")


def save_adapter(
    path: Path, model: str, *, seed: int, rank: int = 8, scale: float = 0.2, targets: tuple[str, ...] = TARGETS
) -> str:
    """Save an adapter of a model by `save_model` that changes every row it makes."""
    weights = {}
    torch.manual_seed(seed)
    for name, weight in model_class(model).from_pretrained(model, dtype=torch.float32).named_parameters():
        module = name.removesuffix(".weight")
        if "vis" not in module and module.rpartition(".")[2] in targets:
            outputs, inputs = weight.shape
            weights[f"base_model.model.{module}.lora_A.weight"] = torch.randn(rank, inputs) * scale
            weights[f"base_model.model.{module}.lora_B.weight"] = torch.randn(outputs, rank) * scale
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
    }
    (path / "adapter_config.json").write_text(json.dumps(config))
    return str(path)


def save_merged(path: Path, model: str, adapter: str) -> str:
    """Save the model with the adapter merged into its weights."""
    from safetensors.torch import load_file

    weights = load_file(Path(adapter) / "adapter_model.safetensors")
    merged = model_class(model).from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        for name, weight in merged.named_parameters():
            prefix = f"base_model.model.{name.removesuffix('.weight')}"
            if f"{prefix}.lora_A.weight" in weights:
                weight += weights[f"{prefix}.lora_B.weight"] @ weights[f"{prefix}.lora_A.weight"]
    merged.save_pretrained(path)
    return str(path)

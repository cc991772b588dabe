"""What vLLM can run of a LoRA adapter in PEFT's format, by its adapter_config.json and before a weight of it is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from vllm_optimal_sampling.config.errors import first_line
from vllm_optimal_sampling.params import shown

CONFIG = "adapter_config.json"
LORA = "LORA"
"""PEFT's name of the kind; vLLM does not look at it."""
REMEDY = "train a plain LoRA adapter, or merge this one into a copy of the teacher and give that as theta"


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """PEFT's configuration of the adapter in a folder.

    Raises:
        OSError: there is none.
        ValueError: it is no JSON, or no object.
    """
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise ValueError(f"{CONFIG} is not an object")
    return config


def adapter_rank(config: Mapping[str, Any]) -> int:
    """The largest rank of an adapter's layers; 0 where its configuration says none, or is no LoRA adapter's."""
    if not _is_lora(config):
        return 0
    pattern = config.get("rank_pattern")
    ranks = [config.get("r"), *(pattern.values() if isinstance(pattern, dict) else ())]
    return max((rank for rank in ranks if isinstance(rank, int)), default=0)


def unsupported_adapter(config: Mapping[str, Any]) -> str | None:
    """Why vLLM would not run an adapter as it was trained, whatever its rank, and what to do; None where it would.

    What to follow after the adapter's name. Most of it is vLLM's own check of an adapter, in its own words.
    """
    from vllm.config.lora import LoRAConfig, MaxLoRARanks
    from vllm.lora.peft_helper import PEFTHelper

    if not _is_lora(config):
        reason = f"it is of PEFT's kind {shown(config['peft_type'])}, and vLLM runs LoRA alone"
    else:
        any_rank = LoRAConfig(max_lora_rank=get_args(MaxLoRARanks)[-1])
        try:
            PEFTHelper.from_dict(dict(config)).validate_legal(any_rank)
        except (TypeError, ValueError) as error:
            reason = first_line(error).removesuffix(".")
        else:
            return None
    return f"cannot run as it was trained: {reason}; {REMEDY}"


def _is_lora(config: Mapping[str, Any]) -> bool:
    return config.get("peft_type", LORA) == LORA

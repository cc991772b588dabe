"""One copy of the weights where teacher and theta are the same model (self-distillation).

Theta then differs from the teacher in what it reads and in its KV cache alone. vLLM keeps the cache with its attention
layers, so theta gets attention layers of its own, in a module tree of its own, and every other module is the teacher's:
its weights, in whatever form vLLM keeps them, are there once, and a weight update reaches both.
"""

from __future__ import annotations

import copy

import torch
from torch import nn
from vllm.config import ModelConfig, VllmConfig
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.utils.torch_utils import set_default_torch_dtype


def same_model(teacher: ModelConfig, theta: ModelConfig) -> bool:
    """Whether both are loaded from the same place in the same way, so that their weights are equal."""
    fields = ("model", "revision", "quantization", "dtype", "hf_config_path")
    return all(getattr(teacher, name) == getattr(theta, name) for name in fields)


def share_weights(teacher: nn.Module, vllm_config: VllmConfig, prefix: str) -> nn.Module:
    """Theta as a second module tree over the teacher's weights.

    Args:
        teacher: the loaded teacher.
        vllm_config: the teacher's configuration.
        prefix: of the names of theta's layers, under which vLLM keeps their caches.
    """
    # Nothing is allocated for what is replaced below.
    with set_default_torch_dtype(vllm_config.model_config.dtype), torch.device("meta"):
        theta = initialize_model(vllm_config=_compiled_apart(vllm_config, prefix), prefix=prefix)
    _adopt(theta, teacher)
    return theta


def _compiled_apart(vllm_config: VllmConfig, prefix: str) -> VllmConfig:
    """The same configuration under a hash of its own.

    vLLM finds compiled code by the hash of the configuration and the code of `forward`, and both are the teacher's here.
    The code it would find has the names of the teacher's layers in it (torch 2.11 bakes them in), which a step of theta
    has no metadata for. Everything else, the table of layers among it, stays one object for both.
    """
    apart = copy.copy(vllm_config)
    additional = vllm_config.additional_config
    assert isinstance(additional, dict)  # our settings are in it
    apart.additional_config = additional | {"compiled_for": prefix}
    return apart


def _adopt(theta: nn.Module, teacher: nn.Module) -> None:
    for name, tensor in (*teacher.named_parameters(recurse=False), *teacher.named_buffers(recurse=False)):
        setattr(theta, name, tensor)
    if isinstance(theta, AttentionLayerBase):
        # A layer of theta's own, under its own name and with its own cache; scales and the like belong to the weights.
        for mine, teachers in ((theta, teacher), (getattr(theta, "impl", None), getattr(teacher, "impl", None))):
            for name, value in vars(mine).items() if mine is not None else ():
                if name != "kv_cache" and (
                    (isinstance(value, torch.Tensor) and value.is_meta) or name.endswith("_scale_float")
                ):
                    setattr(mine, name, getattr(teachers, name))
        return
    for name, child in teacher.named_children():
        if any(isinstance(module, AttentionLayerBase) for module in child.modules()):
            _adopt(getattr(theta, name), child)
        else:
            setattr(theta, name, child)

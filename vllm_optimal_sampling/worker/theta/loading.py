"""Loading the weights of a theta that has some of its own: at start, and new ones in place."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from vllm.compilation.backends import set_model_tag
from vllm.config import VllmConfig
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader import get_model
from vllm.model_executor.model_loader.reload.inplace import reload_weights
from vllm.platforms import current_platform

from vllm_optimal_sampling.config.refusals import unreadable_weights


def load_theta(config: VllmConfig, prefix: str) -> nn.Module:
    """Load theta.

    Args:
        config: with theta's model configuration.
        prefix: of the names of its layers, and the tag of its compiled code.

    Raises:
        UnsupportedEngineError: (a ValueError) the weights cannot be loaded.

    """
    try:
        with set_model_tag(prefix):
            return get_model(vllm_config=config, prefix=prefix)
    except torch.OutOfMemoryError:
        raise  # vLLM says what to do about memory
    except Exception as error:  # every format of weights has errors of its own
        raise unreadable_weights(config.model_config.model, error) from error


def weight_bytes(model: nn.Module) -> int:
    """The memory of a model's weights and buffers."""
    return sum(tensor.nbytes for tensor in model.state_dict().values())


def reload_theta(
    config: VllmConfig,
    model: nn.Module,
    weights_iterator: Iterable[tuple[str, torch.Tensor]] | None = None,
    weights_path: str | None = None,
    is_checkpoint_format: bool = True,
) -> None:
    """Reload theta as vLLM reloads a target: from an iterator, a path, or where it came from.

    Args:
        config: with theta's model configuration.
        model: theta.
        weights_iterator, weights_path, is_checkpoint_format: as vLLM's `reload_weights` takes them.

    Raises:
        ValueError: theta is quantised. Its weights are kept in another form than its checkpoint's, and vLLM's loader writes
            the new ones into it: seen with int8 on a CPU, theta's rows are then not numbers.

    """
    if config.model_config.quantization is not None:
        raise ValueError(
            f"theta ({config.model_config.model}) is quantised ({config.model_config.quantization}), and new weights cannot be "
            "loaded in place; start the engine anew, or with a theta that is not quantised"
        )
    reload_weights(config, model, weights_iterator, weights_path, is_checkpoint_format)
    if current_platform.is_cpu():
        repack_tied_heads(model)


def repack_tied_heads(model: nn.Module) -> None:
    """Bring tied output layers up to date.

    vLLM's CPU build computes with a packed copy of an output layer's weights, and makes it where that layer loads some. A
    tied one loads none: its copy would stay the old embedding's.
    """
    for head in model.modules():
        if isinstance(head, ParallelLMHead) and hasattr(head, "cpu_linear"):
            head.quant_method.process_weights_after_loading(head)

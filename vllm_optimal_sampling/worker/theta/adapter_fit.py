"""Whether a LoRA adapter that vLLM has loaded is of the model that it was loaded for.

vLLM copies an adapter's matrices into buffers of the model's sizes. It takes narrower ones, whose other columns stay zero, and
layers that the model does not have; both are of another model, and theta would be neither of the two.
"""

from __future__ import annotations

from typing import Any

from vllm.model_executor.layers.linear import QKVParallelLinear


def check_fit(manager: Any, adapter_id: int) -> None:
    """Raise ValueError where an adapter is of another model.

    Args:
        manager: vLLM's of the adapters, with this one among them.
        adapter_id: its number.
    """
    adapter = manager.get_adapter(adapter_id)
    unknown = sorted(set(adapter.loras) - set(manager.modules))
    if unknown or not adapter.loras:
        raise ValueError(f"the model has no {unknown[0]}" if unknown else "it changes no layer of the model")
    for name, weights in adapter.loras.items():
        inputs, outputs = _sizes(manager.modules[name])
        for matrix in _listed(weights.lora_a):
            if matrix is not None and inputs is not None and matrix.shape[-1] != inputs:
                raise ValueError(f"it is made for {matrix.shape[-1]} inputs of {name}, which has {inputs}")
        matrices = _listed(weights.lora_b)
        if len(matrices) == 1:  # a checkpoint's one layer, where vLLM could have put several into one
            outputs = [sum(outputs)]
        known = zip(matrices, outputs, strict=True) if len(matrices) == len(outputs) else ()
        for matrix, size in known:
            if matrix is not None and size and matrix.shape[0] != size:
                raise ValueError(f"it is made for {matrix.shape[0]} outputs of {name}, which has {size}")


def _listed(matrices: Any) -> list[Any]:
    return matrices if isinstance(matrices, list) else [matrices]


def _sizes(module: Any) -> tuple[int | None, list[int]]:
    """The inputs of a layer, and its outputs by the layers of a checkpoint that vLLM has put into it; None and none if unknown.

    They are those of the whole model, of which a rank may have a part.
    """
    layer: Any = getattr(module, "base_layer", None)
    if hasattr(layer, "embedding_dim"):
        return layer.org_vocab_size, [layer.embedding_dim]
    if hasattr(layer, "org_vocab_size"):  # the head, whose adapter is with what makes logits of it
        return module.hidden_size, [layer.org_vocab_size]
    inputs = getattr(layer, "input_size", None)
    if isinstance(layer, QKVParallelLinear):  # its own sizes count heads that several ranks have for each of them
        queries, keys = layer.total_num_heads * layer.head_size, layer.total_num_kv_heads * layer.head_size
        return inputs, [queries, keys, layer.total_num_kv_heads * layer.v_head_size]
    outputs = getattr(layer, "output_sizes", None) or [getattr(layer, "output_size", 0)]
    return inputs, list(outputs)

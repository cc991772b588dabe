"""A KV cache of theta's own where theta is the teacher itself, and the teacher's layers reading it.

Each attention layer of the teacher gets a *twin*: a copy that shares everything with it but the name and the KV cache.
vLLM finds the twins beside the teacher's layers, so it profiles, lays out and allocates a cache for both.

The twins never run. vLLM keeps the caches of all layers of a group in one buffer, block by block at one stride, so theta's
block b of a layer stands, seen from the teacher's layer, at block b + OFFSET. Where OFFSET is one number for all layers
(`block_offset`), their views of the buffer are extended that far (`extend_caches`), and a forward of the teacher's
layers may hold rows of both: those of theta have block tables and slots moved by OFFSET. Where it is not, theta takes a
forward of its own, in which the teacher's layers hold the twins' caches (`holding`).

Block ids up to OFFSET + num_blocks address the whole buffer, which may have more than 2^31 elements. On a CPU that was run:
with theta's blocks 2.4 * 10^9 elements behind the teacher's its rows are as right as in a small cache. For GPUs it was read.
All of these multiply a block and its stride in 64 bits, though some keep the stride itself in 32:

- vLLM 0.32, attention in Triton: `triton_unified_attention.py:429`, `triton_decode_attention.py:133`, both to int64 first;
- vLLM, writing the cache: `triton_reshape_and_cache_flash.py:43`, and `reshape_and_cache_flash_kernel` in CUDA
  (`csrc/libtorch_stable/cache_kernels.cu`: slot, block and strides are int64_t);
- FlashAttention 2 as vLLM builds it: `resolve_thread_kv_page_slice_offset` in `csrc/flash_attn/src/utils.h`;
- FlashAttention 3: `index_t = int64_t` in `hopper/flash.h`, `StrideKV` in `hopper/paged_kv.h:58`, and `StrideQK` of the TMA
  descriptors in `hopper/mainloop_fwd_sm90_tma_gmma_ws.hpp`;
- FlashInfer 0.7.2: `paged_kv_t::get_elem_offset(size_t page_idx, ..)` in `page.cuh:199` for its FA2 kernels,
  `sparse_mainloop.cuh:271` (int64_t) for Hopper's. Its TensorRT-LLM kernels for Blackwell are binaries that load by TMA, with
  as many pages in the descriptor as the view of the cache has (`trtllm/fmha/kernelParams.h:368`): that of the extended one.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from vllm.config import VllmConfig, get_layers_from_vllm_config
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.v1.kv_cache_interface import KVCacheConfig

PREFIX = "theta."
"""Before the name of a layer: its twin's."""

MAX_BLOCK_ID = 2**31 - 1
"""Block tables are int32."""

MAX_BLOCK_STRIDE = 2**31 - 1
"""Elements from one block to the next: some kernels keep them in an int."""


def add_twin_layers(vllm_config: VllmConfig, without: set[str]) -> dict[str, str]:
    """Give every attention layer a twin, to be called before vLLM asks the layers for their caches.

    Args:
        vllm_config: whose layers.
        without: names of layers that are a drafter's.

    Returns:
        The twins' names by those of the teacher's layers.
    """
    layers = get_layers_from_vllm_config(vllm_config, AttentionLayerBase)
    context = vllm_config.compilation_config.static_forward_context
    twins = {}
    for name, layer in layers.items():
        if name in without:
            continue
        twin: Any = copy.copy(layer)
        twin.kv_cache = torch.tensor([])
        if hasattr(layer, "layer_name"):
            twin.layer_name = PREFIX + layer.layer_name
        target = getattr(layer, "kv_sharing_target_layer_name", None)
        if target is not None:
            twin.kv_sharing_target_layer_name = PREFIX + target
        context[PREFIX + name] = twin
        twins[name] = PREFIX + name
    return twins


def block_offset(
    layers: Mapping[str, Any], twins: Mapping[str, str], kv_cache_config: KVCacheConfig
) -> tuple[int, None] | tuple[None, str]:
    """OFFSET in vLLM's own blocks; or None, and why there is no such number.

    Args:
        layers: by name, with their caches bound.
        twins: see `add_twin_layers`.
        kv_cache_config: as the caches were laid out.
    """
    group_of = {name: i for i, group in enumerate(kv_cache_config.kv_cache_groups) for name in group.layer_names}
    num_blocks = kv_cache_config.num_blocks
    offsets = set()
    for name, twin in twins.items():
        if group_of.get(name) != group_of.get(twin):
            return None, f"{name} and its twin are in different groups of the KV cache"
        mine, theirs = _tensors(layers[name]), _tensors(layers[twin])
        if len(mine) != len(theirs):
            return None, f"the caches of {name} and its twin differ in shape"
        for own, other in zip(mine, theirs, strict=True):
            offset, reason = _offset(name, own, other, num_blocks)
            if offset is None:
                return None, reason
            offsets.add(offset)
    if len(offsets) != 1:
        return None, f"the layers' twins are {sorted(offsets)} blocks apart"
    return offsets.pop(), None


def _tensors(layer: Any) -> tuple[torch.Tensor, ...]:
    """A layer's cache: one tensor of keys and values, or one for each part of a state."""
    cache = layer.kv_cache
    return (cache,) if isinstance(cache, torch.Tensor) else tuple(cache)


def _offset(name: str, mine: torch.Tensor, theirs: torch.Tensor, num_blocks: int) -> tuple[int, str] | tuple[None, str]:
    """How many of vLLM's blocks a tensor of a layer's cache lies before its twin's; or None, and why that is no number."""
    if mine.shape != theirs.shape or mine.stride() != theirs.stride():
        return None, f"the caches of {name} and its twin differ in shape"
    if mine.untyped_storage().data_ptr() != theirs.untyped_storage().data_ptr():
        return None, f"the caches of {name} and its twin lie in two buffers"
    kernel_blocks, remainder = divmod(mine.shape[0], num_blocks)
    stride = mine.stride(0) * mine.element_size() * kernel_blocks
    if mine.stride(0) > MAX_BLOCK_STRIDE:
        return None, f"the blocks of {name} are {mine.stride(0)} elements apart"
    if remainder or stride == 0 or (theirs.data_ptr() - mine.data_ptr()) % stride:
        return None, f"the cache of {name} is not a whole number of blocks before its twin's"
    offset = (theirs.data_ptr() - mine.data_ptr()) // stride
    if not 0 < offset <= MAX_BLOCK_ID // kernel_blocks - num_blocks:
        return None, f"the cache of {name} is {offset} blocks before its twin's"
    return offset, ""


def extend_caches(layers: Mapping[str, Any], twins: Mapping[str, str]) -> dict[str, Any]:
    """Let the caches of the teacher's layers reach to the end of their twins'.

    Returns:
        The caches as they were, by the names of the teacher's layers.
    """
    own = {name: layers[name].kv_cache for name in twins}
    for name, twin in twins.items():
        extended = [_extended(*both) for both in zip(_tensors(layers[name]), _tensors(layers[twin]), strict=True)]
        is_one = isinstance(layers[name].kv_cache, torch.Tensor)
        layers[name].kv_cache = extended[0] if is_one else tuple(extended)
    return own


def _extended(mine: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    between = (theirs.data_ptr() - mine.data_ptr()) // (mine.stride(0) * mine.element_size())
    return mine.as_strided((between + mine.shape[0], *mine.shape[1:]), mine.stride(), mine.storage_offset())


@contextmanager
def holding(layers: Mapping[str, Any], caches: Mapping[str, Any]) -> Iterator[None]:
    """Layers hold other caches than their own, by their names."""
    own = {name: layers[name].kv_cache for name in caches}
    for name, cache in caches.items():
        layers[name].kv_cache = cache
    try:
        yield
    finally:
        for name, cache in own.items():
            layers[name].kv_cache = cache

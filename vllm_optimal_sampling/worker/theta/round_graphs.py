"""The CUDA graphs of theta's round: one for each batch size, and for each number of drafts where a schedule has several."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.config.compilation import CUDAGraphMode
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor, CudaGraphManager, prepare_inputs_to_capture
from vllm.v1.worker.gpu.input_batch import InputBuffers
from vllm.v1.worker.gpu.model_states.interface import ModelState
from vllm.v1.worker.utils import AttentionGroup


@dataclass(frozen=True)
class RoundDescriptor(BatchExecutionDescriptor):
    """The shape of a batch, and how many drafts its round makes."""

    num_drafts: int = 0


class RoundGraphs(CudaGraphManager):
    """Captures decodes of one token a request, alone or a whole round of them, and replays them.

    Built as vLLM builds the graphs of its own speculators, on the class that those share with the target's: each capture
    gets dummy inputs and attention metadata of its own, so that the contents of the persistent buffers fit its shape.

    Args:
        vllm_config: the engine's.
        device: of the graphs.
        is_captured: False where graphs are off; every batch then runs eagerly.
        drafts: the numbers of drafts that get graphs of their own, most first; empty where a graph is one decode, or the
            engine always drafts equally many.
    """

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_captured: bool, drafts: list[int]):
        mode = CUDAGraphMode.FULL_DECODE_ONLY if is_captured else CUDAGraphMode.NONE
        super().__init__(vllm_config, device, mode, decode_query_len=1)
        self.has_drafts = bool(is_captured and drafts)
        if self.has_drafts:
            self._capture_descs = {
                mode: [RoundDescriptor(**vars(desc), num_drafts=number) for desc in descs for number in drafts]
                for mode, descs in self._capture_descs.items()  # type: ignore[has-type]
            }

    def for_drafts(self, desc: BatchExecutionDescriptor, num_drafts: int) -> BatchExecutionDescriptor:
        """What to run for a round of `num_drafts`: its own graph, or eagerly where there is none."""
        if not self.has_drafts or desc.cg_mode != CUDAGraphMode.FULL:
            return desc
        own = RoundDescriptor(**vars(desc), num_drafts=num_drafts)
        return own if own in self.graphs else replace(desc, cg_mode=CUDAGraphMode.NONE)

    def capture_round(
        self,
        run: Callable[..., None],
        num_drafts: int,
        model_state: ModelState,
        input_buffers: InputBuffers,
        block_tables: Any,
        attn_groups: list[list[AttentionGroup]],
        kv_cache_config: KVCacheConfig,
    ) -> None:
        """Capture `run` for every batch size.

        Args:
            run: `run(num_reqs, num_tokens, attn_metadata, slot_mappings, num_tokens_across_dp, cg_mode, num_drafts)`.
            num_drafts: of a round where the shape does not say it.
            model_state, input_buffers, block_tables, attn_groups, kv_cache_config: what dummy inputs are made of.
        """

        def create_forward_fn(desc: BatchExecutionDescriptor, warmup: bool) -> Callable[[CUDAGraphMode], None]:
            num_tokens = desc.num_tokens
            num_reqs = desc.num_reqs or min(num_tokens, self.max_num_reqs)
            dp_size = self.vllm_config.parallel_config.data_parallel_size
            num_tokens_across_dp = torch.full((dp_size,), num_tokens, dtype=torch.int32) if dp_size > 1 else None
            attn_metadata, slot_mappings = prepare_inputs_to_capture(
                num_reqs,
                num_tokens,
                model_state,
                input_buffers,
                block_tables,
                attn_groups,
                kv_cache_config,
                full_cudagraph=desc.cg_mode == CUDAGraphMode.FULL,
                max_query_len=desc.max_query_len or desc.uniform_token_count,
            )
            drafts = desc.num_drafts if isinstance(desc, RoundDescriptor) else num_drafts
            return lambda cg_mode: run(
                num_reqs, num_tokens, attn_metadata, slot_mappings, num_tokens_across_dp, cg_mode, drafts
            )

        self.capture(create_forward_fn, "Capturing theta's CUDA graphs")

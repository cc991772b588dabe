"""vLLM's samplers with records: the only place where a drawn token is at hand beside the teacher's row before the mix."""

from __future__ import annotations

from typing import Any

import torch
from vllm.v1.worker.gpu.sample.sampler import Sampler
from vllm.v1.worker.gpu.spec_decode.rejection_sampler import RejectionSampler

from vllm_optimal_sampling.worker.recorder import Recorder
from vllm_optimal_sampling.worker.relaxed_top_p import drawing_with_theta
from vllm_optimal_sampling.worker.verification_memory import chunk_rows_in_float32


class RecordingSampler(Sampler):
    """Records each drawn token of a request that asked for it."""

    recorder: Recorder

    def sample(
        self,
        logits: Any,
        expanded_idx_mapping: Any,
        idx_mapping: Any,
        idx_mapping_np: Any,
        pos: Any,
        input_ids: Any,
        expanded_local_pos: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        with drawing_with_theta():
            sampled, processed_logits = super().sample(
                logits,
                expanded_idx_mapping,
                idx_mapping,
                idx_mapping_np,
                pos,
                input_ids,
                expanded_local_pos,
                *args,
                **kwargs,
            )
        if self.recorder.is_wanted(idx_mapping_np):
            with_top = self.recorder.wants_top(idx_mapping_np)
            self.recorder.write(sampled, logits, expanded_idx_mapping, expanded_local_pos, with_top)
        return sampled, processed_logits


class RecordingRejectionSampler(RejectionSampler):
    """The same where drafts are verified, a chunk of the batch at a time."""

    recorder: Recorder

    def _verify_in_chunks(
        self,
        logits: Any,
        input_batch: Any,
        draft_logits: Any,
        draft_sampled: Any,
        pos: Any,
        max_chunk_logits: int,
        *args: Any,
    ) -> Any:
        rows = min(max_chunk_logits, chunk_rows_in_float32(logits.shape[1]))
        return super()._verify_in_chunks(logits, input_batch, draft_logits, draft_sampled, pos, rows, *args)

    def _verify(
        self,
        logits: Any,
        draft_logits: Any,
        draft_sampled: Any,
        pos: Any,
        cu_num_logits: Any,
        idx_mapping: Any,
        idx_mapping_np: Any,
        expanded_idx_mapping: Any,
        expanded_local_pos: Any,
        *args: Any,
    ) -> Any:
        # A chunk of ours is a quarter of vLLM's, and may begin at any row.
        draft_sampled, pos, idx_mapping, expanded_idx_mapping, expanded_local_pos = map(
            aligned, (draft_sampled, pos, idx_mapping, expanded_idx_mapping, expanded_local_pos)
        )
        rest = [aligned(arg) if isinstance(arg, torch.Tensor) else arg for arg in args]
        with drawing_with_theta():
            processed_logits, sampled, num_sampled = super()._verify(
                logits,
                draft_logits,
                draft_sampled,
                pos,
                cu_num_logits,
                idx_mapping,
                idx_mapping_np,
                expanded_idx_mapping,
                expanded_local_pos,
                *rest,
            )
        if self.recorder.is_wanted(idx_mapping_np):
            with_top = self.recorder.wants_top(idx_mapping_np)
            self.recorder.write_verified(
                sampled, num_sampled, cu_num_logits, logits, expanded_idx_mapping, expanded_local_pos, with_top
            )
        return processed_logits, sampled, num_sampled


def aligned(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor at an address that 16 divides: a copy where its own is none. For others Triton compiles vLLM's kernels anew."""
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


def add_records(sampler: Sampler, rejection_sampler: RejectionSampler | None, recorder: Recorder) -> None:
    """Let the samplers of one engine write records. Their class is changed: vLLM makes them, by name, inside `load_model`."""
    sampler.__class__ = RecordingSampler
    sampler.recorder = recorder
    if rejection_sampler is not None:
        rejection_sampler.__class__ = RecordingRejectionSampler
        rejection_sampler.recorder = recorder

"""What layers that keep a state are told of a forward's rows, beside what attention is told."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from vllm.v1.worker.gpu.model_states.mamba_hybrid import MambaHybridAttnMetadata

from vllm_optimal_sampling.worker.theta.rows import Rows


def accepted_tokens(runner: Any) -> torch.Tensor | None:
    """int32 [max_num_reqs]: how many of the last step's tokens of each request slot were kept; None where nothing drafts.

    A step with drafts leaves a state behind each of its tokens, and the next one goes on from the last that was kept.
    """
    if not runner.vllm_config.num_speculative_tokens:
        return None
    accepted: torch.Tensor | None = getattr(runner.model_state, "num_accepted_tokens_gpu", None)
    return accepted


def state_metadata(
    rows: Rows, is_prefilling: torch.Tensor, slots: torch.Tensor, accepted: torch.Tensor
) -> MambaHybridAttnMetadata:
    """Which state each row goes on from; as vLLM's `MambaHybridModelState.prepare_attn` tells the teacher's.

    Args:
        rows: of the forward. Those of both models kept the same drafts.
        is_prefilling: bool [rows, with padding], on the host: which are prompt chunks.
        slots: int64 [rows], on the device.
        accepted: see `accepted_tokens`.
    """
    num_reqs, num_reqs_padded = len(rows), len(is_prefilling)
    kept = accepted.new_ones(num_reqs_padded)
    kept[:num_reqs] = accepted[slots]
    drafts = np.full(num_reqs_padded, -1, dtype=np.int32)  # -1: a prompt chunk, or padding
    drafts[:num_reqs] = np.where(rows.is_chunk, -1, rows.lengths - 1)
    return MambaHybridAttnMetadata(is_prefilling, kept, torch.from_numpy(drafts))

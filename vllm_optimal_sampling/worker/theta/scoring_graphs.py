"""CUDA graphs of steps in which theta scores: of whole forwards, one for each size of a decode batch."""

from __future__ import annotations

from typing import Any

import torch
from vllm.v1.worker.gpu.cudagraph_utils import CudaGraphManager


class ScoringGraphs(CudaGraphManager):
    """CUDA graphs of whole forwards, and what they put out. Written after vLLM's `ModelCudaGraphManager`."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.kept: list[torch.Tensor] | None = None
        self.is_tuple = False

    def keep(self, output: Any, num_tokens: int) -> None:
        """Copy a forward's output, hidden states with or without those of inner layers, to where replays leave it."""
        self.is_tuple = isinstance(output, tuple)
        tensors = [output[0], *output[1]] if self.is_tuple else [output]
        if self.kept is None:  # by the first capture, of the largest size
            self.kept = [torch.empty_like(tensor) for tensor in tensors]
        for mine, tensor in zip(self.kept, tensors, strict=True):
            mine[:num_tokens] = tensor

    def output(self, num_tokens: int) -> Any:
        """What the last replay put out, as the model would have returned it."""
        assert self.kept is not None
        hidden, *inner = (tensor[:num_tokens] for tensor in self.kept)
        return (hidden, inner) if self.is_tuple else hidden

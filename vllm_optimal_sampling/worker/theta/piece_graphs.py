"""CUDA graphs of a model's pieces, for the passes of theta that no graph of a whole forward fits: those with prompt chunks.

vLLM compiles a model in pieces, cut at its attention layers, and captures each of them for some numbers of tokens. Attention
runs between them as without graphs, so they serve any requests whose tokens they can hold. Two things are to be observed:

- A replay reads its inputs where they lay when the graph was captured (`PieceGraphs.holding`).
- What it puts out lies in memory that all of vLLM's graphs share, until any of them is replayed. The teacher's hidden states
  may lie there while theta is about to replay some (`outputs_out_of_graphs`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from vllm.compilation.breakable_cudagraph import is_breakable_cudagraph_enabled
from vllm.config import VllmConfig
from vllm.config.compilation import CUDAGraphMode
from vllm.logger import init_logger
from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor, CudaGraphManager, has_compiled_submodule
from vllm.v1.worker.gpu.input_batch import InputBuffers

from vllm_optimal_sampling.config.graph_sizes import prompt_sizes
from vllm_optimal_sampling.worker.verification_memory import GIB

logger = init_logger(__name__)


class PieceGraphs:
    """The graphs of a model's pieces, as theta's passes use them.

    Args:
        find_manager: gives vLLM's manager of the graphs, which knows the sizes that were captured.
        inputs: what the graphs read.
        is_own: whether they are theta's; else they are the teacher's, captured with its inputs.
    """

    def __init__(self, find_manager: Callable[[], CudaGraphManager], inputs: InputBuffers, is_own: bool):
        self._find_manager = find_manager
        self.inputs = inputs
        self.is_own = is_own

    @classmethod
    def of_theta(cls, vllm_config: VllmConfig, device: torch.device, inputs: InputBuffers) -> PieceGraphs:
        """Graphs of a model of theta's own, still to be captured; of few sizes, since each takes time and memory."""
        config = copy.copy(vllm_config)
        config.compilation_config = copy.copy(vllm_config.compilation_config)
        config.compilation_config.cudagraph_capture_sizes = prompt_sizes(
            vllm_config.compilation_config.cudagraph_capture_sizes or []
        )
        manager = CudaGraphManager(config, device, CUDAGraphMode.PIECEWISE, decode_query_len=1)
        return cls(lambda: manager, inputs, is_own=True)

    @classmethod
    def of_teacher(cls, runner: Any) -> PieceGraphs:
        """The teacher's, where theta is the teacher itself. vLLM captures them."""
        return cls(lambda: runner.cudagraph_manager, runner.input_buffers, is_own=False)

    def dispatch(self, num_reqs: int, num_tokens: int, num_active_loras: int) -> BatchExecutionDescriptor | None:
        """What to replay for so many tokens; None where nothing that was captured holds them."""
        desc = self._find_manager().dispatch(num_reqs, num_tokens, None, num_active_loras)
        return desc if desc.cg_mode == CUDAGraphMode.PIECEWISE else None

    def capture(self, create_forward_fn: Callable[..., Callable[[CUDAGraphMode], None]]) -> None:
        """Capture the graphs, where they are theta's own.

        Args:
            create_forward_fn: as vLLM's `CudaGraphManager.capture` takes it.
        """
        manager = self._find_manager()
        if not self.is_own or not manager.needs_capture():
            return
        free = _free_bytes(manager.device)
        manager.capture(create_forward_fn, "Capturing CUDA graphs of theta's prompt passes")
        logger.info(
            "CUDA graphs of theta's prompt passes for %s tokens take %.2f GiB",
            manager.compilation_config.cudagraph_capture_sizes,
            (free - _free_bytes(manager.device)) / GIB,
        )

    @contextmanager
    def holding(self, buffers: InputBuffers, num_tokens: int, num_tokens_padded: int) -> Iterator[None]:
        """The graphs' inputs are those of a pass; after it they are what they were.

        The teacher's hold the step's tokens, and the sampler still reads them.

        Args:
            buffers: of the pass, with `num_tokens_padded` tokens.
            num_tokens: without the padding.
        """
        buffers.is_padding[:num_tokens] = False
        buffers.is_padding[num_tokens:num_tokens_padded] = True
        if self.is_own:
            yield
            return
        pairs = [
            (getattr(self.inputs, name)[:num_tokens_padded], getattr(buffers, name)[:num_tokens_padded])
            for name in ("input_ids", "positions", "is_padding")
        ]
        kept = [theirs.clone() for theirs, _ in pairs]
        for theirs, mine in pairs:
            theirs.copy_(mine)
        try:
            yield
        finally:
            for (theirs, _), before in zip(pairs, kept, strict=True):
                theirs.copy_(before)


def has_pieces(model: nn.Module, cudagraph_mode: CUDAGraphMode) -> bool:
    """Whether vLLM has a model's pieces captured by their numbers of tokens.

    Args:
        model: loaded.
        cudagraph_mode: the teacher's, as vLLM resolved it.
    """
    return (
        cudagraph_mode.has_piecewise_cudagraphs()
        and has_compiled_submodule(model)
        and not is_breakable_cudagraph_enabled()
    )


def outputs_out_of_graphs(state: Any, graphs: Any) -> Any:
    """vLLM's state between a step's forward and its sampling, with outputs that no replay of a graph overwrites.

    Args:
        state: an `ExecuteModelState`.
        graphs: the model runner's `ModelCudaGraphManager`; None while it has none.

    Returns:
        The same where they lie elsewhere: after a graph of the whole forward, or after more tokens than any graph holds.
    """
    hidden = state.hidden_states
    if graphs is None or hidden is None or not graphs.cudagraph_mode.has_piecewise_cudagraphs():
        return state
    of_whole_forwards = graphs.hidden_states is not None and graphs.hidden_states.data_ptr() == hidden.data_ptr()
    if of_whole_forwards or hidden.shape[0] > graphs.compilation_config.max_cudagraph_capture_size:
        return state
    inner = state.aux_hidden_states
    return state._replace(
        hidden_states=hidden.clone(),
        aux_hidden_states=None if inner is None else [tensor.clone() for tensor in inner],
    )


def _free_bytes(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0

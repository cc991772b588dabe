"""CUDA graphs of pieces on a machine that has none: what a model's pieces read and write in their place.

vLLM's own managers choose the sizes and run the captures; only the wrappers of compiled pieces are stood in for
(`ModelInPieces`), as they behave on a GPU:

- a shape is captured in the capture phase or never;
- a replay reads its inputs, and the mask of padding, where they lay at the capture, whatever it is called with;
- every output lies in one memory, which the next forward overwrites.
"""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from vllm import LLM
from vllm.config.compilation import CUDAGraphMode
from vllm.forward_context import BatchDescriptor, get_forward_context
from vllm.platforms import current_platform
from vllm.v1.worker.gpu import cudagraph_utils
from vllm.v1.worker.gpu.cudagraph_utils import ModelCudaGraphManager

from support.engines import find_runner
from vllm_optimal_sampling.config.settings import KEY
from vllm_optimal_sampling.worker.theta import piece_graphs
from vllm_optimal_sampling.worker.theta.one_model import OneModelScorer
from vllm_optimal_sampling.worker.theta.scorer import ThetaScorer

SIZES = [8, 48, 128, 320, 512]


class GraphMemory:
    """What the graphs of all models put out, one over the other."""

    def __init__(self, size: int, like: torch.Tensor):
        self.memory = like.new_full((size,), float("nan"))

    def put(self, output: torch.Tensor) -> torch.Tensor:
        assert output.numel() <= self.memory.numel()
        self.memory.fill_(float("nan"))
        return self.memory[: output.numel()].view_as(output).copy_(output)


class ModelInPieces:
    """A model whose pieces are wrapped as vLLM wraps them."""

    def __init__(self, model: Any, memory: GraphMemory):
        self.model, self.memory = model, memory
        self.captured: dict[BatchDescriptor, tuple[dict[str, Any], torch.Tensor]] = {}
        self.is_capturing = True
        self.replays: Counter[int] = Counter()

    def __call__(self, **inputs: Any) -> torch.Tensor:
        context = get_forward_context()
        if context.cudagraph_runtime_mode == CUDAGraphMode.PIECEWISE:
            descriptor = context.batch_descriptor
            inputs = {name: tensor for name, tensor in inputs.items() if tensor is not None}
            if descriptor not in self.captured:
                assert self.is_capturing, f"{descriptor} was not captured"
                self.captured[descriptor] = inputs, context.is_padding
            elif not self.is_capturing:
                self.replays[descriptor.num_tokens] += 1
                inputs, is_padding = self.captured[descriptor]
                assert len(inputs["input_ids"]) == descriptor.num_tokens
                real = next(iter(context.attn_metadata.values())).num_actual_tokens
                assert not is_padding[:real].any() and is_padding[real:].all()
        return self.memory.put(self.model(**inputs))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)


def run_in_pieces(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> tuple[ModelInPieces, ModelInPieces]:
    """Capture the pieces of teacher and theta, in an engine in this process, and let its steps replay them.

    Returns:
        The teacher's and theta's, one for both where they are one model.
    """
    runner = find_runner(llm)
    theta, config = runner.theta, runner.vllm_config
    one_model = isinstance(theta, OneModelScorer)
    passes = theta.scoring if isinstance(theta, ThetaScorer) else theta.prompt_pass
    monkeypatch.setenv("VLLM_MOE_SKIP_PADDING", "1")
    monkeypatch.setattr(cudagraph_utils, "graph_capture", lambda device: nullcontext())
    monkeypatch.setattr(type(current_platform), "_global_graph_pool", (0, 0))
    monkeypatch.setattr(cudagraph_utils, "has_compiled_submodule", lambda model: True)
    monkeypatch.setattr(piece_graphs, "has_compiled_submodule", lambda model: True)
    compilation = config.compilation_config
    sizes = [size for size in SIZES if size <= config.scheduler_config.max_num_batched_tokens]
    monkeypatch.setattr(compilation, "cudagraph_capture_sizes", sizes)
    monkeypatch.setattr(compilation, "max_cudagraph_capture_size", sizes[-1])
    # As where a model is compiled: attention and what writes the cache are between the pieces.
    monkeypatch.setattr(compilation, "splitting_ops", None)

    memory = GraphMemory(1 << 18, next(runner.model.parameters()))
    teacher = ModelInPieces(runner.model, memory)
    mine = teacher if one_model else ModelInPieces(theta.model, memory)
    monkeypatch.setattr(runner, "model", teacher)
    if not one_model:
        monkeypatch.setattr(theta, "model", mine)
    graphs = ModelCudaGraphManager(
        config, runner.device, CUDAGraphMode.PIECEWISE, decode_query_len=runner.decode_query_len
    )
    monkeypatch.setattr(runner, "cudagraph_manager", graphs)
    assert passes.pieces is None  # without graphs there are none
    monkeypatch.setattr(passes, "graphs", None)
    monkeypatch.setattr(passes, "pieces", None)
    monkeypatch.setitem(passes.vllm_config.additional_config[KEY], "theta_prompt_graphs", True)
    passes.init_pieces(mine, graphs.cudagraph_mode, runner if one_model else None)
    assert passes.pieces is not None and passes.has_graphs
    graphs.capture(
        teacher,
        runner.model_state,
        runner.input_buffers,
        runner.intermediate_tensors,
        runner.block_tables,
        runner.attn_groups,
        runner.kv_cache_config,
    )
    already = dict(mine.captured)
    passes.capture(mine, None)
    assert mine.captured == already or not one_model
    for model in (teacher, mine):
        assert model.captured
        model.is_capturing = False
    return teacher, mine

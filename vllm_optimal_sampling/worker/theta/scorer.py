"""Theta that scores: its rows of a step from the step's own tokens, before sampling, whatever drafted them.

A step computes, for every request that is sampled from q*, theta's logits after each token that the teacher's logits are
wanted after. What theta reads is known by then: its part of the prompt chunks, the newest tokens, the drafts. So it takes
no draft model and no round after sampling, and the step's own rows are verified against q*.

`ThetaScorer` has what every such theta shares. `TwoModelsScorer` runs a model of its own after the teacher's forward;
`OneModelScorer` (in `one_model`) is the teacher itself, and takes most steps in one forward with it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from vllm.config import ModelConfig, VllmConfig, get_layers_from_vllm_config
from vllm.config import replace as replace_config
from vllm.logger import init_logger
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.states import RequestState
from vllm.v1.worker.utils import clear_layer_kv_caches

from vllm_optimal_sampling.config.refusals import no_adapter
from vllm_optimal_sampling.config.state_layers import layout_block_size
from vllm_optimal_sampling.config.theta import theta_model_config
from vllm_optimal_sampling.kernels import MixRecord, MixScratch
from vllm_optimal_sampling.worker.recorder import Recorder
from vllm_optimal_sampling.worker.theta.block_tables import widen_kernel_block_tables
from vllm_optimal_sampling.worker.theta.loading import load_theta, reload_theta, weight_bytes
from vllm_optimal_sampling.worker.theta.requests import ThetaRequests
from vllm_optimal_sampling.worker.theta.rows import Rows, chunk_rows, decode_rows, passes
from vllm_optimal_sampling.worker.theta.scoring_pass import ScoringPass
from vllm_optimal_sampling.worker.theta.states import accepted_tokens
from vllm_optimal_sampling.worker.theta.vocabulary import ThetaVocabulary
from vllm_optimal_sampling.worker.verification_memory import GIB, RowMemory, chunk_rows_in_float32

logger = init_logger(__name__)


@dataclass
class ScorerSteps:
    """What a worker's theta has done so far; for tests, benchmarks and the log."""

    fused: int = 0
    """Steps in which teacher and theta were one forward."""
    apart: int = 0
    """Steps in which theta took forwards of its own."""
    without: int = 0
    """Steps in which no request was sampled from q*."""


class ThetaScorer(ABC):
    """Theta beside the teacher in a worker, as the model runner's hooks, the processor and the recorder see it.

    The rows are `rows` [max_num_reqs, K + 1, vocab of the teacher], before temperature, in the dtype of the model's head:
    row j of a request slot is theta's distribution after j drafts.
    """

    def __init__(self, vllm_config: VllmConfig, device: torch.device, req_states: RequestState):
        self.vllm_config = vllm_config
        self.device = device
        self.req_states = req_states
        self.model_config: ModelConfig = theta_model_config(vllm_config)
        self.max_num_reqs = vllm_config.scheduler_config.max_num_seqs
        self.max_num_tokens = vllm_config.scheduler_config.max_num_batched_tokens
        self.num_speculative_steps = vllm_config.num_speculative_tokens
        self.requests = ThetaRequests(req_states)
        teacher_vocab_size = vllm_config.model_config.get_vocab_size()
        self.vocabulary = ThetaVocabulary(vllm_config, device)
        num_rows = self.num_speculative_steps + 1
        self.rows = torch.full(
            (self.max_num_reqs, num_rows, teacher_vocab_size),
            float("-inf"),
            dtype=vllm_config.model_config.head_dtype,
            device=device,
        )
        # Here and not in `load`: what is made inside the loading of the weights, sleep mode gives away.
        self.record = MixRecord.allocate(self.max_num_reqs, num_rows, device)
        self.scratch = MixScratch.allocate(self.max_num_reqs * num_rows, teacher_vocab_size, device)
        self.recorder = Recorder(self.rows, self.requests.settings.first_position, self.record)
        self.scoring = ScoringPass(
            vllm_config,
            self.rows_per_request * self.max_num_reqs,
            req_states,
            self.requests,
            self.model_config,
            self.vocabulary.ids,
        )
        self.steps = ScorerSteps()
        self._wanted: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        """Of this step: theta's hidden states, and the slot and the number of drafts that each is of, on the device."""

    rows_per_request = 1
    """Rows that one request may have in one of theta's forwards."""

    # Set-up

    @abstractmethod
    def load(self, runner: Any) -> None:
        """Make theta ready, once the teacher's weights are loaded and before vLLM asks the layers for their caches."""

    def set_attn(self, runner: Any) -> None:
        """Take over the cache as the model runner has laid it out."""
        config = runner.kv_cache_config
        self.requests.block_size = layout_block_size(self.vllm_config, config)
        widen_kernel_block_tables(runner.attn_groups, runner.block_tables)
        self.scoring.set_attn(config, runner.block_tables, *self.cache_of_layers(runner), accepted_tokens(runner))
        self.scoring.init_graphs(runner.cudagraph_manager.cudagraph_mode, self.lora_capture_cases(runner))
        self.init_pieces(runner)

    @abstractmethod
    def init_pieces(self, runner: Any) -> None:
        """Use graphs of the model's pieces (`ScoringPass.init_pieces`)."""

    @abstractmethod
    def cache_of_layers(self, runner: Any) -> tuple[dict[str, str], int]:
        """Whose cache the layers that run hold theta's keys and values in, and how far it is moved (`ScoringPass.set_attn`)."""

    def lora_capture_cases(self, runner: Any) -> list[int]:
        """Numbers of adapters that a forward of decodes may hold."""
        return [0]

    def unextended_caches(self) -> AbstractContextManager[None]:
        """While vLLM reads off the teacher's layers where each block of their caches lies."""
        return nullcontext()

    @abstractmethod
    def release(self) -> None:
        """Let go of theta's cache, at the engine's end."""

    @contextmanager
    def capturing(self, runner: Any) -> Iterator[None]:
        """While the model runner captures its CUDA graphs: theta's are captured behind them, before workspaces lock."""
        graphs = runner.cudagraph_manager
        runner.cudagraph_manager = _CapturingGraphs(self, runner, graphs)
        try:
            yield
        finally:
            runner.cudagraph_manager = graphs

    @abstractmethod
    def capture(self, runner: Any) -> None:
        """Capture theta's CUDA graphs."""

    @property
    def row_memory(self) -> RowMemory:
        """What the rows of both models take, for the log."""
        return RowMemory(self.max_num_reqs, self.num_speculative_steps, self.rows.shape[-1], self.rows.element_size())

    def profile(self) -> None:
        """Take the memory that sampling with theta takes at most beyond the teacher's own, for vLLM's memory profile."""
        # vLLM profiles one row a request. A step verifies K + 1 of both models: all in the head's dtype, a chunk in float32.
        vocab_size = self.rows.shape[-1]
        num_rows = 2 * min(self.max_num_reqs * (self.num_speculative_steps + 1), self.max_num_tokens)
        rows = self.rows.new_empty(num_rows, vocab_size)
        chunk = rows.new_empty(min(num_rows, chunk_rows_in_float32(vocab_size)), vocab_size, dtype=torch.float32)
        del rows, chunk

    # A step

    def begin_step(self, batch: InputBatch) -> None:
        """Look at the step that the model runner is about to run. `batch` is vLLM's, its inputs laid out."""
        self._wanted.clear()

    @property
    def runs_fused(self) -> bool:
        """Whether the step that is being executed is one forward for both models."""
        return False

    def replays_before_sampling(self, batch: InputBatch) -> bool:
        """Whether theta's part of an executed step may replay CUDA graphs while the teacher's output is still to be read."""
        return self.scoring.has_graphs and not self.runs_fused and len(self._sampled(batch)) > 0

    def replaces_attention(self, runner: Any) -> bool:
        """Whether nothing reads the attention metadata of the teacher's rows alone in the step being executed."""
        return False

    def loras_of_step(self, runner: Any, tokens: tuple[int, ...]) -> tuple[Any, Any, Any]:
        """The adapters of a step that is one forward for both models; see `OneModelScorer`."""
        raise NotImplementedError("this theta takes a forward of its own in every step")

    @contextmanager
    def standing_in(self, runner: Any) -> Iterator[None]:
        """While the model runner executes a step: whatever of it theta takes over."""
        yield

    @contextmanager
    def computing_logits(self, runner: Any, batch: InputBatch) -> Iterator[None]:
        """Around the model runner's sampling: theta's rows of the step are in their place when they are read."""
        self._run_apart(runner, batch)
        for hidden_states, slots, drafts in self._wanted:
            self._keep(self._compute_logits(hidden_states), slots, drafts)
        yield

    def _sampled(self, batch: InputBatch) -> np.ndarray:
        """int64: the rows of the batch that are sampled from q*."""
        return np.flatnonzero(self.requests.is_enabled[batch.idx_mapping_np])

    def _run_apart(self, runner: Any, batch: InputBatch) -> None:
        """Theta's part of the step in forwards of its own: of running requests, and of prompt chunks."""
        sampled = self._sampled(batch)
        if not len(sampled):
            self.steps.without += 1
            return
        self.steps.apart += 1
        prompts = sampled[batch.is_prefilling_np[sampled]]
        decodes = decode_rows(self.requests, batch, sampled[~batch.is_prefilling_np[sampled]])
        for rows in passes(decodes, chunk_rows(self.requests, batch, prompts), self.max_num_tokens):
            output = self._forward_apart(runner, rows, batch)
            self._want(hidden_states_of(output), rows, 0)

    def _want(self, hidden_states: torch.Tensor, rows: Rows, first_row: int) -> None:
        """Ask for theta's logits after the tokens that the teacher's are wanted after.

        Args:
            hidden_states: [tokens, hidden size] of all `rows`.
            rows: what was computed.
            first_row: of theta's.
        """
        theirs = slice(first_row, None)
        counts = np.where(rows.is_chunk[theirs], 1, rows.lengths[theirs]) * rows.finished[theirs]
        total = int(counts.sum())
        if not total:
            return
        drafts = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)
        tokens = np.repeat(np.cumsum(rows.lengths)[theirs] - counts, counts) + drafts
        where = np.stack((tokens, np.repeat(rows.slots[theirs], counts), drafts))
        index, slots, positions = async_tensor_h2d(where, device=self.device)  # one copy for the three of them
        self._wanted.append((hidden_states[index], slots, positions))

    def _keep(self, logits: torch.Tensor, slots: torch.Tensor, drafts: torch.Tensor) -> None:
        """Put theta's logits [n, at least theta's vocabulary] where the mix reads them."""
        rows = self.rows[:, :, : self.vocabulary.width]
        rows[slots, drafts] = self.vocabulary.rows(logits).to(rows.dtype)

    def update_adapter(self, runner: Any, path: str) -> None:
        """Make another adapter theta, between steps. Cached blocks of the old one must not be reused.

        Raises:
            ValueError: theta has no adapter, or this one cannot be loaded; the old one stays.

        """
        self.check_adapter()

    def check_adapter(self) -> None:
        """Raise ValueError where theta has no adapter that another could replace."""
        raise no_adapter()

    @abstractmethod
    def reload_weights(self, *args: Any, **kwargs: Any) -> None:
        """New weights for theta, as vLLM reloads a target: from a path, an iterator, or where they came from."""

    @abstractmethod
    def check_own_weights(self) -> None:
        """Raise ValueError where new weights for theta would be new weights for the teacher."""

    @abstractmethod
    def _forward_apart(self, runner: Any, rows: Rows, batch: InputBatch) -> Any:
        """The output of theta's model for rows of theta alone."""

    @abstractmethod
    def _compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Theta's logits [n, vocab]."""


class TwoModelsScorer(ThetaScorer):
    """Theta is a model of its own: its forward follows the teacher's."""

    model: nn.Module

    def load(self, runner: Any) -> None:
        teachers = set(self._layers())
        config = replace_config(self.vllm_config, model_config=self.model_config, quant_config=None)
        self._theta_config = config
        self.model = load_theta(config, prefix="theta")
        self.scoring.inputs.check(self.model)
        self.layer_names = {name: name for name in set(self._layers()) - teachers}
        weights = weight_bytes(self.model)
        runner.model_memory_usage += weights
        logger.info(
            "Theta %s scores: it takes %.2f GiB of weights, and with the teacher %s; its KV cache lies in the teacher's blocks",
            self.model_config.model,
            weights / GIB,
            self.row_memory,
        )

    def _layers(self) -> dict[str, Any]:
        return get_layers_from_vllm_config(self.vllm_config, AttentionLayerBase)

    def init_pieces(self, runner: Any) -> None:
        self.scoring.init_pieces(self.model, runner.cudagraph_manager.cudagraph_mode)

    def cache_of_layers(self, runner: Any) -> tuple[dict[str, str], int]:
        return self.layer_names, 0

    def capture(self, runner: Any) -> None:
        self.scoring.capture(self.model, None)

    def profile(self) -> None:
        self.scoring.profile(self.model)
        super().profile()

    def release(self) -> None:
        clear_layer_kv_caches(self.model.modules())

    def reload_weights(self, *args: Any, **kwargs: Any) -> None:
        reload_theta(self._theta_config, self.model, *args, **kwargs)

    def check_own_weights(self) -> None:
        pass

    def _forward_apart(self, runner: Any, rows: Rows, batch: InputBatch) -> Any:
        return self.scoring.run(self.model, rows, batch)

    def _compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.model.compute_logits(hidden_states)


class _CapturingGraphs:
    """Stands for the runner's CUDA graphs while they are captured."""

    def __init__(self, theta: ThetaScorer, runner: Any, graphs: Any):
        self.theta, self.runner, self.graphs = theta, runner, graphs

    def capture(self, *args: Any, **kwargs: Any) -> None:
        self.graphs.capture(*args, **kwargs)
        self.theta.capture(self.runner)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.graphs, name)


def hidden_states_of(output: Any) -> torch.Tensor:
    """Without those of inner layers, which a drafter may want of the teacher."""
    return output[0] if isinstance(output, tuple) else output

"""Theta is the teacher itself: one model, two prompts, and for a step of decodes one forward for both.

A step without prompt chunks is one forward of twice the rows through the teacher's modules: those of the teacher, and
behind them those of theta, whose cache lies OFFSET blocks further on (see `twin_layers`). The head runs once over both
as well. In steps with prompt chunks theta's part is a forward of its own, through the same modules.

A LoRA adapter may make the student of the teacher: theta's rows then go through it, by vLLM's mapping of a batch's tokens
to adapters, and the teacher's do not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from vllm.config import VllmConfig
from vllm.logger import init_logger
from vllm.lora.request import LoRARequest
from vllm.platforms import current_platform
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.lora_utils import create_lora_capture_hook, get_lora_capture_cases
from vllm.v1.worker.gpu.spec_decode.speculator import DraftModelSpeculator
from vllm.v1.worker.gpu.states import RequestState
from vllm.v1.worker.utils import clear_layer_kv_caches

from vllm_optimal_sampling.config.errors import UnsupportedEngineError, first_line
from vllm_optimal_sampling.config.theta import theta_lora
from vllm_optimal_sampling.worker.theta.adapter_fit import check_fit
from vllm_optimal_sampling.worker.theta.rows import Rows, decode_rows, joined
from vllm_optimal_sampling.worker.theta.scorer import ThetaScorer, hidden_states_of
from vllm_optimal_sampling.worker.theta.twin_layers import add_twin_layers, block_offset, extend_caches, holding

logger = init_logger(__name__)

THETA_LORA_ID = 2**31 - 1
"""vLLM's number of theta's adapter; its front ends count those of requests from 1."""


class OneModelScorer(ThetaScorer):
    """Theta through the teacher's modules."""

    rows_per_request = 2

    def __init__(self, vllm_config: VllmConfig, device: torch.device, req_states: RequestState):
        super().__init__(vllm_config, device, req_states)
        adapter = theta_lora(vllm_config)
        self.adapter = None if adapter is None else LoRARequest("theta", THETA_LORA_ID, adapter)
        self.offset: int | None = None
        self._batch: InputBatch | None = None
        self._fused: Rows | None = None
        self._unextended: dict[str, Any] = {}

    # Set-up

    def load(self, runner: Any) -> None:
        self.scoring.inputs.check(runner.model)
        self._lora_ids: np.ndarray = runner.lora_state.lora_ids
        self.layers = self.vllm_config.compilation_config.static_forward_context
        self.twins = add_twin_layers(self.vllm_config, getattr(runner.speculator, "draft_attn_layer_names", set()))
        if self.adapter is not None:
            try:
                self._load_adapter(runner, self.adapter)
            except ValueError as error:  # before anything runs
                raise UnsupportedEngineError(f"optimal sampling cannot start: {error}") from error
        logger.info(
            "Theta is the teacher itself%s: it takes no weights of its own, and with the teacher %s; its KV cache lies in the "
            "teacher's blocks",
            "" if self.adapter is None else f" with the adapter {self.adapter.lora_path}",
            self.row_memory,
        )

    def _load_adapter(self, runner: Any, adapter: LoRARequest) -> None:
        """Load theta's adapter; ValueError where it does not fit."""
        try:
            runner.add_lora(adapter)
            check_fit(runner.lora_manager._adapter_manager, THETA_LORA_ID)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # every kind of adapter has errors of its own
            raise ValueError(
                f"theta_lora={adapter.lora_path!r} cannot be loaded ({first_line(error)}); give a LoRA adapter of this "
                "teacher, in the format of PEFT and of no higher rank than --max-lora-rank"
            ) from error

    def update_adapter(self, runner: Any, path: str) -> None:
        self.check_adapter()
        assert self.adapter is not None
        try:
            self._load_adapter(runner, LoRARequest("theta", THETA_LORA_ID, path, load_inplace=True))
        except ValueError as refused:
            last = self.adapter.lora_path
            try:
                runner.add_lora(LoRARequest("theta", THETA_LORA_ID, last, load_inplace=True))
            except Exception as error:  # what was there may be gone
                raise RuntimeError(
                    f"{refused}; nor can theta's last one, {last!r}, be read again ({first_line(error)})"
                ) from error
            raise
        self.adapter = LoRARequest("theta", THETA_LORA_ID, path)

    def check_adapter(self) -> None:
        if self.adapter is None:
            super().check_adapter()

    def cache_of_layers(self, runner: Any) -> tuple[dict[str, str], int]:
        self.offset, reason = block_offset(self.layers, self.twins, runner.kv_cache_config)
        if self.offset is None:
            logger.warning("Theta takes a forward of its own in every step: %s.", reason)
            return self.twins, 0
        self._unextended = extend_caches(self.layers, self.twins)
        return {name: name for name in self.twins}, self.offset

    def _twins_caches(self) -> dict[str, Any]:
        return {name: self.layers[twin].kv_cache for name, twin in self.twins.items()}

    def unextended_caches(self) -> AbstractContextManager[None]:
        return holding(self.layers, self._unextended)

    def init_pieces(self, runner: Any) -> None:
        self.scoring.init_pieces(runner.model, runner.cudagraph_manager.cudagraph_mode, runner)

    def lora_capture_cases(self, runner: Any) -> list[int]:
        cases = get_lora_capture_cases(runner.lora_config, runner.compilation_config)
        return cases if self.adapter is None else [case for case in cases if case > 0]

    def capture(self, runner: Any) -> None:
        if self.offset is not None:
            self.scoring.capture(runner.model, create_lora_capture_hook(runner.lora_config, runner))

    @contextmanager
    def capturing(self, runner: Any) -> Iterator[None]:
        with super().capturing(runner):
            yield
        if self.adapter is not None:  # vLLM captures with adapters of its own, and then lets go of all
            runner.add_lora(self.adapter)

    def reload_weights(self, *args: Any, **kwargs: Any) -> None:
        self.check_own_weights()

    def check_own_weights(self) -> None:
        raise ValueError(
            "theta has no weights of its own here, it is the teacher; update the teacher, or theta's adapter (theta_lora), or "
            "start the engine with a copy of theta under another path"
        )

    # A step

    def begin_step(self, batch: InputBatch) -> None:
        super().begin_step(batch)
        self._batch = batch
        self._fused = self._fused_rows(batch)

    def _fused_rows(self, batch: InputBatch) -> Rows | None:
        """The rows of one forward for both; None where theta takes one of its own, or none."""
        sampled = self._sampled(batch)
        if self.offset is None or batch.has_prefill or not len(sampled):
            return None
        theirs = decode_rows(self.requests, batch, sampled)
        if batch.num_tokens + theirs.num_tokens > self.max_num_tokens or not self._fits_lora_buffers(batch):
            return None
        return joined(decode_rows(self.requests, batch, np.arange(batch.num_reqs), of_teacher=True), theirs)

    @contextmanager
    def standing_in(self, runner: Any) -> Iterator[None]:
        """The runner's model, and its CUDA graphs, run theta's rows along in the steps that `begin_step` chose."""
        self._fused = None  # of a step of vLLM's own, a dummy, nothing is known
        model, graphs, state = runner.model, runner.cudagraph_manager, runner.model_state
        runner.model = _Model(self, runner, model)
        runner.cudagraph_manager = _Graphs(self, runner, graphs, model)
        runner.model_state = _ModelState(self, runner, state)
        try:
            yield
        finally:
            runner.model, runner.cudagraph_manager, runner.model_state = model, graphs, state

    def forward_fused(self, runner: Any, model: Any) -> Any:
        """The teacher's output of the step, from one forward with theta's."""
        rows, batch = self._fused, self._batch
        assert rows is not None and batch is not None
        # Of requests that follow images, in a model with M-RoPE; `prepare_inputs` has laid them out.
        rope = runner.model_state.rope_state
        positions = None if rope is None else rope.get_positions(batch.num_tokens)
        output = self.scoring.run(model, rows, batch, self._num_active_loras(runner, batch), positions)
        self._want(hidden_states_of(output), rows, rows.num_teacher_rows)
        self.steps.fused += 1
        # Padded as vLLM expects it; what is in the padding is never read.
        num_tokens = batch.num_tokens_after_padding
        if isinstance(output, tuple):
            return _cut(output[0], num_tokens), [_cut(inner, num_tokens) for inner in output[1]]
        return _cut(output, num_tokens)

    @property
    def runs_fused(self) -> bool:
        return self._fused is not None

    def replaces_attention(self, runner: Any) -> bool:
        # A drafter with layers of its own goes by the teacher's metadata.
        return self.runs_fused and not isinstance(runner.speculator, DraftModelSpeculator)

    def _forward_apart(self, runner: Any, rows: Rows, batch: InputBatch) -> Any:
        if self.lora_config is not None:  # vLLM has set those of the teacher's tokens
            tokens = self._thetas(rows.num_tokens)
            runner.set_loras_of_rows(tokens[: len(rows)], tokens, set() if self.adapter is None else {self.adapter})
        with nullcontext() if self.offset is not None else holding(self.layers, self._twins_caches()):
            return self.scoring.run(runner.model, rows, batch, 0 if self.adapter is None else 1)

    @contextmanager
    def computing_logits(self, runner: Any, batch: InputBatch) -> Iterator[None]:
        apart = not self.runs_fused
        if apart:
            self._run_apart(runner, batch)
        self._fused = None
        with self._loras_for_logits(runner, batch) if apart else nullcontext(), self._head_of_both(runner):
            yield

    @contextmanager
    def _loras_for_logits(self, runner: Any, batch: InputBatch) -> Iterator[None]:
        """The adapters of the head's rows, after forwards of theta's own; then the step's again, as vLLM had set them."""
        if self.lora_config is None or not len(self._sampled(batch)):
            yield
            return
        # Also where none of theta's rows is wanted, in the middle of a prompt: those of the teacher still are.
        rows = self._loras_of_logits(batch, sum(len(slots) for _, slots, _ in self._wanted))
        runner.set_loras_of_rows(rows, rows, self._adapters(runner, batch))
        yield
        # Logits of prompts may still be wanted.
        inputs = runner.lora_state.make_lora_inputs(batch.req_ids, batch.idx_mapping_np, batch.num_scheduled_tokens)
        runner.set_loras_of_rows(*inputs)

    @contextmanager
    def _head_of_both(self, runner: Any) -> Iterator[None]:
        """The runner's head computes theta's wanted logits too."""
        if not self._wanted:
            yield
            return
        hidden_states, slots, drafts = (torch.cat(parts) for parts in zip(*self._wanted, strict=True))
        model = runner.model
        runner.model = _Logits(model, hidden_states, lambda logits: self._keep(logits, slots, drafts))
        try:
            yield
        finally:
            runner.model = model

    def release(self) -> None:
        clear_layer_kv_caches(self.layers[twin] for twin in self.twins.values())

    def _compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError("the teacher's head computes both models' logits")

    # Adapters

    def _fits_lora_buffers(self, batch: InputBatch) -> bool:
        """Whether vLLM's LoRA operations have room for the runs of one adapter in a forward for both, one more than alone.

        Those of GPUs count tokens alone, see `check_supported`.
        """
        if self.lora_config is None or current_platform.is_cuda_alike():
            return True
        changes = np.count_nonzero(np.diff(self._lora_ids[batch.idx_mapping_np]))
        return int(changes) + 2 <= self.max_num_reqs

    @property
    def lora_config(self) -> Any:
        return self.vllm_config.lora_config

    def loras_of_step(self, runner: Any, tokens: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...], set[Any]]:
        """The adapters of a fused step's logits and tokens, and what they are, for vLLM's mapping.

        Args:
            runner: the model runner.
            tokens: of the teacher's tokens, as vLLM maps them.
        """
        rows, batch = self._fused, self._batch
        assert rows is not None and batch is not None
        theirs = rows.num_tokens - batch.num_tokens
        return (
            self._loras_of_logits(batch, theirs),
            (*tokens, *self._thetas(theirs)),
            self._adapters(runner, batch),
        )

    def _thetas(self, count: int) -> tuple[int, ...]:
        return (0 if self.adapter is None else THETA_LORA_ID,) * count

    def _loras_of_logits(self, batch: InputBatch, theirs: int) -> tuple[int, ...]:
        mine = self._lora_ids[batch.idx_mapping_np].repeat(np.diff(batch.cu_num_logits_np))
        return (*mine.tolist(), *self._thetas(theirs))

    def _adapters(self, runner: Any, batch: InputBatch) -> set[Any]:
        adapters = runner.lora_state.get_activate_loras(batch.req_ids)
        return adapters if self.adapter is None else {*adapters, self.adapter}

    def _num_active_loras(self, runner: Any, batch: InputBatch) -> int:
        return len(self._adapters(runner, batch)) if self.lora_config is not None else 0


class _Model:
    """Stands for the runner's model while it executes a step."""

    def __init__(self, theta: OneModelScorer, runner: Any, model: Any):
        self.theta, self.runner, self.model = theta, runner, model

    def __call__(self, **inputs: Any) -> Any:
        if self.theta.runs_fused:
            return self.theta.forward_fused(self.runner, self.model)
        return self.model(**inputs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)


class _Graphs:
    """Stands for the runner's CUDA graphs while it executes a step."""

    def __init__(self, theta: OneModelScorer, runner: Any, graphs: Any, model: Any):
        self.theta, self.runner, self.graphs, self.model = theta, runner, graphs, model

    def run_fullgraph(self, desc: Any) -> Any:
        if self.theta.runs_fused:
            return self.theta.forward_fused(self.runner, self.model)
        return self.graphs.run_fullgraph(desc)

    def run_pw_graph(self, model: Any, inputs: dict[str, Any]) -> Any:
        if self.theta.runs_fused:
            return self.theta.forward_fused(self.runner, self.model)
        return self.graphs.run_pw_graph(self.model, inputs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.graphs, name)


class _ModelState:
    """Stands for what builds the attention metadata of a step, which a forward for both does not go by."""

    def __init__(self, theta: OneModelScorer, runner: Any, state: Any):
        self.theta, self.runner, self.state = theta, runner, state

    def prepare_attn(self, *args: Any, **kwargs: Any) -> Any:
        return {} if self.theta.replaces_attention(self.runner) else self.state.prepare_attn(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.state, name)


class _Logits:
    """Stands for the runner's model while it samples: the head runs once over both models' hidden states."""

    def __init__(self, model: Any, theirs: torch.Tensor, keep: Any):
        self.model, self.theirs, self.keep = model, theirs, keep

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        count = hidden_states.shape[0]
        logits = self.model.compute_logits(torch.cat((hidden_states, self.theirs)))
        self.keep(logits[count:])
        return logits[:count]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)


def _cut(tensor: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """The first rows; more, which nobody reads, where there are too few."""
    missing = num_tokens - tensor.shape[0]
    return tensor[:num_tokens] if missing <= 0 else torch.cat((tensor, tensor.new_zeros(missing, *tensor.shape[1:])))

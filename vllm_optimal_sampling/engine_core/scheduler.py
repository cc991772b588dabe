"""vLLM's scheduler with theta's slots: mixed into the engine's own scheduler class (see `subclasses`)."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

from vllm.v1.core.single_type_kv_cache_manager import MambaManager

from vllm_optimal_sampling import wire
from vllm_optimal_sampling.config.refusals import check_kv_cache
from vllm_optimal_sampling.config.state_layers import layout_block_size
from vllm_optimal_sampling.config.theta import max_request_loras, scores, scores_itself
from vllm_optimal_sampling.config.vocabulary_pairs import VocabularyPairs
from vllm_optimal_sampling.engine_core.layout import ThetaLayout
from vllm_optimal_sampling.engine_core.states import give_one_state

Hasher = Callable[[Any], list]
"""Hashes the full blocks of a request that have no hash yet."""


class ThetaSchedulerMixin:
    """Reserves theta's slots, lays them out for the block hashes, and sends the records of the tokens that are kept.

    vLLM reserves one number of extra slots for all requests; theta needs `layout.offset` more, another for each request.
    """

    block_size: int
    kv_cache_manager: Any

    def __init__(self, vllm_config: Any, *args: Any, **kwargs: Any):
        super().__init__(vllm_config, *args, **kwargs)  # type: ignore[call-arg]
        # A theta that drafts reads requests that opted out too, to draft for them.
        self._theta_scores = scores(vllm_config)
        self._vocabulary_pairs = VocabularyPairs.from_config(vllm_config)
        if scores_itself(vllm_config) and vllm_config.lora_config is not None:
            # Not of theta's own adapter: so many of requests may be scheduled together.
            self.lora_config = copy.copy(vllm_config.lora_config)
            self.lora_config.max_loras = max_request_loras(vllm_config)
        manager = self.kv_cache_manager
        self.theta_block_size = layout_block_size(vllm_config, manager.kv_cache_config)
        check_kv_cache(vllm_config, manager.kv_cache_config, self.theta_block_size)
        for single in manager.coordinator.single_type_managers:
            if isinstance(single, MambaManager):
                give_one_state(single)
        # A shorter theta prompt ends up to a block beyond the teacher's last slot (see `layout`).
        manager.max_model_len += self.theta_block_size
        manager.allocate_slots = self._allocating_theta(manager.allocate_slots)
        self._hasher: tuple[Hasher, Hasher] | None = None

    def _allocating_theta(self, allocate_slots: Callable) -> Callable:
        @functools.wraps(allocate_slots)
        def allocate_with_theta(request: Any, *args: Any, num_lookahead_tokens: int = 0, **kwargs: Any) -> Any:
            lookahead = num_lookahead_tokens + self.theta_layout(request).offset
            return allocate_slots(request, *args, num_lookahead_tokens=lookahead, **kwargs)

        return allocate_with_theta

    def theta_layout(self, request: Any) -> ThetaLayout:
        """Theta's layout of a request, worked out once and kept on it."""
        layout: ThetaLayout | None = getattr(request, "theta_layout", None)
        if layout is None:
            arguments = (request.sampling_params and request.sampling_params.extra_args) or {}
            if self._theta_scores and not arguments.get(wire.OPTIMAL_SAMPLING, True):
                layout = ThetaLayout.without_theta(self.theta_block_size)
            else:
                layout = ThetaLayout.of_prompts(
                    arguments.get(wire.THETA_PROMPT),
                    request.num_prompt_tokens,
                    self.theta_block_size,
                    self._vocabulary_pairs,
                    arguments.get(wire.THETA_VERSION, 0),
                )
            request.theta_layout = layout
        return layout

    def hash_with_theta(self, hash_blocks: Hasher | None) -> Hasher | None:
        """The engine core's block hasher, made to lay out theta's slots before it first hashes a request.

        Args:
            hash_blocks: vLLM's hasher, or what this returned for it; None without prefix caching.
        """
        if hash_blocks is None or (self._hasher is not None and hash_blocks is self._hasher[1]):
            return hash_blocks
        if self._hasher is None or self._hasher[0] is not hash_blocks:

            @functools.wraps(hash_blocks)
            def hash_blocks_with_theta(request: Any) -> list:
                self.theta_layout(request)
                return hash_blocks(request)

            self._hasher = (hash_blocks, hash_blocks_with_theta)
        return self._hasher[1]

    def _handle_stopped_request(self, request: Any) -> bool:
        """vLLM's own; a session goes on from the last token that is kept.

        vLLM 0.32 without async scheduling takes accepted drafts that a stop has cut off for a part of what was computed.
        """
        if request.resumable:
            kept = request.num_tokens - 1 + request.num_output_placeholders
            request.num_computed_tokens = min(request.num_computed_tokens, kept)
        finished: bool = super()._handle_stopped_request(request)  # type: ignore[misc]
        return finished

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """vLLM's own, and the step's records on what it returns: only here it is known which tokens are kept."""
        outputs = super().update_from_output(scheduler_output, model_runner_output)  # type: ignore[misc]
        records: wire.StepRecords | None = getattr(model_runner_output, "step_records", None)
        if records is not None:
            wire.attach_records(outputs, records)
            wire.attach_tally(outputs, records)
        return outputs

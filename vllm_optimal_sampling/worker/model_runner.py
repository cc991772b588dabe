"""vLLM's model runner with theta: where in a step theta's part, the mix and the records have their place."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from vllm.distributed.parallel_state import is_global_first_rank
from vllm.logger import init_logger
from vllm.v1.core.kv_cache_utils import resolve_kv_cache_block_sizes

from vllm_optimal_sampling.worker.draft_advice import DraftTimes, advice, time_steps
from vllm_optimal_sampling.worker.processor import OptimalSamplingLogitsProcessor
from vllm_optimal_sampling.worker.samplers import add_records

logger = init_logger(__name__)

if TYPE_CHECKING:
    from vllm_optimal_sampling.worker.theta.speculator import ThetaSpeculator


class ThetaRunnerMixin:
    """Mixed into `GPUModelRunner` and its subclasses by `add_theta`."""

    sampler: Any
    rejection_sampler: Any
    vllm_config: Any
    max_model_len: int
    speculator: ThetaSpeculator

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """vLLM's own; then our processor mixes first, and the samplers write records.

        vLLM puts custom processors after bias, penalties and bad words; q* is what those apply to.
        """
        super().load_model(*args, **kwargs)  # type: ignore[misc]
        processors = self.sampler.logits_processors
        (processor,) = (p for p in processors if isinstance(p, OptimalSamplingLogitsProcessor))
        processors.remove(processor)
        processors.insert(0, processor)
        processor.connect(self.speculator)
        add_records(self.sampler, self.rejection_sampler, self.speculator.recorder)

    def initialize_kv_cache(self, kv_cache_config: Any, *args: Any, **kwargs: Any) -> None:
        """vLLM's own, with block tables a block wider: theta's slots may lie that far beyond the longest request's."""
        block_size = resolve_kv_cache_block_sizes(kv_cache_config, self.vllm_config)[0]
        self.max_model_len += block_size  # read there for the width of the block tables alone
        try:
            super().initialize_kv_cache(kv_cache_config, *args, **kwargs)  # type: ignore[misc]
        finally:
            self.max_model_len -= block_size

    def capture_model(self, *, profile_only: bool = False) -> int:
        """vLLM's own; then the engine says which number of drafts its graphs would be fastest with."""
        memory: int = super().capture_model(profile_only=profile_only)  # type: ignore[misc]
        drafts = self.speculator.num_speculative_steps
        if profile_only or not self.speculator.has_round_graphs:
            return memory
        steps = time_steps(self, drafts)
        if steps and is_global_first_rank():
            logger.info("%s", advice(DraftTimes(steps, drafts), drafts))
        return memory

    def sample(self, hidden_states: Any, input_batch: Any, grammar_output: Any) -> Any:
        """vLLM's own, after theta's part of the step: the first token of a request is mixed too."""
        self.speculator.prefill(input_batch)
        sampler_output, num_sampled, num_rejected = super().sample(  # type: ignore[misc]
            hidden_states, input_batch, grammar_output
        )
        sampler_output.device_records = self.speculator.recorder.gather(input_batch, num_sampled)
        return sampler_output, num_sampled, num_rejected

    def reload_weights(self, *args: Any, theta: bool = False, **kwargs: Any) -> None:
        """vLLM's own for the teacher; with `theta` new weights for theta, which loops that train bring every round."""
        if theta:
            self.speculator.reload_weights(*args, **kwargs)
        else:
            super().reload_weights(*args, **kwargs)  # type: ignore[misc]


@functools.cache
def _runner_class(base: Any) -> type:
    return type(f"Theta{base.__name__}", (ThetaRunnerMixin, base), {"__module__": __name__})


def add_theta(runner: Any) -> None:
    """Make a model runner one with theta.

    The class of the object is changed, since vLLM's CPU worker names the class it makes and has no method that a subclass
    could override. It has no weights and no cache yet.
    """
    base: Any = type(runner)
    runner.__class__ = _runner_class(base)

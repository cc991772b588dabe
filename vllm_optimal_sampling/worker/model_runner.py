"""vLLM's model runner with theta: where in a step theta's part, the mix and the records have their place."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from vllm.distributed.parallel_state import is_global_first_rank
from vllm.logger import init_logger

from vllm_optimal_sampling.config.state_layers import layout_block_size
from vllm_optimal_sampling.config.theta import scores, scores_itself
from vllm_optimal_sampling.kernels import WarmUp
from vllm_optimal_sampling.worker import relaxed_top_p_kernel
from vllm_optimal_sampling.worker.draft_advice import DraftTimes, advice, time_steps
from vllm_optimal_sampling.worker.processor import OptimalSamplingLogitsProcessor
from vllm_optimal_sampling.worker.samplers import add_records
from vllm_optimal_sampling.worker.theta.piece_graphs import outputs_out_of_graphs

if TYPE_CHECKING:
    from vllm_optimal_sampling.worker.theta.scorer import ThetaScorer
    from vllm_optimal_sampling.worker.theta.speculator import ThetaSpeculator

logger = init_logger(__name__)


class ThetaRunnerMixin:
    """What every model runner with theta has, mixed into `GPUModelRunner` and its subclasses by `add_theta`."""

    theta: ThetaSpeculator | ThetaScorer
    warm_up: WarmUp | None
    sampler: Any
    rejection_sampler: Any
    vllm_config: Any
    max_model_len: int
    cudagraph_manager: Any
    execute_model_state: Any

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """vLLM's own; then our processor mixes first, and the samplers write records.

        vLLM puts custom processors after bias, penalties and bad words; q* is what those apply to.
        """
        super().load_model(*args, **kwargs)  # type: ignore[misc]
        processors = self.sampler.logits_processors
        (processor,) = (p for p in processors if isinstance(p, OptimalSamplingLogitsProcessor))
        processors.remove(processor)
        processors.insert(0, processor)
        processor.connect(self.theta)
        add_records(self.sampler, self.rejection_sampler, self.theta.recorder)

    def _dummy_sampler_run(self, hidden_states: Any) -> None:
        """vLLM's own, the end of its memory profile; what the mix keeps on the device counts there too."""
        self.finish_warm_up()
        super()._dummy_sampler_run(hidden_states)  # type: ignore[misc]

    def finish_warm_up(self) -> None:
        """Wait for the mix's kernels, which were compiled while the models were loaded, so that no request does."""
        if self.warm_up is None:
            return
        self.warm_up.finish()
        self.warm_up = None
        relaxed_top_p_kernel.warm_up(self.theta.rows.shape[-1], self.theta.rows.device)

    def initialize_kv_cache(self, kv_cache_config: Any, *args: Any, **kwargs: Any) -> None:
        """vLLM's own, with wider block tables: theta's slots may lie a block beyond the longest request's.

        The drafts of a request that is about to end may too: they go on behind `max_tokens`, which for theta may be the end of
        the model's length, and attention looks up the block of a token that is dropped like that of any other.
        """
        self.finish_warm_up()  # where there was no profile
        block_size = layout_block_size(self.vllm_config, kv_cache_config)
        wider = block_size + self.vllm_config.num_speculative_tokens
        self.max_model_len += wider  # read there for the width of the block tables alone
        try:
            super().initialize_kv_cache(kv_cache_config, *args, **kwargs)  # type: ignore[misc]
        finally:
            self.max_model_len -= wider

    def execute_model(self, *args: Any, **kwargs: Any) -> Any:
        """vLLM's own; the teacher's output is then where no graph that theta replays before sampling writes."""
        output = super().execute_model(*args, **kwargs)  # type: ignore[misc]
        state = self.execute_model_state
        if state is not None and self.theta.replays_before_sampling(state.input_batch):
            self.execute_model_state = outputs_out_of_graphs(state, self.cudagraph_manager)
        return output

    def sample(self, hidden_states: Any, input_batch: Any, grammar_output: Any) -> Any:
        """vLLM's own, and the step's records."""
        sampler_output, num_sampled, num_rejected = super().sample(  # type: ignore[misc]
            hidden_states, input_batch, grammar_output
        )
        sampler_output.device_records = self.theta.recorder.gather(input_batch, num_sampled)
        return sampler_output, num_sampled, num_rejected


class DraftingRunnerMixin(ThetaRunnerMixin):
    """A model runner whose speculator is theta."""

    theta: ThetaSpeculator

    def sample(self, hidden_states: Any, input_batch: Any, grammar_output: Any) -> Any:
        """vLLM's own, after theta's part of the step: the first token of a request is mixed too."""
        self.theta.prefill(input_batch)
        return super().sample(hidden_states, input_batch, grammar_output)

    def profile_cudagraph_memory(self) -> int:
        """vLLM's own, which captures graphs to throw them away: theta's too, of which it knows those of the round."""
        try:
            return super().profile_cudagraph_memory()  # type: ignore[misc]
        finally:
            self.theta.prompt_pass.drop_graphs()

    def capture_model(self, *, profile_only: bool = False) -> int:
        """vLLM's own; then the engine says which number of drafts its graphs would be fastest with."""
        memory: int = super().capture_model(profile_only=profile_only)  # type: ignore[misc]
        drafts = self.theta.num_speculative_steps
        if profile_only or not self.theta.has_round_graphs:
            return memory
        steps = time_steps(self, drafts)
        if steps and is_global_first_rank():
            logger.info("%s", advice(DraftTimes(steps, drafts), drafts))
        return memory

    def reload_weights(self, *args: Any, theta: bool = False, **kwargs: Any) -> None:
        """vLLM's own for the teacher; with `theta` new weights for theta, which loops that train bring every round."""
        if theta:
            self.theta.reload_weights(*args, **kwargs)
        else:
            super().reload_weights(*args, **kwargs)  # type: ignore[misc]


class ScoringRunnerMixin(ThetaRunnerMixin):
    """A model runner beside which theta scores; its speculator, if any, is vLLM's own."""

    theta: ThetaScorer
    block_tables: Any

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        super().load_model(*args, **kwargs)
        self.theta.load(self)

    def initialize_kv_cache(self, kv_cache_config: Any, *args: Any, **kwargs: Any) -> None:
        super().initialize_kv_cache(kv_cache_config, *args, **kwargs)
        self.theta.set_attn(self)

    def _init_kv_zero_meta(self) -> None:
        """vLLM's own, which finds out where the blocks lie that it empties before they are used anew."""
        with self.theta.unextended_caches():
            super()._init_kv_zero_meta()  # type: ignore[misc]

    def shutdown(self) -> None:
        self.theta.release()
        super().shutdown()  # type: ignore[misc]

    def _dummy_sampler_run(self, hidden_states: Any) -> None:
        super()._dummy_sampler_run(hidden_states)
        self.theta.profile()

    def profile_cudagraph_memory(self) -> int:
        """vLLM's own, which captures graphs to throw them away: theta's too."""
        try:
            return super().profile_cudagraph_memory()  # type: ignore[misc]
        finally:
            self.theta.scoring.drop_graphs()

    def capture_model(self, *args: Any, **kwargs: Any) -> int:
        with self.theta.capturing(self):
            return super().capture_model(*args, **kwargs)  # type: ignore[misc]

    def execute_model(self, *args: Any, **kwargs: Any) -> Any:
        """vLLM's own, in which the model may run theta's rows along."""
        with self.theta.standing_in(self):
            return super().execute_model(*args, **kwargs)

    def prepare_attn(self, input_batch: Any) -> Any:
        """vLLM's own, unless nothing reads it; here the step's inputs are laid out, and the forward is still to come."""
        self.theta.begin_step(input_batch)
        if self.theta.replaces_attention(self):
            tables = self.block_tables
            return tuple(tables.input_block_tables), tables.slot_mappings[:, : input_batch.num_tokens_after_padding]
        return super().prepare_attn(input_batch)  # type: ignore[misc]

    def _set_active_loras(
        self, prompt_mapping: Any, token_mapping: Any, adapters: Any, *args: Any, **kwargs: Any
    ) -> None:
        """vLLM's own, for theta's rows too in a step that is one forward for both."""
        mapping = self.theta.loras_of_step(self, token_mapping) if self.theta.runs_fused else None
        super()._set_active_loras(*(mapping or (prompt_mapping, token_mapping, adapters)), *args, **kwargs)  # type: ignore[misc]

    def set_loras_of_rows(self, logits: Any, tokens: Any, adapters: Any) -> None:
        """The adapters, by vLLM's numbers, of the next forward's tokens and of the logits wanted after it."""
        super()._set_active_loras(logits, tokens, adapters)  # type: ignore[misc]

    def sample(self, hidden_states: Any, input_batch: Any, grammar_output: Any) -> Any:
        """vLLM's own, with theta's rows of the step in their place."""
        with self.theta.computing_logits(self, input_batch):
            return super().sample(hidden_states, input_batch, grammar_output)

    def reload_weights(self, *args: Any, theta: bool = False, theta_lora: str | None = None, **kwargs: Any) -> None:
        """vLLM's own for the teacher; new weights for theta with `theta`, another adapter with `theta_lora`."""
        if theta_lora is not None:
            self.theta.update_adapter(self, theta_lora)
        elif theta:
            self.theta.reload_weights(*args, **kwargs)
        else:
            super().reload_weights(*args, **kwargs)  # type: ignore[misc]


@functools.cache
def _runner_class(mixin: type, base: Any) -> type:
    return type(f"Theta{base.__name__}", (mixin, base), {"__module__": __name__})


def add_theta(runner: Any) -> None:
    """Make a model runner one with theta.

    The class of the object is changed, since vLLM's CPU worker names the class it makes and has no method that a subclass
    could override. It has no weights and no cache yet.
    """
    base: Any = type(runner)
    config = runner.vllm_config
    if scores(config):
        from vllm_optimal_sampling.worker.theta.one_model import OneModelScorer
        from vllm_optimal_sampling.worker.theta.scorer import TwoModelsScorer

        scorer = OneModelScorer if scores_itself(config) else TwoModelsScorer
        runner.theta = scorer(config, runner.device, runner.req_states)
        runner.__class__ = _runner_class(ScoringRunnerMixin, base)
    else:
        runner.theta = runner.speculator
        runner.__class__ = _runner_class(DraftingRunnerMixin, base)
    runner.warm_up = warm_up_of(runner.theta)


def warm_up_of(theta: ThetaSpeculator | ThetaScorer) -> WarmUp | None:
    """Begin to compile the mix's kernels; None on a CPU, where there is nothing to compile."""
    rows = theta.rows
    if rows.device.type == "cpu":
        return None
    settings = theta.requests.settings
    warm_up = WarmUp(rows.shape[-1], rows, settings, theta.record, theta.scratch, raw_teacher_dtype=rows.dtype)
    warm_up.begin()
    return warm_up

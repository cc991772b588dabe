"""Patches in the front end's process: asking for an engine, admitting a request, records and metrics on what comes back."""

from __future__ import annotations

from typing import Any

from vllm_optimal_sampling.config.settings import is_enabled
from vllm_optimal_sampling.hooks.registry import patch


@patch(
    "vllm.engine.arg_utils",
    "EngineArgs.create_engine_config",
    "self usage_context headless",
    "the name `optimal_sampling` is no `module:Class`, and the engine's settings depend on one another",
)
def create_engine_config(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    from vllm_optimal_sampling.config.engine_config import create_engine_config

    return create_engine_config(self, lambda: original(self, *args, **kwargs))


@patch(
    "vllm.config.speculative",
    "SpeculativeConfig.verify_equal_vocab_size_if_draft_model",
    "self",
    "padded vocabularies differ within one family; theta's rows are kept at the teacher's width",
)
def verify_equal_vocab_size_if_draft_model(original: Any, self: Any) -> None:
    from vllm_optimal_sampling.config.engine_config import drafts_with_theta

    if not drafts_with_theta(self):
        original(self)


@patch(
    "vllm.sampling_params",
    "SamplingParams._validate_spec_decode",
    "self speculative_config",
    "V2's rejection sampler applies min_p and logit_bias, which vLLM refuses beside every drafter",
)
def validate_spec_decode(original: Any, self: Any, speculative_config: Any) -> None:
    from vllm_optimal_sampling.config.engine_config import drafts_with_theta
    from vllm_optimal_sampling.front_end.admission import without_min_p_and_bias

    original(without_min_p_and_bias(self) if drafts_with_theta(speculative_config) else self, speculative_config)


@patch(
    "vllm.v1.engine.input_processor",
    "InputProcessor.__init__",
    "self vllm_config renderer mm_registry",
    "a processor's validate_params sees neither the tokenizers nor the engine's configuration",
)
def input_processor_init(original: Any, self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
    original(self, vllm_config, *args, **kwargs)
    if is_enabled(vllm_config):
        from vllm_optimal_sampling.front_end.admission import RequestResolver

        self.theta_resolver = RequestResolver(vllm_config)


@patch(
    "vllm.v1.engine.input_processor",
    "InputProcessor.process_inputs",
    "self request_id prompt params supported_tasks arrival_time lora_request tokenization_kwargs trace_headers priority "
    "data_parallel_rank resumable session_id kv_hints",
    "theta's prompt is tokenised and measured once, where a client can still be told what is wrong with it",
)
def process_inputs(
    original: Any, self: Any, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any
) -> Any:
    request = original(self, request_id, prompt, params, *args, **kwargs)
    if hasattr(self, "theta_resolver"):
        self.theta_resolver.resolve(request, max_tokens_given=getattr(params, "max_tokens", None) is not None)
    return request


@patch(
    "vllm.v1.engine.input_processor",
    "InputProcessor.resolve_watermarking",
    "self params",
    "beam search ranks the teacher's log-probabilities, and is admitted as ordinary requests: only here it has a name",
)
def resolve_watermarking(original: Any, self: Any, params: Any) -> bool:
    if hasattr(self, "theta_resolver"):
        from vllm_optimal_sampling.front_end.admission import refuse_beam_search

        refuse_beam_search(params)
    watermarks: bool = original(self, params)
    return watermarks


@patch(
    "vllm.v1.engine.output_processor",
    "OutputProcessor.process_outputs",
    "self engine_core_outputs engine_core_timestamp iteration_stats weight_version",
    "the records of the new tokens must be there before vLLM makes the request's output of them",
)
def process_outputs(original: Any, self: Any, engine_core_outputs: Any, *args: Any, **kwargs: Any) -> Any:
    if any(output.kv_transfer_params for output in engine_core_outputs):
        from vllm_optimal_sampling.front_end.records import collect_records

        collect_records(engine_core_outputs, self.request_states, getattr(self, "theta_version", 0))
    return original(self, engine_core_outputs, *args, **kwargs)


@patch(
    "vllm.v1.engine.output_processor",
    "RequestState._new_completion_output",
    "self token_ids finish_reason stop_reason",
    "a completion has no field for what a logits processor has to report",
)
def new_completion_output(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    completion = original(self, *args, **kwargs)
    records = None
    if getattr(self, "token_records", None) is not None:
        from vllm_optimal_sampling.front_end.records import records_of

        records = records_of(self, self.detokenizer.num_output_tokens(), len(completion.token_ids))
    completion.optimal_sampling = records
    return completion


@patch(
    "vllm.outputs",
    "RequestOutput.add",
    "self next_output aggregate",
    "vLLM merges the deltas that a slow reader has not taken yet, field by field",
)
def add(original: Any, self: Any, next_output: Any, aggregate: bool) -> None:
    if aggregate and any(getattr(delta, "optimal_sampling", None) is not None for delta in next_output.outputs):
        from vllm_optimal_sampling.front_end.records import merge_records

        merge_records(self.outputs, next_output.outputs)
    original(self, next_output, aggregate)


@patch(
    "vllm.v1.metrics.loggers",
    "PrometheusStatLogger.__init__",
    "self vllm_config engine_indexes",
    "vLLM's logger clears all metrics named vllm when it is made, so ours are made after its own",
)
def prometheus_init(original: Any, self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
    original(self, vllm_config, *args, **kwargs)
    if is_enabled(vllm_config):
        from vllm_optimal_sampling.front_end.metrics import OptimalSamplingMetrics

        self.theta_metrics = OptimalSamplingMetrics(self)


@patch(
    "vllm.v1.metrics.loggers",
    "StatLoggerManager.record",
    "self scheduler_stats iteration_stats mm_cache_stats engine_idx",
    "a logger of a plugin would see the statistics too, but vLLM's own loggers must not see our part of them",
)
def record_stats(
    original: Any,
    self: Any,
    scheduler_stats: Any,
    iteration_stats: Any,
    mm_cache_stats: Any = None,
    engine_idx: int | None = None,
) -> None:
    if scheduler_stats is not None and scheduler_stats.kv_connector_stats:
        from vllm_optimal_sampling.front_end.metrics import record_tally

        record_tally(scheduler_stats, self.stat_loggers, engine_idx or 0)
    original(self, scheduler_stats, iteration_stats, mm_cache_stats, engine_idx)

"""Every patch of vLLM, and nothing else: what is touched, and why no public hook of vLLM does it.

Patches are put in when vLLM first imports the module they belong to, so a process pays only for what it uses, and no
module is imported before its time. In an engine that was not asked for optimal sampling each of them calls vLLM's own
code and nothing more. `tests/engine/test_contract.py` holds every one of them against the installed vLLM.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from vllm_optimal_sampling.config.engine_args import check_engine_args, prepare_engine_args
from vllm_optimal_sampling.config.refusals import check_kv_cache, check_supported
from vllm_optimal_sampling.config.settings import is_enabled
from vllm_optimal_sampling.config.versions import is_supported_version
from vllm_optimal_sampling.engine_core.layout import ThetaLayout


@dataclass(frozen=True)
class Patch:
    """One attribute of vLLM and what replaces it.

    Attributes:
        module: where vLLM defines (or looks up) the attribute.
        name: the attribute, `Class.method` or `function`.
        parameters: the names the original takes, as the contract test expects them, "..." where releases differ; None
            for a property.
        why: why no public hook of vLLM does it.
        wrap: makes the replacement of the original.
    """

    module: str
    name: str
    parameters: tuple[str, ...] | None
    why: str
    wrap: Callable[[Any], Any]


PATCHES: list[Patch] = []


def _patch(module: str, name: str, parameters: Sequence[str] | None, why: str) -> Callable[[Callable], Callable]:
    def register(wrap: Callable[[Any], Any]) -> Callable[[Any], Any]:
        PATCHES.append(Patch(module, name, None if parameters is None else tuple(parameters), why, wrap))
        return wrap

    return register


@contextmanager
def _holding(variable: ContextVar[bool], value: bool) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


# Front end: asking for an engine


# Pairs of models (teacher, theta) of the engines that asked, in this process. vLLM validates its configuration again
# whenever it copies it, and a speculative configuration does not know which engine it belongs to.
_asked_pairs: set[tuple[str, str]] = set()
_building_asked_engine: ContextVar[bool] = ContextVar("building_asked_engine", default=False)


def _remember_pair(vllm_config: Any) -> None:
    _asked_pairs.add((vllm_config.model_config.model, vllm_config.speculative_config.model))


@_patch(
    "vllm.engine.arg_utils",
    "EngineArgs.create_engine_config",
    ("self", "usage_context", "headless"),
    "the name `optimal_sampling` is no `module:Class`, and the engine's settings depend on one another",
)
def _create_engine_config(original: Callable) -> Callable:
    @functools.wraps(original)
    def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        with prepare_engine_args(self) as asked:
            if not asked:
                return original(self, *args, **kwargs)
            check_engine_args(self)
            with _holding(_building_asked_engine, True):
                vllm_config = original(self, *args, **kwargs)
            check_supported(vllm_config)
            _remember_pair(vllm_config)
            return vllm_config

    return create_engine_config


@_patch(
    "vllm.config.speculative",
    "SpeculativeConfig.verify_equal_vocab_size_if_draft_model",
    ("self",),
    "padded vocabularies differ within one family; theta's rows are kept at the teacher's width",
)
def _verify_equal_vocab_size(original: Callable) -> Callable:
    @functools.wraps(original)
    def verify_equal_vocab_size_if_draft_model(self: Any) -> None:
        pair = (getattr(self.target_model_config, "model", None), self.model)
        if not _building_asked_engine.get() and pair not in _asked_pairs:
            original(self)

    return verify_equal_vocab_size_if_draft_model


# Front end: admitting a request


@_patch(
    "vllm.v1.engine.input_processor",
    "InputProcessor.__init__",
    ("self", "vllm_config", "renderer", "mm_registry"),
    "a processor's validate_params sees neither the tokenizers nor the engine's configuration",
)
def _input_processor_init(original: Callable) -> Callable:
    @functools.wraps(original)
    def __init__(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        original(self, vllm_config, *args, **kwargs)
        self.theta_resolver = None
        if is_enabled(vllm_config):
            from vllm_optimal_sampling.front_end.admission import RequestResolver

            self.theta_resolver = RequestResolver(vllm_config)
            # Only read to refuse min_p and logit_bias beside a draft model, which V2's rejection sampler applies.
            self.speculative_config = None

    return __init__


@_patch(
    "vllm.v1.engine.input_processor",
    "InputProcessor.process_inputs",
    (
        *("self", "request_id", "prompt", "params", "supported_tasks", "arrival_time", "lora_request"),
        *("tokenization_kwargs", "trace_headers", "priority", "data_parallel_rank", "resumable", "session_id"),
        "kv_hints",
    ),
    "theta's prompt is tokenised and measured once, where a client can still be told what is wrong with it",
)
def _process_inputs(original: Callable) -> Callable:
    @functools.wraps(original)
    def process_inputs(self: Any, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        request = original(self, request_id, prompt, params, *args, **kwargs)
        if getattr(self, "theta_resolver", None) is not None:
            self.theta_resolver.resolve(request, max_tokens_given=getattr(params, "max_tokens", None) is not None)
        return request

    return process_inputs


@_patch(
    "vllm.v1.engine.input_processor",
    "InputProcessor.resolve_watermarking",
    ("self", "params"),
    "beam search ranks the teacher's log-probabilities, and is admitted as ordinary requests: only here it has a name",
)
def _resolve_watermarking(original: Callable) -> Callable:
    @functools.wraps(original)
    def resolve_watermarking(self: Any, params: Any) -> bool:
        if getattr(self, "theta_resolver", None) is not None:
            from vllm_optimal_sampling.front_end.admission import refuse_beam_search

            refuse_beam_search(params)
        return original(self, params)

    return resolve_watermarking


@_patch(
    "vllm.entrypoints.serve.utils.api_utils",
    "validate_json_request",
    ("raw_request",),
    "unknown fields of a request are dropped, and what a client puts there by mistake is theta's prompt",
)
def _validate_json_request(original: Callable) -> Callable:
    @functools.wraps(original)
    async def validate_json_request(raw_request: Any) -> None:
        from vllm_optimal_sampling.front_end.misplaced import refuse_misplaced_in

        await original(raw_request)
        await refuse_misplaced_in(raw_request)

    return validate_json_request


@_patch(
    "vllm.entrypoints.serve.engine.serving",
    "BaseServing._check_model",
    ("self", "request"),
    "the same for requests that come from a file (`vllm run-batch`)",
)
def _check_model(original: Callable) -> Callable:
    @functools.wraps(original)
    async def _check_model(self: Any, request: Any) -> Any:
        engine = getattr(self, "engine_client", None)
        if engine is not None and is_enabled(engine.vllm_config):
            from vllm_optimal_sampling.front_end.misplaced import refuse_misplaced

            refuse_misplaced(getattr(request, "model_extra", None))
        return await original(self, request)

    return _check_model


# Engine core: slots and hashes of the KV cache


# The block size of the scheduler made last in this process, None where its engine did not ask for optimal sampling.
_newest_scheduler: dict[str, int | None] = {}


def _theta_layout(request: Any, block_size: int) -> ThetaLayout:
    """Theta's layout of a request in the engine core, worked out once."""
    layout = getattr(request, "theta_layout", None)
    if layout is None:
        arguments = (request.sampling_params and request.sampling_params.extra_args) or {}
        prompt = arguments.get("theta_prompt_token_ids")
        delta = len(prompt) - request.num_prompt_tokens if prompt is not None else 0
        layout = request.theta_layout = ThetaLayout(prompt, delta, block_size)
    return layout


@_patch(
    "vllm.config.vllm",
    "VllmConfig.num_lookahead_tokens",
    None,
    "theta's round feeds its last draft too, one token more than vLLM's own draft model",
)
def _num_lookahead_tokens(original: property) -> property:
    assert original.fget is not None
    get = original.fget

    @functools.wraps(get)
    def num_lookahead_tokens(self: Any) -> int:
        return get(self) + (1 if is_enabled(self) else 0)

    return property(num_lookahead_tokens)


@_patch(
    "vllm.v1.core.sched.scheduler",
    "Scheduler.__init__",
    (
        *("self", "vllm_config", "kv_cache_config", "structured_output_manager", "block_size", "hash_block_size"),
        *("mm_registry", "include_finished_set", "log_stats"),
    ),
    "vLLM reserves one number of extra slots for all requests; theta needs `offset` more, another for each request",
)
def _scheduler_init(original: Callable) -> Callable:
    @functools.wraps(original)
    def __init__(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        original(self, vllm_config, *args, **kwargs)
        asked = is_enabled(vllm_config)
        _newest_scheduler["asked_block_size"] = self.block_size if asked else None
        if not asked:
            return
        manager, block_size = self.kv_cache_manager, self.block_size
        check_kv_cache(vllm_config, manager.kv_cache_config, block_size)
        # A shorter theta prompt ends up to a block beyond the teacher's last slot (see `layout`).
        manager.max_model_len += block_size
        allocate_slots = manager.allocate_slots

        @functools.wraps(allocate_slots)
        def allocate_with_theta(request: Any, *args: Any, num_lookahead_tokens: int = 0, **kwargs: Any) -> Any:
            lookahead = num_lookahead_tokens + _theta_layout(request, block_size).offset
            return allocate_slots(request, *args, num_lookahead_tokens=lookahead, **kwargs)

        manager.allocate_slots = allocate_with_theta

    return __init__


@_patch(
    "vllm.v1.engine.core",
    "get_request_block_hasher",
    ("hash_block_size", "caching_hash_fn", "..."),
    "a request is hashed when it is made, and theta's slots depend on the scheduler's block size",
)
def _get_request_block_hasher(original: Callable) -> Callable:
    # Not `EngineCore.__init__`: in a process of its own that is what loads this plugin, and it is running by then. It
    # makes its scheduler first and the hasher after it.
    @functools.wraps(original)
    def get_request_block_hasher(*args: Any, **kwargs: Any) -> Callable[[Any], list]:
        hash_blocks = original(*args, **kwargs)
        block_size = _newest_scheduler.get("asked_block_size")
        if block_size is None:
            return hash_blocks

        @functools.wraps(hash_blocks)
        def hash_blocks_with_theta(request: Any) -> list:
            _theta_layout(request, block_size)
            return hash_blocks(request)

        return hash_blocks_with_theta

    return get_request_block_hasher


def _block_hash_extra_keys(original: Callable) -> Callable:
    @functools.wraps(original)
    def generate_block_hash_extra_keys(
        request: Any, start_token_idx: int, end_token_idx: int, start_mm_idx: int
    ) -> Any:
        keys, next_mm_idx = original(request, start_token_idx, end_token_idx, start_mm_idx)
        layout: ThetaLayout | None = getattr(request, "theta_layout", None)
        if layout is None or layout.prompt is None:
            return keys, next_mm_idx
        # A block before theta's first token says so too: one where theta read the teacher's tokens is another block.
        tokens = layout.tokens_in_slots(
            start_token_idx, end_token_idx, request.all_token_ids, request.num_prompt_tokens
        )
        return (*(keys or ()), ("theta", tokens)), next_mm_idx

    return generate_block_hash_extra_keys


# The function is looked up where it is defined for hashing, and under its own name by the pool, for KV events.
for _module in ("vllm.v1.core.kv_cache_utils", "vllm.v1.core.block_pool"):
    _patch(
        _module,
        "generate_block_hash_extra_keys",
        ("request", "start_token_idx", "end_token_idx", "start_mm_idx"),
        "a cached block holds theta's keys and values beside the teacher's, so a hit must be valid for both",
    )(_block_hash_extra_keys)


# Worker: theta beside the teacher


def _has_theta(runner: Any) -> bool:
    if runner.speculator is None or not is_enabled(runner.vllm_config):
        return False
    from vllm_optimal_sampling.worker.theta.speculator import ThetaSpeculator

    return isinstance(runner.speculator, ThetaSpeculator)


@_patch(
    "vllm.v1.worker.gpu.model_runner",
    "init_speculator",
    ("vllm_config", "device", "req_states"),
    "vLLM's speculators are a closed list",
)
def _init_speculator(original: Callable) -> Callable:
    @functools.wraps(original)
    def init_speculator(vllm_config: Any, device: Any, req_states: Any) -> Any:
        if not is_enabled(vllm_config):
            return original(vllm_config, device, req_states)
        _remember_pair(vllm_config)
        from vllm_optimal_sampling.worker.theta.speculator import ThetaSpeculator

        return ThetaSpeculator(vllm_config, device, req_states)

    return init_speculator


@_patch(
    "vllm.v1.worker.gpu.model_runner",
    "GPUModelRunner.load_model",
    ("self", "load_dummy_weights", "args", "model", "kwargs"),
    "custom processors come after bias, penalties and bad words; q* is what those apply to",
)
def _load_model(original: Callable) -> Callable:
    @functools.wraps(original)
    def load_model(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if not _has_theta(self):
            return
        from vllm_optimal_sampling.worker.processor import OptimalSamplingLogitsProcessor

        processors = self.sampler.logits_processors
        (processor,) = (p for p in processors if isinstance(p, OptimalSamplingLogitsProcessor))
        processors.remove(processor)
        processors.insert(0, processor)
        processor.connect(self.speculator)
        self.sampler.theta_recorder = self.speculator.recorder

    return load_model


@_patch(
    "vllm.v1.worker.gpu.model_runner",
    "GPUModelRunner.initialize_kv_cache",
    ("self", "kv_cache_config", "is_profiling", "kv_cache_allocation_context"),
    "block tables are as wide as the longest request, and theta's slots may lie up to a block beyond",
)
def _initialize_kv_cache(original: Callable) -> Callable:
    @functools.wraps(original)
    def initialize_kv_cache(self: Any, kv_cache_config: Any, *args: Any, **kwargs: Any) -> None:
        if not _has_theta(self):
            original(self, kv_cache_config, *args, **kwargs)
            return
        from vllm.v1.core.kv_cache_utils import resolve_kv_cache_block_sizes

        block_size = resolve_kv_cache_block_sizes(kv_cache_config, self.vllm_config)[0]
        self.max_model_len += block_size  # read there for the width of the block tables alone
        try:
            original(self, kv_cache_config, *args, **kwargs)
        finally:
            self.max_model_len -= block_size

    return initialize_kv_cache


@_patch(
    "vllm.v1.worker.gpu.model_runner",
    "GPUModelRunner.sample",
    ("self", "hidden_states", "input_batch", "grammar_output"),
    "the first token of a request is mixed too, so theta's prompt must be done before sampling",
)
def _sample(original: Callable) -> Callable:
    @functools.wraps(original)
    def sample(self: Any, hidden_states: Any, input_batch: Any, grammar_output: Any) -> Any:
        if not _has_theta(self):
            return original(self, hidden_states, input_batch, grammar_output)
        self.speculator.prefill(input_batch)
        sampler_output, num_sampled, num_rejected = original(self, hidden_states, input_batch, grammar_output)
        sampler_output.optimal_sampling = self.sampler.theta_recorder.gather(input_batch, num_sampled)
        return sampler_output, num_sampled, num_rejected

    return sample


@_patch(
    "vllm.v1.worker.gpu.model_runner",
    "GPUModelRunner.reload_weights",
    ("self", "weights_iterator", "weights_path", "is_checkpoint_format"),
    "vLLM reloads the teacher alone from a path; a student that is trained on changes every round",
)
def _reload_weights(original: Callable) -> Callable:
    @functools.wraps(original)
    def reload_weights(self: Any, *args: Any, theta: bool = False, **kwargs: Any) -> None:
        if not theta:
            original(self, *args, **kwargs)
        elif not _has_theta(self):
            raise ValueError("this engine has no theta whose weights could be reloaded")
        else:
            self.speculator.reload_weights(*args, **kwargs)

    return reload_weights


@_patch(
    "vllm.v1.worker.gpu_worker",
    "Worker._set_draft_weight_update_target",
    ("self",),
    "a theta that shares the teacher's weights is no target of its own: an update would change the teacher too",
)
def _set_draft_weight_update_target(original: Callable) -> Callable:
    @functools.wraps(original)
    def set_draft_weight_update_target(self: Any) -> None:
        if _has_theta(self.model_runner):
            self.model_runner.speculator.check_own_weights()
        original(self)

    return set_draft_weight_update_target


# Whether an engine with theta is drawing, or verifying drafts, in this context: what vLLM calls there are functions, which
# know of no engine.
_draws_with_theta: ContextVar[bool] = ContextVar("draws_with_theta", default=False)


def _apply_top_k_top_p(original: Callable) -> Callable:
    @functools.wraps(original)
    def apply_top_k_top_p(logits: Any, k: Any, p: Any, *args: Any, **kwargs: Any) -> Any:
        if p is not None and _draws_with_theta.get():
            from vllm_optimal_sampling.kernels import relax_top_p_

            relax_top_p_(logits, k, p)  # `p` was gathered for this call
        return original(logits, k, p, *args, **kwargs)

    return apply_top_k_top_p


# For the first token of a request, and for those that are verified.
for _module in ("vllm.v1.worker.gpu.sample.sampler", "vllm.v1.worker.gpu.sample.states"):
    _patch(
        _module,
        "apply_top_k_top_p",
        ("logits", "k", "p", "..."),
        "vLLM drops the least likely token of a row that needs all of them for top-p (see `kernels/relax_top_p.py`)",
    )(_apply_top_k_top_p)


# Records: from the worker to the scheduler


@_patch(
    "vllm.v1.worker.gpu.sample.sampler",
    "Sampler.sample",
    (
        *("self", "logits", "expanded_idx_mapping", "idx_mapping", "idx_mapping_np", "pos", "input_ids"),
        *("expanded_local_pos", "seq_lens_upper_bound_np", "return_logprobs"),
    ),
    "a record needs the token drawn beside the teacher's row as it was before the mix, and only here both are at hand",
)
def _sampler_sample(original: Callable) -> Callable:
    @functools.wraps(original)
    def sample(
        self: Any,
        logits: Any,
        expanded_idx_mapping: Any,
        idx_mapping: Any,
        idx_mapping_np: Any,
        pos: Any,
        input_ids: Any,
        expanded_local_pos: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        recorder = getattr(self, "theta_recorder", None)
        with _holding(_draws_with_theta, recorder is not None):
            sampled, processed_logits = original(
                self,
                logits,
                expanded_idx_mapping,
                idx_mapping,
                idx_mapping_np,
                pos,
                input_ids,
                expanded_local_pos,
                *args,
                **kwargs,
            )
        if recorder is not None and recorder.is_wanted(idx_mapping_np):
            recorder.write(sampled, logits, expanded_idx_mapping, expanded_local_pos)
        return sampled, processed_logits

    return sample


@_patch(
    "vllm.v1.worker.gpu.spec_decode.rejection_sampler",
    "RejectionSampler._verify",
    (
        *("self", "logits", "draft_logits", "draft_sampled", "pos", "cu_num_logits", "idx_mapping", "idx_mapping_np"),
        *("expanded_idx_mapping", "expanded_local_pos", "seq_lens_upper_bound_np", "verify_draft_sampled"),
    ),
    "the same where drafts are verified, a chunk of the batch at a time",
)
def _verify(original: Callable) -> Callable:
    @functools.wraps(original)
    def verify(
        self: Any,
        logits: Any,
        draft_logits: Any,
        draft_sampled: Any,
        pos: Any,
        cu_num_logits: Any,
        idx_mapping: Any,
        idx_mapping_np: Any,
        expanded_idx_mapping: Any,
        expanded_local_pos: Any,
        *args: Any,
    ) -> Any:
        recorder = getattr(self.sampler, "theta_recorder", None)
        with _holding(_draws_with_theta, recorder is not None):
            processed_logits, sampled, num_sampled = original(
                self,
                logits,
                draft_logits,
                draft_sampled,
                pos,
                cu_num_logits,
                idx_mapping,
                idx_mapping_np,
                expanded_idx_mapping,
                expanded_local_pos,
                *args,
            )
        if recorder is not None and recorder.is_wanted(idx_mapping_np):
            recorder.write_verified(
                sampled, num_sampled, cu_num_logits, logits, expanded_idx_mapping, expanded_local_pos
            )
        return processed_logits, sampled, num_sampled

    return verify


@_patch(
    "vllm.v1.worker.gpu.async_utils",
    "AsyncOutput.__init__",
    (
        *("self", "model_runner_output", "sampler_output", "num_sampled_tokens", "main_stream", "copy_stream"),
        *("check_ep_fault", "pending_aux_output"),
    ),
    "records go to the host with the tokens, on the same stream and behind the same event",
)
def _async_output_init(original: Callable) -> Callable:
    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.theta_step = getattr(self.sampler_output, "optimal_sampling", None)
        if self.theta_step is not None:
            self.theta_step.start_copy(kwargs["copy_stream"], kwargs["main_stream"], self.copy_event)

    return __init__


@_patch(
    "vllm.v1.worker.gpu.async_utils",
    "AsyncOutput.get_output",
    ("self",),
    "the output of a step has no field for what a logits processor has to report",
)
def _get_output(original: Callable) -> Callable:
    @functools.wraps(original)
    def get_output(self: Any) -> Any:
        output = original(self)
        if self.theta_step is not None:
            output.optimal_sampling = self.theta_step.on_host()
        return output

    return get_output


@_patch(
    "vllm.v1.core.sched.scheduler",
    "Scheduler.update_from_output",
    ("self", "scheduler_output", "model_runner_output"),
    "only the scheduler knows which of the tokens drawn are kept, and its outputs have no field of ours",
)
def _update_from_output(original: Callable) -> Callable:
    @functools.wraps(original)
    def update_from_output(self: Any, scheduler_output: Any, model_runner_output: Any) -> Any:
        outputs = original(self, scheduler_output, model_runner_output)
        step = getattr(model_runner_output, "optimal_sampling", None)
        if step is not None:
            from vllm_optimal_sampling.front_end.metrics import attach_tally
            from vllm_optimal_sampling.front_end.records import attach_rows

            if step.rows:
                for client_outputs in outputs.values():
                    attach_rows(client_outputs.outputs, step)
            attach_tally(outputs, step)
        return outputs

    return update_from_output


# Front end: records on the user's output, and metrics


@_patch(
    "vllm.v1.engine.output_processor",
    "OutputProcessor.process_outputs",
    ("self", "engine_core_outputs", "engine_core_timestamp", "iteration_stats", "weight_version"),
    "the records of the new tokens must be there before vLLM makes the request's output of them",
)
def _process_outputs(original: Callable) -> Callable:
    @functools.wraps(original)
    def process_outputs(self: Any, engine_core_outputs: Any, *args: Any, **kwargs: Any) -> Any:
        if any(output.kv_transfer_params for output in engine_core_outputs):
            from vllm_optimal_sampling.front_end.records import collect_rows

            collect_rows(engine_core_outputs, self.request_states)
        return original(self, engine_core_outputs, *args, **kwargs)

    return process_outputs


@_patch(
    "vllm.v1.engine.output_processor",
    "RequestState._new_completion_output",
    ("self", "token_ids", "finish_reason", "stop_reason"),
    "a completion has no field for what a logits processor has to report",
)
def _new_completion_output(original: Callable) -> Callable:
    @functools.wraps(original)
    def _new_completion_output(self: Any, *args: Any, **kwargs: Any) -> Any:
        completion = original(self, *args, **kwargs)
        records = None
        if getattr(self, "token_records", None) is not None:
            from vllm_optimal_sampling.front_end.records import records_of

            records = records_of(self, self.detokenizer.num_output_tokens(), len(completion.token_ids))
        completion.optimal_sampling = records
        return completion

    return _new_completion_output


@_patch(
    "vllm.outputs",
    "RequestOutput.add",
    ("self", "next_output", "aggregate"),
    "vLLM merges the deltas that a slow reader has not taken yet, field by field",
)
def _add(original: Callable) -> Callable:
    @functools.wraps(original)
    def add(self: Any, next_output: Any, aggregate: bool) -> None:
        if aggregate and any(getattr(delta, "optimal_sampling", None) is not None for delta in next_output.outputs):
            from vllm_optimal_sampling.front_end.records import merge

            merge(self.outputs, next_output.outputs)
        original(self, next_output, aggregate)

    return add


@_patch(
    "vllm.v1.metrics.loggers",
    "PrometheusStatLogger.__init__",
    ("self", "vllm_config", "engine_indexes"),
    "vLLM's logger clears all metrics named vllm when it is made, so ours are made after its own",
)
def _prometheus_init(original: Callable) -> Callable:
    @functools.wraps(original)
    def __init__(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        original(self, vllm_config, *args, **kwargs)
        if is_enabled(vllm_config):
            from vllm_optimal_sampling.front_end.metrics import OptimalSamplingMetrics

            self.optimal_sampling = OptimalSamplingMetrics(self)

    return __init__


@_patch(
    "vllm.v1.metrics.loggers",
    "StatLoggerManager.record",
    ("self", "scheduler_stats", "iteration_stats", "mm_cache_stats", "engine_idx"),
    "a logger of a plugin would see the statistics too, but vLLM's own loggers must not see our part of them",
)
def _record_stats(original: Callable) -> Callable:
    @functools.wraps(original)
    def record(
        self: Any,
        scheduler_stats: Any,
        iteration_stats: Any,
        mm_cache_stats: Any = None,
        engine_idx: int | None = None,
    ) -> None:
        if scheduler_stats is not None and scheduler_stats.kv_connector_stats:
            from vllm_optimal_sampling.front_end.metrics import take_tally

            tally = take_tally(scheduler_stats)
            for logger in self.stat_loggers:
                metrics = getattr(logger, "optimal_sampling", None)
                if tally is not None and metrics is not None:
                    metrics.record(tally, engine_idx or 0)
        original(self, scheduler_stats, iteration_stats, mm_cache_stats, engine_idx)

    return record


# Front end: records over HTTP


def _serves_theta(serving: Any) -> bool:
    return is_enabled(serving.engine_client.vllm_config)


@_patch(
    "vllm.entrypoints.openai.completion.serving",
    "OpenAIServingCompletion.request_output_to_completion_response",
    (
        *("self", "final_res_batch", "request", "request_id", "created_time", "model_name", "tokenizer"),
        "request_metadata",
    ),
    "a choice is made of a completion field by field, and has none of ours",
)
def _completion_response(original: Callable) -> Callable:
    @functools.wraps(original)
    def request_output_to_completion_response(
        self: Any, final_res_batch: Any, request: Any, *args: Any, **kwargs: Any
    ) -> Any:
        response = original(self, final_res_batch, request, *args, **kwargs)
        if request.max_tokens != 0 and _serves_theta(self):  # without tokens vLLM draws one that it does not show
            from vllm_optimal_sampling.front_end.responses import add_to_choices

            add_to_choices(response.choices, [made_of for output in final_res_batch for made_of in output.outputs])
        return response

    return request_output_to_completion_response


@_patch(
    "vllm.entrypoints.openai.completion.serving",
    "OpenAIServingCompletion.completion_stream_generator",
    (
        *("self", "request", "engine_inputs", "result_generator", "request_id", "created_time", "model_name"),
        *("num_prompts", "tokenizer", "request_metadata"),
    ),
    "the same for the chunks of a stream, which leave as text",
)
def _completion_stream(original: Callable) -> Callable:
    @functools.wraps(original)
    def completion_stream_generator(
        self: Any, request: Any, engine_inputs: Any, result_generator: Any, *args: Any, **kwargs: Any
    ) -> Any:
        if request.max_tokens == 0 or not _serves_theta(self):
            return original(self, request, engine_inputs, result_generator, *args, **kwargs)
        from vllm_optimal_sampling.front_end.responses import Pending

        pending = Pending(result_generator, request.n or 1)
        return pending.add_to(original(self, request, engine_inputs, aiter(pending), *args, **kwargs))

    return completion_stream_generator


@_patch(
    "vllm.entrypoints.openai.chat_completion.serving",
    "OpenAIServingChat.chat_completion_full_generator",
    (
        *("self", "request", "result_generator", "request_id", "model_name", "conversation", "tokenizer"),
        *("request_metadata", "parser", "mm_token_counts"),
    ),
    "the same for a chat",
)
def _chat_response(original: Callable) -> Callable:
    @functools.wraps(original)
    async def chat_completion_full_generator(
        self: Any, request: Any, result_generator: Any, *args: Any, **kwargs: Any
    ) -> Any:
        if not _serves_theta(self):
            return await original(self, request, result_generator, *args, **kwargs)
        from vllm_optimal_sampling.front_end.responses import Last, add_to_choices

        outputs = Last(result_generator)
        response = await original(self, request, aiter(outputs), *args, **kwargs)
        if hasattr(response, "choices"):  # else it is an error
            add_to_choices(response.choices, outputs.output.outputs)
        return response

    return chat_completion_full_generator


@_patch(
    "vllm.entrypoints.openai.chat_completion.serving",
    "OpenAIServingChat.chat_completion_stream_generator",
    (
        *("self", "request", "result_generator", "request_id", "model_name", "conversation", "tokenizer"),
        *("request_metadata", "chat_template_kwargs", "mm_token_counts"),
    ),
    "the same for the chunks of a chat's stream",
)
def _chat_stream(original: Callable) -> Callable:
    @functools.wraps(original)
    def chat_completion_stream_generator(
        self: Any, request: Any, result_generator: Any, *args: Any, **kwargs: Any
    ) -> Any:
        if not _serves_theta(self):
            return original(self, request, result_generator, *args, **kwargs)
        from vllm_optimal_sampling.front_end.responses import Pending

        pending = Pending(result_generator, 1)
        return pending.add_to(original(self, request, aiter(pending), *args, **kwargs))

    return chat_completion_stream_generator


# Putting them in


def _apply(module: ModuleType) -> None:
    for patch in PATCHES:
        if patch.module != module.__name__:
            continue
        *path, attribute = patch.name.split(".")
        owner: Any = module
        for name in path:
            owner = getattr(owner, name)
        original = vars(owner)[attribute]
        # A module that imports a function after it was patched has the replacement already.
        if not getattr(original, "_optimal_sampling", False):
            replacement = patch.wrap(original)
            if not isinstance(replacement, property):
                replacement._optimal_sampling = True
            setattr(owner, attribute, replacement)


class _PatchingLoader(importlib.abc.Loader):
    """Runs vLLM's own loader, then the patches of the module."""

    def __init__(self, loader: importlib.abc.Loader):
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        _apply(module)

    def __getattr__(self, name: str) -> Any:  # get_source and the like, for tracebacks and inspect
        return getattr(self.loader, name)


class _PatchingFinder(importlib.abc.MetaPathFinder):
    """Finds the modules that have patches, once each."""

    def __init__(self, modules: set[str]):
        self.modules = modules

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname not in self.modules:
            return None
        self.modules.discard(fullname)  # the search below must not come back here
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _PatchingLoader(spec.loader)
        return spec


def _is_loaded(module: str) -> bool:
    return module in sys.modules and not getattr(sys.modules[module].__spec__, "_initializing", False)


def install() -> None:
    """Put in every patch: at once in modules that are loaded, else when vLLM imports them.

    An unsupported vLLM is left as it is, but for the refusal of an engine that asks for optimal sampling.
    """
    modules = {patch.module for patch in PATCHES}
    if not is_supported_version():
        modules = {"vllm.engine.arg_utils"}
    loaded = {module for module in modules if _is_loaded(module)}
    for module in loaded:
        _apply(sys.modules[module])
    sys.meta_path.insert(0, _PatchingFinder(modules - loaded))

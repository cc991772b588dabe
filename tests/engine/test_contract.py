"""The parts of vLLM that this package replaces or builds on are what it takes them for, in the installed version.

When vLLM moves one of them, the test of that name fails here, before anything subtler does elsewhere. On a vLLM that is not
supported the patches are not in place; what they would replace is held against the registry all the same (`.ci/newest-vllm`).
"""

import dataclasses
import importlib
import inspect
from typing import Any

import pytest
import vllm
from vllm.plugins import load_general_plugins

from vllm_optimal_sampling.config.versions import is_supported_version
from vllm_optimal_sampling.hooks import imports  # noqa: F401  registers the patches
from vllm_optimal_sampling.hooks.registry import PATCHES, Patch

SUPPORTED = is_supported_version(vllm.__version__)

SPECULATOR = "vllm.v1.worker.gpu.spec_decode.speculator"
RUNNER = "vllm.v1.worker.gpu.model_runner:GPUModelRunner"

# What is called or overridden without being patched: name -> parameters, in order; "..." ends the part that matters.
CALLED: dict[str, str] = {
    f"{SPECULATOR}:DraftModelSpeculator.__init__": "self vllm_config device",
    f"{SPECULATOR}:DraftModelSpeculator.load_draft_model": "self target_model target_attn_layer_names",
    f"{SPECULATOR}:DraftModelSpeculator.set_attn": (
        "self model_state kv_cache_config block_tables target_input_buffers target_attn_groups"
    ),
    f"{SPECULATOR}:DraftModelSpeculator._configure_decode_metadata_update": "self",
    f"{SPECULATOR}:BaseSpeculator.init_cudagraph_manager": "self cudagraph_mode",
    f"{SPECULATOR}:BaseSpeculator.capture": "self",
    "vllm.model_executor.model_loader:get_model": "vllm_config ...",
    f"{SPECULATOR}:DraftModelSpeculator._build_attn_metadata": (
        "self num_reqs batch_desc query_start_loc_np seq_lens_cpu_upper_bound step causal dcp_local_seq_lens slot_mappings"
    ),
    f"{SPECULATOR}:DraftModelSpeculator._build_uniform_attn_metadata": (
        "self batch_desc num_reqs num_query_per_req seq_lens_cpu_upper_bound step ..."
    ),
    f"{SPECULATOR}:DraftModelSpeculator._update_draft_decode_metadata": "self attn_metadata num_reqs",
    f"{SPECULATOR}:DraftModelSpeculator._build_uniform_batch_dp_sync": (
        "self target_dp_sync_state num_reqs num_query_per_req"
    ),
    f"{SPECULATOR}:DraftModelSpeculator.compute_draft_logits": "self hidden_states spec_step_idx",
    f"{SPECULATOR}:BaseSpeculator.propose": (
        "self input_batch attn_metadata slot_mappings last_hidden_states aux_hidden_states num_sampled num_rejected "
        "last_sampled next_prefill_tokens temperature seeds dp_sync_state dummy_run skip_attn_for_dummy_run mm_inputs "
        "is_profile num_speculative_tokens"
    ),
    "vllm.v1.worker.gpu.cudagraph_utils:CudaGraphManager.needs_capture": "self",
    "vllm.v1.worker.gpu.cudagraph_utils:CudaGraphManager.__init__": (
        "self vllm_config device cudagraph_mode decode_query_len ..."
    ),
    "vllm.v1.worker.gpu.cudagraph_utils:prepare_inputs_to_capture": (
        "num_reqs num_tokens model_state input_buffers block_tables attn_groups kv_cache_config full_cudagraph ..."
    ),
    # What a theta that scores runs with.
    "vllm.v1.worker.gpu.cudagraph_utils:CudaGraphManager.dispatch": (
        "self num_reqs num_tokens uniform_token_count num_active_loras ..."
    ),
    "vllm.v1.worker.gpu.cudagraph_utils:ModelCudaGraphManager.run_fullgraph": "self desc",
    "vllm.v1.worker.gpu.cudagraph_utils:CudaGraphManager.run_pw_graph": "self model model_inputs",
    "vllm.v1.worker.gpu.model_states.default:DefaultModelState.prepare_attn": (
        "self input_batch cudagraph_mode block_tables slot_mappings attn_groups kv_cache_config ..."
    ),
    "vllm.v1.worker.gpu.attn_utils:build_attn_metadata": (
        "attn_groups num_reqs num_tokens query_start_loc_gpu query_start_loc_cpu max_query_len seq_lens max_seq_len "
        "block_tables slot_mappings kv_cache_config seq_lens_cpu_upper_bound ..."
    ),
    "vllm.v1.worker.gpu.attn_utils:init_attn_backend": ("kv_cache_config vllm_config device active_layer_names ..."),
    "vllm.forward_context:set_forward_context": (
        "attn_metadata vllm_config num_tokens num_tokens_across_dp cudagraph_runtime_mode batch_descriptor ubatch_slices "
        "slot_mapping skip_compiled is_padding ..."
    ),
    # Graphs of a model's pieces.
    "vllm.v1.worker.gpu.cudagraph_utils:CudaGraphManager.capture": "self create_forward_fn progress_bar_desc",
    "vllm.v1.worker.gpu.cudagraph_utils:has_compiled_submodule": "model",
    "vllm.config.compilation:CUDAGraphMode.has_piecewise_cudagraphs": "self",
    "vllm.config.compilation:CompilationConfig.splitting_ops_contain_kv_cache_update": "self",
    "vllm.compilation.cuda_graph:CUDAGraphWrapper.__init__": "self runnable vllm_config runtime_mode cudagraph_options",
    # What a model that takes images is called with.
    "vllm.model_executor.models.interfaces:SupportsMultiModal.embed_input_ids": (
        "self input_ids multimodal_embeddings is_multimodal"
    ),
    "vllm.model_executor.models.interfaces:SupportsMRoPE.get_mrope_input_positions": "self input_tokens mm_features",
    "vllm.model_executor.models.interfaces:supports_mrope": "model",
    "vllm.model_executor.models.interfaces:supports_realtime": "model",
    "vllm.v1.worker.gpu.mm.rope:RopeState.get_positions": "self num_tokens",
    "vllm.v1.worker.gpu.model_states.default:DefaultModelState.prepare_inputs": "self input_batch req_states",
    "vllm.config.model:ModelConfig.get_model_arch_config": "self",
    "vllm.config.multimodal:MultiModalConfig.is_multimodal_pruning_enabled": "self",
    "vllm.renderers:merge_kwargs": "defaults overrides unset_values",
    "vllm.renderers.hf:resolve_chat_template": "tokenizer chat_template tools model_config",
    "vllm.renderers.hf:resolve_chat_template_content_format": (
        "chat_template tools given_format tokenizer model_config"
    ),
    "vllm.v1.worker.utils:get_uniform_decode_token_count": "num_reqs num_tokens max_query_len decode_graph_eligible",
    "vllm.v1.worker.utils:clear_layer_kv_caches": "layers",
    "vllm.v1.worker.gpu.input_batch:InputBatch.make_dummy": "cls num_reqs num_tokens input_buffers max_query_len ...",
    "vllm.v1.worker.gpu.lora_utils:get_lora_capture_cases": "lora_config compilation_config",
    "vllm.v1.worker.gpu.lora_utils:create_lora_capture_hook": "lora_config runner",
    "vllm.v1.worker.gpu.lora_utils:LoraState.make_lora_inputs": "self req_ids idx_mapping num_scheduled_tokens",
    "vllm.v1.worker.gpu.lora_utils:LoraState.get_activate_loras": "self req_ids",
    "vllm.v1.worker.lora_model_runner_mixin:LoRAModelRunnerMixin.add_lora": "self lora_request",
    "vllm.lora.model_manager:LoRAModelManager.get_adapter": "self adapter_id",
    "vllm.lora.peft_helper:PEFTHelper.from_dict": "cls config_dict",
    "vllm.lora.peft_helper:PEFTHelper.validate_legal": "self lora_config",
    "vllm.lora.utils:is_base_embedding_weights": "name",
    "vllm.transformers_utils.repo_utils:get_model_path": "model revision",
    "vllm.v1.worker.gpu.dp_utils:dispatch_cg_and_sync_dp": (
        "cudagraph_manager num_reqs num_tokens uniform_token_count dp_size dp_rank ..."
    ),
    "vllm.v1.worker.gpu.attn_utils:build_slot_mappings_by_layer": "slot_mappings kv_cache_config",
    "vllm.v1.worker.gpu.sample.gumbel:gumbel_sample": (
        "logits expanded_idx_mapping temperature seed pos apply_temperature is_drafting logits_cache logits_cache_col "
        "use_fp64 ..."
    ),
    "vllm.v1.core.kv_cache_utils:resolve_kv_cache_block_sizes": "kv_cache_config vllm_config",
    # Layers that keep a state.
    "vllm.v1.core.single_type_kv_cache_manager:MambaManager.get_num_blocks_to_allocate": "self request_id num_tokens ...",
    "vllm.v1.core.single_type_kv_cache_manager:MambaManager.allocate_new_blocks": "self request_id num_tokens ...",
    "vllm.v1.worker.gpu.model_states.mamba_hybrid:MambaHybridModelState.postprocess_state": "self idx_mapping num_sampled ...",
    # New weights for theta.
    "vllm.model_executor.model_loader.reload.inplace:reload_weights": (
        "vllm_config model weights_iterator weights_path is_checkpoint_format"
    ),
    "vllm.model_executor.layers.vocab_parallel_embedding:UnquantizedEmbeddingMethod.process_weights_after_loading": (
        "self layer"
    ),
    "vllm.model_executor.layers.vocab_parallel_embedding:ParallelLMHead.tie_weights": "self embed_tokens",
    "vllm.config.model:ModelConfig.try_get_generation_config": "self",
    "vllm.v1.engine.llm_engine:LLMEngine.get_num_unfinished_requests": "self",
    "vllm.v1.engine.llm_engine:LLMEngine.is_sleeping": "self",
    "vllm.v1.engine.core_client:InprocClient.collective_rpc": "self method timeout args kwargs",
    "vllm.v1.core.kv_cache_manager:KVCacheManager.allocate_slots": (
        "self request num_new_tokens num_new_computed_tokens new_computed_blocks num_lookahead_tokens ..."
    ),
    "vllm.v1.spec_decode.dynamic.utils:build_dynamic_sd_schedule_lookup": (
        "num_speculative_tokens_per_batch_size vllm_max_batch_size vllm_num_speculative_tokens"
    ),
    "vllm.v1.worker.gpu.buffer_utils:StagedWriteTensor.__init__": (
        "self size dtype device max_concurrency uva_instead_of_gpu"
    ),
    "vllm.v1.worker.gpu.spec_decode.rejection_sampler:RejectionSampler._verify_in_chunks": (
        "self logits input_batch draft_logits draft_sampled pos max_chunk_logits max_num_logprobs verify_draft_sampled"
    ),
    # What the engine times its warm-up steps with.
    "vllm.v1.worker.gpu.model_runner:GPUModelRunner._dummy_run": (
        "self num_tokens args skip_attn uniform_decode context_len skip_eplb ..."
    ),
    "vllm.v1.worker.gpu.model_runner:GPUModelRunner.capture_model": "self profile_only",
    "vllm.v1.worker.gpu.async_utils:StepTimingCollector.collect": "self",
    "vllm.config.vllm:VllmConfig._set_cudagraph_sizes": "self",
    "vllm.v1.worker.gpu.spec_decode.rejection_sampler:_flatten_sampled_kernel": (
        "flat_sampled_ptr sampled_ptr sampled_stride num_sampled_ptr cu_num_logits_ptr"
    ),
    "vllm.v1.worker.gpu.async_utils:async_copy_to_np": "x",
    "vllm.v1.worker.gpu.async_utils:stream": "to_stream from_stream",
    "vllm.v1.metrics.utils:create_metric_per_engine": "metric per_engine_labelvalues",
    "vllm.v1.worker.gpu.sample.logits_processor.interface:LogitsProcessor.__init__": "self vllm_config req_states",
    "vllm.v1.worker.gpu.sample.logits_processor.interface:LogitsProcessor.add_request": "self req_idx sampling_params",
    "vllm.v1.worker.gpu.sample.logits_processor.interface:LogitsProcessor.apply": "self logits ctx",
}

# What our subclasses override (`subclasses`, `worker/model_runner.py`, `worker/samplers.py`).
OVERRIDDEN: dict[str, str] = {
    "vllm.v1.core.sched.scheduler:Scheduler.__init__": (
        "self vllm_config kv_cache_config structured_output_manager block_size hash_block_size mm_registry "
        "include_finished_set log_stats"
    ),
    "vllm.v1.core.sched.scheduler:Scheduler.update_from_output": "self scheduler_output model_runner_output",
    "vllm.v1.core.sched.scheduler:Scheduler._handle_stopped_request": "self request",
    "vllm.v1.worker.gpu_worker:Worker.init_device": "self",
    "vllm.v1.worker.cpu_worker:CPUWorker.init_device": "self",
    "vllm.v1.worker.gpu_worker:Worker._set_draft_weight_update_target": "self",
    f"{RUNNER}.load_model": "self load_dummy_weights args model kwargs",
    f"{RUNNER}.initialize_kv_cache": "self kv_cache_config is_profiling kv_cache_allocation_context",
    f"{RUNNER}.execute_model": (
        "self scheduler_output intermediate_tensors dummy_run skip_attn_for_dummy_run is_profile context_len "
        "valid_dummy_state_slots randomize_inputs"
    ),
    f"{RUNNER}._init_kv_zero_meta": "self",
    f"{RUNNER}.prepare_attn": "self input_batch",
    f"{RUNNER}.capture_model": "self profile_only",
    f"{RUNNER}.profile_cudagraph_memory": "self",
    f"{RUNNER}._dummy_sampler_run": "self hidden_states",
    f"{RUNNER}.shutdown": "self",
    "vllm.v1.worker.lora_model_runner_mixin:LoRAModelRunnerMixin._set_active_loras": (
        "self prompt_lora_mapping token_lora_mapping lora_requests mapping_type"
    ),
    f"{RUNNER}.sample": "self hidden_states input_batch grammar_output",
    f"{RUNNER}.reload_weights": "self weights_iterator weights_path is_checkpoint_format",
    "vllm.v1.worker.gpu.sample.sampler:Sampler.sample": (
        "self logits expanded_idx_mapping idx_mapping idx_mapping_np pos input_ids expanded_local_pos "
        "seq_lens_upper_bound_np return_logprobs"
    ),
    "vllm.v1.worker.gpu.spec_decode.rejection_sampler:RejectionSampler._verify": (
        "self logits draft_logits draft_sampled pos cu_num_logits idx_mapping idx_mapping_np expanded_idx_mapping "
        "expanded_local_pos seq_lens_upper_bound_np verify_draft_sampled"
    ),
}

FIELDS: dict[str, str] = {
    "vllm.config.model:ModelConfig": "multimodal_config",
    "vllm.config.multimodal:MultiModalConfig": "language_model_only",
    "vllm.config.lora:LoRAConfig": "enable_tower_connector_lora",
    "vllm.v1.worker.gpu.sample.logits_processor.interface:LogitsContext": (
        "expanded_idx_mapping idx_mapping idx_mapping_np expanded_local_pos input_ids pos seq_lens_upper_bound_np"
    ),
    "vllm.v1.worker.gpu.input_batch:InputBatch": (
        "req_ids num_reqs idx_mapping idx_mapping_np num_scheduled_tokens num_tokens num_tokens_after_padding "
        "query_start_loc_np seq_lens_cpu_upper_bound num_computed_tokens_np prefill_len_np is_prefilling_np has_prefill "
        "input_ids positions cu_num_logits_np"
    ),
    "vllm.v1.metrics.stats:SchedulerStats": "kv_connector_stats",
    "vllm.v1.worker.gpu.cudagraph_utils:BatchExecutionDescriptor": (
        "cg_mode num_tokens num_reqs uniform_token_count max_query_len num_active_loras"
    ),
    "vllm.v1.worker.gpu.model_runner:ExecuteModelState": "input_batch hidden_states aux_hidden_states",
    "vllm.forward_context:BatchDescriptor": "num_tokens has_lora num_active_loras",
    "vllm.v1.kv_cache_interface:MambaSpec": "mamba_type mamba_cache_mode num_speculative_blocks",
    "vllm.v1.worker.gpu.model_states.mamba_hybrid:MambaHybridAttnMetadata": (
        "is_prefilling num_accepted_tokens num_decode_draft_tokens_cpu"
    ),
    "vllm.config.cache:CacheConfig": "use_replayssm mamba_cache_mode enable_prefix_caching",
}


def find(name: str) -> Any:
    module, path = name.split(":")
    owner: Any = importlib.import_module(module)
    for attribute in path.split("."):
        owner = inspect.getattr_static(owner, attribute)
    return owner


def parameters(function: Any) -> list[str]:
    if hasattr(function, "arg_names"):  # a Triton kernel
        return list(function.arg_names)
    if inspect.isclass(function) and "is_patched" in vars(function):  # ours extends the one that it replaces
        function = function.__base__
    return list(inspect.signature(inspect.unwrap(function)).parameters)


def takes(function: Any, expected: list[str]) -> bool:
    """Whether these are its parameters; "..." at the end stands for any further ones."""
    found = parameters(function)
    return found[: len(expected) - 1] == expected[:-1] if expected[-1] == "..." else found == expected


@pytest.fixture(scope="module", autouse=True)
def registered() -> None:
    load_general_plugins()


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: f"{patch.module}:{patch.name}")
def test_patched(patch: Patch) -> None:
    found = find(f"{patch.module}:{patch.name}")
    if patch.parameters is None:
        assert isinstance(found, property)
        assert hasattr(found.fget, "__wrapped__") or not SUPPORTED, f"{patch.name} is not in place"
        return
    assert getattr(found, "is_patched", False) or not SUPPORTED, f"{patch.name} is not in place"
    # The original, as vLLM wrote it: our replacements pass on what they do not name.
    assert takes(found, list(patch.parameters))


@pytest.mark.parametrize("name", [*CALLED, *OVERRIDDEN])
def test_called_and_overridden(name: str) -> None:
    assert takes(find(name), (CALLED | OVERRIDDEN)[name].split())


@pytest.mark.parametrize("name", FIELDS)
def test_fields(name: str) -> None:
    found = find(name)
    fields = getattr(found, "_fields", None) or [field.name for field in dataclasses.fields(found)]
    assert set(FIELDS[name].split()) <= set(fields)


def test_the_installed_version_is_supported() -> None:
    assert SUPPORTED

"""What is refused once vLLM has built its configuration, or its KV cache: each thing with its reason and the remedy."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vllm_optimal_sampling.config.errors import UnsupportedEngineError, first_line, listed
from vllm_optimal_sampling.config.latent_attention import latent_problems
from vllm_optimal_sampling.config.state_layers import state_problems, unsupported_state
from vllm_optimal_sampling.config.theta import EXACT_DRAFTERS, scores, scores_itself, theta_model_config
from vllm_optimal_sampling.config.tokenizers import check_tokenizers
from vllm_optimal_sampling.params import shown

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

logger = logging.getLogger(__name__)

EXACT_CACHE_DTYPES = ("auto", "float16", "bfloat16", "fp8", "fp8_e4m3")
"""A scale for a whole layer at most. Others keep scales beside the blocks, where a theta that is read through the teacher's
layers would not find its own, or were not run."""


def check_supported(vllm_config: VllmConfig) -> None:
    """Refuse an engine for which no test shows that the output follows q* exactly.

    Raises:
        UnsupportedEngineError: (a ValueError) with everything that is in the way, and what to do about each.

    """
    spec = vllm_config.speculative_config
    if scores(vllm_config):
        if spec is not None and spec.method not in EXACT_DRAFTERS:
            raise UnsupportedEngineError(
                f"optimal sampling cannot start: vLLM took speculative_config for the method {spec.method!r}, which is "
                f"not supported beside theta; use one of {', '.join(EXACT_DRAFTERS)}, or drop it"
            )
    elif spec is None or spec.method != "draft_model" or spec.draft_model_config is None:
        method = None if spec is None else spec.method
        raise UnsupportedEngineError(
            f"optimal sampling cannot start: vLLM took theta for the speculative method {method!r}, by its name or its "
            "architecture, and not for a draft model; give a plain language model, in a folder named otherwise"
        )
    problems = [*_runner_problems(vllm_config), *_option_problems(vllm_config)]
    if scores_itself(vllm_config):
        problems += _one_model_problems(vllm_config)
    elif not scores(vllm_config):
        problems += _draft_model_problems(vllm_config)
    theta = theta_model_config(vllm_config)
    problems += [
        *latent_problems(vllm_config, theta),
        *state_problems(vllm_config, theta),
        *_model_problems("the teacher", vllm_config.model_config),
    ]
    if not scores_itself(vllm_config):
        problems += _model_problems("theta", theta)
    if problems:
        raise UnsupportedEngineError(listed(problems))
    if not vllm_config.model_config.skip_tokenizer_init:
        check_tokenizers(vllm_config)
    if spec is not None and spec.rejection_sample_method == "synthetic":
        logger.warning(
            "rejection_sample_method='synthetic' accepts drafts at a made-up rate: it is for benchmarks, and the "
            "output does not follow q*."
        )


def _runner_problems(config: VllmConfig) -> Iterator[str]:
    if config.use_v2_model_runner:
        return
    if os.environ.get("VLLM_USE_V2_MODEL_RUNNER") is not None:
        yield (
            "it needs Model Runner V2, and VLLM_USE_V2_MODEL_RUNNER="
            f"{os.environ['VLLM_USE_V2_MODEL_RUNNER']} chose V1; set VLLM_USE_V2_MODEL_RUNNER=1"
        )
        return
    find = getattr(config, "_get_v2_model_runner_unsupported_features", None)
    unsupported = find() if find is not None else []
    if unsupported:
        yield (
            f"it needs Model Runner V2, and vLLM chose V1 because V2 does not support {', '.join(unsupported)}; "
            "start without, and with VLLM_USE_V2_MODEL_RUNNER=1"
        )
    else:
        yield (
            "it needs Model Runner V2, and vLLM chose V1; set VLLM_USE_V2_MODEL_RUNNER=1 (on a machine without a GPU, "
            "TRITON_INTERPRET=1 as well)"
        )


def _option_problems(config: VllmConfig) -> Iterator[str]:
    """Options of vLLM that are not supported beside this theta."""
    parallel, model, spec, cache = (
        config.parallel_config,
        config.model_config,
        config.speculative_config,
        config.cache_config,
    )
    several_experts = parallel.data_parallel_size > 1 or parallel.enable_expert_parallel
    has_adaptive_verification = spec is not None and spec.enable_adaptive_verification
    is_moe_on_ranks = several_experts and (model.is_moe or theta_model_config(config).is_moe)
    has_lora = config.lora_config is not None and not scores_itself(config)
    refused = (
        (
            parallel.enable_batch_sharded_sampling,
            "batch-sharded sampling is not supported; drop enable_batch_sharded_sampling",
        ),
        (has_adaptive_verification, "adaptive verification is not supported; drop enable_adaptive_verification"),
        (parallel.pipeline_parallel_size > 1, "pipeline parallelism is not supported; use tensor parallelism"),
        (
            parallel.decode_context_parallel_size > 1,
            "decode context parallelism is not supported; drop --decode-context-parallel-size",
        ),
        (
            parallel.prefill_context_parallel_size > 1,
            "prefill context parallelism is not supported; drop --prefill-context-parallel-size",
        ),
        (
            parallel.use_ubatching,
            "dual batch overlap and micro-batches are not supported; drop --enable-dbo and --ubatch-size",
        ),
        (
            is_moe_on_ranks,
            "a mixture of experts is not supported over several data-parallel or expert-parallel ranks; use tensor "
            "parallelism",
        ),
        (
            config.watermark_config is not None,
            "watermarking is not supported, since it changes what is drawn; drop --watermark-config",
        ),
        (
            config.kv_transfer_config is not None,
            "KV connectors and KV offloading are not supported, since they move the teacher's cache without theta's; drop "
            "--kv-transfer-config and --kv-offloading-size",
        ),
        (
            config.ec_transfer_config is not None,
            "transfer of encoder outputs is not supported; drop --ec-transfer-config",
        ),
        (
            cache.kv_sharing_fast_prefill,
            "fast prefill by KV sharing is not supported; drop --kv-sharing-fast-prefill",
        ),
        (
            str(cache.cache_dtype) not in EXACT_CACHE_DTYPES,
            f"a KV cache of {cache.cache_dtype} is not shown exact; use one of {', '.join(EXACT_CACHE_DTYPES)} as "
            "--kv-cache-dtype",
        ),
        (has_lora, "LoRA is not supported beside a separate theta; merge the adapter into the model"),
        (
            model.enable_prompt_embeds,
            "prompt embeddings are not supported, since theta cannot read them; drop --enable-prompt-embeds",
        ),
        (
            model.multimodal_config is not None and model.multimodal_config.is_multimodal_pruning_enabled(),
            "pruning of videos is not shown exact; drop --video-pruning-rate",
        ),
        (model.enable_trace_replay, "trace replay is not supported; drop --enable-trace-replay"),
        (model.return_sampling_mask, "sampling masks in the output are not supported; drop --return-sampling-mask"),
    )
    yield from (sentence for is_so, sentence in refused if is_so)


def _draft_model_problems(config: VllmConfig) -> Iterator[str]:
    """Options of vLLM for the draft model alone, where theta drafts."""
    spec, cache, model = config.speculative_config, config.cache_config, config.model_config
    assert spec is not None
    if spec.draft_parallel_config.tensor_parallel_size != config.parallel_config.tensor_parallel_size:
        yield "a tensor-parallel size of theta's own is not supported; drop draft_tensor_parallel_size"
    if spec.kv_cache_dtype not in (None, cache.cache_dtype):
        yield (
            f"theta's KV cache lies in the teacher's blocks, so kv_cache_dtype={spec.kv_cache_dtype!r} for theta alone "
            f"is not supported; drop it from speculative_config, or give --kv-cache-dtype for both"
        )
    if spec.max_model_len is not None and spec.max_model_len < model.max_model_len:
        yield (
            f"theta has to read whole sequences, and speculative_config's max_model_len={spec.max_model_len} is below "
            f"the teacher's {model.max_model_len}; drop it, or lower --max-model-len"
        )


def _one_model_problems(config: VllmConfig) -> Iterator[str]:
    if config.lora_config is not None and config.lora_config.enable_tower_connector_lora:
        yield "adapters of what reads images are not shown exact; drop --enable-tower-connector-lora"
    scheduler = config.scheduler_config
    needed = 2 * scheduler.max_num_seqs * (config.num_speculative_tokens + 1)
    if config.lora_config is not None and scheduler.max_num_batched_tokens < needed:
        yield (
            f"vLLM's LoRA operations take max_num_batched_tokens={scheduler.max_num_batched_tokens} rows, and a step of "
            f"max_num_seqs={scheduler.max_num_seqs} requests may have {needed} of both models; raise the first, or lower "
            "the second"
        )


def _model_problems(role: str, model: ModelConfig) -> Iterator[str]:
    text = model.hf_text_config
    windows = getattr(text, "attention_chunk_size", None) is not None
    generates = model.runner_type in ("generate", "draft")
    table = {
        "it does not generate text (pooling)": not generates,
        "it takes images as they are, and not as embeddings": model.is_multimodal_raw_input_only_model,
        "it reads token ids beside embeddings": model.requires_raw_input_tokens,
        "it is an encoder-decoder": model.is_encoder_decoder,
        "it generates by diffusion": model.is_diffusion,
        "it has no attention": model.is_attention_free,
        "its attention sees chunks": windows,
        "its attention picks what it reads (sparse MLA)": model.use_mla and _is_sparse(text),
        "its positions have more than three dimensions": model.mrope_num_dims > 3,
    }
    reasons = [what for what, is_so in table.items() if is_so]
    if reasons:
        yield (
            f"{role} {model.model!r} is not supported, since {', '.join(reasons)}; use a decoder of text with "
            "full attention"
        )


def _is_sparse(text: Any) -> bool:
    return hasattr(text, "index_topk") or hasattr(text, "compress_ratios")


def check_kv_cache(vllm_config: VllmConfig, kv_cache_config: KVCacheConfig, block_size: int) -> None:
    """Refuse a KV cache in which theta's slots would not lie where `layout` puts them.

    Args:
        vllm_config: the engine's configuration.
        kv_cache_config: as the scheduler has it, with the layers of both models.
        block_size: see `layout_block_size`.

    Raises:
        UnsupportedEngineError: a group of layers keeps its tokens otherwise, or one request could not fit.

    """
    from vllm.v1.kv_cache_interface import (
        FullAttentionSpec,
        MambaSpec,
        MLAAttentionSpec,
        SlidingWindowSpec,
        UniformTypeKVCacheSpecs,
    )

    full_attention = (FullAttentionSpec, MLAAttentionSpec)
    teacher = vllm_config.model_config.model
    pair = f"teacher {teacher!r} and theta {theta_model_config(vllm_config).model!r}"
    blocks_needed = 0
    # A request of the model's full length, theta's slots behind the teacher's, and the slots of one round.
    longest = vllm_config.model_config.max_model_len + block_size + vllm_config.num_lookahead_tokens
    for group in kv_cache_config.kv_cache_groups:
        spec = group.kv_cache_spec
        specs = list(spec.kv_cache_specs.values()) if isinstance(spec, UniformTypeKVCacheSpecs) else [spec]
        for one in specs:
            if isinstance(one, MambaSpec):
                if (why := unsupported_state(one, vllm_config.num_speculative_tokens)) is not None:
                    raise UnsupportedEngineError(
                        f"optimal sampling cannot start: the layers {shown(group.layer_names)} of {pair} {why}"
                    )
                continue
            # Blocks that leave the teacher's window have left theta's: its slots are never behind the teacher's.
            if type(one) not in (*full_attention, SlidingWindowSpec) or block_size % one.block_size:
                raise UnsupportedEngineError(
                    f"optimal sampling cannot start: the layers {shown(group.layer_names)} of {pair} keep their cache "
                    f"as {type(one).__name__} in blocks of {one.block_size} tokens; only full and sliding-window "
                    f"attention in blocks that divide {block_size} are shown exact. Use two models of one family"
                )
        if type(specs[0]) in full_attention:
            blocks_needed += -(-longest // specs[0].block_size)
        elif isinstance(specs[0], MambaSpec):
            blocks_needed += 1 + specs[0].num_speculative_blocks  # a state behind each draft
    if blocks_needed > kv_cache_config.num_blocks - 1:  # one is vLLM's null block
        raise UnsupportedEngineError(
            f"optimal sampling cannot start: {pair} have {kv_cache_config.num_blocks - 1} blocks of KV cache, and one "
            f"request of max_model_len={vllm_config.model_config.max_model_len} may need {blocks_needed}; raise "
            "gpu_memory_utilization, or lower max_model_len"
        )


def unreadable_weights(theta: str, error: Exception) -> UnsupportedEngineError:
    """What to raise where vLLM cannot load theta: which of the two models it is, where, and vLLM's reason."""
    return UnsupportedEngineError(
        f"optimal sampling cannot start: theta's weights in {theta!r} cannot be loaded ({first_line(error)}); check that "
        "the files are whole, and that config.json is of the same model"
    )


def no_adapter() -> ValueError:
    """The error of an engine that is asked for another adapter of a theta without one."""
    return ValueError('theta has no adapter to replace in this engine; start it with "theta_lora" in its settings')

"""What is refused where attention keeps latents, the MLA of DeepSeek-V2, DeepSeek-V3 and their kin.

A latent's block of the cache is a block like any other: theta's lies OFFSET blocks behind the teacher's, or in layers of its
own. But vLLM splits a step of such a model into decodes, which read the length of a context on the device, and prompt
chunks, for which it takes the host's count (`seq_lens_cpu_upper_bound`, `mla_attention.py`). Under async scheduling that
count has drafts in it that were rejected, and where rows differ in length a decode with drafts may be treated as a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from vllm_optimal_sampling.config.theta import scores, scores_itself

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig

LATENT_CACHE_DTYPES = ("auto", "float16", "bfloat16")


def latent_problems(config: VllmConfig, theta: ModelConfig) -> Iterator[str]:
    """The sentences for which an engine with such a model is refused; none where neither model is one."""
    from vllm.platforms import current_platform

    teacher, spec = config.model_config, config.speculative_config
    if not teacher.use_mla and not theta.use_mla:
        return
    if teacher.use_mla != theta.use_mla:
        yield "a model whose attention keeps latents (MLA) beside one without was not run; use two of one family"
    if scores(config) and spec is not None and spec.method != "ngram":
        yield (
            f"drafts of the method {spec.method!r} for a model whose attention keeps latents (MLA) were not run; use ngram, "
            "or drop speculative_config"
        )
    if config.num_speculative_tokens and config.scheduler_config.async_scheduling:
        yield (
            "under async scheduling vLLM may count rejected drafts into what attention that keeps latents (MLA) reads; add "
            "--no-async-scheduling, or drop speculative_config"
        )
    if config.cache_config.cache_dtype not in LATENT_CACHE_DTYPES:
        yield (
            f"a KV cache of {config.cache_config.cache_dtype} was not run with attention that keeps latents (MLA); drop "
            "--kv-cache-dtype"
        )
    if config.lora_config is not None and scores_itself(config):
        yield "LoRA was not run with attention that keeps latents (MLA); drop --enable-lora and theta_lora"
    if (
        current_platform.is_cpu()
        and config.compilation_config.is_custom_op_enabled("rotary_embedding")
        and not all(map(_has_yarn, (teacher, theta)))
    ):
        yield (
            "vLLM's own operation for plain RoPE on CPUs turns the heads of attention that keeps latents (MLA) by wrong "
            """angles; start with --compilation-config '{"custom_ops": ["-rotary_embedding"]}'"""
        )


def _has_yarn(model: ModelConfig) -> bool:
    """Whether vLLM turns a model's heads with PyTorch everywhere, as it does where DeepSeek's YaRN is."""
    parameters = getattr(model.hf_text_config, "rope_parameters", None) or {}
    return parameters.get("rope_type") in ("yarn", "deepseek_yarn")

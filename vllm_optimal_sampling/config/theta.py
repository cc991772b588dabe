"""Who theta, the student model, is in an engine, and what it does there.

Theta *drafts* where it is vLLM's draft model (`speculative_config`). It *scores* where the engine-wide setting `theta`
names it: then it reads each step's own tokens, and whatever drafts (nothing, n-grams, an EAGLE or MTP head) is none of
its business. A theta that scores may be the teacher itself (`theta="self"`), with or without a LoRA adapter.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from vllm_optimal_sampling.config.settings import KEY, is_enabled

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig

SELF = "self"
"""The setting `theta` for a theta that has the teacher's weights."""

NUM_SPECULATIVE_TOKENS = 4
"""Drafts of a round, where nobody says how many to the tools that start an engine themselves."""

EXACT_DRAFTERS = ("ngram", "ngram_gpu", "eagle", "eagle3", "mtp")
"""Methods of vLLM's Model Runner V2 that may draft where theta scores."""


def scores(vllm_config: VllmConfig) -> bool:
    """Whether this engine has a theta that scores; in whichever process."""
    return _setting(vllm_config, "theta") is not None


def scores_itself(vllm_config: VllmConfig) -> bool:
    """Whether theta scores and is the teacher itself, but for an adapter."""
    return _setting(vllm_config, "theta") == SELF


def theta_lora(vllm_config: VllmConfig) -> str | None:
    """Name or folder of theta's adapter."""
    return _setting(vllm_config, "theta_lora")


def reserved_lora_slots(adapter: str | None) -> int:
    """Adapters that an engine whose theta is the teacher itself must have room for beside those of requests.

    Args:
        adapter: theta's, None where it has none.
    """
    from vllm.platforms import current_platform

    # vLLM's LoRA operations on CPUs read "no adapter" (-1) as the last slot, which therefore has to stay empty.
    return (adapter is not None) + bool(current_platform.is_cpu())


def max_request_loras(vllm_config: VllmConfig) -> int:
    """The adapters that requests of one step may name."""
    if vllm_config.lora_config is None:
        return 0
    return vllm_config.lora_config.max_loras - reserved_lora_slots(theta_lora(vllm_config))


def _setting(vllm_config: VllmConfig, name: str) -> Any:
    additional = vllm_config.additional_config
    return additional[KEY].get(name) if is_enabled(vllm_config) and isinstance(additional, dict) else None


def same_place(first: str, second: str) -> bool:
    """Whether two names of models mean one model: the same name, or the same folder."""
    return first == second or (
        os.path.isdir(first) and os.path.isdir(second) and os.path.realpath(first) == os.path.realpath(second)
    )


def is_teacher(theta: str, teacher: str) -> bool:
    """Whether a theta of this name has the teacher's own weights."""
    return theta == SELF or same_place(theta, teacher)


def theta_model_config(vllm_config: VllmConfig) -> ModelConfig:
    """vLLM's configuration of theta, made anew for a theta that is neither the draft model nor the teacher.

    Raises:
        ValueError: vLLM cannot make one of the model that the settings name.

    """
    if not scores(vllm_config):
        assert vllm_config.speculative_config is not None, "an engine with optimal sampling has a theta"
        return vllm_config.speculative_config.draft_model_config
    if scores_itself(vllm_config):
        return vllm_config.model_config
    from vllm.config import ModelConfig

    teacher = vllm_config.model_config
    # The same arguments as vLLM takes over from the teacher for a draft model.
    config = ModelConfig(
        model=_setting(vllm_config, "theta"),
        runner="draft",
        tokenizer=teacher.tokenizer,
        tokenizer_mode=teacher.tokenizer_mode,
        trust_remote_code=teacher.trust_remote_code,
        dtype=teacher.dtype,
        seed=teacher.seed,
        tokenizer_revision=teacher.tokenizer_revision,
        spec_target_max_model_len=teacher.max_model_len,
        enforce_eager=teacher.enforce_eager,
        max_logprobs=teacher.max_logprobs,
        # As for a draft model, but that vLLM makes the MTP module of a draft model that may have one.
        hf_overrides=teacher.hf_overrides if callable(teacher.hf_overrides) else {},
        config_format=teacher.config_format,
        language_model_only=True,  # a multimodal theta reads text, see `read_text_only`
    )
    config.max_model_len = min(config.max_model_len, teacher.max_model_len)
    return config


def read_text_only(theta: ModelConfig) -> None:
    """Let a multimodal theta that drafts take no images, and so have no memory for what reads them.

    vLLM takes `language_model_only` for the teacher, and has no such argument for a draft model.
    """
    if theta.multimodal_config is None:
        return
    theta.multimodal_config.language_model_only = True
    theta.model_arch_config = theta.get_model_arch_config()  # vLLM too makes it anew once it knows

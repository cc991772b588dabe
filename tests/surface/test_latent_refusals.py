"""What may not start with a model whose attention keeps latents (MLA)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from configurations import refusal, refusal_of
from vllm.v1.kv_cache_interface import MLAAttentionSpec, SlidingWindowMLASpec

from support.latent_models import save_latent_model
from vllm_optimal_sampling.config.errors import UnsupportedEngineError
from vllm_optimal_sampling.config.refusals import check_kv_cache, check_supported

BuildConfig = Callable[..., Any]
SELF: dict[str, Any] = {"speculative_config": None, "additional_config": {"optimal_sampling": {"theta": "self"}}}


@pytest.fixture(scope="module")
def latent(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_latent_model(tmp_path_factory.mktemp("models") / "latent")


@pytest.fixture(scope="module")
def supported(build_config: BuildConfig, latent: str) -> Any:
    """An engine that may start, with n-grams as drafts; tests change one thing about it."""
    speculative = {"method": "ngram", "num_speculative_tokens": 2}
    return build_config(model=latent, **SELF | {"speculative_config": speculative})


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        (
            "speculative_config.method",
            "mtp",
            "drafts of the method 'mtp' for a model whose attention keeps latents (MLA) were not run; use ngram, or drop "
            "speculative_config",
        ),
        (
            "scheduler_config.async_scheduling",
            True,
            "under async scheduling vLLM may count rejected drafts into what attention that keeps latents (MLA) reads; add "
            "--no-async-scheduling, or drop speculative_config",
        ),
        (
            "cache_config.cache_dtype",
            "fp8",
            "a KV cache of fp8 was not run with attention that keeps latents (MLA); drop --kv-cache-dtype",
        ),
        (
            "lora_config",
            SimpleNamespace(enable_tower_connector_lora=False),
            "LoRA was not run with attention that keeps latents (MLA); drop --enable-lora and theta_lora",
        ),
    ],
)
def test_what_was_not_run_is_refused(
    supported: Any, monkeypatch: pytest.MonkeyPatch, path: str, value: Any, sentence: str
) -> None:
    assert refusal_of(supported, monkeypatch, path, value) == f"optimal sampling cannot start: {sentence}."


def test_without_drafts_it_may_be_scheduled_ahead(
    build_config: BuildConfig, latent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = build_config(model=latent, **SELF)
    monkeypatch.setattr(config.scheduler_config, "async_scheduling", True)
    check_supported(config)


def test_beside_another_kind_of_attention_it_is_refused(build_config: BuildConfig, latent: str, theta: str) -> None:
    sentence = "a model whose attention keeps latents (MLA) beside one without was not run; use two of one family"
    config = build_config(model=latent, speculative_config={"model": latent, "num_speculative_tokens": 3})
    check_supported(config)
    assert sentence in refusal(
        build_config,
        model=latent,
        skip_tokenizer_init=True,
        speculative_config={"model": theta, "num_speculative_tokens": 3},
    )


def test_sparse_attention_is_refused(supported: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supported.model_config.hf_text_config, "index_topk", 2048, raising=False)
    with pytest.raises(UnsupportedEngineError, match=r"since its attention picks what it reads \(sparse MLA\); use a"):
        check_supported(supported)


def test_plain_positions_are_refused_where_a_cpu_turns_them_wrongly(build_config: BuildConfig, tmp_path: Path) -> None:
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    plain = save_latent_model(tmp_path / "plain", rope_parameters=rope)
    assert refusal(build_config, model=plain, **SELF) == (
        "optimal sampling cannot start: vLLM's own operation for plain RoPE on CPUs turns the heads of attention that keeps "
        """latents (MLA) by wrong angles; start with --compilation-config '{"custom_ops": ["-rotary_embedding"]}'."""
    )
    build_config(model=plain, compilation_config={"custom_ops": ["-rotary_embedding"]}, **SELF)


def test_a_cache_of_latents_is_accepted_and_one_of_windows_is_not(supported: Any) -> None:
    shape = {"block_size": 16, "num_kv_heads": 1, "head_size": 576, "dtype": torch.float32}
    needed = -(-(supported.model_config.max_model_len + 16 + supported.num_lookahead_tokens) // 16)

    def cache(spec: Any, num_blocks: int) -> Any:
        group = SimpleNamespace(layer_names=["model.layers.0"], kv_cache_spec=spec)
        return SimpleNamespace(kv_cache_groups=[group], num_blocks=num_blocks)

    check_kv_cache(supported, cache(MLAAttentionSpec(**shape), needed + 1), 16)
    with pytest.raises(UnsupportedEngineError, match=f"may need {needed}"):
        check_kv_cache(supported, cache(MLAAttentionSpec(**shape), needed), 16)
    with pytest.raises(UnsupportedEngineError, match="keep their cache as SlidingWindowMLASpec"):
        check_kv_cache(supported, cache(SlidingWindowMLASpec(sliding_window=64, **shape), needed + 1), 16)

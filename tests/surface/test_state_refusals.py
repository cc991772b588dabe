"""What may start with a model some of whose layers keep a state, and what may not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from configurations import refusal, refusal_of
from vllm.v1.attention.backends.registry import MambaAttentionBackendEnum
from vllm.v1.kv_cache_interface import FullAttentionSpec, MambaSpec

from support.state_models import save_state_model
from vllm_optimal_sampling.config.errors import UnsupportedEngineError
from vllm_optimal_sampling.config.refusals import check_kv_cache, check_supported
from vllm_optimal_sampling.config.state_layers import layout_block_size
from vllm_optimal_sampling.config.theta import theta_model_config

BuildConfig = Callable[..., Any]
MAX_MODEL_LEN = 128


def scoring(theta: str = "self") -> dict[str, Any]:
    return {"speculative_config": None, "additional_config": {"optimal_sampling": {"theta": theta}}}


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_state_model(tmp_path_factory.mktemp("models") / "hybrid", "granite", seed=0)


@pytest.fixture(scope="module")
def supported(build_config: BuildConfig, hybrid: str) -> Any:
    """An engine that may start; tests change one thing about it."""
    return build_config(model=hybrid, **scoring())


def test_prefix_caching_is_off_unless_it_is_asked_for(build_config: BuildConfig, hybrid: str, supported: Any) -> None:
    assert not supported.cache_config.enable_prefix_caching
    assert supported.cache_config.mamba_cache_mode == "none"
    check_supported(build_config(model=hybrid, enable_prefix_caching=False, **scoring()))
    assert refusal(build_config, model=hybrid, enable_prefix_caching=True, **scoring()) == (
        "optimal sampling cannot start: prefix caching would restore the state of the teacher's prompt and not of theta's, "
        "where layers keep a state; drop --enable-prefix-caching."
    )


def test_replayed_states_are_refused(supported: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal_of(supported, monkeypatch, "cache_config.use_replayssm", True) == (
        "optimal sampling cannot start: replayed states (ReplaySSM) were not run with theta; drop --use-replayssm."
    )


def test_theta_with_states_scores_and_does_not_draft(build_config: BuildConfig, hybrid: str, tmp_path: Path) -> None:
    check_supported(build_config(model=hybrid, **scoring(save_state_model(tmp_path / "theta", "granite", seed=1))))
    assert refusal(build_config, model=hybrid, speculative_config={"model": hybrid, "num_speculative_tokens": 3}) == (
        "optimal sampling cannot start: theta has layers that keep a state, which cannot go back where its drafts are "
        "rejected; let it score: drop speculative_config, and add --additional-config "
        """'{"optimal_sampling": {"theta": "THE MODEL"}}'."""
    )


def test_theta_with_states_needs_a_teacher_with_some(build_config: BuildConfig, hybrid: str) -> None:
    assert (
        "theta has layers that keep a state and the teacher has none, by which vLLM lays out the cache; use two models of one "
        "family"
    ) in refusal(build_config, skip_tokenizer_init=True, **scoring(hybrid))


def test_theta_of_attention_alone_may_draft_for_a_teacher_with_states(
    build_config: BuildConfig, hybrid: str, theta: str
) -> None:
    speculative = {"model": theta, "num_speculative_tokens": 3}
    config = build_config(model=hybrid, skip_tokenizer_init=True, speculative_config=speculative)
    assert not config.cache_config.enable_prefix_caching


def test_theta_of_its_own_is_the_model_and_not_its_module_for_drafts(build_config: BuildConfig, tmp_path: Path) -> None:
    """vLLM makes the MTP module of a draft model of this family."""
    teacher, theta = (save_state_model(tmp_path / name, "qwen3_5", seed=0) for name in ("teacher", "theta"))
    config = build_config(model=teacher, dtype="bfloat16", **scoring(theta))
    assert theta_model_config(config).architecture == config.model_config.architecture == "Qwen3_5ForCausalLM"


# The cache

SHAPE = {"num_kv_heads": 1, "head_size": 32, "dtype": torch.float32}


def state(kind: str = "MAMBA2", **options: Any) -> MambaSpec:
    return MambaSpec(
        block_size=MAX_MODEL_LEN,
        shapes=((4, 16),),
        dtypes=(torch.float32,),
        mamba_type=MambaAttentionBackendEnum[kind],
        **options,
    )


def cache(*specs: Any, num_blocks: int = 100) -> Any:
    groups = [SimpleNamespace(layer_names=[f"layers.{i}"], kv_cache_spec=spec) for i, spec in enumerate(specs)]
    return SimpleNamespace(kv_cache_groups=groups, num_blocks=num_blocks)


def test_blocks_of_states_have_no_part_in_the_layout(supported: Any) -> None:
    config = cache(state(), FullAttentionSpec(block_size=48, **SHAPE), FullAttentionSpec(block_size=32, **SHAPE))
    assert layout_block_size(supported, config) == 96


def test_a_request_needs_a_block_for_its_state(supported: Any) -> None:
    needed = 1 + (MAX_MODEL_LEN + 32) // 32  # theta's slots may reach a block beyond the model's length
    attention = FullAttentionSpec(block_size=32, **SHAPE)
    check_kv_cache(supported, cache(state(), attention, num_blocks=needed + 1), 32)
    with pytest.raises(UnsupportedEngineError, match=f"may need {needed}"):
        check_kv_cache(supported, cache(state(), attention, num_blocks=needed), 32)


def test_kinds_of_states_that_are_not_shown_exact_are_refused(supported: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnsupportedEngineError, match=r"mamba_cache_mode='align'\); drop --mamba-cache-mode"):
        check_kv_cache(supported, cache(state(mamba_cache_mode="align")), 32)
    with pytest.raises(UnsupportedEngineError, match="kind SHORT_CONV, and only MAMBA2 and GDN_ATTN are shown exact"):
        check_kv_cache(supported, cache(state("SHORT_CONV")), 32)
    monkeypatch.setattr(type(supported), "num_speculative_tokens", property(lambda self: 2))
    check_kv_cache(supported, cache(state("GDN_ATTN", num_speculative_blocks=2)), 32)
    with pytest.raises(
        UnsupportedEngineError, match="keep states of the kind MAMBA2, which are not shown exact where drafts"
    ):
        check_kv_cache(supported, cache(state(num_speculative_blocks=2)), 32)

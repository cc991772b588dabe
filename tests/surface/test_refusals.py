"""Engines that may not start, each with its reason. The configurations are vLLM's own."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from configurations import MAX_MODEL_LEN, VOCAB_SIZE, refusal, refusal_of, save_model
from vllm.config import ModelConfig

from vllm_optimal_sampling.config.errors import UnsupportedEngineError
from vllm_optimal_sampling.config.refusals import check_kv_cache, check_supported
from vllm_optimal_sampling.config.tokenizers import _vocabulary_difference, load_theta_tokenizer
from vllm_optimal_sampling.config.versions import SUPPORTED_VLLM

BuildConfig = Callable[..., Any]

FIRST, LAST = ("{}.{}".format(*version) for version in SUPPORTED_VLLM)


@pytest.fixture(scope="module")
def supported(build_config: BuildConfig) -> Any:
    """An engine that may start; tests change one thing about it, with monkeypatch."""
    return build_config()


# Configurations that are not supported


def test_a_theta_that_vllm_takes_for_a_drafter_is_refused(
    build_config: BuildConfig, supported: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    disguised = save_model(tmp_path / "Eagle-theta")
    assert refusal(build_config, speculative_config={"model": disguised, "num_speculative_tokens": 3}).startswith(
        "optimal sampling cannot start: vLLM takes every model with 'eagle-' in its name or path for a drafter of that "
        f"kind, and theta is {disguised!r}; give it by another path, such as a link.\n"
    )
    monkeypatch.setattr(supported.speculative_config, "method", "mtp")
    with pytest.raises(
        UnsupportedEngineError, match="vLLM took theta for the speculative method 'mtp', by its name or"
    ):
        check_supported(supported)


def test_model_runner_v1_is_refused(supported: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "0")
    with pytest.raises(UnsupportedEngineError) as caught:
        check_supported(supported)
    assert str(caught.value) == (
        "optimal sampling cannot start: it needs Model Runner V2, and VLLM_USE_V2_MODEL_RUNNER=0 chose V1; set "
        "VLLM_USE_V2_MODEL_RUNNER=1."
    )


def test_vllms_own_choice_of_v1_is_explained(supported: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_USE_V2_MODEL_RUNNER")
    monkeypatch.setattr(supported.parallel_config, "enable_dbo", True)
    monkeypatch.setattr(supported.parallel_config, "distributed_executor_backend", "external_launcher")
    monkeypatch.setattr(supported.parallel_config, "pipeline_parallel_size", 2)
    with pytest.raises(UnsupportedEngineError) as caught:
        check_supported(supported)
    assert "vLLM chose V1 because V2 does not support pipeline parallelism with external_launcher" in str(caught.value)


ENGINE = [
    (
        "parallel_config.enable_batch_sharded_sampling",
        True,
        "batch-sharded sampling is not supported; drop enable_batch_sharded_sampling",
    ),
    (
        "speculative_config.enable_adaptive_verification",
        True,
        "adaptive verification is not supported; drop enable_adaptive_verification",
    ),
    ("parallel_config.pipeline_parallel_size", 2, "pipeline parallelism is not supported; use tensor parallelism"),
    (
        "parallel_config.decode_context_parallel_size",
        2,
        "decode context parallelism is not supported; drop --decode-context-parallel-size",
    ),
    (
        "parallel_config.prefill_context_parallel_size",
        2,
        "prefill context parallelism is not supported; drop --prefill-context-parallel-size",
    ),
    (
        "parallel_config.enable_dbo",
        True,
        "dual batch overlap and micro-batches are not supported; drop --enable-dbo and --ubatch-size",
    ),
    (
        "parallel_config.ubatch_size",
        2,
        "dual batch overlap and micro-batches are not supported; drop --enable-dbo and --ubatch-size",
    ),
    (
        "speculative_config.draft_parallel_config.tensor_parallel_size",
        2,
        "a tensor-parallel size of theta's own is not supported; drop draft_tensor_parallel_size",
    ),
    (
        "watermark_config",
        object(),
        "watermarking is not supported, since it changes what is drawn; drop --watermark-config",
    ),
    (
        "kv_transfer_config",
        object(),
        "KV connectors and KV offloading are not supported, since they move the teacher's cache without theta's; drop "
        "--kv-transfer-config and --kv-offloading-size",
    ),
    ("ec_transfer_config", object(), "transfer of encoder outputs is not supported; drop --ec-transfer-config"),
    (
        "cache_config.kv_sharing_fast_prefill",
        True,
        "fast prefill by KV sharing is not supported; drop --kv-sharing-fast-prefill",
    ),
    ("lora_config", object(), "LoRA is not supported beside a separate theta; merge the adapter into the model"),
    (
        "model_config.enable_prompt_embeds",
        True,
        "prompt embeddings are not supported, since theta cannot read them; drop --enable-prompt-embeds",
    ),
    (
        "model_config.multimodal_config",
        SimpleNamespace(is_multimodal_pruning_enabled=lambda: True),
        "pruning of videos is not shown exact; drop --video-pruning-rate",
    ),
    ("model_config.enable_trace_replay", True, "trace replay is not supported; drop --enable-trace-replay"),
    (
        "model_config.return_sampling_mask",
        True,
        "sampling masks in the output are not supported; drop --return-sampling-mask",
    ),
]


@pytest.mark.parametrize(("path", "value", "sentence"), ENGINE, ids=[path for path, _, _ in ENGINE])
def test_engines_that_are_not_supported_are_refused(
    supported: Any, monkeypatch: pytest.MonkeyPatch, path: str, value: Any, sentence: str
) -> None:
    assert refusal_of(supported, monkeypatch, path, value) == f"optimal sampling cannot start: {sentence}."


@pytest.mark.parametrize("name", ["data_parallel_size", "enable_expert_parallel"])
def test_experts_on_several_ranks_are_refused(supported: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(supported.parallel_config, name, 2)
    check_supported(supported)  # a dense pair has one engine to a rank
    monkeypatch.setattr(ModelConfig, "is_moe", property(lambda _: True))
    with pytest.raises(
        UnsupportedEngineError,
        match="a mixture of experts is not supported over several data-parallel or expert-parallel",
    ):
        check_supported(supported)


MODELS = [
    ("is_multimodal_raw_input_only_model", True, "it takes images as they are, and not as embeddings"),
    ("requires_raw_input_tokens", True, "it reads token ids beside embeddings"),
    ("is_encoder_decoder", True, "it is an encoder-decoder"),
    ("is_diffusion", True, "it generates by diffusion"),
    ("is_attention_free", True, "it has no attention"),
    ("mrope_num_dims", 4, "its positions have more than three dimensions"),
    ("runner_type", "pooling", "it does not generate text (pooling)"),
]


@pytest.mark.parametrize("role", ["the teacher", "theta"])
@pytest.mark.parametrize(("name", "value", "reason"), MODELS, ids=[name for name, _, _ in MODELS])
def test_models_that_are_not_shown_exact_are_refused(
    supported: Any, monkeypatch: pytest.MonkeyPatch, role: str, name: str, value: Any, reason: str
) -> None:
    models = {"the teacher": supported.model_config, "theta": supported.speculative_config.draft_model_config}
    if isinstance(getattr(ModelConfig, name, None), property):
        monkeypatch.setattr(ModelConfig, name, property(lambda self: value if self is models[role] else type(value)()))
    else:
        monkeypatch.setattr(models[role], name, value)
    with pytest.raises(UnsupportedEngineError) as caught:
        check_supported(supported)
    assert str(caught.value) == (
        f"optimal sampling cannot start: {role} {models[role].model!r} is not supported, since {reason}; use a "
        "decoder of text with full attention."
    )


def test_a_sliding_window_is_supported(build_config: BuildConfig, tmp_path: Path) -> None:
    theta = save_model(tmp_path / "windowed", use_sliding_window=True, sliding_window=32, max_window_layers=0)
    check_supported(build_config(speculative_config={"model": theta, "num_speculative_tokens": 3}))


def test_a_shorter_theta_by_configuration_is_refused(supported: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM 0.32 skips theta where a sequence is longer; 0.33 lowers the teacher's length itself, which is sound."""
    monkeypatch.setattr(supported.speculative_config, "max_model_len", 64)
    with pytest.raises(UnsupportedEngineError) as caught:
        check_supported(supported)
    assert str(caught.value) == (
        "optimal sampling cannot start: theta has to read whole sequences, and speculative_config's max_model_len=64 "
        f"is below the teacher's {MAX_MODEL_LEN}; drop it, or lower --max-model-len."
    )
    monkeypatch.setattr(supported.speculative_config, "max_model_len", MAX_MODEL_LEN)
    check_supported(supported)


def test_a_cache_type_of_thetas_own_is_refused(supported: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supported.speculative_config, "kv_cache_dtype", "fp8")
    with pytest.raises(
        UnsupportedEngineError, match=r"so kv_cache_dtype='fp8' for theta alone is not supported; drop it"
    ):
        check_supported(supported)
    monkeypatch.setattr(supported.speculative_config, "kv_cache_dtype", supported.cache_config.cache_dtype)
    check_supported(supported)


@pytest.mark.parametrize("dtype", ["fp8_e5m2", "int8_per_token_head", "nvfp4"])
def test_a_cache_that_is_not_shown_exact_is_refused(
    supported: Any, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    monkeypatch.setattr(supported.cache_config, "cache_dtype", dtype)
    monkeypatch.setattr(supported.speculative_config, "kv_cache_dtype", None)
    with pytest.raises(UnsupportedEngineError) as caught:
        check_supported(supported)
    assert str(caught.value) == (
        f"optimal sampling cannot start: a KV cache of {dtype} is not shown exact; use one of auto, float16, bfloat16, "
        "fp8, fp8_e4m3 as --kv-cache-dtype."
    )
    monkeypatch.setattr(supported.cache_config, "cache_dtype", "fp8")
    check_supported(supported)


def test_synthetic_acceptance_starts_with_a_warning(
    build_config: BuildConfig, theta: str, package_log: pytest.LogCaptureFixture
) -> None:
    speculative = {
        "model": theta,
        "num_speculative_tokens": 2,
        "rejection_sample_method": "synthetic",
        "synthetic_acceptance_rates": [0.9, 0.8],
    }
    with package_log.at_level(logging.WARNING, "vllm_optimal_sampling"):
        build_config(speculative_config=speculative)
    assert "it is for benchmarks, and the output does not follow q*" in package_log.text


# The KV cache


def group(*specs: Any) -> Any:
    return SimpleNamespace(layer_names=["model.layers.0"], kv_cache_spec=specs[0])


def test_a_cache_in_blocks_of_one_size_is_accepted_and_others_are_not(supported: Any) -> None:
    import torch
    from vllm.v1.kv_cache_interface import FullAttentionSpec, SlidingWindowSpec, UniformTypeKVCacheSpecs

    shape = {"num_kv_heads": 2, "head_size": 32, "dtype": torch.float32}
    full, wider = FullAttentionSpec(block_size=16, **shape), FullAttentionSpec(block_size=32, **shape)
    window = SlidingWindowSpec(block_size=16, sliding_window=64, **shape)
    both = UniformTypeKVCacheSpecs(block_size=16, kv_cache_specs={"a": full, "b": full})
    for groups in ([full], [full, both], [full, window]):
        cache = SimpleNamespace(kv_cache_groups=[group(spec) for spec in groups], num_blocks=1000)
        check_kv_cache(supported, cache, 16)
    cache = SimpleNamespace(kv_cache_groups=[group(full), group(wider)], num_blocks=1000)
    with pytest.raises(UnsupportedEngineError, match="keep their cache as FullAttentionSpec in blocks of 32"):
        check_kv_cache(supported, cache, 16)


def test_a_cache_that_cannot_hold_one_request_is_refused(supported: Any) -> None:
    import torch
    from vllm.v1.kv_cache_interface import FullAttentionSpec

    spec = FullAttentionSpec(block_size=16, num_kv_heads=2, head_size=32, dtype=torch.float32)
    # The model's length, a block for theta's offset, and the slots of a round; one block is vLLM's own.
    needed = -(-(MAX_MODEL_LEN + 16 + supported.num_lookahead_tokens) // 16)
    check_kv_cache(supported, SimpleNamespace(kv_cache_groups=[group(spec)], num_blocks=needed + 1), 16)
    with pytest.raises(UnsupportedEngineError, match=f"may need {needed}"):
        check_kv_cache(supported, SimpleNamespace(kv_cache_groups=[group(spec)], num_blocks=needed), 16)


# Tokenizers


def with_theta(build_config: BuildConfig, theta: str, **arguments: Any) -> Any:
    return build_config(speculative_config={"model": theta, "num_speculative_tokens": 3}, **arguments)


def test_different_tokenizers_are_refused(build_config: BuildConfig, tmp_path: Path) -> None:
    other = save_model(tmp_path / "other", special="<s>", words="pack my box with five dozen liquor jugs")
    with pytest.raises(UnsupportedEngineError) as caught:
        with_theta(build_config, other)
    message = str(caught.value)
    assert (
        "teacher and theta have different tokenizers: 33 ids differ, the first is 0, which is '<|endoftext|>' for"
        in message
    )
    assert "the teacher and '<s>' for theta" in message
    assert "and their byte pairs are merged in another order" in message
    assert message.endswith("q* is defined over one vocabulary; use two models of one family.")
    with_theta(build_config, other, skip_tokenizer_init=True)


@pytest.mark.parametrize(
    ("teacher", "theta", "problem"),
    [
        ({"a": 0, "b": 1}, {"a": 0, "b": 1}, None),
        ({"a": 0, "b": 1}, {"b": 1, "a": 0}, None),
        (
            {"a": 0, "b": 1},
            {"a": 1, "b": 0},
            "2 ids differ, the first is 0, which is 'a' for the teacher and 'b' for theta",
        ),
        (
            {"a": 0},
            {"a": 0, "b": 1},
            "1 ids differ, the first is 1, which is nothing for the teacher and 'b' for theta",
        ),
        (
            {"a": 0, "b": 7},
            {"a": 0},
            "1 ids differ, the first is 7, which is 'b' for the teacher and nothing for theta",
        ),
    ],
)
def test_vocabularies_are_compared_id_by_id(teacher: Any, theta: Any, problem: str | None) -> None:
    difference = _vocabulary_difference(teacher, theta)
    assert difference is None if problem is None else (difference or "").startswith(problem)


def test_another_end_of_text_is_a_warning(
    build_config: BuildConfig, theta: str, tmp_path: Path, package_log: pytest.LogCaptureFixture
) -> None:
    """A base model as theta of a chat model has the same tokens, and another of them ends a text."""
    base = tmp_path / "base"
    shutil.copytree(theta, base)
    settings = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps({**settings, "eos_token": "a"}))
    with package_log.at_level(logging.WARNING, "vllm_optimal_sampling"):
        with_theta(build_config, str(base))
    assert "Teacher and theta end a text with different tokens" in package_log.text


def test_a_theta_without_tokenizer_is_refused(build_config: BuildConfig, theta: str, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(Path(theta) / "config.json", bare)
    with pytest.raises(UnsupportedEngineError) as caught:
        with_theta(build_config, str(bare))
    assert str(caught.value) == (
        f"optimal sampling cannot start: theta {str(bare)!r} has no tokenizer; put the teacher's tokenizer files into "
        "theta's folder"
    )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (bare / name).write_text("{")
    with pytest.raises(
        UnsupportedEngineError, match=r"cannot be loaded \(.+\); put the teacher's tokenizer files into"
    ):
        with_theta(build_config, str(bare))


def test_theta_of_the_same_vocabulary_starts(supported: Any) -> None:
    assert supported.speculative_config.draft_model_config.get_vocab_size() == VOCAB_SIZE
    assert load_theta_tokenizer(supported).encode("the fox")

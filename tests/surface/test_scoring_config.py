"""Asking for a theta that scores, and every reason not to start such an engine. The configurations are vLLM's own."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from configurations import MAX_MODEL_LEN, VOCAB_SIZE, refusal, save_model
from vllm import SamplingParams

from vllm_optimal_sampling.config.engine_args import prepare_engine_args
from vllm_optimal_sampling.config.settings import KEY, EngineSettings
from vllm_optimal_sampling.config.theta import (
    max_request_loras,
    reserved_lora_slots,
    scores,
    scores_itself,
    theta_model_config,
)
from vllm_optimal_sampling.front_end.admission import RequestResolver
from vllm_optimal_sampling.worker.theta.shared_weights import same_model

BuildConfig = Callable[..., Any]
LORA = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "target_modules": ["q_proj"]}
NGRAM = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3}


def scoring(theta: str = "self", **settings: Any) -> dict[str, Any]:
    return {"speculative_config": None, "additional_config": {KEY: {"theta": theta, **settings}}}


@pytest.fixture
def adapter(tmp_path: Path) -> str:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(LORA))
    return str(folder)


# Asking


@pytest.mark.parametrize("drafter", [None, NGRAM, {**NGRAM, "method": "ngram_gpu"}, {"model": "ngram", **NGRAM}])
def test_the_teacher_itself_with_whatever_drafts(build_config: BuildConfig, teacher: str, drafter: Any) -> None:
    config = build_config(**scoring() | {"speculative_config": drafter})
    assert scores(config) and scores_itself(config)
    assert theta_model_config(config) is config.model_config
    assert config.num_lookahead_tokens == 0
    assert (config.speculative_config is None) == (drafter is None)


def test_a_theta_that_drafts_scores_nothing(build_config: BuildConfig) -> None:
    config = build_config()
    assert not scores(config) and not scores_itself(config)
    assert theta_model_config(config) is config.speculative_config.draft_model_config


@pytest.mark.parametrize("named_as", ["theta", "draft model"])
def test_the_teachers_name_on_a_machine_without_the_hub(
    build_config: BuildConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named_as: str
) -> None:
    """vLLM puts the folder in the hub's cache for the teacher's name there, and for no other name."""
    snapshot = tmp_path / "models--owner--teacher" / "snapshots" / ("0" * 40)
    save_model(snapshot)
    (tmp_path / "models--owner--teacher" / "refs").mkdir()
    (tmp_path / "models--owner--teacher" / "refs" / "main").write_text(snapshot.name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    name = "owner/teacher"
    if named_as == "theta":
        config = build_config(model=name, **scoring(name))
        assert scores_itself(config)
    else:
        config = build_config(model=name, speculative_config={"model": name, "num_speculative_tokens": 2})
        assert same_model(config.model_config, theta_model_config(config))
    assert config.model_config.model == str(snapshot)


def test_another_model(build_config: BuildConfig, theta: str) -> None:
    config = build_config(**scoring(theta) | {"speculative_config": NGRAM})
    assert scores(config) and not scores_itself(config)
    found = theta_model_config(config)
    assert found.model == theta and found.max_model_len == MAX_MODEL_LEN and found.dtype == config.model_config.dtype
    assert found.get_vocab_size() == VOCAB_SIZE


def test_the_teachers_name_is_itself(build_config: BuildConfig, teacher: str, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(teacher)
    for name in (teacher, f"{teacher}/", str(link)):
        assert scores_itself(build_config(**scoring(name)))


def test_one_model_in_both_places_drafts(build_config: BuildConfig, teacher: str, theta: str) -> None:
    for name, drafter in ((theta, theta), ("self", teacher), (teacher, teacher)):
        speculative = {"model": drafter, "num_speculative_tokens": 2}
        config = build_config(**scoring(name) | {"speculative_config": speculative})
        assert not scores(config)
        assert config.speculative_config.method == "draft_model"
        assert EngineSettings.from_config(config).theta is None


def test_settings_travel(build_config: BuildConfig, adapter: str) -> None:
    config = build_config(**scoring(theta_lora=adapter, alpha_max=0.5))
    settings = EngineSettings.from_config(config)
    assert (settings.theta, settings.theta_lora, settings.defaults.alpha_max) == ("self", adapter, 0.5)
    json.dumps(config.additional_config)  # vLLM hashes it as JSON


# Adapters


@pytest.mark.parametrize("of_requests", [0, 2])
def test_there_is_room_for_thetas_adapter(
    engine_args: BuildConfig, build_config: BuildConfig, adapter: str, of_requests: int
) -> None:
    own = {"enable_lora": True, "max_loras": of_requests, "max_cpu_loras": of_requests} if of_requests else {}
    arguments = engine_args(**scoring(theta_lora=adapter), **own)
    before = dict(vars(arguments))
    with prepare_engine_args(arguments):
        assert arguments.enable_lora
        assert arguments.max_loras == of_requests + reserved_lora_slots(adapter)
    assert vars(arguments) == before
    config = build_config(**scoring(theta_lora=adapter), **own)
    assert max_request_loras(config) == of_requests
    assert config.lora_config.max_cpu_loras >= config.lora_config.max_loras


def test_a_requests_adapter_needs_room(build_config: BuildConfig, adapter: str) -> None:
    from vllm.exceptions import VLLMValidationError

    resolver = RequestResolver(build_config(**scoring(theta_lora=adapter)))
    request: Any = SimpleNamespace(
        sampling_params=SamplingParams(max_tokens=4),
        prompt_embeds=None,
        prompt_token_ids=[1, 2],
        resumable=False,
        lora_request=object(),
        mm_features=[],
    )
    with pytest.raises(VLLMValidationError, match="no room for adapters of requests; start it with --enable-lora"):
        resolver.resolve(request)
    request.lora_request = None
    resolver.resolve(request)


# Refusals


def test_a_draft_model_beside_another_theta(build_config: BuildConfig, theta: str, tmp_path: Path) -> None:
    third = save_model(tmp_path / "third", hidden_size=128)
    speculative = {"model": third, "num_speculative_tokens": 2}
    for name, said in (("self", "the teacher itself"), (theta, repr(theta))):
        assert refusal(build_config, **scoring(name) | {"speculative_config": speculative}) == (
            f"optimal sampling cannot start: speculative_config drafts with the model {third!r}, and theta is {said}; a "
            "draft model beside another theta is not supported: drop speculative_config, draft with n-grams, EAGLE or MTP, "
            "or name one model in both, and theta drafts."
        )


@pytest.mark.parametrize(
    ("speculative", "sentence"),
    [
        (
            {"method": "suffix", "num_speculative_tokens": 2},
            "drafting by 'suffix' is not supported beside theta; use one of ngram, ngram_gpu, eagle, eagle3, mtp, or drop "
            "speculative_config",
        ),
        ({"method": "ngram"}, 'speculative_config has no "num_speculative_tokens"; add it, 3 is a good start'),
        (
            {**NGRAM, "rejection_sample_method": "block"},
            "rejection_sample_method='block' is not supported: tokens would not follow q*; drop it, \"standard\" "
            "is the default",
        ),
        (
            {"method": "eagle3", "model": "HEAD", "num_speculative_tokens": 2, "parallel_drafting": True},
            "parallel_drafting is not supported beside theta: no test shows it exact there; drop it",
        ),
        ("ngram", "speculative_config is 'ngram', not an object"),
    ],
)
def test_drafters_that_are_not_exact(build_config: BuildConfig, speculative: Any, sentence: str) -> None:
    found = refusal(build_config, **scoring() | {"speculative_config": speculative})
    assert found == f"optimal sampling cannot start: {sentence}."


def test_a_theta_that_is_not_there(build_config: BuildConfig, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    assert refusal(build_config, **scoring(missing)) == (
        f"optimal sampling cannot start: theta's folder {missing!r} does not exist; correct the path, or name a model of "
        "the hub."
    )
    with pytest.raises(ValueError, match="theta=7 is not text"):
        build_config(additional_config={KEY: {"theta": 7}})


def test_adapters_that_do_not_fit(
    build_config: BuildConfig, engine_args: BuildConfig, theta: str, adapter: str, tmp_path: Path
) -> None:
    assert "holds no LoRA adapter: there is no adapter_config.json in it; correct the path" in refusal(
        build_config, **scoring(theta_lora=str(tmp_path))
    )
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"r": 64}')
    assert refusal(build_config, **scoring(theta_lora=adapter)) == (
        f"optimal sampling cannot start: theta_lora={adapter!r} has rank 64, and the engine takes 16; raise --max-lora-rank."
    )
    (tmp_path / "adapter" / "adapter_config.json").write_text("{")
    assert "cannot be read" in refusal(build_config, **scoring(theta_lora=adapter))
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(LORA))
    assert 'say "theta": "self", or merge the adapter into theta' in refusal(
        build_config, **scoring(theta, theta_lora=adapter)
    )
    drafting = {"additional_config": {KEY: {"theta_lora": adapter}}}
    assert 'theta is a draft model; add "theta": "self" to the settings and drop speculative_config.' in refusal(
        build_config, **drafting
    )
    assert 'theta is not named; add "theta": "self" to the settings.' in refusal(
        build_config, **drafting, speculative_config=None
    )
    assert "raise the first, or lower the second" in refusal(
        build_config, **scoring(theta_lora=adapter), max_num_seqs=100, max_num_batched_tokens=128
    )


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (
            {"use_dora": True},
            "cannot run as it was trained: vLLM does not yet support DoRA; train a plain LoRA adapter",
        ),
        ({"modules_to_save": ["lm_head"]}, "Unsupported modules_to_save: ['lm_head']; train a plain LoRA adapter"),
        ({"bias": "all"}, "Adapter bias is not supported; train a plain LoRA adapter"),
        ({"init_lora_weights": "pissa"}, "vLLM does not support init_lora_weights='pissa'"),
        ({"peft_type": "IA3", "r": None}, "it is of PEFT's kind 'IA3', and vLLM runs LoRA alone; train a plain LoRA"),
        ({"peft_type": "VERA", "r": 256}, "it is of PEFT's kind 'VERA', and vLLM runs LoRA alone; train a plain LoRA"),
        ({"rank_pattern": {"q_proj": 64}}, "has rank 64, and the engine takes 16; raise --max-lora-rank"),
    ],
)
def test_adapters_that_vllm_would_not_run_as_they_were_trained(
    build_config: BuildConfig, adapter: str, fields: dict[str, Any], reason: str
) -> None:
    (Path(adapter) / "adapter_config.json").write_text(json.dumps({**LORA, **fields}))
    message = refusal(build_config, **scoring(theta_lora=adapter))
    assert message.startswith(f"optimal sampling cannot start: theta_lora={adapter!r} ")
    assert reason in message


@pytest.mark.parametrize(
    "fields", [{"use_rslora": True}, {"rank_pattern": {"q_proj": 16}}, {"init_lora_weights": "eva"}]
)
def test_adapters_that_vllm_runs_as_they_were_trained(
    build_config: BuildConfig, adapter: str, fields: dict[str, Any]
) -> None:
    (Path(adapter) / "adapter_config.json").write_text(json.dumps({**LORA, **fields}))
    assert EngineSettings.from_config(build_config(**scoring(theta_lora=adapter))).theta_lora == adapter


def test_other_tokenizers_and_models_are_refused_as_ever(build_config: BuildConfig, tmp_path: Path) -> None:
    other = save_model(tmp_path / "other", words="pack my box with five dozen liquor jugs")
    assert "teacher and theta have different tokenizers" in refusal(build_config, **scoring(other))

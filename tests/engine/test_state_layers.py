"""The row audit on models some of whose layers keep a state: Mamba-2 and gated delta nets beside attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from vllm import LLM

from support.adapters import save_adapter, save_merged
from support.cases import Case, generate, mixed_batch, theta_prompts
from support.engines import engine_options, scoring_options, stop_engine
from support.gpu import ON_GPU
from support.multimodal_models import save_multimodal_model
from support.random_models import save_model
from support.reference_models import Reference
from support.row_audit import RowAudit
from support.scored_steps import FEW_TOKENS, audited, check_greedy, counts
from support.state_models import FAMILIES, add_mtp_module, save_state_model

pytestmark = pytest.mark.skipif(ON_GPU, reason="no tolerances were measured with the backends of a GPU")

# Theta's slots reach a block beyond this, and prompts go in chunks.
SMALL: dict[str, Any] = {"max_model_len": 160, "max_num_batched_tokens": 64}
HALF: dict[str, Any] = {"dtype": "bfloat16", "kv_cache_memory_bytes": 1 << 27, **SMALL}


@pytest.fixture
def start() -> Iterator[Callable[..., LLM]]:
    running: list[LLM] = []

    def engine(**options: Any) -> LLM:
        running.append(LLM(**options))
        return running[-1]

    yield engine
    for llm in running:
        stop_engine(llm)


def batch(seed: int) -> list[Case]:
    return mixed_batch(seed=seed, long=100)


def batch_for_drafts(seed: int) -> list[Case]:
    """Without a prompt of one token, behind which vLLM's CPU build is wrong where drafts are verified, without theta too."""
    return [case for case in batch(seed) if len(case.prompt) > 1]


@pytest.mark.parametrize("family", ["granite", pytest.param("falcon_h1", marks=pytest.mark.full)])
def test_theta_is_the_teacher(family: str, start: Callable[..., LLM], tmp_path: Path) -> None:
    """Most steps in one forward; in chunks, preempted, and without the prefix caching that vLLM would turn on."""
    model = save_state_model(tmp_path / "model", family, seed=2)
    llm = start(**scoring_options(model, num_gpu_blocks_override=8, **SMALL))
    assert not llm.llm_engine.vllm_config.cache_config.enable_prefix_caching
    reference = Reference(model, model)
    _, steps = audited(llm, reference, batch(41), max_tokens=24)
    assert steps.fused > steps.apart > 0
    assert counts(llm)["num_preemptions"] > 0
    check_greedy(llm, reference, batch(42)[:6], max_tokens=12)


@pytest.mark.full
def test_theta_is_an_adapter(start: Callable[..., LLM], tmp_path: Path) -> None:
    """Of the layers that keep a state too."""
    model = save_state_model(tmp_path / "model", "granite", seed=2)
    targets = ("q_proj", "v_proj", "in_proj", "out_proj", "input_linear", "output_linear")
    adapter = save_adapter(tmp_path / "adapter", model, seed=4, targets=targets)
    llm = start(**scoring_options(model, theta_lora=adapter, **SMALL))
    reference = Reference(model, save_merged(tmp_path / "merged", model, adapter))
    _, steps = audited(llm, reference, batch(49), max_tokens=16)
    assert steps.fused > steps.apart > 0


def test_theta_is_a_smaller_model(start: Callable[..., LLM], tmp_path: Path) -> None:
    """Its states are smaller than the teacher's too."""
    teacher = save_state_model(tmp_path / "teacher", "granite", seed=2)
    smaller = {"hidden_size": 32, "mamba_n_heads": 2, "num_layers": 2, "layer_types": ["mamba", "attention"]}
    theta = save_state_model(tmp_path / "theta", "granite", seed=3, **smaller)
    llm = start(**scoring_options(teacher, theta, **SMALL))
    reference = Reference(teacher, theta)
    audited(llm, reference, batch(43), max_tokens=24)
    check_greedy(llm, reference, batch(44)[:6], max_tokens=12)


def test_drafts_are_verified_in_one_forward(start: Callable[..., LLM], tmp_path: Path) -> None:
    """Each draft leaves a state behind it, of the teacher and of theta; the next step goes on from the last that was kept."""
    model = save_state_model(tmp_path / "model", "qwen3_5", seed=2)
    llm = start(**scoring_options(model, drafts=2, **HALF))
    report, steps = audited(llm, Reference(model, model), batch_for_drafts(45), max_tokens=24, **FEW_TOKENS)
    assert steps.fused > 0 and steps.apart > 0
    assert set(report.by_draft_position) == {0, 1, 2}
    drafted, accepted = (counts(llm)[f"spec_decode_num_{what}_tokens"] for what in ("draft", "accepted"))
    assert 0 < accepted < drafted


@pytest.mark.full
def test_the_models_own_module_drafts(start: Callable[..., LLM], tmp_path: Path) -> None:
    """MTP, as Qwen3.5 is published with, and with its share of layers with attention.

    In bfloat16 rows of eight layers as sure as those of the other models lie up to 2.7 nats off, with and without drafts.
    """
    layer_types = [*(["linear_attention"] * 3), "full_attention"] * 2
    model = save_state_model(
        tmp_path / "model", "qwen3_5", seed=2, layer_types=layer_types, num_layers=8, initializer_range=0.08
    )
    add_mtp_module(model, seed=3)
    speculative = {"method": "mtp", "num_speculative_tokens": 2}
    llm = start(**scoring_options(model, speculative_config=speculative, **HALF))
    report, steps = audited(llm, Reference(model, model), batch_for_drafts(48), max_tokens=24)
    assert steps.fused > 0 and steps.apart > 0
    assert set(report.by_draft_position) == {0, 1, 2}


@pytest.mark.full
def test_a_multimodal_class_reads_text(start: Callable[..., LLM], tmp_path: Path) -> None:
    """As Qwen3.5 is published: M-RoPE, and embeddings in place of tokens."""
    options = {name: value for name, value in FAMILIES["qwen3_5"].items() if name != "architecture"}
    options |= {"tie_word_embeddings": True, "initializer_range": 0.08}
    model = save_multimodal_model(tmp_path / "model", "qwen3_5", seed=2, **options)
    llm = start(**scoring_options(model, **HALF | {"kv_cache_memory_bytes": 1 << 28}))
    text = {"allowed_token_ids": list(range(1, 400))}  # nothing that stands for an image
    _, steps = audited(llm, Reference(model, model), batch(50), max_tokens=16, **text)
    assert steps.fused > steps.apart > 0


@pytest.mark.full
def test_drafts_beside_a_smaller_model(start: Callable[..., LLM], tmp_path: Path) -> None:
    teacher = save_state_model(tmp_path / "teacher", "qwen3_5", seed=2)
    smaller = {"num_layers": 2, "layer_types": ["linear_attention", "full_attention"], "linear_num_value_heads": 2}
    theta = save_state_model(tmp_path / "theta", "qwen3_5", seed=3, **smaller)
    llm = start(**scoring_options(teacher, theta, drafts=2, **HALF))
    report, _ = audited(llm, Reference(teacher, theta), batch_for_drafts(46), max_tokens=24, **FEW_TOKENS)
    assert set(report.by_draft_position) == {0, 1, 2}


@pytest.mark.full
def test_theta_of_attention_alone_drafts(start: Callable[..., LLM], tmp_path: Path) -> None:
    teacher = save_state_model(tmp_path / "teacher", "qwen3_5", seed=2)
    theta = save_model(tmp_path / "theta", architecture="llama", seed=5)
    llm = start(**engine_options(teacher, theta, 2, **HALF))
    cases = batch_for_drafts(47)
    with RowAudit(llm) as audit:
        outputs = generate(llm, cases, max_tokens=24)
    report = audit.check(Reference(teacher, theta), theta_prompts(cases, outputs))
    assert set(report.by_draft_position) == {0, 1, 2}

"""The row audit on models whose attention keeps latents (MLA): DeepSeek-V2 and DeepSeek-V3."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm import LLM
from vllm.config import CompilationConfig, VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.rotary_embedding import get_rope
from vllm.platforms.cpu import CpuPlatform

from support.cases import generate, mixed_batch, theta_prompts
from support.engines import start_engine, stop_engine
from support.gpu import ON_GPU
from support.latent_models import save_latent_model
from support.reference_models import Reference
from support.row_audit import RowAudit
from support.scored_steps import audited, check_greedy, counts

pytestmark = pytest.mark.skipif(ON_GPU, reason="no tolerances were measured with the MLA backends of a GPU")

BLOCK_SIZE = 16


@pytest.fixture
def gpu_scheduling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompt chunks and prefix caching, which vLLM's CPU build switches off for these models and GPUs have."""
    update = CpuPlatform.check_and_update_config

    def update_but_for_scheduling(config: VllmConfig) -> None:
        scheduler, cache = config.scheduler_config, config.cache_config
        kept = scheduler.enable_chunked_prefill, cache.enable_prefix_caching, scheduler.max_num_batched_tokens
        update(config)
        scheduler.enable_chunked_prefill, cache.enable_prefix_caching, scheduler.max_num_batched_tokens = kept

    monkeypatch.setattr(CpuPlatform, "check_and_update_config", staticmethod(update_but_for_scheduling))


@pytest.mark.parametrize("family", ["deepseek_v2", pytest.param("deepseek_v3", marks=pytest.mark.full)])
@pytest.mark.usefixtures("gpu_scheduling")
def test_theta_is_the_teacher(family: str, scoring_engines: Callable[..., LLM], tmp_path: Path) -> None:
    """In chunks, with drafts, out of the prefix cache, and preempted: little more than one request fits."""
    model = save_latent_model(tmp_path / "model", family, seed=2)
    llm = scoring_engines(
        model,
        drafts=2,
        block_size=BLOCK_SIZE,
        max_num_batched_tokens=64,
        max_model_len=192,
        num_gpu_blocks_override=2 + (192 + 2 * BLOCK_SIZE) // BLOCK_SIZE,
    )
    reference = Reference(model, model)
    report, steps = audited(llm, reference, mixed_batch(seed=41, long=70), max_tokens=24)
    assert set(report.by_draft_position) == {0, 1, 2}
    assert steps.fused > 0 and steps.apart > 0
    assert counts(llm)["num_preemptions"] > 0
    again = mixed_batch(seed=42, long=70)[:6]
    check_greedy(llm, reference, again, max_tokens=12)
    audited(llm, reference, again[:2], max_tokens=3)
    assert counts(llm)["prefix_cache_hits"] > 0


PLAIN_ROPE: dict[str, Any] = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}


@pytest.mark.full
@pytest.mark.parametrize(
    ("family", "overrides", "custom_ops"),
    [("deepseek_v2", {}, []), ("deepseek_v3", {}, []), ("deepseek_v2", PLAIN_ROPE, ["-rotary_embedding"])],
    ids=["DeepSeek-V2", "DeepSeek-V3", "plain RoPE"],
)
def test_as_vllms_cpu_build_schedules(
    family: str,
    overrides: dict[str, Any],
    custom_ops: list[str],
    scoring_engines: Callable[..., LLM],
    tmp_path: Path,
) -> None:
    """Whole prompts, nothing cached, no drafts."""
    model = save_latent_model(tmp_path / "model", family, seed=3, **overrides)
    llm = scoring_engines(
        model,
        compilation_config={"custom_ops": custom_ops},
        max_model_len=192,
        block_size=BLOCK_SIZE,
        num_gpu_blocks_override=2 + (192 + 2 * BLOCK_SIZE) // BLOCK_SIZE,
    )
    reference = Reference(model, model)
    _, steps = audited(llm, reference, mixed_batch(seed=43, long=70), max_tokens=24)
    assert steps.fused > steps.apart > 0
    assert counts(llm)["num_preemptions"] > 0
    check_greedy(llm, reference, mixed_batch(seed=44, long=70)[:6], max_tokens=12)


@pytest.mark.full
@pytest.mark.usefixtures("gpu_scheduling")
def test_theta_is_a_model_of_its_own(scoring_engines: Callable[..., LLM], tmp_path: Path) -> None:
    teacher = save_latent_model(tmp_path / "teacher", num_layers=3, seed=2)
    theta = save_latent_model(tmp_path / "theta", seed=3)
    reference = Reference(teacher, theta)
    options: dict[str, Any] = {"block_size": BLOCK_SIZE, "max_num_batched_tokens": 64}
    cases = mixed_batch(seed=45, long=100)

    scoring = scoring_engines(teacher, theta, drafts=2, **options)
    report, _ = audited(scoring, reference, cases, max_tokens=10)
    assert set(report.by_draft_position) == {0, 1, 2}
    check_greedy(scoring, reference, cases[:6], max_tokens=8)

    drafting = start_engine(teacher, theta, **options)
    try:
        with RowAudit(drafting) as audit:
            outputs = generate(drafting, cases, max_tokens=10)
        report = audit.check(reference, theta_prompts(cases, outputs))
        assert set(report.by_draft_position) == {0, 1, 2, 3}
        check_greedy(drafting, reference, cases[:6], max_tokens=8)
    finally:
        stop_engine(drafting)


@pytest.mark.parametrize("rope_type", ["default", "deepseek_yarn"])
def test_what_vllms_cpu_build_makes_of_positions(rope_type: str) -> None:
    """Why plain RoPE is refused there: its `rotary_embedding` takes the heads of [tokens, heads, size] for tokens."""
    yarn = {"factor": 4.0, "original_max_position_embeddings": 256}
    parameters = {"rope_type": rope_type, "rope_theta": 10000.0} | (yarn if rope_type != "default" else {})
    with set_current_vllm_config(VllmConfig(compilation_config=CompilationConfig(mode=0))):
        rope = get_rope(64, max_position=256, rope_parameters=parameters, is_neox_style=False, dtype=torch.float32)
    torch.manual_seed(0)
    positions, queries, latents = torch.arange(3, 10), torch.randn(7, 2, 96), torch.randn(7, 576)
    expected = rope.forward_native(positions, queries[..., 32:].clone(), latents[:, 512:].clone().unsqueeze(1))
    found = rope(positions, queries[..., 32:], latents[:, 512:].unsqueeze(1))
    error = max((mine - theirs).abs().max().item() for mine, theirs in zip(found, expected, strict=True))
    assert error > 1 if rope_type == "default" else error < 1e-5

"""Weights that teacher and theta share, and weights that change while the engine runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from audit import Reference, RowAudit, find_runner
from conftest import start_engine, stop_engine
from models import save_model
from requests_mix import generate, mixed_batch, theta_prompts

from vllm_optimal_sampling.weights import reload_weights


def test_self_distillation_keeps_one_copy_of_the_weights(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", seed=4)
    llm = start_engine(model, model)
    try:
        runner = find_runner(llm)
        teacher, theta = runner.model, runner.speculator.model
        assert theta is not teacher
        for mine, teachers in zip(theta.model.layers, teacher.model.layers, strict=True):
            assert mine.mlp is teachers.mlp and mine.self_attn.qkv_proj is teachers.self_attn.qkv_proj
            assert mine.self_attn.attn is not teachers.self_attn.attn
            assert mine.self_attn.attn.kv_cache.data_ptr() != teachers.self_attn.attn.kv_cache.data_ptr()
        cases = mixed_batch(seed=51, long=70)
        with RowAudit(llm) as audit:
            outputs = generate(llm, cases, max_tokens=8)
        audit.check(Reference(model, model), theta_prompts(cases, outputs))
        with pytest.raises(ValueError, match="shares the teacher's"):
            reload_weights(llm, model)
    finally:
        stop_engine(llm)


def test_new_weights_for_either_model(tmp_path: Path) -> None:
    # vLLM's CPU build repacks a tied output layer when it loads, and leaves it as it was when it reloads.
    teacher, theta, new_teacher, new_theta = (
        save_model(tmp_path / str(seed), hidden_size=size, seed=seed, tie_word_embeddings=False)
        for seed, size in ((61, 128), (62, 64), (63, 128), (64, 64))
    )
    llm = start_engine(teacher, theta)
    try:
        cases = mixed_batch(seed=63, long=70)[:6]
        for step, (path, model, now) in enumerate(
            [
                ("", "", (teacher, theta)),
                (new_theta, "theta", (teacher, new_theta)),
                (new_teacher, "teacher", (new_teacher, new_theta)),
            ]
        ):
            if path:
                reload_weights(llm, path, model)  # type: ignore[arg-type]
            with RowAudit(llm) as audit:
                outputs = generate(llm, cases, max_tokens=4, seed=step)
            audit.check(Reference(*now), theta_prompts(cases, outputs))
    finally:
        stop_engine(llm)

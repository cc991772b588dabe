"""Weights that teacher and theta share, and weights that change while the engine runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from vllm.compilation.caching import aot_compile_hash_factors
from vllm.config import WeightTransferConfig

from support.cases import generate, mixed_batch, theta_prompts
from support.engines import find_runner, start_engine, stop_engine
from support.folder_transfer import BACKEND
from support.random_models import save_model
from support.reference_models import Reference
from support.row_audit import RowAudit
from vllm_optimal_sampling.weights import reload_weights
from vllm_optimal_sampling.worker import worker


def test_self_distillation_keeps_one_copy_of_the_weights(tmp_path: Path) -> None:
    # vLLM's CPU build repacks a tied output layer when it loads, and leaves it as it was when it reloads.
    model, new_model = (save_model(tmp_path / str(seed), seed=seed, tie_word_embeddings=False) for seed in (4, 5))
    llm = start_engine(model, model, weight_transfer_config=WeightTransferConfig(backend=BACKEND))
    try:
        runner = find_runner(llm)
        teacher, theta = runner.model, runner.speculator.model
        assert theta is not teacher
        for mine, teachers in zip(theta.model.layers, teacher.model.layers, strict=True):
            assert mine.mlp is teachers.mlp and mine.self_attn.qkv_proj is teachers.self_attn.qkv_proj
            assert mine.self_attn.attn is not teachers.self_attn.attn
            assert mine.self_attn.attn.kv_cache.data_ptr() != teachers.self_attn.attn.kv_cache.data_ptr()
        # Code that torch.compile made for the teacher has its layers' names in it: neither is to find the other's.
        keys = [aot_compile_hash_factors(model.model.vllm_config) for model in (teacher, theta)]
        assert keys[0] != keys[1]
        layers = runner.vllm_config.compilation_config.static_forward_context
        for mine in theta.model.layers:
            assert mine.self_attn.attn.layer_name.startswith("draft_model.")
            assert layers[mine.self_attn.attn.layer_name] is mine.self_attn.attn
        cases = mixed_batch(seed=51, long=70)
        with RowAudit(llm) as audit:
            outputs = generate(llm, cases, max_tokens=8)
        audit.check(Reference(model, model), theta_prompts(cases, outputs))
        with pytest.raises(ValueError, match="shares the teacher's"):
            reload_weights(llm, new_model)
        with pytest.raises(ValueError, match="shares the teacher's"):
            llm.start_draft_weight_update()

        reload_weights(llm, new_model, "teacher")
        with RowAudit(llm) as audit:
            outputs = generate(llm, cases, max_tokens=4)
        audit.check(Reference(new_model, new_model), theta_prompts(cases, outputs))
    finally:
        stop_engine(llm)


def test_new_weights_for_either_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, theta, new_teacher, new_theta = (
        save_model(tmp_path / str(seed), hidden_size=size, seed=seed, tie_word_embeddings=False)
        for seed, size in ((61, 128), (62, 64), (63, 128), (64, 64))
    )
    llm = start_engine(teacher, theta, weight_transfer_config=WeightTransferConfig(backend=BACKEND))
    warnings: list[str] = []  # another test of this process may have had the only one that is logged
    monkeypatch.setattr(worker.logger, "warning_once", warnings.append)
    try:
        cases = mixed_batch(seed=63, long=70)[:6]

        def check(teacher: str, theta: str, seed: int) -> None:
            with RowAudit(llm) as audit:
                outputs = generate(llm, cases, max_tokens=4, seed=seed)
            audit.check(Reference(teacher, theta), theta_prompts(cases, outputs))

        check(teacher, theta, seed=0)
        reload_weights(llm, new_theta, "theta")
        check(teacher, new_theta, seed=1)
        reload_weights(llm, new_teacher, "teacher")
        check(new_teacher, new_theta, seed=2)

        # The same through vLLM's weight transfer, by an engine of ours that takes the weights from a folder.
        llm.init_weight_transfer_engine({"init_info": {}})
        for start, path in ((llm.start_draft_weight_update, theta), (llm.start_weight_update, teacher)):
            start()
            assert [text.startswith("New weights are for the teacher") for text in warnings] == [True] * (
                path == teacher
            )
            llm.update_weights({"update_info": {"path": path}})
            llm.finish_weight_update()
            llm.reset_prefix_cache(reset_running_requests=True)
            check(teacher if path == teacher else new_teacher, theta, seed=3)

        # The CPU build keeps its memory in sleep mode, but its scheduler and its caches do go to sleep.
        llm.sleep(level=1)
        llm.wake_up()
        check(teacher, theta, seed=4)
    finally:
        stop_engine(llm)

"""Teacher and theta in int8: rows against vLLM's own of the same quantised models, and what new weights cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from support.cases import generate, mixed_batch, theta_prompts
from support.engines import start_engine, stop_engine
from support.gpu import ON_GPU
from support.quantised_models import EngineReference, save_int8_model
from support.random_models import save_model
from support.reference_models import Reference
from support.row_audit import AuditError, RowAudit
from vllm_optimal_sampling.argument_checks import ArgumentError
from vllm_optimal_sampling.weights import reload_weights, update_theta

pytestmark = pytest.mark.skipif(ON_GPU, reason="needs a CPU: vLLM's int8 kernels for GPUs put out no float32")


def test_rows_of_quantised_models(tmp_path: Path) -> None:
    sizes = {"teacher": {"hidden_size": 128, "num_layers": 3, "seed": 0}, "theta": {"seed": 1}}
    paths = [save_int8_model(tmp_path / name, **options) for name, options in sizes.items()]
    floats = [save_model(tmp_path / f"{name}_float", **options) for name, options in sizes.items()]
    llm = start_engine(*paths, enable_prefix_caching=True, max_num_batched_tokens=64)
    try:
        cases = mixed_batch(seed=81, long=70)
        with RowAudit(llm) as audit:
            outputs = generate(llm, cases, max_tokens=6)
        with pytest.raises(
            ArgumentError, match=r"theta \(.*\) is quantised \(compressed-tensors\), and an update brings floats"
        ):
            update_theta(llm, AutoModelForCausalLM.from_pretrained(floats[1]))
        with pytest.raises(
            ValueError, match=r"is quantised \(compressed-tensors\), and new weights cannot be loaded in"
        ):
            reload_weights(llm, paths[1])
    finally:
        stop_engine(llm)
    reference = EngineReference(*paths)
    try:
        report = audit.check(reference, theta_prompts(cases, outputs))
    finally:
        reference.close()
    assert report.mixed < report.rows
    # The audit knows the quantised models from those that they were made of.
    with pytest.raises(AuditError) as caught:
        audit.check(Reference(*floats), theta_prompts(cases, outputs))
    assert caught.value.times_tolerance > 20

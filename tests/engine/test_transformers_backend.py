"""Models that vLLM runs through transformers' own classes, such as SmolLM3 and OLMo 2: rows, and new weights for theta."""

from __future__ import annotations

from pathlib import Path

from support.cases import generate, mixed_batch, theta_prompts
from support.engines import start_engine, stop_engine
from support.random_models import save_model
from support.reference_models import Reference
from support.row_audit import RowAudit
from vllm_optimal_sampling.weights import update_theta

ARCHITECTURE = {"architecture": "smollm3", "hidden_size": 64, "num_layers": 4, "no_rope_layer_interval": 4}


def test_rows_before_and_after_new_weights(tmp_path: Path) -> None:
    teacher, *thetas = (save_model(tmp_path / str(seed), seed=seed, **ARCHITECTURE) for seed in range(3))
    # Made first: vLLM changes the classes of transformers that it runs, for the whole process.
    first, second = (Reference(teacher, theta) for theta in thetas)
    llm = start_engine(teacher, thetas[0])
    cases = mixed_batch(seed=41, long=70)[:6]
    try:
        for reference in (first, second):
            if reference is second:
                update_theta(llm, second.theta)
            with RowAudit(llm) as audit:
                outputs = generate(llm, cases, max_tokens=6)
            assert audit.check(reference, theta_prompts(cases, outputs)).mixed > 0
    finally:
        stop_engine(llm)

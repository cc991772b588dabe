"""Every way to choose alpha, and everything that narrows the mix, beside one another in one batch of a running engine."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from vllm import LLM

from support.cases import EVERY_METHOD, Case, generate, theta_prompts, token_ids
from support.reference_models import Reference
from support.row_audit import RowAudit
from vllm_optimal_sampling.front_end.records import TokenRecords

pytestmark = pytest.mark.one_release  # the mix is the same; test_rows.py shows what reaches it

ARGUMENTS: list[dict[str, Any]] = [
    *EVERY_METHOD,
    {"alpha_method": "fixed", "alpha": 0.3},
    {"alpha_method": "arithmetic", "alpha": 0.3},
    {"alpha_method": "kl_budget", "kl_budget": [0.5, 0.0], "alpha_steps": 5},
    {"alpha_method": "js_gate", "js_sensitivity": 20.0, "alpha_min": 0.3, "alpha_max": 0.9},
    {"alpha_method": "fixed", "alpha": [0.9, 0.1], "alpha_steps": 4},
    {"alpha_min": [0.0, 1.0], "alpha_max": 1.0, "alpha_steps": 3},
    {"alpha_min": 0.6},
    {"alpha_max": 0.4},
    {"support_top_k": 5},
    {"support_top_p": 0.8},
    {"support_top_p": 1e-300},  # 0 in float32
    {"teacher_only_tokens": 3},
    {"max_js_divergence": 0.0},
    {"max_js_divergence": 0.05},
    {"alpha_method": "entropy", "alpha_max": 0.3, "support_top_k": 50},
]


def test_rows_of_every_method(engines: Callable[..., LLM], reference: Reference) -> None:
    llm = engines()
    rng = random.Random(17)
    prompt, theta_prompt = token_ids(rng, 40), token_ids(rng, 25)
    cases = [Case(prompt, theta_prompt, {**arguments, "return_alpha": True}) for arguments in ARGUMENTS]
    with RowAudit(llm) as audit:
        outputs = generate(llm, cases, max_tokens=6)
    audit.check(reference, theta_prompts(cases, outputs))

    def records(**arguments: Any) -> TokenRecords:
        return outputs[ARGUMENTS.index(arguments)].outputs[0].optimal_sampling  # type: ignore[attr-defined]

    assert records(alpha_method="fixed", alpha=0.3).alpha == pytest.approx([0.3] * 6)
    assert records(alpha_method="fixed", alpha=[0.9, 0.1], alpha_steps=4).alpha == pytest.approx(
        [0.9, 0.7, 0.5, 0.3, 0.1, 0.1]
    )
    assert max(records(alpha_method="kl_budget", kl_budget=0.02).kl) <= 0.021
    assert records(alpha_method="kl_budget", kl_budget=[0.5, 0.0], alpha_steps=5).kl[5] == pytest.approx(0, abs=1e-6)
    assert records(alpha_min=[0.0, 1.0], alpha_max=1.0, alpha_steps=3).alpha[3:] == pytest.approx([1.0] * 3)
    assert min(records(alpha_min=0.6).alpha) >= 0.6 - 1e-6
    assert max(records(alpha_max=0.4).alpha) <= 0.4 + 1e-6
    assert records(teacher_only_tokens=3).alpha[:3] == [1.0] * 3
    assert all(records(max_js_divergence=0.0).fallback)
    assert records(support_top_p=1e-300).fallback == [False] * 6
    assert records(support_top_p=1e-300).logprob == pytest.approx([0.0] * 6, abs=1e-6)
    assert not any(records(alpha_method="kl_symmetry").fallback)

"""log Z of a running engine's records against float64, every method beside every other in one batch."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from vllm import LLM
from vllm_optimal_sampling.kernels import Method
from vllm_optimal_sampling.kernels.reference import mix, mixed_support

from support.cases import EVERY_METHOD, OPTED_OUT, Case, generate, token_ids
from support.reference_models import Reference
from vllm_optimal_sampling.front_end.records import TokenRecords

pytestmark = pytest.mark.one_release  # the mix is the same; test_records.py shows how a record travels

NUM_TOKENS = 7
# log Z of rows that a float32 forward computed (3e-5 nats a row, see `row_audit`), with alpha found from the same rows:
# d log Z / d alpha is 0 at KL symmetry, and at most some nats elsewhere, of an alpha that is good to 1e-4.
TOLERANCE = 1e-3

ARGUMENTS: list[dict[str, Any]] = [
    *EVERY_METHOD,
    {"alpha_method": "fixed", "alpha": 0.0},
    {"alpha_method": "fixed", "alpha": 0.3},
    {"alpha_method": "fixed", "alpha": 1.0},
    {"alpha_min": 0.6},
    {"alpha_max": 0.4},
    {"support_top_k": 5},
    {"support_top_p": 0.8},
    {"teacher_only_tokens": 3},
    {"max_js_divergence": 0.0},
]


def expected(reference: Reference, case: Case, tokens: list[int], place: int) -> float:
    """log Z of the mixture that a token was drawn from, NaN where there is none."""
    arguments = dict(case.arguments)
    if place < arguments.get("teacher_only_tokens", 0) or arguments.get("alpha_method") == "arithmetic":
        return math.nan
    method = Method[arguments.get("alpha_method", "kl_symmetry").upper()]
    v = reference.logits(reference.teacher, [*case.prompt, *tokens[:place]])
    u = reference.logits(reference.theta, [*(case.theta_prompt or ()), *tokens[:place]])
    top_k, top_p = arguments.get("support_top_k", 0), arguments.get("support_top_p", 1.0)
    names = ("alpha", "alpha_min", "alpha_max", "kl_budget", "support_top_k", "support_top_p", "max_js_divergence")
    mixture = mix(v, u, method, **{name: arguments[name] for name in names if name in arguments})
    if mixture.fallback:
        return math.nan
    support = mixed_support(v, u, method, top_k, top_p)
    log_v, log_u = v[support].log_softmax(0), u[support].log_softmax(0)
    return float(torch.logsumexp((1 - mixture.alpha) * log_u + mixture.alpha * log_v, 0))


def test_every_method_in_one_batch(engines: Callable[..., LLM], reference: Reference) -> None:
    llm = engines()
    rng = random.Random(29)
    cases = [
        Case(token_ids(rng, 30 + i), token_ids(rng, 20 + i), {**arguments, "return_alpha": True})
        for i, arguments in enumerate(ARGUMENTS)
    ]
    cases.append(Case(token_ids(rng, 30), None, OPTED_OUT))
    outputs = generate(llm, cases, max_tokens=NUM_TOKENS, temperature=1.0)
    assert outputs[-1].outputs[0].optimal_sampling is None  # type: ignore[attr-defined]
    for case, output in zip(cases[:-1], outputs[:-1], strict=True):
        tokens = list(output.outputs[0].token_ids)
        record: TokenRecords = output.outputs[0].optimal_sampling  # type: ignore[attr-defined]
        wanted = [expected(reference, case, tokens, place) for place in range(len(tokens))]
        assert record.log_z == pytest.approx(wanted, abs=TOLERANCE, nan_ok=True), case.arguments
        assert all(value <= 0 for value in record.log_z if not math.isnan(value))
        assert [value is None for value in record.to_json()["log_z"]] == [math.isnan(value) for value in wanted]
        if case.arguments == {"alpha_method": "kl_symmetry", "return_alpha": True}:
            assert record.log_z == pytest.approx([-kl for kl in record.kl], abs=TOLERANCE)
            assert max(record.kl) > 10 * TOLERANCE, "so that the line above can fail"
        if not {"support_top_k", "support_top_p"} & set(case.arguments):
            # q* = theta^(1 - alpha) teacher^alpha / Z at the token drawn.
            for values in zip(
                record.alpha, record.log_z, record.theta_logprob, record.teacher_logprob, record.logprob, strict=True
            ):
                alpha, log_z, theta, teacher, logprob = values
                if not math.isnan(log_z):
                    assert (1 - alpha) * theta + alpha * teacher - log_z == pytest.approx(logprob, abs=TOLERANCE)

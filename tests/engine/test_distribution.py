"""What is drawn, as a distribution: from q* for a request, from the teacher alone for one that opted out."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from vllm import LLM

from support.cases import KL_SYMMETRY, OPTED_OUT, Case, generate, token_ids
from support.reference_models import Reference, expected_log_q

NUM_DRAWS = 2000
BINS = 20
# Chi-square of 19 degrees of freedom is above 43.8 once in 1,000 runs; the seeds are fixed, so a pass stays a pass.
MAX_CHI_SQUARE = 43.8


@pytest.mark.parametrize("arguments", [KL_SYMMETRY, OPTED_OUT], ids=["q*", "opted out"])
def test_draws_follow_the_models(arguments: dict, engines: Callable[..., LLM], reference: Reference) -> None:
    """Each token drawn, accepted draft or not, is placed in its distribution function by float64: uniform if exact.

    Every token has a distribution of its own, and the randomised probability integral transform makes one test of all.
    Tokens are ordered by probability: what is drawn too seldom or too often (a missing temperature, drafts accepted
    too freely) moves mass to one end.
    """
    llm = engines(num_speculative_tokens=3, max_num_seqs=16)
    rng = random.Random(23)
    num_requests = 64
    own = arguments is KL_SYMMETRY
    cases = [Case(token_ids(rng, 8), token_ids(rng, 6) if own else None, arguments) for _ in range(num_requests)]
    max_tokens = NUM_DRAWS // num_requests + 1
    outputs = generate(llm, cases, max_tokens=max_tokens, seed=29)

    uniform = random.Random(31)
    counts = torch.zeros(BINS)
    for case, output in zip(cases, outputs, strict=True):
        drawn = list(output.outputs[0].token_ids)
        reference.logits(reference.teacher, case.prompt + drawn)  # one forward for all prefixes
        if own:
            reference.logits(reference.theta, case.theta_prompt + drawn)
        for i, token in enumerate(drawn):
            logits = reference.logits(reference.teacher, case.prompt + drawn[:i])
            if own:
                logits = expected_log_q(logits, reference.logits(reference.theta, case.theta_prompt + drawn[:i]))
            probabilities = logits.softmax(-1)
            order = probabilities.argsort(descending=True, stable=True)
            place = int((order == token).nonzero())
            below = probabilities[order[:place]].sum().item()
            counts[min(int((below + uniform.random() * probabilities[token].item()) * BINS), BINS - 1)] += 1
    total = counts.sum().item()
    assert total >= NUM_DRAWS
    chi_square = ((counts - total / BINS) ** 2 / (total / BINS)).sum().item()
    assert chi_square < MAX_CHI_SQUARE, counts.tolist()

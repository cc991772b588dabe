"""`token_logprobs`: what it says of each token is what the row that `mix_` wrote, and the two models, say of it."""

from typing import Any

import call
import pytest
import tolerances
import torch
from adversarial_rows import families
from vllm_optimal_sampling.kernels import Method, MixRecord, token_logprobs

VOCAB = 301
NAMES = ["ordinary", "far", "near_one_hot", "disjoint_peaks", "grammar_10", "minus_inf_in_theta", "equal_rows"]


def ask(mixed: call.Mixed, pairs: list[call.Pair], token: int, teacher_dtype: torch.dtype = torch.float32) -> MixRecord:
    n = len(pairs)
    slots = torch.arange(n, dtype=torch.int32)
    token_logprobs(
        torch.full((n,), token, dtype=torch.int64),
        torch.stack([teacher for teacher, _ in pairs]).to(teacher_dtype),
        torch.stack([theta for _, theta in pairs])[:, None, :].contiguous(),
        slots,
        torch.zeros_like(slots),
        mixed.record,
    )
    return mixed.record


@pytest.mark.parametrize("support", [{}, {"support_top_k": 20, "support_top_p": 0.9}], ids=["whole", "restricted"])
@pytest.mark.parametrize("method", [Method.KL_SYMMETRY, Method.ARITHMETIC])
def test_every_token_has_the_rows_own_log_probability(method: Method, support: dict[str, Any]) -> None:
    pairs = [families(VOCAB)[name][0] for name in NAMES]
    mixed = call.mix(pairs, method, alpha=0.3, **support)
    for token in range(0, VOCAB, 10):
        record = ask(mixed, pairs, token)
        for i, (teacher, theta) in enumerate(pairs):
            allowed = teacher > -torch.inf
            log_theta = torch.where(allowed, theta, -torch.inf).double().log_softmax(0)
            wanted = (mixed.rows[i, token], teacher.double().log_softmax(0)[token], log_theta[token])
            got = (record.logprob, record.teacher_logprob, record.theta_logprob)
            for got_one, wanted_one in zip(got, wanted, strict=True):
                assert got_one[i, 0].item() == pytest.approx(
                    float(wanted_one), abs=tolerances.LOG_PROBABILITY, rel=tolerances.LOG_PROBABILITY
                ), (NAMES[i], token)


def test_rows_of_the_teacher_alone_have_its_log_probability() -> None:
    pairs = [
        families(VOCAB)["disjoint_peaks"][0],
        (families(VOCAB)["ordinary"][0][0], torch.full((VOCAB,), -torch.inf)),
    ]
    mixed = call.mix(pairs, max_js_divergence=0.1)
    assert mixed.record.fallback.all()
    record = ask(mixed, pairs, 3)
    for i, (teacher, _) in enumerate(pairs):
        wanted = float(teacher.double().log_softmax(0)[3])
        assert record.logprob[i, 0].item() == pytest.approx(wanted, abs=tolerances.LOG_PROBABILITY)
        assert record.teacher_logprob[i, 0].item() == pytest.approx(wanted, abs=tolerances.LOG_PROBABILITY)
    assert record.theta_logprob[1, 0] == -torch.inf


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_raw_teacher_logits_in_half_precision(dtype: torch.dtype) -> None:
    teacher, theta = families(VOCAB)["ordinary"][0]
    pairs = [(teacher.to(dtype).float(), theta)]
    mixed = call.mix(pairs)
    record = ask(mixed, pairs, 11, dtype)
    assert record.logprob[0, 0].item() == pytest.approx(float(mixed.rows[0, 11]), abs=tolerances.LOG_PROBABILITY)


def test_rows_without_a_token_are_left() -> None:
    pairs = [families(VOCAB)["ordinary"][0]]
    mixed = call.mix(pairs)
    mixed.record.logprob.fill_(7)
    for token in (-1, VOCAB):
        assert ask(mixed, pairs, token).logprob[0, 0] == 7


def test_the_mean_log_ratio_is_the_divergence() -> None:
    """E_q[log q - log theta] over all tokens is the record's D_KL(q || theta)."""
    pairs = [families(VOCAB)["far"][0]]
    mixed = call.mix(pairs)
    total = 0.0
    for token in range(VOCAB):
        record = ask(mixed, pairs, token)
        total += float(mixed.rows[0, token].double().exp() * (record.logprob - record.theta_logprob).double())
    assert total == pytest.approx(mixed.record.kl_theta.item(), rel=tolerances.KL_RELATIVE)

"""`TopTokens`: the likeliest tokens of a row are those of the row that `mix_` wrote, with both models' log-probabilities."""

from typing import Any

import call
import pytest
import tolerances
import torch
from adversarial_rows import families
from vllm_optimal_sampling.kernels import Method

from vllm_optimal_sampling.worker.top_tokens import ROWS_AT_ONCE, TopTokens

VOCAB = 301
NAMES = ["ordinary", "far", "near_one_hot", "disjoint_peaks", "grammar_10", "minus_inf_in_theta", "equal_rows"]
K = 20


def written(mixed: call.Mixed, pairs: list[call.Pair], k: int = K) -> TopTokens:
    top = TopTokens.allocate(len(pairs), 1, k, torch.device("cpu"))
    slots = torch.arange(len(pairs), dtype=torch.int32)
    top.write(
        torch.stack([teacher for teacher, _ in pairs]),
        torch.stack([theta for _, theta in pairs])[:, None, :].contiguous(),
        slots,
        torch.zeros_like(slots),
        mixed.record,
    )
    return top


def is_close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return torch.allclose(
        found.double(), wanted.double(), atol=tolerances.LOG_PROBABILITY, rtol=tolerances.LOG_PROBABILITY
    )


@pytest.mark.parametrize("support", [{}, {"support_top_k": 12, "support_top_p": 0.9}], ids=["whole", "restricted"])
@pytest.mark.parametrize("method", [Method.KL_SYMMETRY, Method.ARITHMETIC])
def test_the_likeliest_of_the_mixed_row(method: Method, support: dict[str, Any]) -> None:
    pairs = [families(VOCAB)[name][0] for name in NAMES]
    mixed = call.mix(pairs, method, alpha=0.3, **support)
    top = written(mixed, pairs)
    for i, (teacher, theta) in enumerate(pairs):
        tokens = top.token_ids[i, 0].long()
        assert len(set(tokens.tolist())) == K
        assert is_close(top.logprob[i, 0], mixed.rows[i].topk(K).values), NAMES[i]
        assert is_close(mixed.rows[i][tokens], mixed.rows[i].topk(K).values), NAMES[i]
        log_teacher = teacher.double().log_softmax(0)
        log_theta = torch.where(teacher > -torch.inf, theta, -torch.inf).double().log_softmax(0)
        assert is_close(top.teacher_logprob[i, 0], log_teacher[tokens]), NAMES[i]
        assert is_close(top.theta_logprob[i, 0], log_theta[tokens]), NAMES[i]


def test_rows_of_the_teacher_alone() -> None:
    pairs = [families(VOCAB)["disjoint_peaks"][0]]
    mixed = call.mix(pairs, max_js_divergence=0.1)
    assert mixed.record.fallback.all()
    top = written(mixed, pairs)
    wanted = pairs[0][0].double().log_softmax(0).topk(K).values
    assert is_close(top.logprob[0, 0], wanted) and is_close(top.teacher_logprob[0, 0], wanted)


def test_the_whole_row_sums_to_one_whatever_the_number_of_rows() -> None:
    pairs = [families(VOCAB)["ordinary"][0], families(VOCAB)["far"][0]] * ROWS_AT_ONCE
    mixed = call.mix(pairs)
    top = written(mixed, pairs, VOCAB)
    assert torch.allclose(top.logprob[:, 0].double().exp().sum(-1), torch.ones(len(pairs)).double(), atol=1e-4)
    columns = top.columns(torch.tensor([3, 0]))
    assert columns.shape == (2, 1, 4 * VOCAB)
    assert torch.equal(columns[0, 0, :VOCAB].int(), top.token_ids[3, 0])


def test_a_theta_with_fewer_tokens() -> None:
    teacher, theta = families(VOCAB)["ordinary"][0]
    mixed = call.mix([(teacher, torch.cat([theta[:290], torch.full((11,), -torch.inf)]))])
    top = TopTokens.allocate(1, 1, VOCAB, torch.device("cpu"))
    zero = torch.zeros(1, dtype=torch.int32)
    top.write(teacher[None], theta[None, None, :290].contiguous(), zero, zero, mixed.record)
    behind = top.token_ids[0, 0] >= 290
    assert behind.sum() == 11 and (top.logprob[0, 0][behind] == -torch.inf).all()
    assert (top.theta_logprob[0, 0][behind] == -torch.inf).all()

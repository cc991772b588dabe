"""What tokens are drawn from, against the float64 reference of the package's kernels and the rules' own equations."""

from __future__ import annotations

import pytest
import torch
from distillation.matched_budget import matched, mean_kl
from distillation.mixtures import mixed
from vllm_optimal_sampling.kernels import Method
from vllm_optimal_sampling.kernels.reference import mix

ROWS, VOCABULARY = 30, 151


def pair_of_rows(scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of two models, the first row the same for both."""
    generator = torch.Generator().manual_seed(round(10 * scale))
    theta, teacher = scale * torch.randn(2, ROWS, VOCABULARY, dtype=torch.float64, generator=generator)
    teacher[0] = theta[0]
    return theta.log_softmax(-1), teacher.log_softmax(-1)


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0, 20.0])
@pytest.mark.parametrize("rule", ["kl_symmetry", "entropy", "fixed", "kl_budget"])
def test_q_is_the_reference_of_the_kernels(rule: str, scale: float) -> None:
    theta, teacher = pair_of_rows(scale)
    found = mixed(rule, theta, teacher, 0.3, 0.1)
    for row in range(ROWS):
        expected = mix(teacher[row], theta[row], Method[rule.upper()], 0.3, kl_budget=0.1)
        assert (found.log_q[row].exp() - expected.log_q.exp()).abs().sum() < 1e-10
    # log Z by its definition.
    weight = found.alpha[:, None]
    assert torch.allclose(((1 - weight) * theta + weight * teacher).logsumexp(-1), found.log_z, atol=1e-12)


@pytest.mark.parametrize("scale", [1.0, 5.0, 20.0])
def test_the_budget_is_used_up_and_not_passed(scale: float) -> None:
    theta, teacher = pair_of_rows(scale)
    found = mixed("kl_budget", theta, teacher, epsilon=0.1)
    kl = (found.log_q.exp() * (found.log_q - theta)).sum(-1)
    is_teacher = found.alpha == 1
    assert is_teacher.sum() == 1, "only the row on which the models agree"
    assert torch.allclose(kl[~is_teacher], torch.tensor(0.1, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(found.log_q[is_teacher], teacher[is_teacher], atol=1e-12)


def test_a_large_budget_is_the_teacher() -> None:
    theta, teacher = pair_of_rows(1.0)
    assert torch.equal(mixed("kl_budget", theta, teacher, epsilon=100.0).alpha, torch.ones(ROWS, dtype=torch.float64))


def test_the_teacher_alone_has_the_log_z_of_kl_symmetry() -> None:
    theta, teacher = pair_of_rows(3.0)
    alone, symmetric = mixed("teacher", theta, teacher), mixed("kl_symmetry", theta, teacher)
    assert torch.equal(alone.log_q, teacher)
    assert torch.equal(alone.log_z, symmetric.log_z)


def test_the_matched_bound_has_the_mean() -> None:
    theta, teacher = pair_of_rows(2.0)
    constant = mixed("fixed", theta, teacher, 0.5)
    mean = float((constant.log_q.exp() * (constant.log_q - theta)).sum(-1).mean())
    bound = matched(theta, teacher, mean)
    assert mean_kl(theta, teacher, bound) == pytest.approx(mean, rel=1e-4)
    assert bound > mean, "a bound of every row is above the mean under it"
    with pytest.raises(ValueError, match="more than the teacher's own"):
        matched(theta, teacher, 1000.0)


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="rule='ess' is none of teacher, fixed"):
        mixed("ess", *pair_of_rows(1.0))

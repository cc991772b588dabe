"""The losses' expected gradients, by summing over every token of a small vocabulary, against what they are said to be."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from vllm_optimal_sampling.integrations.losses import cross_entropy, importance_weights, reverse_kl, top_k_divergence

VOCAB = 7
TOLERANCE = {"atol": 1e-12, "rtol": 0.0}  # float64 sums of seven numbers


@pytest.fixture(params=range(3))
def models(request: pytest.FixtureRequest) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Theta's logits, log q* and log π_t [vocab]. q* is not close to theta: ratios run from 0.05 to 20."""
    generator = torch.Generator().manual_seed(request.param)
    theta, teacher = (2 * torch.randn(VOCAB, generator=generator, dtype=torch.float64) for _ in range(2))
    return theta.requires_grad_(), (0.3 * theta.detach() + 0.7 * teacher).log_softmax(-1), teacher.log_softmax(-1)


def expected_gradient(
    theta: torch.Tensor, drawn_from: torch.Tensor, loss: Callable[[torch.Tensor, int], torch.Tensor]
) -> torch.Tensor:
    """Σ_y p(y) ∇ loss(y), a batch of one token each."""
    total = torch.zeros_like(theta)
    for token in range(VOCAB):
        logprobs = theta.log_softmax(-1)[token].reshape(1, 1)
        total += drawn_from[token].exp().detach() * torch.autograd.grad(loss(logprobs, token), theta)[0]
    return total


def gradient(divergence: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(divergence, theta, retain_graph=True)[0]


ONE = torch.ones(1, 1)


def at(values: torch.Tensor, token: int) -> torch.Tensor:
    return values[token].reshape(1, 1)


def test_cross_entropy_is_the_forward_divergence(models: tuple[torch.Tensor, ...]) -> None:
    theta, log_q, _ = models
    found = expected_gradient(theta, log_q, lambda logprobs, token: cross_entropy(logprobs, at(log_q, token), ONE))
    divergence = (log_q.exp() * (log_q - theta.log_softmax(-1))).sum()
    torch.testing.assert_close(found, gradient(divergence, theta), **TOLERANCE)
    assert found.abs().max() > 0.01


@pytest.mark.parametrize("clip", [0.2, 1.0, 3.0])
def test_weighted_cross_entropy(models: tuple[torch.Tensor, ...], clip: float) -> None:
    """Its gradient is that of the f-divergence in the docstring, written out with autograd."""
    theta, log_q, _ = models
    found = expected_gradient(
        theta, log_q, lambda logprobs, token: cross_entropy(logprobs, at(log_q, token), ONE, clip)
    )
    u = (theta.log_softmax(-1) - log_q).exp() / clip
    divergence = (clip * log_q.exp() * torch.where(u > 1, u - 1 - u.log(), torch.zeros_like(u))).sum()
    torch.testing.assert_close(found, gradient(divergence, theta), **TOLERANCE)


def test_the_limits_of_weighted_cross_entropy(models: tuple[torch.Tensor, ...]) -> None:
    theta, log_q, _ = models

    def found(clip: float) -> torch.Tensor:
        return expected_gradient(
            theta, log_q, lambda logprobs, token: cross_entropy(logprobs, at(log_q, token), ONE, clip)
        )

    assert found(1e6).abs().max() < 1e-12  # nothing but noise
    plain = expected_gradient(theta, log_q, lambda logprobs, token: cross_entropy(logprobs, at(log_q, token), ONE))
    torch.testing.assert_close(found(1e-6) / 1e-6, plain, **TOLERANCE)


def test_reverse_divergence_on_thetas_own_tokens(models: tuple[torch.Tensor, ...]) -> None:
    theta, _, log_t = models
    log_theta = theta.log_softmax(-1)
    found = expected_gradient(theta, log_theta, lambda logprobs, token: reverse_kl(logprobs, at(log_t, token), ONE))
    divergence = (log_theta.exp() * (log_theta - log_t)).sum()
    torch.testing.assert_close(found, gradient(divergence, theta), **TOLERANCE)
    assert found.abs().max() > 0.01


def test_reverse_divergence_on_tokens_of_the_mixture(models: tuple[torch.Tensor, ...]) -> None:
    theta, log_q, log_t = models
    log_theta = theta.log_softmax(-1)

    def found(clip: float) -> torch.Tensor:
        return expected_gradient(
            theta, log_q, lambda logprobs, token: reverse_kl(logprobs, at(log_t, token), ONE, at(log_q, token), clip)
        )

    divergence = (log_theta.exp() * (log_theta - log_t)).sum()
    torch.testing.assert_close(found(1e6), gradient(divergence, theta), **TOLERANCE)
    # With a clip it is off by what theta has beyond clip q*, and by nothing else.
    clip = 1.5
    excess = (log_theta.exp() - clip * log_q.exp()).clamp(min=0).detach()
    missing = (excess * (log_theta - log_t).detach() * log_theta).sum()
    torch.testing.assert_close(found(clip), gradient(divergence, theta) - gradient(missing, theta), **TOLERANCE)


def test_padding_and_the_mean() -> None:
    logprobs = torch.tensor([[-1.0, -2.0, -9.0], [-3.0, -9.0, -9.0]], requires_grad=True)
    sampling = torch.tensor([[-1.0, -2.5, -torch.inf], [-3.0, torch.nan, 0.0]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert cross_entropy(logprobs, sampling, mask).item() == pytest.approx(2.0)
    weighted = cross_entropy(logprobs, sampling, mask, clip=1.2)
    assert weighted.item() == pytest.approx((1.0 + 1.2 * 2.0 + 3.0) / 3)
    weighted.backward()
    assert logprobs.grad is not None
    assert logprobs.grad[~mask.bool()].abs().max() == 0 and torch.isfinite(logprobs.grad).all()
    assert cross_entropy(logprobs, sampling, torch.zeros_like(mask)).item() == 0
    logprobs.grad = None
    reverse_kl(logprobs, sampling - 1, mask, sampling).backward()
    assert logprobs.grad is not None and torch.isfinite(logprobs.grad).all()
    torch.testing.assert_close(logprobs.grad, torch.tensor([[1.0, 1.5 * math.exp(0.5), 0.0], [1.0, 0.0, 0.0]]) / 3)
    with pytest.raises(ValueError, match="clip=0 is not above 0"):
        importance_weights(logprobs, sampling, 0)


def top_k(theta: torch.Tensor, log_p: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return top_k_divergence(theta.log_softmax(-1)[tokens][None, None], log_p[tokens][None, None], ONE)


@pytest.mark.parametrize("target", [1, 2], ids=["q*", "teacher"])
def test_top_k_of_all_tokens_is_the_divergence(models: tuple[torch.Tensor, ...], target: int) -> None:
    theta, log_p = models[0], models[target]
    divergence = (log_p.exp() * (log_p - theta.log_softmax(-1))).sum()
    for k in (VOCAB, VOCAB - 1):  # the rest is nothing, or the last token
        found = top_k(theta, log_p, log_p.topk(k).indices)
        torch.testing.assert_close(found, divergence, atol=1e-9, rtol=0.0)
        torch.testing.assert_close(gradient(found, theta), gradient(divergence, theta), atol=1e-9, rtol=0.0)


def test_top_k_is_the_divergence_of_merged_outcomes(models: tuple[torch.Tensor, ...]) -> None:
    theta, log_q, _ = models
    best = log_q.topk(3).indices.tolist()
    found = top_k(theta, log_q, torch.tensor(best))
    p, ours = log_q.exp(), theta.softmax(-1)
    outcomes = [[token] for token in best] + [[token for token in range(VOCAB) if token not in best]]
    merged = sum(p[one].sum() * (p[one].sum() / ours[one].sum()).log() for one in outcomes)
    assert isinstance(merged, torch.Tensor)
    torch.testing.assert_close(found, merged, atol=1e-9, rtol=0.0)
    torch.testing.assert_close(gradient(found, theta), gradient(merged, theta), atol=1e-9, rtol=0.0)
    assert 0 < found < (p * (log_q - theta.log_softmax(-1))).sum()


def test_top_k_leaves_out_what_cannot_be_drawn_and_padding(models: tuple[torch.Tensor, ...]) -> None:
    """A grammar that leaves two tokens: the other places of the record have -inf. Padding may hold anything."""
    theta = models[0]
    log_p = torch.full((VOCAB,), -torch.inf, dtype=torch.float64)
    log_p[:2] = torch.tensor([0.75, 0.25], dtype=torch.float64).log()
    row = theta.log_softmax(-1)[:4]
    padding = torch.full((4,), math.nan, dtype=torch.float64)
    found = top_k_divergence(
        torch.stack([row, padding])[None], torch.stack([log_p[:4], padding])[None], torch.tensor([[1, 0]])
    )
    expected = (log_p[:2].exp() * (log_p[:2] - theta.log_softmax(-1)[:2])).sum()
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0.0)
    assert gradient(found, theta).isfinite().all()

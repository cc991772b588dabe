"""What tokens are drawn from: q* by each rule for alpha, in float64 and for many rows at a time.

    q(y) = pi_theta(y)^(1 - alpha) pi_t(y)^alpha / Z

With r = log pi_t - log pi_theta, log Z is convex in alpha, g(alpha) = E_q[r] is its derivative and grows, and

    kl_symmetry   g(alpha) = 0, where D_KL(q||pi_theta) = D_KL(q||pi_t)
    kl_budget     D_KL(q||pi_theta) = alpha g(alpha) - log Z(alpha) = epsilon, or alpha = 1 where it is smaller there
    entropy       alpha = H_theta / (H_theta + H_t)

Rows that agree leave alpha open: 1/2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

STEPS = 60  # bisections alone would give alpha to 1e-18
CLOSE = 1e-12  # nats


@dataclass(frozen=True)
class Mixed:
    """One distribution for each row, all float64, in nats."""

    log_q: torch.Tensor  # [rows, vocabulary] what is drawn from
    alpha: torch.Tensor  # [rows]
    log_z: torch.Tensor  # [rows] of the geometric mixture with this alpha, at most 0


def root(
    theta: torch.Tensor, teacher: torch.Tensor, increasing: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple]
) -> torch.Tensor:
    """The zero in [0, 1], for each row, of a function that increases in alpha; 1/2 if it is zero everywhere.

    Newton's steps, and a bisection wherever one would leave the bracket.

    Args:
        theta, teacher: log-probabilities, [rows, vocabulary].
        increasing: of alpha [rows], log Z [rows], E_q[r] and Var_q[r] [rows]: the function and its derivative by alpha.
    """
    ratio = teacher - theta
    low, high = torch.zeros_like(ratio[:, 0]), torch.ones_like(ratio[:, 0])
    alpha = (low + high) / 2
    for _ in range(STEPS):
        unnormalised = theta + alpha[:, None] * ratio
        log_z = unnormalised.logsumexp(-1)
        q = (unnormalised - log_z[:, None]).exp()
        mean = (q * ratio).sum(-1)
        variance = (q * ratio.square()).sum(-1) - mean.square()
        value, slope = increasing(alpha, log_z, mean, variance)
        if (value.abs() < CLOSE).all():
            break
        low, high = torch.where(value < 0, alpha, low), torch.where(value > 0, alpha, high)
        step = alpha - value / slope
        is_inside = (step > low) & (step < high)
        following = torch.where(is_inside, step, (low + high) / 2)
        alpha = torch.where(value.abs() < CLOSE, alpha, following)
    return alpha


def kl_symmetry(theta: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Alpha [rows] that is equally far from both models' log-probabilities [rows, vocabulary]."""
    return root(theta, teacher, lambda alpha, log_z, mean, variance: (mean, variance))


def kl_budget(theta: torch.Tensor, teacher: torch.Tensor, epsilon: float) -> torch.Tensor:
    """The largest alpha [rows] with D_KL(q||pi_theta) of at most `epsilon` nats."""
    fits = (teacher.exp() * (teacher - theta)).sum(-1) <= epsilon
    found = torch.ones_like(theta[:, 0])
    if not fits.all():
        found[~fits] = root(
            theta[~fits],
            teacher[~fits],
            lambda alpha, log_z, mean, variance: (alpha * mean - log_z - epsilon, alpha * variance),
        )
    return found


def entropy(theta: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Alpha [rows] that gives the surer model the larger weight."""
    h_theta, h_teacher = (-(rows.exp() * rows).sum(-1) for rows in (theta, teacher))
    total = h_theta + h_teacher
    return torch.where(total > 0, h_theta / total, 0.5)


def geometric(theta: torch.Tensor, teacher: torch.Tensor, alpha: torch.Tensor) -> Mixed:
    """q* with this alpha [rows]."""
    unnormalised = theta + alpha[:, None] * (teacher - theta)
    log_z = unnormalised.logsumexp(-1)
    return Mixed(unnormalised - log_z[:, None], alpha, log_z)


def mixed(
    rule: str, theta: torch.Tensor, teacher: torch.Tensor, alpha: float | None = None, epsilon: float | None = None
) -> Mixed:
    """What `rule` draws from.

    Args:
        rule: `teacher`, `fixed` (with `alpha`), `kl_symmetry`, `entropy`, or `kl_budget` (with `epsilon` in nats). The teacher
            alone has the log Z of KL symmetry, by which its texts are chosen among each other.
        theta, teacher: log-probabilities, [rows, vocabulary], float64.

    Raises:
        ValueError: `rule` is none of these.
    """
    match rule:
        case "teacher":
            log_z = geometric(theta, teacher, kl_symmetry(theta, teacher)).log_z
            return Mixed(teacher, torch.ones_like(log_z), log_z)
        case "fixed":
            weight = torch.full_like(theta[:, 0], alpha)
        case "kl_symmetry":
            weight = kl_symmetry(theta, teacher)
        case "entropy":
            weight = entropy(theta, teacher)
        case "kl_budget":
            weight = kl_budget(theta, teacher, epsilon)
        case _:
            raise ValueError(
                f"rule={rule!r} is none of teacher, fixed, kl_symmetry, entropy, kl_budget; give one of these"
            )
    return geometric(theta, teacher, weight)

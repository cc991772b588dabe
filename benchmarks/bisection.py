"""q* by KL symmetry as others write it: row by row over clamped probabilities, and batched in log space."""

from __future__ import annotations

import torch

CLAMP = 1e-10
"""The smallest probability of the reference implementation, in both models."""


def clamped_row(theta: torch.Tensor, teacher: torch.Tensor, steps: int = 12) -> torch.Tensor:
    """The reference implementation's algorithm for one row: bisection over clamped probabilities, one device sync a step.

    Args:
        theta: [vocab] probabilities; zeros where theta's are not known.
        teacher: [vocab] probabilities.
        steps: halvings of [0, 1].

    Returns:
        log q* [vocab].
    """
    p, t = theta.clamp_min(CLAMP), teacher.clamp_min(CLAMP)
    low, high = 0.0, 1.0
    for _ in range(steps):
        alpha = (low + high) / 2
        q = p ** (1 - alpha) * t**alpha
        q = q / q.sum()
        difference = (q * (q / p).log()).sum() - (q * (q / t).log()).sum()
        if difference.item() < 0:
            low = alpha
        else:
            high = alpha
    alpha = (low + high) / 2
    q = p ** (1 - alpha) * t**alpha
    return (q / q.sum()).log()


def row_by_row(teacher: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
    """`clamped_row` for logits [rows, vocab], one row after another; log q* [rows, vocab]."""
    rows = zip(theta.float().softmax(-1), teacher.float().softmax(-1), strict=True)
    return torch.stack([clamped_row(p, t) for p, t in rows])


def batched(teacher: torch.Tensor, theta: torch.Tensor, steps: int = 30) -> torch.Tensor:
    """Bisection over all rows of logits [rows, vocab] at once, in log space and without a sync; log q* [rows, vocab]."""
    u, v = theta.float().log_softmax(-1), teacher.float().log_softmax(-1)
    ratio = v - u
    low = torch.zeros(len(u), 1, device=u.device)
    high = torch.ones_like(low)
    for _ in range(steps):
        alpha = (low + high) / 2
        slope = ((u + alpha * ratio).softmax(-1) * ratio).sum(-1, keepdim=True)
        low, high = torch.where(slope < 0, alpha, low), torch.where(slope < 0, high, alpha)
    return (u + (low + high) / 2 * ratio).log_softmax(-1)

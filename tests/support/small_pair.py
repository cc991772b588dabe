"""Two models small enough to write down: every text of four tokens with its probability under each, in float64."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from vllm_optimal_sampling.kernels import Method
from vllm_optimal_sampling.kernels.reference import solve_alpha

from vllm_optimal_sampling.selection import Scores

VOCAB, LENGTH = 4, 4


@dataclass(frozen=True)
class Texts:
    """All texts of a pair, `[texts]` each."""

    drawn: torch.Tensor
    """Probabilities of the texts drawn token by token from q*."""
    target: torch.Tensor
    """Probabilities under ∏ theta^(1 - alpha) teacher^alpha, normalised over whole texts."""
    teacher: torch.Tensor
    """Log-probabilities."""
    theta: torch.Tensor
    """Log-probabilities."""
    scores: list[Scores]


def all_texts(method: Method, seed: int = 0) -> Texts:
    """Both models' next-token rows are random for every beginning; alpha is found as `method` says, 0.5 where it is given."""
    generator = torch.Generator().manual_seed(seed)
    rows = {
        beginning: (2 * torch.randn(2, VOCAB, generator=generator, dtype=torch.float64)).log_softmax(-1)
        for length in range(LENGTH)
        for beginning in itertools.product(range(VOCAB), repeat=length)
    }
    drawn, weights, teachers, thetas, scores = [], [], [], [], []
    for text in itertools.product(range(VOCAB), repeat=LENGTH):
        record: dict[str, list[float | None]] = {"alpha": [], "log_z": [], "teacher_logprob": []}
        log_q = weight = teacher = theta = 0.0
        for place, token in enumerate(text):
            u, v = rows[text[:place]]
            alpha = solve_alpha(u, v, method, 0.5)
            mixture = (1 - alpha) * u + alpha * v
            log_z = float(mixture.logsumexp(0))
            record["alpha"].append(alpha)
            record["log_z"].append(log_z)
            record["teacher_logprob"].append(float(v[token]))
            log_q += float(mixture[token]) - log_z
            weight += float(mixture[token])
            teacher += float(v[token])
            theta += float(u[token])
        drawn.append(log_q)
        weights.append(weight)
        teachers.append(teacher)
        thetas.append(theta)
        scores.append(Scores.of(record, "length"))
    as_tensor = [torch.tensor(values, dtype=torch.float64) for values in (drawn, weights, teachers, thetas)]
    return Texts(as_tensor[0].exp(), as_tensor[1].softmax(0), as_tensor[2], as_tensor[3], scores)


def chi_square(counts: torch.Tensor, probabilities: torch.Tensor, least: float = 5.0) -> tuple[float, float]:
    """Pearson's statistic and its p-value; the rarest cells are put together until `least` are expected in each."""
    expected = probabilities * counts.sum()
    order = expected.argsort(descending=True)
    found, wanted = counts[order].double(), expected[order]
    split = int((wanted >= least).sum())
    if split < len(wanted):
        found = torch.cat([found[:split], found[split:].sum()[None]])
        wanted = torch.cat([wanted[:split], wanted[split:].sum()[None]])
    statistic = ((found - wanted) ** 2 / wanted).sum()
    freedom = torch.tensor((len(wanted) - 1) / 2, dtype=torch.float64)
    return float(statistic), float(torch.special.gammaincc(freedom, statistic / 2))

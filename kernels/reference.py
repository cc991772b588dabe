"""The mix in float64, as its formulas read. What the kernels are tested against; nothing else imports it.

One row at a time, `theta` and `teacher` logits `[V]`, on whatever device they are. Methods that need a search bisect.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from .settings import Method

LOWEST = -1.0e4


@dataclass(frozen=True)
class Mixture:
    """What `mix` returns for a row."""

    log_q: torch.Tensor
    """[V_t] float64; the teacher's logits where it draws alone."""
    alpha: float
    kl_theta: float
    kl_teacher: float
    fallback: bool


def kl(p: torch.Tensor, log_p: torch.Tensor, log_q: torch.Tensor) -> float:
    """D_KL(p || q) in nats."""
    return float(torch.where(p > 0, p * (log_p - log_q), 0.0).sum())


def mixed_support(teacher: torch.Tensor, theta: torch.Tensor, method: int, top_k: int, top_p: float) -> torch.Tensor:
    """[V] bool: the tokens that are mixed. `teacher` and `theta` have the common length."""
    support = teacher > LOWEST
    if method != Method.ARITHMETIC:
        support = support & (theta > LOWEST)
    if top_k > 0 and int(support.sum()) > top_k:
        floor = teacher[support].topk(top_k).values[-1]
        support = support & (teacher >= floor)
    if top_p < 1.0 and bool(support.any()):
        p, order = torch.where(support, teacher, -torch.inf).softmax(0).sort(descending=True)
        nucleus_size = int((p.cumsum(0) < top_p).sum()) + 1
        support = support & (teacher >= teacher[order[min(nucleus_size, len(order)) - 1]])
    return support


def geometric(u: torch.Tensor, v: torch.Tensor, alpha: float) -> torch.Tensor:
    """log q of log-probabilities u (theta) and v (teacher)."""
    return ((1 - alpha) * u + alpha * v).log_softmax(0)


def bisect(increasing: Callable[[float], float]) -> float:
    """The zero of an increasing function in [0, 1]; 1/2 if it is zero everywhere."""
    low, high = 0.0, 1.0
    if increasing(0.0) == increasing(1.0):
        return 0.5
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if increasing(middle) < 0 else (low, middle)
    return (low + high) / 2


def scheduled(start: float, end: float, token_position: int, schedule_position: int, schedule_steps: int) -> float:
    """The value of a setting in the row at `token_position`: in a straight line from `start` to `end`."""
    progress = min(max((token_position - schedule_position) / schedule_steps, 0.0), 1.0)
    if progress == 0 or start == end:
        return start
    if progress == 1:
        return end
    # inf - inf would be nan, and inf + (1 - inf) / 2 too.
    return math.inf if math.inf in (start, end) else start + (end - start) * progress


def js_gate(u: torch.Tensor, v: torch.Tensor, js_sensitivity: float, alpha_min: float, alpha_max: float) -> float:
    """alpha_max where the models agree, and towards alpha_min as their Jensen-Shannon divergence grows."""
    divergence = max(js_divergence(u, v), 0.0)
    share = math.tanh(js_sensitivity * divergence / 2) if divergence > 0 else 0.0
    return alpha_max - (alpha_max - alpha_min) * share


def solve_alpha(
    u: torch.Tensor,
    v: torch.Tensor,
    method: int,
    fixed: float,
    kl_budget: float = math.inf,
) -> float:
    """alpha of one row of log-probabilities, before its bounds. All methods but `JS_GATE`, for which they are the rule."""
    p_theta, p_teacher = u.exp(), v.exp()

    def kl_symmetry(alpha: float) -> float:
        log_q = geometric(u, v, alpha)
        return kl(log_q.exp(), log_q, u) - kl(log_q.exp(), log_q, v)

    def reverse_kl_symmetry(alpha: float) -> float:
        log_q = geometric(u, v, alpha)
        return kl(p_theta, u, log_q) - kl(p_teacher, v, log_q)

    def ess_balance(alpha: float) -> float:
        log_q = geometric(u, v, alpha)
        return float(torch.logsumexp(2 * u - log_q, 0) - torch.logsumexp(2 * v - log_q, 0))

    def within_budget(alpha: float) -> float:
        log_q = geometric(u, v, alpha)
        return kl(log_q.exp(), log_q, u) - kl_budget

    match method:
        case Method.KL_SYMMETRY:
            return bisect(kl_symmetry)
        case Method.REVERSE_KL_SYMMETRY:
            return bisect(reverse_kl_symmetry)
        case Method.ESS_BALANCE:
            return bisect(ess_balance)
        case Method.ENTROPY:
            entropy_theta, entropy_teacher = -(p_theta * u).sum(), -(p_teacher * v).sum()
            total = float(entropy_theta + entropy_teacher)
            return float(entropy_theta) / total if total > 0 else 0.5
        case Method.KL_BUDGET:
            return 1.0 if kl(p_teacher, v, u) <= kl_budget else bisect(within_budget)
        case _:
            return fixed


def js_divergence(u: torch.Tensor, v: torch.Tensor) -> float:
    """Jensen-Shannon divergence in nats; at most log 2."""
    log_m = torch.logaddexp(u, v) - math.log(2)
    return (kl(u.exp(), u, log_m) + kl(v.exp(), v, log_m)) / 2


def mix(
    teacher: torch.Tensor,
    theta: torch.Tensor,
    method: int = Method.KL_SYMMETRY,
    alpha: float = 0.5,
    alpha_min: float = 0.0,
    alpha_max: float = 1.0,
    support_top_k: int = 0,
    support_top_p: float = 1.0,
    max_js_divergence: float = math.inf,
    kl_budget: float = math.inf,
    js_sensitivity: float = 50.0,
    alpha_end: float | None = None,
    alpha_min_end: float | None = None,
    alpha_max_end: float | None = None,
    kl_budget_end: float | None = None,
    schedule_position: int = 0,
    schedule_steps: int = 1,
    token_position: int = 0,
) -> Mixture:
    """log q* of one row.

    Args:
        teacher: `[V_t]` logits.
        theta: `[V_theta]` logits.
        method: a `Method`; the other arguments are those of `MixSettings`, an end of None being the value itself.
        token_position: of the row.
    """

    def now(start: float, end: float | None) -> float:
        return scheduled(start, start if end is None else end, token_position, schedule_position, schedule_steps)

    alpha, kl_budget = now(alpha, alpha_end), now(kl_budget, kl_budget_end)
    alpha_min, alpha_max = now(alpha_min, alpha_min_end), now(alpha_max, alpha_max_end)
    vocab = min(len(teacher), len(theta))
    t, s = teacher[:vocab].double(), theta[:vocab].double()

    def alone(kl_theta: float) -> Mixture:
        return Mixture(teacher.double(), 1.0, kl_theta, 0.0, True)

    allowed = s[t > LOWEST]
    if t.isnan().any() or allowed.isnan().any() or t.isposinf().any() or allowed.isposinf().any():
        return alone(float("nan"))
    support = mixed_support(t, s, method, support_top_k, support_top_p)
    if not (support & (s > LOWEST)).any():
        return alone(float("inf"))
    s = torch.where(s > LOWEST, s, -torch.inf)
    u, v = s[support].log_softmax(0), t[support].log_softmax(0)
    if js_divergence(u, v) > max_js_divergence:
        return alone(kl(v.exp(), v, u))
    if method == Method.JS_GATE:
        weight = js_gate(u, v, js_sensitivity, alpha_min, alpha_max)
    else:
        weight = solve_alpha(u, v, method, alpha, kl_budget)
    weight = min(max(weight, alpha_min), alpha_max)
    if method == Method.ARITHMETIC:
        log_q = (weight * v.exp() + (1 - weight) * u.exp()).log()
    else:
        log_q = geometric(u, v, weight)
    row = torch.full((len(teacher),), -torch.inf, dtype=torch.float64, device=teacher.device)
    row[:vocab][support] = log_q
    q = log_q.exp()
    return Mixture(row, weight, kl(q, log_q, u), kl(q, log_q, v), False)

"""What rows and draws have to be, in float64, for whole batches at once.

The definitions of q* and of vLLM's sampling parameters are written down here once more, on `[rows, vocab]` tensors, apart
from the kernels and from their references: so many rows are audited that one at a time would take hours.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM

LN2 = 0.6931471805599453
INF = float("inf")
BORDERS = (0.0, 1e-4, -1e-4, 1e-3, -1e-3)
"""How far a threshold (the mass of a nucleus, min-p's share of the likeliest) may seem to lie elsewhere: float32 rows are
right to some 1e-5 in log space where tokens are likely, and to some 1e-4 where the models differ by many nats."""
TIE = 1e-4
"""Nats at temperature 1. Two tokens on both sides of a threshold that are closer than this may have changed places in
float32; a temperature of T makes differences 1/T times as large, the errors too."""
NUCLEUS_STEP = 2.0**-18
"""vLLM's top-p kernel (v1/sample/ops/topk_topp_triton.py) halves the interval between the least and the largest
probability 18 times at most: it cannot part two tokens whose probabilities are closer than this share of the largest, and
then keeps or drops either, so that what it keeps may have a little less mass than top_p."""
PERTURBED = 32
PERTURBATION = 1e-5
"""Nats at temperature 1, standard deviation: as float32 rows differ from float64 ones."""


def as_found(
    kept: torch.Tensor, values: torch.Tensor, found: torch.Tensor, width: torch.Tensor | float
) -> torch.Tensor:
    """`kept`, except where the last token kept and the first one dropped are a tie: what was `found` for the tied ones.

    Args:
        kept: `[..., vocab]` bool: what a threshold keeps, in float64.
        values: `[..., vocab]`, in whose order tokens are kept.
        found: `[..., vocab]` bool: what the engine kept.
        width: how close values are that tie; a number or `[..., 1]`.
    """
    last = torch.where(kept, values, INF).amin(-1, keepdim=True)
    first = torch.where(kept, -INF, values).amax(-1, keepdim=True)
    near = ((values - last).abs() < width) | ((values - first).abs() < width)
    return torch.where((last - first < width) & near, found, kept)


class Models:
    """Teacher and theta in float64."""

    def __init__(self, teacher: str, theta: str):
        self.teacher = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float64).eval()
        self.theta = AutoModelForCausalLM.from_pretrained(theta, dtype=torch.float64).eval()

    @staticmethod
    @torch.inference_mode()
    def last_logits(
        model: Any, sequences: Sequence[Sequence[int]], counts: Sequence[int], batch: int = 64
    ) -> torch.Tensor:
        """Logits after the last `counts[i]` tokens of each sequence, in order: `[sum(counts), vocab]` float64.

        Sequences are padded behind their ends, which a causal model does not see.
        """
        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
        rows: list[torch.Tensor] = [torch.empty(0)] * len(sequences)
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            longest = len(sequences[chosen[-1]])
            ids = torch.tensor([[*sequences[i], *[0] * (longest - len(sequences[i]))] for i in chosen])
            hidden = model.base_model(ids).last_hidden_state
            for row, i in zip(hidden, chosen, strict=True):
                end = len(sequences[i])
                rows[i] = model.get_output_embeddings()(row[end - counts[i] : end])
        return torch.cat(rows)


def _entropy(log_p: torch.Tensor) -> torch.Tensor:
    return -_mean(log_p, log_p)


def _mean(log_p: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """E_p[values] of each row; what has no mass takes no part."""
    p = log_p.exp()
    return torch.where(p > 0, p * values, 0.0).sum(-1)


def _geometric(u: torch.Tensor, v: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    mixed = (1 - alpha)[:, None] * u + alpha[:, None] * v
    return torch.where(u.isfinite() & v.isfinite(), mixed, -INF).log_softmax(-1)


def _balance(method: str, u: torch.Tensor, v: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """What is zero at the method's alpha, and grows with alpha."""
    both = u.isfinite()
    if method == "kl_symmetry":
        return _mean(log_q, torch.where(both, v - u, 0.0))
    if method == "reverse_kl_symmetry":
        return _mean(u, torch.where(both, u - log_q, 0.0)) - _mean(v, torch.where(both, v - log_q, 0.0))
    assert method == "ess_balance"
    second_u, second_v = (torch.where(both, 2 * w - log_q, -INF).logsumexp(-1) for w in (u, v))
    return second_u - second_v


def _alphas(method: str, u: torch.Tensor, v: torch.Tensor, of: Callable[[str, float], torch.Tensor]) -> torch.Tensor:
    """alpha of each row before its bounds; `of(name, default)` is each row's argument."""
    if method in ("fixed", "arithmetic"):
        return of("alpha", 0.5)
    if method == "js_gate":
        low, high = of("alpha_min", 0.0), of("alpha_max", 1.0)
        return high - (high - low) * torch.tanh(of("js_sensitivity", 50.0) * _js_divergence(u, v) / 2)
    if method == "entropy":
        theta, teacher = _entropy(u), _entropy(v)
        return torch.where(theta + teacher > 0, theta / (theta + teacher), 0.5)
    low, high = torch.zeros(len(u), dtype=torch.float64), torch.ones(len(u), dtype=torch.float64)
    for _ in range(50):
        middle = (low + high) / 2
        log_q = _geometric(u, v, middle)
        if method == "kl_budget":
            below = _mean(log_q, torch.where(u.isfinite(), log_q - u, 0.0)) <= of("kl_budget", INF)
        else:
            below = _balance(method, u, v, log_q) < 0
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


def _js_divergence(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    both, middle = u.isfinite(), torch.logaddexp(u, v) - LN2
    return (_mean(u, torch.where(both, u - middle, 0.0)) + _mean(v, torch.where(both, v - middle, 0.0))) / 2


def _support(
    teacher: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, found: torch.Tensor | None
) -> torch.Tensor:
    """`[rows, vocab]` bool: the teacher's k likeliest tokens, and of these its nucleus; ties at their ends as `found`."""
    log_p, order = teacher.log_softmax(-1).sort(descending=True, stable=True)
    found = None if found is None else found.gather(-1, order)
    place = torch.arange(teacher.shape[-1]).expand_as(order)
    kept = place < torch.where(top_k > 0, top_k, teacher.shape[-1])[:, None]
    if found is not None:
        kept = as_found(kept, log_p, found, TIE)
    p = torch.where(kept, log_p, -INF).softmax(-1)
    nucleus = kept & ((p.cumsum(-1) - p < top_p[:, None]) | (place == 0))
    if found is not None:
        nucleus = kept & as_found(nucleus, log_p, found, TIE)
    return torch.zeros_like(kept).scatter(-1, order, nucleus)


def mixtures(
    teacher: torch.Tensor,
    theta: torch.Tensor,
    arguments: Sequence[dict[str, Any]],
    border: float = 0.0,
    found: torch.Tensor | None = None,
) -> torch.Tensor:
    """log q* of each row, `[rows, vocab]` float64; the teacher's own logits where it draws alone.

    Args:
        teacher, theta: logits `[rows, vocab]` float64.
        arguments: of each row, the request's arguments as a client gives them; `alone` where the row is not mixed.
        border: moves the thresholds of `support_top_p` and `max_js_divergence` by this much.
        found: `[rows, vocab]` bool: which tokens have mass in the engine's rows; ties at the end of a support are
            decided as there.
    """
    result = teacher.clone()
    for method in {a.get("alpha_method", "kl_symmetry") for a in arguments if not a.get("alone")}:
        rows = [
            i for i, a in enumerate(arguments) if not a.get("alone") and a.get("alpha_method", "kl_symmetry") == method
        ]
        given = [arguments[i] for i in rows]

        def of(name: str, default: float, given: Any = given) -> torch.Tensor:
            return torch.tensor([a.get(name, default) for a in given], dtype=torch.float64)

        support = _support(
            teacher[rows],
            of("support_top_k", 0),
            of("support_top_p", 1.0) * (1 + border),
            None if found is None else found[rows],
        )
        v = torch.where(support, teacher[rows], -INF).log_softmax(-1)
        u = torch.where(support, theta[rows], -INF).log_softmax(-1)
        divergence = _js_divergence(u, v)
        alpha = _alphas(method, u, v, of).clamp(of("alpha_min", 0.0), of("alpha_max", 1.0))
        if method == "arithmetic":
            log_q = (alpha[:, None] * v.exp() + (1 - alpha)[:, None] * u.exp()).log()
        else:
            log_q = _geometric(u, v, alpha)
        mixed = divergence <= of("max_js_divergence", INF) * (1 + border)
        result[rows] = torch.where(mixed[:, None], log_q, result[rows])
    return result


def processed(row: torch.Tensor, params: Any, prompt: Sequence[int], output: Sequence[int]) -> torch.Tensor:
    """A row [vocab] with logit bias and penalties, before temperature: in vLLM's order, with vLLM's counts."""
    row = row.clone()
    for token, bias in (params.logit_bias or {}).items():
        row[token] += bias
    if params.repetition_penalty != 1:
        seen = torch.tensor(sorted({*prompt, *output}))
        values = row[seen]
        row[seen] = torch.where(values <= 0, values * params.repetition_penalty, values / params.repetition_penalty)
    if output and (params.frequency_penalty or params.presence_penalty):
        counts = Counter(output)
        tokens = torch.tensor(list(counts))
        row[tokens] -= params.frequency_penalty * torch.tensor(list(counts.values())) + params.presence_penalty
    return row


def scaled(row: torch.Tensor, params: Any, min_p_shift: float = 0.0) -> torch.Tensor:
    """A row [vocab] after temperature and min-p, whose threshold `min_p_shift` moves."""
    row = row / params.temperature
    if params.min_p:
        row = row.masked_fill(row < row.max() + math.log(params.min_p * (1 + min_p_shift)), -INF)
    return row


def drawn(
    row: torch.Tensor,
    params: Any,
    min_p_shift: float = 0.0,
    top_p_shift: float = 0.0,
    found: torch.Tensor | None = None,
) -> torch.Tensor:
    """What is drawn from a row [vocab], after temperature, min-p, top-k and top-p.

    The shifts move two thresholds; `found` ([vocab] bool, what the engine kept) decides ties at the ends of top-k and top-p.
    """
    row = scaled(row, params, min_p_shift)
    if params.top_k > 0:
        kept = row >= row.topk(min(params.top_k, len(row))).values[-1]
        if found is not None:
            kept = as_found(kept, row, found, TIE / params.temperature)
        row = row.masked_fill(~kept, -INF)
    if params.top_p < 1:
        p, order = row.softmax(-1).sort(descending=True, stable=True)
        before = p.cumsum(-1) - p  # a token stays if the likelier ones do not reach top_p
        kept = before < params.top_p * (1 + top_p_shift)
        if found is not None:
            width = TIE / params.temperature * torch.where(kept, p, INF).amin(-1, keepdim=True) + NUCLEUS_STEP * p[:1]
            kept = as_found(kept, p, found[order], width)
        row = row.index_fill(-1, order[~kept], -INF)
    return row.softmax(-1)


def cut_by_vllm(row: torch.Tensor, params: Any, found: torch.Tensor) -> torch.Tensor | None:
    """What is drawn from a row [vocab] if vLLM's own top-p kernel, called apart from the engine, keeps what was `found`.

    Its search begins at an estimate of where the nucleus ends. If that falls between the token that crosses top_p and the
    next one, and close below the former, 18 halvings of the interval end above it: the kernel drops the token that crosses.
    Which rows are so close depends on their last digits, so the kernel is asked about `PERTURBED` neighbours of the row.

    Args:
        row: [vocab] float64, before temperature.
        params: the request's.
        found: [vocab] bool, what the engine kept.

    Returns:
        [vocab] float64, or None if the kernel keeps something else in all neighbours.
    """
    if not 0 < params.top_p < 1 or params.top_k > 0:
        return None
    from vllm.v1.sample.ops.topk_topp_triton import apply_top_k_top_p_triton

    from support.device_copies import launches_where_kernels_run
    from vllm_optimal_sampling.interpreter import gaps
    from vllm_optimal_sampling.worker.relaxed_top_p_kernel import relax_top_p_

    gaps.fill()
    row = scaled(row, params)
    noise = torch.randn(PERTURBED, len(row), generator=torch.Generator().manual_seed(0))
    neighbours = row.float() + noise * (PERTURBATION / params.temperature)
    top_p = torch.full((PERTURBED,), params.top_p)
    with launches_where_kernels_run():
        relax_top_p_(neighbours, None, top_p)  # a row that needs all of its tokens keeps them: that is no excuse
        kept = apply_top_k_top_p_triton(neighbours, None, top_p) > -INF
    if not bool((kept == found).all(-1).any()):
        return None
    return row.masked_fill(~found, -INF).softmax(-1)


def closest_drawn(
    row: torch.Tensor, params: Any, found: torch.Tensor, enough: float
) -> tuple[torch.Tensor, float, bool]:
    """`drawn` on those sides of the thresholds on which the engine's row lies, and the total variation that is left.

    A token that lies on a threshold, to what float32 can tell, may be kept or dropped; so may those of a tie across one,
    and what vLLM's top-p kernel drops when it is called alone.

    Args:
        row: [vocab] float64, what is to be drawn from, before temperature.
        params: the request's.
        found: [vocab], the engine's probabilities.
        enough: a total variation with which the search ends.

    Returns:
        what is drawn from [vocab], the total variation from `found`, and whether a threshold had to be moved.
    """
    least = (torch.empty(0), INF, False)
    shifts = sorted(itertools.product(BORDERS, BORDERS), key=lambda pair: sum(map(abs, pair)))
    for ties in (None, found > 0):
        for min_p_shift, top_p_shift in shifts:
            expected = drawn(row, params, min_p_shift, top_p_shift, ties)
            variation = 0.5 * float((found - expected).abs().sum())
            moved = bool(min_p_shift or top_p_shift or ties is not None)
            least = min(least, (expected, variation, moved), key=lambda one: one[1])
            if least[1] <= enough:
                return least
    cut = cut_by_vllm(row, params, found > 0)
    if cut is not None:
        least = min(least, (cut, 0.5 * float((found - cut).abs().sum()), True), key=lambda one: one[1])
    return least


def place_in_distribution(
    probabilities: torch.Tensor, token: int, key: torch.Tensor, uniform: Callable[[], float]
) -> float:
    """Where a drawn token lies in its distribution function, randomised: uniform in [0, 1) if it was drawn from it.

    Args:
        probabilities: [vocab].
        token: what was drawn.
        key: [vocab], tokens are taken in descending order of it.
        uniform: a number in [0, 1).
    """
    before = (key > key[token]) | ((key == key[token]) & (torch.arange(len(key)) < token))
    return min(float(probabilities[before].sum()) + uniform() * float(probabilities[token]), 1 - 1e-12)

"""Losses for tokens that were drawn from q* or from theta, out of the numbers that the record holds.

By itself the record has the log-probabilities of the drawn token. `cross_entropy` and `reverse_kl` are estimates from this one
sample per position. With `return_top_k` it also has the k likeliest tokens of each row, and `top_k_divergence` is computed from
those and one bucket for all others. A loss over the whole vocabulary (`distillation_mode="full_logits"` of TRL) needs
both models' logits again.

Arguments, throughout [batch, tokens] floats, the prompt left out:

    logprobs           log π_θ of the drawn tokens as the trainer computes them now, with gradients
    sampling_logprobs  log of the distribution that they were drawn from: `logprob` of the record (log q*)
    teacher_logprobs   log π_t: `teacher_logprob` of the record
    mask               1 where a token counts, 0 at padding

Each loss is a mean over the tokens of the batch. A position's history is given: how a token changes those after it is left
out, as in all losses by token.
"""

from __future__ import annotations

import torch


def importance_weights(logprobs: torch.Tensor, sampling_logprobs: torch.Tensor, clip: float) -> torch.Tensor:
    """min(c, π_θ/q*), without gradient: what turns a mean over draws from q* into one over draws from theta.

    Truncated importance sampling (Ionides, "Truncated Importance Sampling", J. Comput. Graph. Stat. 17(2), 2008): a finite c
    bounds the variance, and leaves out what theta has beyond c q*.

    Args:
        logprobs, sampling_logprobs: see above.
        clip: c, above 0.
    """
    if not clip > 0:
        raise ValueError(f"clip={clip} is not above 0; it is the largest weight of a token")
    return (logprobs.detach() - sampling_logprobs).exp().clamp(max=clip)


def cross_entropy(
    logprobs: torch.Tensor, sampling_logprobs: torch.Tensor, mask: torch.Tensor, clip: float | None = None
) -> torch.Tensor:
    """Cross-entropy of theta on tokens drawn from q*, as it is or with the weights min(c, π_θ/q*).

    Without weights, L = -log π_θ(y), and in expectation its gradient is that of D_KL(q* || π_θ): theta moves to q* of the
    step that drew.

    With weights, L = -min(c, π_θ/q*) log π_θ(y), and in expectation the gradient is

        Σ_y max(0, π_θ(y) - c q*(y)) ∇ log π_θ(y)

    since Σ_y π_θ ∇ log π_θ = 0: what is left are the tokens of which theta has more than c q*, and those are pushed down. It
    is the gradient of Σ_y c q* f(π_θ / (c q*)) with f(u) = u - 1 - log u above u = 1, and 0 below it. For c -> 0 that
    is c times the loss without weights; for a large c next to nothing remains but noise. So c is to be small (1 or less), or
    a reward is to stand beside it.

    Args:
        logprobs, sampling_logprobs, mask: see above.
        clip: c, above 0; None for no weights.
    """
    counted = mask.bool()  # padding may hold anything, infinity too, and must not reach the gradient
    losses = -logprobs[counted]
    if clip is not None:
        losses = losses * importance_weights(logprobs[counted], sampling_logprobs[counted], clip)
    return _mean(losses)


def reverse_kl(
    logprobs: torch.Tensor,
    teacher_logprobs: torch.Tensor,
    mask: torch.Tensor,
    sampling_logprobs: torch.Tensor | None = None,
    clip: float = 2.0,
) -> torch.Tensor:
    """Single-sample estimate of D_KL(π_θ || π_t), by token, for tokens that theta drew (alpha fixed at 0).

    L = (log π_θ(y) - log π_t(y)) log π_θ(y) with the factor in front held fixed: its expected gradient over y ~ π_θ is
    that of the divergence, the score-function estimator (Williams, "Simple Statistical Gradient-Following Algorithms", 1992;
    as a loss for distillation "On-Policy Distillation", Thinking Machines Lab, 2025; TRL's `sampled_token`). The loss's
    value is not the divergence.

    Args:
        logprobs, teacher_logprobs, mask: see above.
        sampling_logprobs: for tokens that q* drew: they are then weighted with min(clip, π_θ/q*), and the gradient is exact
            but for what theta has beyond clip q*. None: theta drew.
        clip: the largest weight.
    """
    counted = mask.bool()
    logprobs = logprobs[counted]
    losses = (logprobs.detach() - teacher_logprobs[counted]) * logprobs
    if sampling_logprobs is not None:
        losses = losses * importance_weights(logprobs, sampling_logprobs[counted], clip)
    return _mean(losses)


def top_k_divergence(top_logprobs: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """D_KL(p || π_θ) of each row, over its k likeliest tokens and one bucket for all the rest.

        L = Σ_{i<=k} p_i (log p_i - log π_θ,i) + p_rest (log p_rest - log π_θ,rest),   rest = 1 - Σ_{i<=k}

    with p = q* or the teacher. It is at most the divergence over the whole vocabulary (merging outcomes loses none of what is
    not there: the data processing inequality), and equal to it where p / π_θ is the same for all tokens of the rest. For q* the
    rest is small by the choice of the k tokens, the likeliest under q*; under the teacher alone it may not be.

    Args:
        top_logprobs: `[batch, tokens, k]`, log π_θ of the tokens `top_token_ids` as the trainer computes them now: gathered
            from the log-softmax over the whole vocabulary, with gradients.
        targets: `[batch, tokens, k]`, log p of the same tokens: `top_logprob` of the record for q*, `top_teacher_logprob` for
            the teacher. -inf (null in JSON) where a token cannot be drawn.
        mask: `[batch, tokens]`, 1 where a token counts.
    """
    counted = mask.bool()
    ours, theirs = _with_rest(top_logprobs[counted]), _with_rest(targets[counted])
    losses = (theirs.exp() * (theirs.clamp(min=LEAST_LOGPROB) - ours.clamp(min=LEAST_LOGPROB))).sum(-1)
    return _mean(losses)


LEAST_LOGPROB = -60.0
"""Of a probability that float32 rounds to nothing."""


def _with_rest(logprobs: torch.Tensor) -> torch.Tensor:
    """`[..., k + 1]`: the log of what is missing to 1 behind the k log-probabilities."""
    rest = 1 - logprobs.exp().sum(-1, keepdim=True)
    return torch.cat([logprobs, rest.clamp(min=torch.finfo(logprobs.dtype).eps).log()], dim=-1)


def _mean(losses: torch.Tensor) -> torch.Tensor:
    """Their mean; 0 of none, which still has a gradient."""
    return losses.sum() / max(losses.numel(), 1)

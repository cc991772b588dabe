"""What a source's rows are like before anyone trains on them: right or not, learnable or not, varied or not.

Log-probabilities are computed again by transformers in float64, each model after its own prompt, and compared with the
records that the engine gave.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import measure
import task
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distillation.intervals import bootstrap_ratio, effective_sample_size
from distillation.sources import Source

BATCH = 100
ALPHA_BINS = 20
NGRAM = 4


@dataclass
class Scores:
    """One completion's tokens under both models and under the distribution they were drawn from, in nats, float64."""

    theta: torch.Tensor  # [tokens] log pi_theta of the token
    teacher: torch.Tensor  # [tokens] log pi_t of the token, the teacher prompted as when drawing
    drawn_from: torch.Tensor | None = None  # [tokens] log q of the token, temperature included; None where q is unknown
    before_temperature: torch.Tensor | None = None  # [tokens] the same at temperature 1, as the engine records it
    entropy: torch.Tensor | None = None  # [tokens] of q
    from_theta: torch.Tensor | None = None  # [tokens] KL(q||theta)


def option(source: Source, name: str, default: str) -> str:
    """The value of one of the source's options of the generator."""
    return source.options[source.options.index(name) + 1] if name in source.options else default


@torch.inference_mode()
def rows_of(
    model: PreTrainedModel, prompts: Sequence[list[int]], completions: Sequence[list[int]], pad: int
) -> list[torch.Tensor]:
    """Log-probabilities before each token of each completion, [tokens, vocabulary] float64."""
    found = []
    for begin in range(0, len(prompts), BATCH):
        pairs = list(zip(prompts[begin : begin + BATCH], completions[begin : begin + BATCH], strict=True))
        width = max(len(prompt) + len(completion) for prompt, completion in pairs)
        tokens = torch.tensor(
            [prompt + completion + [pad] * (width - len(prompt) - len(completion)) for prompt, completion in pairs]
        )
        logits = model(input_ids=tokens).logits  # padding is behind the tokens: no earlier one sees it
        for row, (prompt, completion) in zip(logits, pairs, strict=True):
            found.append(row[len(prompt) - 1 : len(prompt) - 1 + len(completion)].log_softmax(-1))
    return found


def mixture(theta: torch.Tensor, teacher: torch.Tensor, alpha: torch.Tensor, is_arithmetic: bool) -> torch.Tensor:
    """log q of whole rows [tokens, vocabulary] from both models' and each token's alpha [tokens]."""
    weight = alpha[:, None]
    if is_arithmetic:
        return torch.logaddexp(torch.log(weight) + teacher, torch.log1p(-weight) + theta)
    return ((1 - weight) * theta + weight * teacher).log_softmax(-1)


def score(
    rows: Sequence[dict],
    source: Source,
    theta: PreTrainedModel,
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> list[Scores]:
    """Both models' view of a source's rows, and q's where the rows were drawn and not chosen from others."""
    completions = [row["completion_token_ids"] for row in rows]
    asked = [
        task.teacher_messages(row["problem"], row["answer"])
        if source.privileged
        else task.theta_messages(row["problem"])
        for row in rows
    ]
    pad = tokenizer.pad_token_id
    of_theta = rows_of(theta, [row["prompt_token_ids"] for row in rows], completions, pad)
    of_teacher = rows_of(teacher, [measure.render(tokenizer, messages) for messages in asked], completions, pad)
    is_arithmetic = option(source, "--alpha-method", "") == "arithmetic"
    temperature = float(option(source, "--temperature", "1"))
    scores = []
    for row, completion, u, v in zip(rows, completions, of_theta, of_teacher, strict=True):
        picked = torch.tensor(completion)[:, None]
        one = Scores(u.gather(1, picked)[:, 0], v.gather(1, picked)[:, 0])
        if source.made == "drawn":
            alpha = torch.tensor(row["optimal_sampling"]["alpha"], dtype=torch.float64)
            warm = mixture(u, v, alpha, is_arithmetic)
            q = (warm / temperature).log_softmax(-1)
            one.before_temperature = warm.gather(1, picked)[:, 0]
            one.drawn_from = q.gather(1, picked)[:, 0]
            one.entropy = torch.special.entr(q.exp()).sum(-1)
            one.from_theta = (q.exp() * torch.where(q.exp() > 0, q - u, 0.0)).sum(-1)
        scores.append(one)
    return scores


def distinct_ngrams(completions: Sequence[Sequence[int]]) -> float:
    """Different runs of ``NGRAM`` tokens by all of them, in [0, 1]."""
    runs = [tuple(tokens[i : i + NGRAM]) for tokens in completions for i in range(len(tokens) - NGRAM + 1)]
    return len(set(runs)) / len(runs)


def quantiles(values: torch.Tensor) -> dict[str, float]:
    """Mean, deviation and quantiles of some numbers."""
    points = torch.tensor([0.01, 0.05, 0.5, 0.95, 0.99], dtype=values.dtype)
    named = zip(("1%", "5%", "50%", "95%", "99%"), torch.quantile(values, points).tolist(), strict=True)
    return {"mean": values.mean().item(), "deviation": values.std().item(), **dict(named)}


def importance(scores: Sequence[Scores]) -> dict[str, Any]:
    """The weights log(pi_theta / q) that would turn these rows into theta's own, and how many rows they are worth."""
    weights = [one.theta - one.drawn_from for one in scores]
    tokens = torch.cat(weights)
    whole = torch.stack([one.sum() for one in weights])
    return {
        "log_weight_of_token": quantiles(tokens),
        "log_weight_of_completion": quantiles(whole),
        "effective_share_of_tokens": effective_sample_size(tokens.tolist()) / len(tokens),
        "effective_share_of_completions": effective_sample_size(whole.tolist()) / len(whole),
    }


def agreement(rows: Sequence[dict], scores: Sequence[Scores]) -> dict[str, float]:
    """The largest difference between the engine's records and transformers, in nats."""
    pairs = {"theta_logprob": "theta", "teacher_logprob": "teacher", "logprob": "before_temperature"}
    worst = {}
    for recorded, computed in pairs.items():
        worst[recorded] = max(
            (torch.tensor(row["optimal_sampling"][recorded], dtype=torch.float64) - getattr(one, computed))
            .abs()
            .max()
            .item()
            for row, one in zip(rows, scores, strict=True)
        )
    return worst


def figures(rows: Sequence[dict], source: Source, scores: Sequence[Scores]) -> dict[str, Any]:
    """All figures of one source's rows. Intervals are of 95 %: Wilson's for shares, over resampled completions for means."""
    count = len(rows)
    texts = [row["completion"][0]["content"] for row in rows]
    right = [task.is_right(text, row["answer"]) for text, row in zip(texts, rows, strict=True)]
    sound = sum(one and task.follows(text, row["steps"]) for one, text, row in zip(right, texts, rows, strict=True))
    lengths = [len(row["completion_token_ids"]) for row in rows]

    def per_token(name: str) -> list[float]:
        return list(bootstrap_ratio([getattr(one, name).sum().item() for one in scores], lengths))

    found: dict[str, Any] = {
        "rows": count,
        "tokens": sum(lengths),
        "cut_off": sum(row["finish_reason"] != "stop" for row in rows),
        "right": sum(right),
        "right_interval": list(measure.interval(sum(right), count)),
        "right_with_right_steps": sound,
        "right_with_right_steps_interval": list(measure.interval(sound, count)),
        "theta_logprob": per_token("theta"),
        "teacher_logprob": per_token("teacher"),
        f"distinct_{NGRAM}_grams": distinct_ngrams([row["completion_token_ids"] for row in rows]),
    }
    if source.made == "drawn":
        alphas = torch.tensor(
            [alpha for row in rows for alpha in row["optimal_sampling"]["alpha"]], dtype=torch.float64
        )
        histogram = torch.histc(alphas, ALPHA_BINS, 0, 1) / len(alphas)
        found |= {
            "entropy": per_token("entropy"),
            "kl_from_theta": per_token("from_theta"),
            "importance": importance(scores),
            "alpha": quantiles(alphas) | {"histogram": histogram.tolist()},
            "fallbacks": sum(sum(row["optimal_sampling"]["fallback"]) for row in rows),
            "largest_difference_from_records": agreement(rows, scores),
        }
    return found

"""The bound of `kl_budget` under which its mean KL is another source's: epsilon' of PROTOCOL.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import measure
import task
import torch

from distillation.mixtures import geometric, kl_budget
from distillation.rows import Models, Text

LARGEST = 20.0  # nats: above the KL of any token here, alpha is 1 everywhere
BISECTIONS = 20


@torch.inference_mode()
def logprobs_along(
    models: Models, texts: Sequence[Text], problems: Sequence[dict[str, Any]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Theta's and the teacher's log-probabilities before each token of the texts: [tokens, vocabulary], float64."""
    found: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    for text in texts:
        problem = problems[text.problem]
        messages = (
            task.theta_messages(problem["problem"]),
            task.teacher_messages(problem["problem"], problem["answer"]),
        )
        for rows, model, asked in zip(found, (models.theta, models.teacher), messages, strict=True):
            tokens = torch.tensor([measure.render(models.tokenizer, asked) + text.token_ids])
            count = len(text.token_ids)
            logits = model(tokens, logits_to_keep=count + 1).logits[0, :-1]
            rows.append(logits.double().log_softmax(-1))
    return torch.cat(found[0]), torch.cat(found[1])


def mean_kl(theta: torch.Tensor, teacher: torch.Tensor, epsilon: float) -> float:
    """The mean over rows of D_KL(q||pi_theta) under this bound, in nats."""
    mixed = geometric(theta, teacher, kl_budget(theta, teacher, epsilon))
    return float((mixed.log_q.exp() * (mixed.log_q - theta)).sum(-1).mean())


def matched(theta: torch.Tensor, teacher: torch.Tensor, mean: float) -> float:
    """The bound with this mean KL; the mean grows with it.

    Raises:
        ValueError: not even the teacher alone is so far from theta.
    """
    if mean_kl(theta, teacher, LARGEST) < mean:
        raise ValueError(f"mean={mean} nats is more than the teacher's own KL along these texts; give a smaller one")
    low, high = 0.0, LARGEST
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if mean_kl(theta, teacher, middle) < mean else (low, middle)
    return (low + high) / 2

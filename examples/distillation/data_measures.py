"""What a source's rows are like before anyone trains on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import soundness

from distillation.protocol import SOURCES
from distillation.rows import Models, Text, is_right, words


def measures(models: Models, name: str, texts: Sequence[Text], problems: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Counts of rows, and means over their tokens in nats.

    `kl` is D_KL(q||pi_theta) and `entropy` that of q, where q is what a token was drawn from: filters and selections are not in
    them, but `theta_logprob` sees them. `alpha` is the teacher's mean weight.
    """
    tokens = sum(len(text.token_ids) for text in texts)
    found = {
        "rows": len(texts),
        "problems": 1 + max(text.problem for text in texts),
        "tokens": tokens,
        "cut_off": sum(not text.is_finished for text in texts),
        "right": sum(is_right(models, text, problems) for text in texts),
        "sound": sum(soundness.is_sound(words(models, text), problems[text.problem]) for text in texts),
        **{
            sum_name: sum(getattr(text.sums, sum_name) for text in texts) / tokens
            for sum_name in ("theta_logprob", "kl", "entropy", "alpha")
        },
    }
    if SOURCES[name].family != "theta":
        found["log_z_a_text"] = sum(text.sums.log_z for text in texts) / len(texts)
    return found

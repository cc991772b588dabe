"""The held-out problems of the pair's folder, what a model gets right of them, and the 95 % intervals that are quoted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import task
from distillation.student import answers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from on_policy import PAIR

FILES = {"stories": "problems", "longer": "problems_longer", "sorting": "problems_sorting"}
"""The task that is trained, the shifted one, and a skill that may be forgotten."""
WAYS = {"greedy": None, "sampled": 1.0}
"""How texts are drawn: the temperature, None for greedy."""
RESAMPLES = 4000

Marks = str
"""One character for each problem: 1 where the text ends by stating the right answer, else 0."""
Interval = tuple[float, float, float]
"""A value with the ends of its interval."""


def problems(limit: int | None = None) -> dict[str, list[dict[str, Any]]]:
    """The first problems of each set, or all."""
    return {name: task.read_rows(PAIR / f"{file}.jsonl")[:limit] for name, file in FILES.items()}


def judged(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, problems: Sequence[dict[str, Any]], seed: int
) -> dict[str, dict[str, Marks]]:
    """What the model alone gets right of some problems, by way of drawing."""
    found = {}
    for way, temperature in WAYS.items():
        texts = answers(model, tokenizer, problems, temperature, seed)
        right = (task.is_right(text, problem["answer"]) for text, problem in zip(texts, problems, strict=True))
        found[way] = {"right": "".join("01"[one] for one in right)}
    return found


def difference(ours: Sequence[Marks], theirs: Sequence[Marks], seed: int = 0) -> Interval:
    """The difference of two shares of right answers on the same problems, over resampled runs and resampled problems.

    The runs of each side are drawn with replacement by themselves, the problems for both sides together. So the interval
    covers other problems of the kind, and whatever differs from run to run.

    Args:
        ours, theirs: of each run, on the same problems in the same order.
        seed: of the resampling.

    """
    a, b = (np.array([[mark == "1" for mark in run] for run in side], dtype=float) for side in (ours, theirs))
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"{a.shape[1]} problems on one side and {b.shape[1]} on the other; they have to be the same")
    rng = np.random.default_rng(seed)
    picked = rng.integers(a.shape[1], size=(RESAMPLES, a.shape[1]))
    means = []
    for side in (a, b):
        count = len(side)
        weights = rng.multinomial(count, [1 / count] * count, size=RESAMPLES) / count  # how often each run is drawn
        means.append(np.take_along_axis(weights @ side, picked, axis=1).mean(1))
    differences = means[0] - means[1]
    low, high = np.quantile(differences, (0.025, 0.975))
    return float(a.mean() - b.mean()), float(low), float(high)


def share(marks: Sequence[Marks]) -> Interval:
    """The share that is right, likewise."""
    return difference(marks, ["0" * len(marks[0])])

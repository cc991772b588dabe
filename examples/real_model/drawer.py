"""Rows and answers of theta, the teacher and q*, whoever draws their tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from distillation.rows import finished_or_all, seed_of
from transformers import AutoTokenizer, PreTrainedModel

from real_model import tasks
from real_model.protocol import CANDIDATES, Sizes, Source


@dataclass(frozen=True)
class Text:
    """A completion of the problem with this number, with what was recorded at its tokens, in nats but for alpha."""

    problem: int
    token_ids: list[int]
    is_finished: bool
    kl: list[float]
    """D_KL(q||pi_theta) of what each token was drawn from, before temperature."""
    alpha: list[float]
    theta_logprob: float
    """The sum over the tokens."""


@dataclass(frozen=True)
class Rule:
    """What tokens are drawn by, as a request says it."""

    alpha_method: str = "fixed"
    alpha: float | None = None
    """Of `fixed`: 0 is theta alone, and 1 the teacher."""
    temperature: float = 1.0
    epsilon: float | None = None
    """The bound of `kl_budget`, in nats."""


THETA = Rule(alpha=0.0)
TEACHER = Rule(alpha=1.0)


class Drawer(ABC):
    """Draws texts; one in each process."""

    def __init__(self, theta: Path, sizes: Sizes) -> None:
        self.sizes = sizes
        self.tokenizer = AutoTokenizer.from_pretrained(theta)
        self.theta = theta

    @abstractmethod
    def load(self, weights: PreTrainedModel | None) -> None:
        """Give theta a student's weights; None: its own again."""

    @abstractmethod
    def texts(self, problems: Sequence[tasks.Problem], numbers: Sequence[int], seed: int, rule: Rule) -> list[Text]:
        """A text for each of `numbers`, which are places in `problems`.

        Args:
            seed: two texts of one call differ by chance, two calls of one seed do not.
        """

    def alone(self, problems: Sequence[tasks.Problem], who: Literal["theta", "teacher"], seed: int) -> list[str]:
        """What one of the two says to each problem, at temperature 1."""
        texts = self.texts(problems, range(len(problems)), seed, THETA if who == "theta" else TEACHER)
        return [self.words(text) for text in texts]

    def words(self, text: Text) -> str:
        """The text as it is judged."""
        return self.tokenizer.decode(text.token_ids, skip_special_tokens=True)

    def is_right(self, text: Text, problems: Sequence[tasks.Problem]) -> bool:
        return tasks.is_right(self.words(text), problems[text.problem])

    def rows(
        self, problems: Sequence[tasks.Problem], source: Source, draw: int, epsilon: float | None = None
    ) -> list[Text]:
        """The rows of a source: at most `sizes.rows`, fewer where too few texts are right."""
        bound = epsilon if source.alpha_method == "kl_budget" else None
        rule = Rule(source.alpha_method, source.alpha, source.temperature, bound)
        count = min(self.sizes.rows, len(problems))

        def drawn(numbers: Sequence[int], candidates: int) -> list[list[Text]]:
            seed = seed_of(draw, f"{source.label} {numbers[0]}")
            texts = self.texts(problems, [number for number in numbers for _ in range(candidates)], seed, rule)
            return [texts[first : first + candidates] for first in range(0, len(texts), candidates)]

        if source.kept == "first":
            return [text for (text,) in drawn(range(count), 1)]
        if source.kept == "theta_logprob":
            groups = drawn(range(count), CANDIDATES)
            return [max(finished_or_all(group), key=lambda text: text.theta_logprob) for group in groups]
        kept: list[Text] = []
        for first in range(0, len(problems), count):
            for group in drawn(range(first, min(first + count, len(problems))), CANDIDATES):
                kept += [text for text in group if self.is_right(text, problems)][:1]
            if len(kept) >= count:
                break
        return kept[:count]

    def answers(self, problems: Sequence[tasks.Problem]) -> dict[str, dict[str, int]]:
        """By task, how many of theta's greedy texts are right and sound, with the weights it has."""
        texts = self.texts(problems, range(len(problems)), 0, replace(THETA, temperature=0.0))
        found: dict[str, dict[str, int]] = {}
        for text in texts:
            problem, words = problems[text.problem], self.words(text)
            counts = found.setdefault(problem["task"], {"problems": 0, "right": 0, "sound": 0, "tokens": 0})
            counts["problems"] += 1
            counts["right"] += tasks.is_right(words, problem)
            counts["sound"] += tasks.is_sound(words, problem)
            counts["tokens"] += len(text.token_ids)
        return found


def measures(drawer: Drawer, texts: Sequence[Text], problems: Sequence[tasks.Problem]) -> Mapping[str, Any]:
    """Counts of rows, and means over their tokens in nats."""
    tokens = sum(len(text.token_ids) for text in texts)
    found: dict[str, Any] = {
        "rows": len(texts),
        "tokens": tokens,
        "cut_off": sum(not text.is_finished for text in texts),
        "right": sum(drawer.is_right(text, problems) for text in texts),
        "sound": sum(tasks.is_sound(drawer.words(text), problems[text.problem]) for text in texts),
    }
    if tokens:
        found["kl"] = sum(sum(text.kl) for text in texts) / tokens
        found["alpha"] = sum(sum(text.alpha) for text in texts) / tokens
        found["theta_logprob"] = sum(text.theta_logprob for text in texts) / tokens
    return found

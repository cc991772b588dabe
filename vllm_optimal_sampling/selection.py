"""Which of several texts of one prompt is kept, by what their per-token records say.

Drawing token by token from q* is not drawing texts from the product of the two models' distributions over texts:

    ∏ q*_t = ∏ π_θ^(1-α_t) π_t^α_t / ∏ Z_t

so Σ log Z_t, which is at most 0, is the log-weight of a drawn text under that product. Three ways to use it, and one to
compare with:

    log_z             keep the text with the largest Σ log Z: where both models could go on without being pulled apart
    resample          keep one at random with weights exp(Σ log Z): as the number of candidates grows, a draw from the
                      product of the two distributions over texts (sampling importance resampling)
    teacher_logprob   keep the text that is likeliest under the teacher
    none              keep the first: what is drawn without a selection

`log_z` and `teacher_logprob` compare sums or means over the tokens. A sum is the text's own log-weight, and a longer text
has more terms of at most 0: of two that the models agree on equally well token by token, the shorter is kept. A mean takes
no account of length, and forgives one bad step in a long text. A text that was cut off at the token limit has not paid for
its rest, so these two keep one only if all were cut off.

Neither torch nor vLLM is imported here.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vllm_optimal_sampling.argument_checks import ArgumentError, checked_count, closest, shown

SELECTIONS = ("log_z", "resample", "teacher_logprob", "none")
"""Ways to keep one text of several."""
SCORED = SELECTIONS[:3]
"""Those that look at the texts."""
AGGREGATES = ("sum", "mean")
"""Over the tokens of a text."""


@dataclass(frozen=True)
class Scores:
    """What a text is compared by; natural logarithms at temperature 1."""

    log_z: float | None
    """Σ log Z over its tokens; a token that the teacher drew alone counts 0. None where a mixture has no log Z (as of
    `arithmetic`), and where the record has none."""
    teacher_logprob: float | None
    """Its log-probability under the teacher; None where the teacher cannot draw it."""
    num_tokens: int
    finish_reason: str | None
    """As vLLM gives it: `length` for a text that was cut off."""

    @classmethod
    def of(cls, record: Mapping[str, Sequence[float | None]], finish_reason: str | None) -> Scores:
        """The scores of a text by its per-token record, whose numbers may be null or NaN where there is none."""
        alpha = record["alpha"]
        log_z = record.get("log_z")
        return cls(
            log_z=None if log_z is None else _sum(_without_teacher_alone(log_z, alpha)),
            teacher_logprob=_sum(record["teacher_logprob"]),
            num_tokens=len(alpha),
            finish_reason=finish_reason,
        )

    def to_json(self) -> dict[str, Any]:
        """The scores as a row has them."""
        return asdict(self)


def _without_teacher_alone(log_z: Sequence[float | None], alpha: Sequence[float | None]) -> list[float | None]:
    """Where the teacher draws alone alpha is 1, and Z = Σ π_t = 1."""
    return [0.0 if weight == 1 and not _is_number(value) else value for value, weight in zip(log_z, alpha, strict=True)]


def _sum(values: Sequence[float | None]) -> float | None:
    total = 0.0
    for value in values:
        if value is None or not math.isfinite(value):
            return None
        total += value
    return total


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


@dataclass(frozen=True)
class Selection:
    """How one of several texts is kept.

    Example:
        >>> from vllm_optimal_sampling.selection import Scores, Selection
        >>> candidates = [Scores(-1.2, -40.0, 30, "stop"), Scores(-0.3, -44.0, 32, "stop")]
        >>> Selection("log_z").choose(candidates), Selection("teacher_logprob").choose(candidates)
        (1, 0)

    Args:
        select: one of `SELECTIONS`.
        by: one of `AGGREGATES`, for `log_z` and `teacher_logprob`: the sum over the tokens (None: the sum), or the mean.

    Raises:
        ArgumentError: (a ValueError) a name is none of these, or `by` is given where it has no effect.
    """

    select: str = "log_z"
    by: str | None = None

    def __post_init__(self) -> None:
        for name, value, known in (("select", self.select, SELECTIONS), ("select_by", self.by, (*AGGREGATES, None))):
            if value not in known:
                words = [word for word in known if word is not None]
                raise ArgumentError(
                    name, f"{name}={shown(value)} is not one of {', '.join(words)}{closest(value, words)}"
                )
        if self.by is not None and self.select not in ("log_z", "teacher_logprob"):
            reason = "its weights are exp(Σ log Z)" if self.select == "resample" else "it looks at no score"
            raise ArgumentError(
                "select_by", f"select_by={self.by!r} has no effect with select={self.select!r}: {reason}; drop it"
            )

    def check_method(self, alpha_method: str) -> None:
        """Refuse a selection that the mixture gives no score for.

        Raises:
            ArgumentError: log Z is asked of `arithmetic`.
        """
        if self.needs_log_z and alpha_method == "arithmetic":
            raise ArgumentError(
                "select",
                f"select={self.select!r} needs log Z, and alpha_method='arithmetic' adds probabilities, which leaves "
                "nothing to normalise; give select='teacher_logprob', or a geometric alpha_method",
            )

    @property
    def needs_log_z(self) -> bool:
        """Whether it looks at Σ log Z."""
        return self.select in ("log_z", "resample")

    def has_score(self, scores: Scores) -> bool:
        """Whether a text has the score that is looked at."""
        return self.select == "none" or self._score(scores) is not None

    def _score(self, scores: Scores) -> float | None:
        score = scores.log_z if self.needs_log_z else scores.teacher_logprob
        if score is None or self.by != "mean":
            return score
        return score / max(scores.num_tokens, 1)

    def rank(self, scores: Scores, generator: random.Random) -> tuple[bool, float]:
        """What the kept text has the largest of, also where texts come one at a time.

        Args:
            scores: the text's.
            generator: draws the noise of `resample`. The largest of log-weights with independent Gumbel noise is a draw
                with these weights.
        """
        if self.select == "none":
            raise ValueError("select='none' keeps the first text and ranks none")
        score = self._score(scores)
        if self.select == "resample":
            noise = -math.log(-math.log(generator.random() or 5e-324))
            return True, -math.inf if score is None else score + noise
        return scores.finish_reason != "length", -math.inf if score is None else score

    def choose(self, candidates: Sequence[Scores], generator: random.Random | None = None) -> int:
        """The index of the text that is kept; the first of those that rank the same.

        Args:
            candidates: at least one.
            generator: for `resample`; None: one that nothing seeds.
        """
        if self.select == "none":
            return 0
        generator = random.Random() if generator is None else generator
        ranks = [self.rank(scores, generator) for scores in candidates]
        return ranks.index(max(ranks))


def selection_of(
    best_of: int | None, select: str | None, select_by: str | None, *, alpha_method: str, temperature: float
) -> Selection | None:
    """How one of `best_of` candidates is kept; None where what is drawn is the result.

    Args:
        best_of: at least 1, or None.
        select: one of `SELECTIONS`; None: `log_z`.
        select_by: see `Selection`.
        alpha_method: of the mixture that they are drawn from.
        temperature: the same.

    Raises:
        ArgumentError: (a ValueError) an argument is refused, or has no effect beside the others.
    """
    if best_of is None:
        for name, value in (("select", select), ("select_by", select_by)):
            if value is not None:
                raise ArgumentError(
                    name, f"{name}={value!r} keeps one of several candidates; say of how many with best_of, or drop it"
                )
        return None
    checked_count("best_of", best_of, 1, "leave it out to keep what is drawn")
    selection = Selection(select or "log_z", select_by)
    selection.check_method(alpha_method)
    if temperature == 0 and best_of > 1:
        raise ArgumentError(
            "best_of", f"best_of={best_of} candidates are the same text at temperature 0; drop it, or raise temperature"
        )
    return selection


def effective_sample_size(log_weights: Sequence[float]) -> float:
    """(Σ w)² / Σ w², in [1, n]: how many equally weighted texts the weights of n texts are worth."""
    largest = max(log_weights)
    weights = [math.exp(weight - largest) for weight in log_weights]
    return sum(weights) ** 2 / sum(weight * weight for weight in weights)

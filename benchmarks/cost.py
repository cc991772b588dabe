"""How many tokens a round gives, and what it costs: the arithmetic of the cost model, without any engine.

With acceptance a per draft, K drafts give L = 1 + a + a^2 + ... + a^K tokens a round: drafts are kept up to the first
that is rejected, and one token always comes with them. A round of B requests takes

    S(K, B) = teacher(B, K + 1 tokens each) + (K + 1) theta(B) + mix(B, K + 1 rows each)

which for a given B is close to a line in K + 1. Where theta scores drafts of another drafter, or is the teacher itself,

    S(K, B) = teacher(B, K + 1 tokens each) + theta(B, K + 1 tokens each) + drafter(B, K) + mix(B, K + 1 rows each)
    S(K, B) = teacher(2 B, K + 1 tokens each) + drafter(B, K) + mix(B, K + 1 rows each)

(`roofline.scored_seconds`, `roofline.self_seconds`). So in the steady state there are B L / S tokens per second, and the
teacher alone gives B / teacher(B, 1). A batch that ends has fewer and fewer requests in its last rounds; `seconds` counts
those too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from vllm_optimal_sampling.worker.draft_advice import MOST_DRAFTS as MAX_DRAFTS
from vllm_optimal_sampling.worker.draft_advice import between, tokens_per_round

__all__ = [
    "MAX_DRAFTS",
    "Line",
    "acceptance_for",
    "best_drafts",
    "between",
    "break_even",
    "schedule",
    "seconds",
    "tokens_per_round",
]


def acceptance_for(length: float, drafts: int) -> float | None:
    """The acceptance at which a round of `drafts` gives `length` tokens; None above drafts + 1, 0 up to 1."""
    if length <= 1:
        return 0.0
    if length > drafts + 1:
        return None
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if tokens_per_round(middle, drafts) < length else (low, middle)
    return (low + high) / 2


def still_running(acceptance: float, drafts: int, tokens: int) -> list[float]:
    """Entry r is the chance that a request of `tokens` tokens is not done after r rounds; ends where none is left."""
    chances = [acceptance**i * (1 - acceptance) for i in range(drafts)] + [acceptance**drafts]
    missing = [0.0] * (tokens + 1)  # by how many tokens are missing
    missing[tokens] = 1.0
    result = []
    while (left := sum(missing[1:])) > 1e-12:
        result.append(left)
        after = [missing[0]] + [0.0] * tokens
        for count, chance in enumerate(missing[1:], start=1):
            for i, each in enumerate(chances):
                after[max(0, count - 1 - i)] += chance * each
        missing = after
    return result


def seconds(round_seconds: Callable[[float], float], batch: int, acceptance: float, drafts: int, tokens: int) -> float:
    """Expected seconds in which all of `batch` requests have made `tokens` tokens each.

    Args:
        round_seconds: of a round with so many requests in it.
        batch: requests, at least 1.
        acceptance: of a draft, in [0, 1].
        drafts: of a round.
        tokens: of a request; the first one comes from the prompt and is not counted here.
    """
    total = 0.0
    for left in still_running(acceptance, drafts, tokens):
        anyone = 1 - (1 - left) ** batch
        total += anyone * round_seconds(batch * left / anyone)
    return total


@dataclass(frozen=True)
class Line:
    """Seconds of a round as a line in its rows, K + 1 for K drafts."""

    fixed: float
    per_row: float

    @classmethod
    def fit(cls, by_drafts: Mapping[int, float]) -> Line:
        """By least squares from seconds by number of drafts, of which there are at least two."""
        if len(by_drafts) < 2:
            raise ValueError(f"rounds of {sorted(by_drafts)} drafts are too few; a line needs two numbers of drafts")
        rows, times = [drafts + 1 for drafts in by_drafts], list(by_drafts.values())
        mean_rows, mean_time = sum(rows) / len(rows), sum(times) / len(times)
        slope = sum((r - mean_rows) * (t - mean_time) for r, t in zip(rows, times, strict=True)) / sum(
            (r - mean_rows) ** 2 for r in rows
        )
        return cls(mean_time - slope * mean_rows, slope)

    def __call__(self, drafts: int) -> float:
        return self.fixed + (drafts + 1) * self.per_row


def best_drafts(round_seconds: Callable[[int], float], acceptance: float, most: int = MAX_DRAFTS) -> int:
    """The number of drafts, 0 to `most`, with the most tokens per second in the steady state."""
    return max(range(most + 1), key=lambda drafts: tokens_per_round(acceptance, drafts) / round_seconds(drafts))


def break_even(round_seconds: float, teacher_step: float, drafts: int) -> float | None:
    """The acceptance from which a round gives what the teacher alone gives in its time; None where none does."""
    return acceptance_for(round_seconds / teacher_step, drafts)


def schedule(drafts_by_batch: Mapping[int, int]) -> list[tuple[int, int, int]]:
    """`num_speculative_tokens_per_batch_size` from the best number of drafts at some batch sizes.

    A size's number holds up to the geometric middle between it and the next size; vLLM carries the last one on to
    larger batches.
    """
    if not drafts_by_batch:
        raise ValueError("drafts_by_batch is empty; a schedule needs at least one batch size")
    sizes: Sequence[int] = sorted(drafts_by_batch)
    entries: list[tuple[int, int, int]] = []
    begin = 1
    for i, size in enumerate(sizes):
        end = int((size * sizes[i + 1]) ** 0.5) if i + 1 < len(sizes) else size
        end = max(end, begin)
        drafts = drafts_by_batch[size]
        if entries and entries[-1][2] == drafts:
            entries[-1] = (entries[-1][0], end, drafts)
        else:
            entries.append((begin, end, drafts))
        begin = end + 1
    return entries

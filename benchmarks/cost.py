"""How many tokens a round gives, and what it costs: the arithmetic of the cost model, without any engine.

With acceptance a per draft, K drafts give L = 1 + a + a^2 + ... + a^K tokens a round: drafts are kept up to the first
that is rejected, and one token always comes with them. A round of B requests takes

    S(K, B) = teacher(B, K + 1 tokens each) + (K + 1) theta(B) + mix(B, K + 1 rows each)

so tokens per second are B L / S. The teacher alone gives B / teacher(B, 1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MAX_DRAFTS = 8


def tokens_per_round(acceptance: float, drafts: int) -> float:
    """Expected tokens of a round: in [1, drafts + 1]."""
    return sum(acceptance**i for i in range(drafts + 1))


def acceptance_for(length: float, drafts: int) -> float | None:
    """The acceptance at which a round of `drafts` gives `length` tokens; None above drafts + 1, 0 below 1."""
    if length <= 1:
        return 0.0
    if length > drafts + 1:
        return None
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if tokens_per_round(middle, drafts) < length else (low, middle)
    return (low + high) / 2


@dataclass(frozen=True)
class StepTimes:
    """Seconds of one batch size: of the teacher's step alone, and of the parts of a round as lines over its rows.

    A round with K drafts takes `fixed + (K + 1) * per_row`; both parts are split by who spends them.
    """

    teacher_step: float
    """A step of the teacher alone: one token each, everything around it included."""
    round_fixed: float
    round_per_row: float

    def round(self, drafts: int) -> float:
        return self.round_fixed + (drafts + 1) * self.round_per_row


def fit(batch_times: Mapping[int, float], teacher_step: float) -> StepTimes:
    """`StepTimes` from seconds of a round by number of drafts, by least squares; at least two numbers."""
    if len(batch_times) < 2:
        raise ValueError(f"rounds of {sorted(batch_times)} drafts were measured; a line needs two numbers of drafts")
    rows = [drafts + 1 for drafts in batch_times]
    times = list(batch_times.values())
    mean_rows, mean_time = sum(rows) / len(rows), sum(times) / len(times)
    slope = sum((r - mean_rows) * (t - mean_time) for r, t in zip(rows, times, strict=True)) / sum(
        (r - mean_rows) ** 2 for r in rows
    )
    return StepTimes(teacher_step, mean_time - slope * mean_rows, slope)


def speed(times: StepTimes, batch: int, acceptance: float, drafts: int) -> float:
    """Tokens per second of a batch in the steady state."""
    return batch * tokens_per_round(acceptance, drafts) / times.round(drafts)


def best_drafts(times: StepTimes, batch: int, acceptance: float, most: int = MAX_DRAFTS) -> int:
    """The number of drafts with the most tokens per second."""
    return max(range(most + 1), key=lambda drafts: speed(times, batch, acceptance, drafts))


def break_even(times: StepTimes, drafts: int) -> float | None:
    """The acceptance from which a round gives what the teacher alone gives in its time; None where none does."""
    return acceptance_for(times.round(drafts) / times.teacher_step, drafts)


def schedule(drafts_by_batch: Mapping[int, int]) -> list[tuple[int, int, int]]:
    """`num_speculative_tokens_per_batch_size` from the best number of drafts at some batch sizes.

    Each measured size holds from half way (geometrically) to the smaller one on; vLLM carries the last number on to
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

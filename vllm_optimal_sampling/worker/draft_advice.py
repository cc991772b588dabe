"""Which number of drafts an engine would choose, from the times of its own warm-up steps.

With acceptance a per draft, K drafts give L = 1 + a + ... + a^K tokens a round: drafts are kept up to the first that is
rejected, and one token always comes with them. A round of B requests takes

    S(K, B) = teacher(B (K + 1) tokens) + (K + 1) theta(B)

where the teacher's time is a line between the numbers of tokens that were timed. L / S is the speed of a request; the teacher
alone has 1 / teacher(B). The mix and the draw are left out: a hundredth of a round.
"""

from __future__ import annotations

import statistics
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

MOST_DRAFTS = 8
ACCEPTANCES = (0.7, 0.8, 0.9)
BATCHES = (1, 8, 32, 128)
REPEATS = 4
"""Steps of each batch; the first brings the clocks up."""


def tokens_per_round(acceptance: float, drafts: int) -> float:
    """Expected tokens of a round: in [1, drafts + 1]."""
    return sum(acceptance**i for i in range(drafts + 1))


def between(points: Mapping[int, float]) -> Callable[[float], float]:
    """The piecewise linear function through the points; beyond them the outer pieces go on."""
    if not points:
        raise ValueError("points is empty; interpolation needs at least one")
    xs = sorted(points)
    if len(xs) == 1:
        return lambda x: points[xs[0]]

    def value(x: float) -> float:
        right = min(max(bisect_left(xs, x), 1), len(xs) - 1)
        a, b = xs[right - 1], xs[right]
        return points[a] + (points[b] - points[a]) * (x - a) / (b - a)

    return value


@dataclass(frozen=True)
class TimedStep:
    """One warm-up step, in milliseconds of the device."""

    requests: int
    tokens: int
    teacher_ms: float
    round_ms: float


@dataclass(frozen=True)
class Choice:
    """The best number of drafts for a batch and an acceptance."""

    drafts: int
    of_teacher: float
    """Tokens per second over those of the teacher alone."""


class DraftTimes:
    """What a round would cost with any number of drafts.

    Args:
        steps: at least one for each batch size of interest, all with `drafts` drafts.
        drafts: at least 1.
    """

    def __init__(self, steps: Iterable[TimedStep], drafts: int):
        rounds: dict[int, list[float]] = {}
        forwards: dict[int, list[float]] = {}
        for step in steps:
            rounds.setdefault(step.requests, []).append(step.round_ms / (drafts + 1))
            forwards.setdefault(step.tokens, []).append(step.teacher_ms)
        self.theta_ms = {requests: statistics.median(times) for requests, times in rounds.items()}
        # More tokens never take less: what one number of tokens measured less than a smaller one is noise.
        self.teacher_ms: dict[int, float] = {}
        for tokens in sorted(forwards):
            before = max(self.teacher_ms.values(), default=0.0)
            self.teacher_ms[tokens] = max(before, statistics.median(forwards[tokens]))
        self._teacher = between(self.teacher_ms)
        self._fewest = min(self.teacher_ms)

    def teacher(self, tokens: int) -> float:
        """Milliseconds of a forward over so many tokens; below what was timed the weights rule, and nothing changes."""
        return self._teacher(max(tokens, self._fewest))

    def round(self, requests: int, drafts: int) -> float:
        """Milliseconds of a round; `requests` is a batch that was timed."""
        return self.teacher(requests * (drafts + 1)) + (drafts + 1) * self.theta_ms[requests]

    def best(self, requests: int, acceptance: float) -> Choice:
        """The number of drafts from 0 to MOST_DRAFTS with the most tokens per second."""
        alone = self.teacher(requests)
        speeds = {
            drafts: tokens_per_round(acceptance, drafts) / self.round(requests, drafts)
            for drafts in range(MOST_DRAFTS + 1)
        }
        drafts = max(speeds, key=lambda drafts: speeds[drafts])
        return Choice(drafts, speeds[drafts] * alone)


def advice(times: DraftTimes, drafts: int) -> str:
    """A few lines for the log: what was timed, and what it means for the number of drafts."""
    lines = [
        f"Timed at start with {drafts} drafts; the best number of drafts if a draft is accepted at "
        + ", ".join(f"{rate:g}" for rate in ACCEPTANCES)
        + " (tokens/s over the teacher alone):"
    ]
    for requests, theta_ms in sorted(times.theta_ms.items()):
        chosen = [times.best(requests, rate) for rate in ACCEPTANCES]
        said = ", ".join(f"{one.drafts} ({one.of_teacher:.2f})" for one in chosen)
        teacher_ms = times.teacher(requests * (drafts + 1))
        lines.append(
            f"  {requests} requests: theta's decode {theta_ms:.2f} ms, the teacher's verification {teacher_ms:.2f} ms: {said}"
        )
    return "\n".join(lines)


def time_steps(runner: Any, drafts: int) -> list[TimedStep]:
    """Times replays of the teacher's and theta's graphs by vLLM's own clock for dummy steps.

    Args:
        runner: a `GPUModelRunner` whose graphs are captured.
        drafts: of every step.
    """
    steps = []
    for requests in (batch for batch in BATCHES if batch <= runner.max_num_reqs):
        tokens = requests * (drafts + 1)
        if tokens > runner.max_num_tokens:
            break
        with runner.step_timing.collect() as samples:
            for _ in range(REPEATS):
                runner._dummy_run(tokens, uniform_decode=True, skip_eplb=True)
        steps += [
            TimedStep(sample.num_reqs, sample.num_target_tokens, sample.forward_ms, sample.drafter_ms)
            for sample in samples[1:]
            if sample.full_cudagraph
        ]
    return steps

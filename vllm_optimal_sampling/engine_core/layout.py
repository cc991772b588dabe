"""Where theta's tokens live: positions, KV-cache slots and the order in which prompts are processed.

Theta runs over the same steps as the teacher but on a prompt of its own. With

    delta = len(theta's prompt) - len(teacher's prompt)

theta's token for teacher position p has (RoPE) position x = p + delta, and its keys and values lie in the request's
own blocks of the shared KV cache at slot

    p + offset,      offset = delta            if delta >= 0
                     offset = delta mod B      otherwise        (B: the block size of the scheduler)

so slot(x) = x + shift with shift = offset - delta, a multiple of B: theta's block table is the request's, read from
block shift / B on. Because offset >= 0, theta is never behind the teacher: when the teacher fills a block and vLLM
hashes it for prefix caching, every theta token in that block is already known, and a block that holds generated tokens
of theta is private to the request.

Nothing here imports vLLM or torch: the scheduler, the worker and the tests share these few lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from vllm_optimal_sampling.config.vocabulary_pairs import VocabularyPairs


def slot_offset(delta: int, block_size: int) -> int:
    """Slots by which theta's token lies beyond the teacher's token of the same step; at least 0.

    >>> slot_offset(5, 16), slot_offset(0, 16), slot_offset(-3, 16), slot_offset(-16, 16)
    (5, 0, 13, 0)
    """
    return delta if delta >= 0 else delta % block_size


def slot_shift(delta: int, block_size: int) -> int:
    """Theta's slot minus theta's position: a multiple of `block_size`, at least 0.

    >>> slot_shift(5, 16), slot_shift(-3, 16), slot_shift(-16, 16), slot_shift(-17, 16)
    (0, 16, 16, 32)
    """
    return slot_offset(delta, block_size) - delta


@dataclass(frozen=True)
class ThetaLayout:
    """Theta's part of one request, as the scheduler needs it.

    Attributes:
        prompt: theta's prompt as token ids, or None where theta reads the teacher's own prompt.
        delta: length of theta's prompt minus length of the teacher's.
        block_size: the scheduler's block size, in tokens.
        reads: False where theta has nothing to do with the request, and its slots stay empty.
        pairs: of ids, where the two vocabularies do not agree.
        version: of theta's weights.
    """

    prompt: Sequence[int] | None
    delta: int
    block_size: int
    reads: bool = True
    pairs: VocabularyPairs | None = None
    version: int = 0
    offset: int = field(init=False)
    shift: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "offset", slot_offset(self.delta, self.block_size))
        object.__setattr__(self, "shift", slot_shift(self.delta, self.block_size))

    @classmethod
    def of_prompts(
        cls,
        theta_prompt: Sequence[int] | None,
        teacher_len: int,
        block_size: int,
        pairs: VocabularyPairs | None = None,
        version: int = 0,
    ) -> ThetaLayout:
        """The layout of a request with these prompts; `theta_prompt` is None where theta reads the teacher's."""
        delta = len(theta_prompt) - teacher_len if theta_prompt is not None else 0
        return cls(theta_prompt, delta, block_size, pairs=pairs, version=version)

    @classmethod
    def without_theta(cls, block_size: int) -> ThetaLayout:
        """The layout of a request that theta has nothing to do with."""
        return cls(None, 0, block_size, reads=False)

    def tokens_in_slots(self, start: int, end: int, teacher_tokens: Sequence[int], prompt_len: int) -> tuple[int, ...]:
        """Theta's tokens whose keys and values lie in slots [start, end): what a block's hash must know of theta.

        Args:
            start, end: slots, counted in the request's own block table.
            teacher_tokens: the teacher's prompt and all tokens generated so far.
            prompt_len: length of the teacher's prompt.
        """
        assert self.prompt is not None, "theta reads the teacher's tokens: the block's own hash covers them"
        first, last = max(start - self.shift, 0), max(end - self.shift, 0)
        theta_len = len(self.prompt)
        generated = teacher_tokens[prompt_len + max(first - theta_len, 0) : prompt_len + max(last - theta_len, 0)]
        # Two requests may differ in what is theta's prompt and what was generated.
        read = generated if self.pairs is None else self.pairs.read_all(generated)
        return (*self.prompt[first:last], *read)


def split_by_position(starts: Sequence[int], ends: Sequence[int], budget: int) -> list[list[tuple[int, int]]]:
    """Split ranges of theta positions into passes of at most `budget` tokens, lower positions first.

    A request may hit a block that another request fills in the same step. Both then agree on theta's slots, so the
    reader's positions lie above those it reads: passes in the order of positions never read what is not written yet.

    Args:
        starts, ends: per request, the range [start, end) of theta positions to compute; may be empty.
        budget: most tokens in one pass; at least the number of requests.

    Returns:
        Passes; in each, one range per request (empty where the request takes no part).

    >>> split_by_position([0, 2], [5, 4], 4)
    [[(0, 3), (2, 3)], [(3, 5), (3, 4)]]
    """
    if len(starts) > budget:
        raise ValueError(f"{len(starts)} requests do not fit in a pass of {budget} tokens")
    passes = []
    done = list(starts)
    while any(start < end for start, end in zip(done, ends, strict=True)):
        low = min(start for start, end in zip(done, ends, strict=True) if start < end) + 1
        high = max(ends)

        def tokens_below(limit: int, done: Sequence[int] = tuple(done)) -> int:
            return sum(max(min(end, limit) - start, 0) for start, end in zip(done, ends, strict=True))

        while low < high:  # the highest limit that keeps the pass within the budget
            middle = (low + high + 1) // 2
            low, high = (middle, high) if tokens_below(middle) <= budget else (low, middle - 1)
        ranges = [(start, max(start, min(end, low))) for start, end in zip(done, ends, strict=True)]
        passes.append(ranges)
        done = [end for _, end in ranges]
    return passes

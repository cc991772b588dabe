"""Launch shapes and working memory of the mix, both fixed by the shapes of a call."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import triton

# An H100 or H200 has 132 SMs, which hold four programs of the first reading each (128 registers, 128 threads); three
# waves even out the last one.
_PROGRAMS = 132 * 12
# `refine` reduces the splits of a row in its registers: 213 of them with 32 splits; with 64 it would spill.
_MAX_SPLITS = 32
_SUB, _LANES, _NUM_WARPS = 8, 256, 4
# Elements of a tile in Triton's interpreter, and the most tiles a step.
_INTERPRETED_TILE, _INTERPRETED_SUB = 2**16, 6
_STEP = _SUB * _LANES
# In steps. The end of a part costs about as much as a step; long parts make the last wave long.
_SHORTEST_PART, _LONGEST_PART = 2, 16

READINGS = 2
THETA_UNIT = 8
"""Elements: rows of theta that begin at multiples of it, from an address that 16 divides, are loaded by 16 bytes."""
# Floats of a row's plan, of a partial sum and of a solution; `columns.py` and `solution.py` have the columns.
PLAN_WIDTH, PARTIAL_WIDTH, SOLUTION_WIDTH = 16, 64, 16


@dataclass(frozen=True)
class LaunchShape:
    """How a call is cut into programs: `rows` rows and one of `splits` equal parts of the vocabulary each.

    A GPU gets one row a program, and as many parts as fill it. Triton's interpreter pays for every operation of every
    program, whatever its size: it gets as many rows a program as it can hold, and one part.
    """

    rows: int
    splits: int
    split_size: int
    """Tokens of a part, a multiple of the step `sub * lanes`."""
    sub: int
    lanes: int
    num_warps: int
    each: int = 0
    """Tokens side by side that a lane of the quick first reading takes (see `quick_sums.py`); 0: there is none."""

    @property
    def quick_lanes(self) -> int:
        """Lanes of the quick first reading, which takes half a step's tokens at once."""
        return max(1, self.sub * self.lanes // (2 * self.each)) if self.each else 1

    @property
    def refine_sub(self) -> int:
        """`sub` of the refinements, whose nine nodes leave fewer registers."""
        return min(self.sub, 4)

    @property
    def search_lanes(self) -> int:
        """Lanes of a search, whose program has a row alone: enough to hide the latency of memory in an SM.

        Where lanes fill a tile of Triton's interpreter, it gets no more of them.
        """
        return 2 * self.lanes if self.sub > 1 and self.rows * self.lanes < _INTERPRETED_TILE else self.lanes

    @property
    def search_warps(self) -> int:
        """Warps of a search: one lane a thread."""
        return max(1, min(self.search_lanes // 32, 16))

    @property
    def settle_warps(self) -> int:
        """Warps of `settle`: one lane a thread, since two would spill."""
        return max(1, min(self.lanes // 32, 8))

    @property
    def settle_splits(self) -> int:
        """Parts that `settle` makes room for: one variant is compiled for all numbers of them. It reduces them once a row."""
        return _MAX_SPLITS if self.splits > 1 else 1

    @property
    def join(self) -> bool:
        """Whether the lanes of a program are few enough to be summed one by one in the interpreter too."""
        return self.lanes <= 256

    @property
    def compiled_for(self) -> tuple[int, ...]:
        """What Triton compiles for: of the parts their number, rounded up, and whether 16 divides their size."""
        splits = triton.next_power_of_2(self.splits)
        return self.rows, splits, self.split_size % 16, self.sub, self.lanes, self.num_warps, self.each

    @property
    def block(self) -> int:
        """Tokens that the last pass, which keeps no sums, takes a step."""
        return 4 * self.lanes if self.sub > 1 else self.lanes

    @classmethod
    def choose(cls, num_rows: int, vocab: int, *, interpreted: bool) -> LaunchShape:
        if interpreted:
            # Triton allows 2^20 elements a tensor, and the largest has 16 for each lane; beyond 64 rows of a small
            # vocabulary tiles outgrow the caches. Rows before lanes: 56 rows of 552 tokens took 76 to 149 ms in two
            # programs, 45 to 73 in one. Tiles of a step share a change of peaks: of 8 rows of 49,152 tokens `read` took 23
            # ms in steps of six tiles, 25 of three, 34 of one.
            rows = min(triton.next_power_of_2(num_rows), 64)
            lanes = min(triton.next_power_of_2(vocab), _INTERPRETED_TILE // rows)
            tiles = -(-vocab // lanes)
            sub = -(-tiles // -(-tiles // _INTERPRETED_SUB))
            step = sub * lanes
            split_size = -(-vocab // step) * step
            return cls(rows=rows, splits=1, split_size=split_size, sub=sub, lanes=lanes, num_warps=1)
        steps = -(-vocab // _STEP)
        part = min(max(_SHORTEST_PART, -(-num_rows * steps // _PROGRAMS)), _LONGEST_PART)
        part = max(part, -(-steps // _MAX_SPLITS))
        return cls(
            rows=1,
            splits=-(-steps // part),
            split_size=part * _STEP,
            sub=_SUB,
            lanes=_LANES,
            num_warps=_NUM_WARPS,
        )


@dataclass(frozen=True)
class MixScratch:
    """Working memory for calls of up to `max_rows` rows over up to `vocab_size` tokens. No call allocates.

    One scratch serves one stream at a time: a call's kernels hand their results on in it.
    """

    max_rows: int
    vocab_size: int
    theta_offset: torch.Tensor
    """[max_rows] int64."""
    entry: torch.Tensor
    """[max_rows] int64."""
    plan: torch.Tensor
    """[max_rows, PLAN_WIDTH] float32."""
    solutions: torch.Tensor
    """[max_rows, SOLUTION_WIDTH] float32."""
    partials: torch.Tensor
    """[READINGS * max over calls of rows * splits, PARTIAL_WIDTH] float32."""
    forms: dict[tuple[Any, ...], Any] = field(default_factory=dict, repr=False, compare=False)
    """Calls that were made with this scratch, by their form: see `mix.Form`."""
    variants: dict[tuple[Any, ...], Any] = field(default_factory=dict, repr=False, compare=False)
    """What they launched, by what tells it apart: see `mix.Variant`."""

    @classmethod
    def allocate(cls, max_rows: int, vocab_size: int, device: torch.device | str) -> MixScratch:
        """Memory for up to `max_rows` rows a call; about 4 KiB a row at 1,280 rows and 150,000 tokens."""
        if max_rows < 1 or vocab_size < 1:
            raise ValueError(f"MixScratch needs at least one row and one token, got {max_rows=} and {vocab_size=}")
        # `LaunchShape.choose` either aims at _PROGRAMS programs in all or takes its longest parts.
        longest_parts = -(-vocab_size // (_LONGEST_PART * _STEP))
        most = max(_PROGRAMS + max_rows, max_rows * longest_parts)
        return cls(
            max_rows=max_rows,
            vocab_size=vocab_size,
            theta_offset=torch.empty(max_rows, dtype=torch.int64, device=device),
            entry=torch.empty(max_rows, dtype=torch.int64, device=device),
            plan=torch.empty(max_rows, PLAN_WIDTH, dtype=torch.float32, device=device),
            solutions=torch.empty(max_rows, SOLUTION_WIDTH, dtype=torch.float32, device=device),
            partials=torch.empty(READINGS * most, PARTIAL_WIDTH, dtype=torch.float32, device=device),
        )

    def check(self, num_rows: int, vocab: int, device: torch.device) -> None:
        """Raise ValueError if a call is too large for this scratch, or on another device."""
        if num_rows > self.max_rows or vocab > self.vocab_size:
            raise ValueError(
                f"{num_rows} rows of {vocab} tokens are more than this scratch was allocated for "
                f"({self.max_rows} rows of {self.vocab_size} tokens); allocate a larger one"
            )
        if self.plan.device != device:
            raise ValueError(f"scratch is on {self.plan.device}, but has to be on {device}; allocate it there")

"""Launch shapes and working memory of the mix, both fixed by the shapes of a call."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

# An H100 or H200 has 132 SMs. Eight programs of eight warps each keep its memory busy and even out the last wave.
_PROGRAMS = 132 * 8
_MAX_SPLITS = 64

PARTIAL_WIDTH = 64
SOLUTION_WIDTH = 16
PLAN_WIDTH = 16
READINGS = 3


@dataclass(frozen=True)
class LaunchShape:
    """How a call is cut into programs: `rows` rows and one of `splits` equal parts of the vocabulary each.

    A GPU gets one row a program, and as many parts as fill it. Triton's interpreter pays for every operation of every
    program, whatever its size: it gets as many rows a program as it can hold, and one part.
    """

    rows: int
    splits: int
    split_size: int
    """Tokens of a part, a multiple of the tile `sub * lanes`."""
    sub: int
    lanes: int
    num_warps: int

    @classmethod
    def choose(cls, num_rows: int, vocab: int, *, interpreted: bool) -> LaunchShape:
        if interpreted:
            lanes = min(triton.next_power_of_2(vocab), 8192)
            rows = min(triton.next_power_of_2(num_rows), max(1, 2**15 // lanes), 32)
            return cls(rows=rows, splits=1, split_size=-(-vocab // lanes) * lanes, sub=1, lanes=lanes, num_warps=1)
        sub, lanes, num_warps = 8, 512, 8
        tiles = -(-vocab // (sub * lanes))
        # At least two tiles a part: the last step of a part costs about as much as a tile.
        tiles_per_split = max(2, -(-num_rows * tiles // _PROGRAMS), -(-tiles // _MAX_SPLITS))
        # Beyond eight tiles a part gains nothing, and long parts make the last wave long.
        tiles_per_split = max(min(tiles_per_split, 8), -(-tiles // _MAX_SPLITS))
        return cls(
            rows=1,
            splits=-(-tiles // tiles_per_split),
            split_size=tiles_per_split * sub * lanes,
            sub=sub,
            lanes=lanes,
            num_warps=num_warps,
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
    """[2, max_rows, SOLUTION_WIDTH] float32."""
    partials: torch.Tensor
    """[READINGS * max over calls of rows * splits, PARTIAL_WIDTH] float32."""

    @classmethod
    def allocate(cls, max_rows: int, vocab_size: int, device: torch.device | str) -> MixScratch:
        """Memory for up to `max_rows` rows a call; about 1.5 KiB a row at 1,280 rows and 150,000 tokens."""
        if max_rows < 1 or vocab_size < 1:
            raise ValueError(f"MixScratch needs at least one row and one token, got {max_rows=} and {vocab_size=}")
        most = max(
            rows * LaunchShape.choose(rows, vocab_size, interpreted=False).splits for rows in range(1, max_rows + 1)
        )
        return cls(
            max_rows=max_rows,
            vocab_size=vocab_size,
            theta_offset=torch.empty(max_rows, dtype=torch.int64, device=device),
            entry=torch.empty(max_rows, dtype=torch.int64, device=device),
            plan=torch.empty(max_rows, PLAN_WIDTH, dtype=torch.float32, device=device),
            solutions=torch.empty(2, max_rows, SOLUTION_WIDTH, dtype=torch.float32, device=device),
            partials=torch.empty(READINGS * most, PARTIAL_WIDTH, dtype=torch.float32, device=device),
        )

"""The sizes of CUDA graphs, in tokens: enough for every batch that decodes, and no more.

A graph serves a step of exactly its own shape, padded up to it. Three kinds of steps want one:

- *verification*, K + 1 tokens a request: sizes that are multiples of K + 1, up to `max_num_seqs` requests;
- *theta's round*, one token a request: sizes up to `max_num_seqs`;
- *mixed* steps, in which prompts join a batch that decodes, of any number of tokens.

Theta's own prompt passes take a few of the sizes (`prompt_sizes`). A theta that scores has no round. Where it is the teacher
itself, verification is of up to 2 `max_num_seqs` rows, since each request may have one of both models.

vLLM's own sizes end at 512 tokens, 512 / (K + 1) requests: beyond, every layer is launched one by one. At 128 requests and
K = 4 a step took 34 ms so, and 25 ms with sizes up to 1,280 (one H200, 3B with 1.5B). Each size costs time at start and
memory, so one list serves all three kinds and is as coarse as padding allows.
"""

from __future__ import annotations

import logging
import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from vllm_optimal_sampling.config.theta import scores_itself

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.engine.arg_utils import EngineArgs

logger = logging.getLogger(__name__)

FIRST_COUNTS = (1, 2, 4)
STEPS = ((64, 8), (256, 16), (512, 32))
"""Up to so many requests, the distance of one size to the next; a batch is padded by less than that."""
LAST_STEP = 64

MIXED_STEP = 64
MOST_MIXED_TOKENS = 512
"""As vLLM: a longer step is bound by arithmetic, and gains little from a graph."""

MOST_VERIFIED_TOKENS = 2048
"""No graph of verification beyond: its arithmetic outweighs the launches."""


def has_own_sizes(engine_args: EngineArgs) -> bool:
    """Whether the user chose sizes, or a mode in which vLLM chooses them otherwise; those stay."""
    compilation = engine_args.compilation_config
    given = (
        engine_args.cudagraph_capture_sizes,
        engine_args.max_cudagraph_capture_size,
        compilation.cudagraph_capture_sizes,
        compilation.max_cudagraph_capture_size,
    )
    return any(value is not None for value in given) or engine_args.performance_mode == "interactivity"


def choose_graph_sizes(vllm_config: VllmConfig) -> None:
    """Put sizes for optimal sampling in place of vLLM's default ones; nothing where the engine captures no graphs."""
    from vllm.config.compilation import CUDAGraphMode

    compilation = vllm_config.compilation_config
    if compilation.cudagraph_mode == CUDAGraphMode.NONE or not compilation.cudagraph_capture_sizes:
        return
    scheduler = vllm_config.scheduler_config
    most = scheduler.max_num_seqs
    largest = {most, 2 * most} if scores_itself(vllm_config) else {most}
    sizes = sorted(
        {
            size
            for rows in largest
            for size in graph_sizes(_tiers(vllm_config, rows), rows, scheduler.max_num_batched_tokens)
        }
    )
    asked_to_compile = set(compilation.compile_sizes or ()) == set(compilation.cudagraph_capture_sizes)
    compilation.cudagraph_capture_sizes = sizes
    compilation.max_cudagraph_capture_size = sizes[-1]
    if asked_to_compile:  # compile_sizes=["cudagraph_capture_sizes"], which vLLM has resolved by now
        compilation.compile_sizes = list(sizes)
    logger.info("CUDA graphs for %d sizes, up to %d tokens: %s", len(sizes), sizes[-1], sizes)


def graph_sizes(tiers: Mapping[int, range], max_num_seqs: int, max_tokens: int) -> list[int]:
    """The sizes to capture, in ascending order.

    Args:
        tiers: by number of drafts K, the batches that are verified with so many; one entry without a schedule.
        max_num_seqs: the largest batch of theta's round.
        max_tokens: of a step; no size is above it.

    """
    # With a schedule, sizes that all numbers of drafts share may need fewer others in between.
    common = math.lcm(*(drafts + 1 for drafts in tiers))
    several = [_sizes_in_steps_of(unit, tiers, max_num_seqs) for unit in {1, common}]
    return sorted(size for size in min(several, key=len) if size <= max_tokens) or [max_tokens]


def prompt_sizes(sizes: list[int]) -> list[int]:
    """Those of the captured sizes that theta's passes over prompt chunks are padded to, in ascending order.

    A padded token costs microseconds where a size costs time at start and memory: few are enough, up to the largest.

    Args:
        sizes: that the engine captures.
    """
    chosen: list[int] = []
    for size in sorted(sizes, reverse=True):
        if not chosen or chosen[-1] - size >= max(MIXED_STEP, size // 4):
            chosen.append(size)
    return chosen[::-1]


def _sizes_in_steps_of(unit: int, tiers: Mapping[int, range], max_num_seqs: int) -> set[int]:
    sizes = set()
    for drafts, batches in tiers.items():
        counts = (count for count in request_counts(batches[-1]) if count >= batches[0])
        most = batches[-1] * (drafts + 1)
        sizes |= {min(_up(count * (drafts + 1), unit), most) for count in counts}
    sizes = {size for size in sizes if size <= MOST_VERIFIED_TOKENS}
    largest = max(tiers) + 1
    for count in request_counts(max_num_seqs):
        # Theta's round takes a size of verification where that pads little, else one that verification can use as well.
        most = min(count + (_step(count) // 2 if count > FIRST_COUNTS[-1] else 0), max_num_seqs)
        if not any(count <= size <= most for size in sizes):
            sizes.add(_up(count, largest) if _up(count, largest) <= most else count)
    for tokens in range(MIXED_STEP, min(2 * largest * max_num_seqs, MOST_MIXED_TOKENS) + 1, MIXED_STEP):
        if not any(tokens <= size < tokens + MIXED_STEP for size in sizes):
            sizes.add(tokens)
    while missing := _size_in_between(sizes, tiers, max_num_seqs):
        sizes.add(missing)
    return sizes


def _size_in_between(sizes: set[int], tiers: Mapping[int, range], max_num_seqs: int) -> int | None:
    """A size without which vLLM would find no graph for verification of some batch; None where all have one.

    It rounds every size up to a multiple of each number of tokens a request, and gives a batch the next larger one or none:
    with several numbers of drafts, one of another number may be in between.
    """
    widths = {drafts + 1: batches for drafts, batches in tiers.items()}
    captured: dict[int, set[int]] = {}
    for size in sizes:
        for width in widths:
            tokens = _up(size, width)
            if tokens <= max(sizes) and tokens <= max_num_seqs * width:
                captured.setdefault(tokens, set()).add(width)
    ascending = sorted(captured)
    for width, batches in widths.items():
        for batch in batches:
            at = bisect_left(ascending, batch * width)
            if at < len(ascending) and width not in captured[ascending[at]]:
                return ascending[at] // width * width
    return None


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def request_counts(most: int) -> list[int]:
    """Batch sizes from 1 to `most` that the others are padded to."""
    return sorted({*_counts(most), most})


def _counts(most: int) -> Iterator[int]:
    yield from (count for count in FIRST_COUNTS if count <= most)
    count = 8
    while count <= most:
        yield count
        count += _step(count + 1)


def _step(count: int) -> int:
    return next((step for limit, step in STEPS if count <= limit), LAST_STEP)


def _tiers(vllm_config: VllmConfig, rows: int) -> dict[int, range]:
    """By number of drafts, the batches that the engine verifies with so many, from the first to the last of them.

    Args:
        vllm_config: the engine's.
        rows: of the largest batch.
    """
    from vllm.v1.spec_decode.dynamic.utils import build_dynamic_sd_schedule_lookup

    speculative, max_num_seqs = vllm_config.speculative_config, vllm_config.scheduler_config.max_num_seqs
    drafts = vllm_config.num_speculative_tokens
    if speculative is None or speculative.num_speculative_tokens_per_batch_size is None:
        return {drafts: range(1, rows + 1)}
    by_batch = build_dynamic_sd_schedule_lookup(
        speculative.num_speculative_tokens_per_batch_size,
        vllm_max_batch_size=max_num_seqs,
        vllm_num_speculative_tokens=drafts,
    )
    tiers: dict[int, range] = {}
    for batch, drafts in enumerate(by_batch[1:], start=1):
        tiers[drafts] = range(tiers[drafts].start if drafts in tiers else batch, batch * (rows // max_num_seqs) + 1)
    return tiers

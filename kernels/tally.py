"""Count what a step drew: histograms of alpha and of D_KL(q || theta), and how many tokens were mixed or not.

One program reads three numbers per token drawn and writes some forty per step, in one launch: no atomics, nothing to
clear, no host sync.
"""

# What Triton compiles has no Python types.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .checks import SLOT_DTYPES, check_tensor
from .prepared_launch import Launch, RepeatedLaunches
from .record import Kind, MixRecord
from .settings import NEVER

BLOCK, NUM_WARPS = 256, 4
NUM_EDGES = 16
"""Most edges of a histogram; fewer are filled up with inf."""
ALPHA, KL, ALPHA_SUM, KL_SUM, MIXED, FALLBACK, PLAIN = 0, NUM_EDGES, *range(2 * NUM_EDGES, 2 * NUM_EDGES + 5)
TALLY_SIZE = 2 * NUM_EDGES + 5

ALPHA_AT, KL_AT = tl.constexpr(ALPHA), tl.constexpr(KL)
ALPHA_SUM_AT, KL_SUM_AT = tl.constexpr(ALPHA_SUM), tl.constexpr(KL_SUM)
MIXED_AT, FALLBACK_AT, PLAIN_AT = tl.constexpr(MIXED), tl.constexpr(FALLBACK), tl.constexpr(PLAIN)

TEACHER = tl.constexpr(int(Kind.TEACHER))


@triton.jit(do_not_specialize=["num_requests"])
def tally_kernel(
    slots_ptr,  # [requests] int32 or int64
    num_sampled_ptr,  # [requests] int32
    first_position_ptr,  # [slots] int64
    alpha_ptr,  # [slots, K + 1] fp32
    kl_ptr,  # [slots, K + 1] fp32
    fallback_ptr,  # [slots, K + 1] bool
    kind_ptr,  # [slots, K + 1] int32
    edges_ptr,  # [2, EDGES] fp32
    tally_ptr,  # [2 * EDGES + 5] fp32, out
    num_requests,
    num_positions,
    NEVER: tl.constexpr,
    BLOCK: tl.constexpr,
    EDGES: tl.constexpr,
):
    lane = tl.arange(0, EDGES)
    alpha_edges = tl.load(edges_ptr + lane)[None, :]
    kl_edges = tl.load(edges_ptr + EDGES + lane)[None, :]
    alpha_counts = tl.full([EDGES], 0, tl.int32)
    kl_counts = alpha_counts
    alpha_sum = tl.full([BLOCK], 0.0, tl.float32)
    kl_sum = alpha_sum
    mixed_count = tl.full([BLOCK], 0, tl.int32)
    fallback_count = mixed_count
    drawn_count = mixed_count
    for start in range(0, num_requests * num_positions, BLOCK):
        entry = start + tl.arange(0, BLOCK)
        request = entry // num_positions
        position = entry % num_positions
        inside = request < num_requests
        drawn = inside & (position < tl.load(num_sampled_ptr + request, mask=inside, other=0))
        slot = tl.load(slots_ptr + request, mask=drawn, other=0).to(tl.int64)
        asked = drawn & (tl.load(first_position_ptr + slot, mask=drawn, other=0) != NEVER)
        address = slot * num_positions + position
        mixed = asked & (tl.load(kind_ptr + address, mask=asked, other=TEACHER) != TEACHER)
        fallback = tl.load(fallback_ptr + address, mask=asked, other=0).to(tl.int32)
        alpha = tl.load(alpha_ptr + address, mask=mixed, other=0.0)
        kl = tl.load(kl_ptr + address, mask=mixed, other=0.0)
        alpha_counts += tl.sum((mixed[:, None] & (alpha[:, None] <= alpha_edges)).to(tl.int32), axis=0)
        kl_counts += tl.sum((mixed[:, None] & (kl[:, None] <= kl_edges)).to(tl.int32), axis=0)
        alpha_sum += alpha
        kl_sum += kl
        mixed_count += mixed.to(tl.int32)
        fallback_count += tl.where(asked, fallback, 0)
        drawn_count += drawn.to(tl.int32)
    tl.store(tally_ptr + ALPHA_AT + lane, alpha_counts.to(tl.float32))
    tl.store(tally_ptr + KL_AT + lane, kl_counts.to(tl.float32))
    mixed_total = tl.sum(mixed_count, axis=0)
    fallback_total = tl.sum(fallback_count, axis=0)
    tl.store(tally_ptr + ALPHA_SUM_AT, tl.sum(alpha_sum, axis=0))
    tl.store(tally_ptr + KL_SUM_AT, tl.sum(kl_sum, axis=0))
    tl.store(tally_ptr + MIXED_AT, mixed_total.to(tl.float32))
    tl.store(tally_ptr + FALLBACK_AT, fallback_total.to(tl.float32))
    tl.store(tally_ptr + PLAIN_AT, (tl.sum(drawn_count, axis=0) - mixed_total - fallback_total).to(tl.float32))


LAUNCHES = RepeatedLaunches(("slots_ptr", "num_sampled_ptr", "tally_ptr", "num_requests"))


def launch_of(
    slots: torch.Tensor,
    num_sampled: torch.Tensor,
    first_position: torch.Tensor,
    edges: torch.Tensor,
    record: MixRecord,
    counts: torch.Tensor,
) -> Launch:
    """The launch of a `tally` that is written to `counts`."""
    arguments = {
        "slots_ptr": slots,
        "num_sampled_ptr": num_sampled,
        "first_position_ptr": first_position,
        "alpha_ptr": record.alpha,
        "kl_ptr": record.kl_theta,
        "fallback_ptr": record.fallback,
        "kind_ptr": record.kind,
        "edges_ptr": edges,
        "tally_ptr": counts,
        "num_requests": slots.shape[0],
        "num_positions": record.alpha.shape[1],
        "NEVER": NEVER,
        "BLOCK": BLOCK,
        "EDGES": NUM_EDGES,
    }
    return Launch(tally_kernel, (1, 1, 1), arguments, NUM_WARPS)


def tally(
    slots: torch.Tensor,
    num_sampled: torch.Tensor,
    first_position: torch.Tensor,
    edges: torch.Tensor,
    record: MixRecord,
) -> torch.Tensor:
    """Count the tokens of one step.

    Args:
        slots: `[requests]` int32 or int64, the request slots of the step, each once.
        num_sampled: `[requests]` int32, how many tokens each request drew, 0..K + 1.
        first_position: `[slots]` int64, of `MixSettings`.
        edges: `[2, NUM_EDGES]` float32, rising: upper bounds of the buckets of alpha, and of the divergence in nats.
        record: as `mix_` left it.

    Returns:
        `[TALLY_SIZE]` float32, new on every call: from `ALPHA` on how many mixed tokens have an alpha up to each edge,
        from `KL` on the same of the divergence, their two sums, then how many tokens were mixed, left to the teacher
        because they could not be (`FALLBACK`), and drawn from the teacher because so asked (`PLAIN`).

    Raises:
        TypeError: a tensor has the wrong dtype.
        ValueError: a tensor has the wrong device, shape or strides.
    """
    num_slots = record.alpha.shape[0]
    device = record.alpha.device
    num_requests = slots.shape[0]
    check_tensor("slots", slots, dtypes=SLOT_DTYPES, shape=(None,), device=device)
    check_tensor("num_sampled", num_sampled, dtypes=(torch.int32,), shape=(num_requests,), device=device)
    check_tensor("first_position", first_position, dtypes=(torch.int64,), shape=(num_slots,), device=device)
    check_tensor("edges", edges, dtypes=(torch.float32,), shape=(2, NUM_EDGES), device=device)
    counts = torch.empty(TALLY_SIZE, dtype=torch.float32, device=device)
    LAUNCHES.run(launch_of(slots, num_sampled, first_position, edges, record, counts))
    return counts

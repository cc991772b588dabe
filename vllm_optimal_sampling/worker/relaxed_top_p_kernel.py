"""Give up top-p in the rows whose nucleus is every token that is left.

The nucleus of a row is its likeliest tokens up to the one that crosses `top_p`. Where the least likely token that is left
is the one that crosses, top-p drops nothing:

    sum of p(y) over the tokens likelier than the least one < top_p   =>   nucleus = all tokens not at -inf

vLLM 0.32 and 0.33 get these rows wrong (`v1/sample/ops/topk_topp_triton.py`, one program a row): the search for the
probability that a token has to exceed ends at that of the least one, which exceeds itself nowhere, and so is dropped. In
a whole vocabulary such a token weighs nothing. In a row that a grammar, min-p or the support of the mix has cut to a few
tokens it may weigh a fifth: of two tokens with 0.6 and 0.4 under `top_p=0.95`, the second was never drawn. With
`top_p = 1` vLLM leaves the row as it is, which is right. Tokens that tie for the least one stay together.

One reading of each row: 4 bytes and one exponential an element; nothing in rows without top-p.
"""

# What Triton compiles has no Python types.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from vllm_optimal_sampling.kernels.checks import check_tensor
from vllm_optimal_sampling.kernels.mix import INTERPRETED
from vllm_optimal_sampling.kernels.prepared_launch import Launch, RepeatedLaunches
from vllm_optimal_sampling.kernels.scratch import LaunchShape
from vllm_optimal_sampling.kernels.tilt import LOG2_E, NOTHING

LANES, NUM_WARPS = 2048, 8


@triton.jit(do_not_specialize=["num_rows"])
def relax_top_p_kernel(
    logits_ptr,  # [rows, vocab] fp32
    logits_stride,
    top_k_ptr,  # [rows] int32 (HAS_TOP_K)
    top_p_ptr,  # [rows] fp32, in/out
    num_rows,
    vocab,
    HAS_TOP_K: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    top_p = tl.load(top_p_ptr + row, mask=row < num_rows, other=1.0)
    limited = top_p < 1.0
    if tl.max(limited.to(tl.int32), axis=0) == 0:
        return
    # All five are kept per lane, so that the loop has no barrier.
    peak = tl.full([ROWS, LANES], NOTHING, tl.float32)
    total = tl.full([ROWS, LANES], 0.0, tl.float32)
    least = tl.full([ROWS, LANES], float("inf"), tl.float32)
    ties = total
    left = total
    for start in range(0, vocab, LANES):
        ids = start + tl.arange(0, LANES)[None, :]
        inside = limited[:, None] & (ids < vocab)
        logit = tl.load((logits_ptr + row * logits_stride)[:, None] + ids, mask=inside, other=float("-inf"))
        kept = logit > float("-inf")
        bits = tl.where(kept, logit * LOG2_E, NOTHING)
        top = tl.maximum(peak, bits)
        total = total * tl.exp2(peak - top) + tl.where(kept, tl.exp2(bits - top), 0.0)
        peak = top
        value = tl.where(kept, logit, float("inf"))
        ties = tl.where(value < least, 1.0, ties + (kept & (value == least)).to(tl.float32))
        least = tl.minimum(least, value)
        left += kept.to(tl.float32)
    top = tl.max(peak, axis=1)
    mass = tl.sum(total * tl.exp2(peak - top[:, None]), axis=1)
    lowest = tl.min(least, axis=1)
    num_lowest = tl.sum(tl.where(least == lowest[:, None], ties, 0.0), axis=1)
    likelier = mass - num_lowest * tl.exp2(lowest * LOG2_E - top)
    whole = limited & (likelier < top_p * mass)
    if HAS_TOP_K:
        # Where top-k cuts, vLLM's search begins below the least of the k tokens, and finds the nucleus.
        top_k = tl.load(top_k_ptr + row, mask=limited, other=0)
        whole = whole & (tl.sum(left, axis=1) <= top_k.to(tl.float32))
    tl.store(top_p_ptr + row, tl.full([ROWS], 1.0, tl.float32), mask=whole)


LAUNCHES = RepeatedLaunches(("logits_ptr", "top_k_ptr", "top_p_ptr", "num_rows"))


def launch_of(logits: torch.Tensor, top_k: torch.Tensor | None, top_p: torch.Tensor) -> Launch:
    """The launch of `relax_top_p_`."""
    num_rows, vocab = logits.shape
    rows, lanes = 1, LANES
    if INTERPRETED:
        shape = LaunchShape.choose(num_rows, vocab, interpreted=True)
        rows, lanes = shape.rows, shape.lanes
    arguments = {
        "logits_ptr": logits,
        "logits_stride": logits.stride(0),
        "top_k_ptr": top_k,
        "top_p_ptr": top_p,
        "num_rows": num_rows,
        "vocab": vocab,
        "HAS_TOP_K": top_k is not None,
        "ROWS": rows,
        "LANES": lanes,
    }
    return Launch(relax_top_p_kernel, (-(-num_rows // rows), 1, 1), arguments, NUM_WARPS)


def relax_top_p_(logits: torch.Tensor, top_k: torch.Tensor | None, top_p: torch.Tensor) -> None:
    """Set `top_p` to 1, in place, in the rows whose nucleus is every token that is left.

    Args:
        logits: `[rows, vocab]` float32, what top-k and top-p are applied to; dropped tokens are at -inf.
        top_k: `[rows]` int32, tokens that top-k keeps, the vocabulary's size where it is off; None: off in all rows.
        top_p: `[rows]` float32 in (0, 1], 1 where it is off; changed in place.

    Raises:
        TypeError: a tensor has the wrong dtype.
        ValueError: a tensor has the wrong device, shape or strides.
    """
    check_tensor(
        "logits", logits, dtypes=(torch.float32,), shape=(None, None), device=logits.device, last_dim_only=True
    )
    num_rows = logits.shape[0]
    check_tensor("top_p", top_p, dtypes=(torch.float32,), shape=(num_rows,), device=logits.device)
    if top_k is not None:
        check_tensor("top_k", top_k, dtypes=(torch.int32,), shape=(num_rows,), device=logits.device)
    if num_rows == 0:
        return
    LAUNCHES.run(launch_of(logits, top_k, top_p))


def warm_up(vocab: int, device: torch.device) -> None:
    """Compile the kernel, with top-k and without, on a row without top-p, of which nothing is read or written."""
    row = torch.zeros(1, vocab, device=device)
    for top_k in (None, torch.full((1,), vocab, dtype=torch.int32, device=device)):
        relax_top_p_(row, top_k, torch.ones(1, device=device))

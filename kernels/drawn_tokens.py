"""The tokens that verification leaves of each request, row by row: what was accepted and what was drawn after it.

One program takes some requests; nothing is cleared beforehand, no host sync.
"""

# What Triton compiles has no Python types.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .checks import check_tensor
from .prepared_launch import Launch, RepeatedLaunches

BLOCK, NUM_WARPS = 64, 4
TOKEN_DTYPES = (torch.int32, torch.int64)


# A step is verified in chunks of its requests: neither their number nor where a chunk begins is worth a compilation.
@triton.jit(
    do_not_specialize=["num_requests"],
    do_not_specialize_on_alignment=["sampled_ptr", "num_sampled_ptr", "first_rows_ptr"],
)
def drawn_tokens_kernel(
    sampled_ptr,  # [requests, K + 1] int32 or int64
    sampled_stride,
    num_sampled_ptr,  # [requests] int32
    first_rows_ptr,  # [requests + 1] int32
    token_ids_ptr,  # [rows], out, in the dtype of `sampled`
    num_requests,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,  # K + 1 rounded up to a power of two
):
    request = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = request < num_requests
    begin = tl.load(first_rows_ptr + request, mask=inside, other=0)[:, None]
    end = tl.load(first_rows_ptr + request + 1, mask=inside, other=0)[:, None]
    index = tl.arange(0, WIDTH)[None, :]
    drawn = index < tl.load(num_sampled_ptr + request, mask=inside, other=0)[:, None]
    token = tl.load(sampled_ptr + request.to(tl.int64)[:, None] * sampled_stride + index, mask=drawn, other=-1)
    tl.store(token_ids_ptr + begin + index, token, mask=begin + index < end)


LAUNCHES = RepeatedLaunches(("sampled_ptr", "num_sampled_ptr", "first_rows_ptr", "token_ids_ptr", "num_requests"))


def launch_of(
    sampled: torch.Tensor, num_sampled: torch.Tensor, first_rows: torch.Tensor, token_ids: torch.Tensor
) -> Launch:
    """The launch of `drawn_tokens` that is written to `token_ids`."""
    num_requests, width = sampled.shape
    arguments = {
        "sampled_ptr": sampled,
        "sampled_stride": sampled.stride(0),
        "num_sampled_ptr": num_sampled,
        "first_rows_ptr": first_rows,
        "token_ids_ptr": token_ids,
        "num_requests": num_requests,
        "BLOCK": BLOCK,
        "WIDTH": triton.next_power_of_2(width),
    }
    return Launch(drawn_tokens_kernel, (-(-num_requests // BLOCK), 1, 1), arguments, NUM_WARPS)


def drawn_tokens(
    sampled: torch.Tensor, num_sampled: torch.Tensor, first_rows: torch.Tensor, num_rows: int
) -> torch.Tensor:
    """The token of each row that was verified.

    Args:
        sampled: `[requests, K + 1]` int32 or int64, a request's tokens: accepted drafts and the one drawn after them.
        num_sampled: `[requests]` int32, how many of them count, 0..K + 1.
        first_rows: `[requests + 1]` int32, where each request's rows begin, 0 to `num_rows`; at most K + 1 rows each.
        num_rows: of all requests.

    Returns:
        `[num_rows]`, new on every call, in the dtype of `sampled`; -1 in the rows behind a request's last token.

    Raises:
        TypeError: a tensor has the wrong dtype.
        ValueError: a tensor has the wrong device, shape or strides.
    """
    num_requests = sampled.shape[0]
    device = sampled.device
    check_tensor("sampled", sampled, dtypes=TOKEN_DTYPES, shape=(None, None), device=device, last_dim_only=True)
    check_tensor("num_sampled", num_sampled, dtypes=(torch.int32,), shape=(num_requests,), device=device)
    check_tensor("first_rows", first_rows, dtypes=(torch.int32,), shape=(num_requests + 1,), device=device)
    token_ids = torch.empty(num_rows, dtype=sampled.dtype, device=device)
    if num_rows > 0:
        LAUNCHES.run(launch_of(sampled, num_sampled, first_rows, token_ids))
    return token_ids

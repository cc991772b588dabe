"""Triton kernels over theta's block tables: filled from the requests', cut at a window, and read for slots.

`gather`, `null_before_window` and `slot_mapping` run in front of theta's forwards, once for each group of layers, and their
launches are prepared. `decode_slots` runs between the decodes of a round, in a CUDA graph where there is one.
"""

# What Triton compiles has no Python types.
# mypy: disable-error-code="no-untyped-def"

import torch
import triton
import triton.language as tl

from vllm_optimal_sampling.kernels.prepared_launch import Launch, RepeatedLaunches

BLOCK, NUM_WARPS = 1024, 4
DECODE_BLOCK = 256
"""The same for every batch, so that one compiled kernel serves all."""


@triton.jit
def _slots(position_ptrs, mask, table_row_ptrs, block_size, max_num_blocks, PAD_ID: tl.constexpr):
    position = tl.load(position_ptrs, mask=mask, other=0)
    column = position // block_size
    block = tl.load(table_row_ptrs + column, mask=mask & (column < max_num_blocks), other=0)
    slot = block.to(tl.int64) * block_size + position % block_size
    # Block 0 is vLLM's null block: nobody's, never to be written.
    return tl.where(block == 0, PAD_ID, slot)


@triton.jit(do_not_specialize=["num_reqs", "first_theta_row"])
def gather_kernel(
    slots_ptr,  # [num_reqs] int64, -1: no request
    shift_ptr,  # [max_num_reqs] int32
    num_blocks_ptr,  # [max_num_reqs] int32, blocks each request holds in this group
    source_ptr,  # [max_num_reqs, max_num_blocks] int32
    source_stride,
    table_ptr,  # [max_num_reqs, max_num_blocks] int32, out
    table_stride,
    num_reqs,
    first_theta_row,
    block_offset,
    block_size,
    max_num_blocks,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    slot = tl.load(slots_ptr + row, mask=row < num_reqs, other=-1).to(tl.int64)
    real = slot >= 0
    is_theta = row >= first_theta_row
    first = tl.load(shift_ptr + slot, mask=real & is_theta, other=0) // block_size
    moved_by = tl.where(is_theta, block_offset, 0)
    num_blocks = tl.load(num_blocks_ptr + slot, mask=real, other=0)
    for i in range(0, max_num_blocks, BLOCK):
        column = i + tl.arange(0, BLOCK)
        block = tl.load(source_ptr + slot * source_stride + first + column, mask=first + column < num_blocks, other=0)
        block = tl.where(block == 0, 0, block + moved_by)  # the null block stays it
        tl.store(table_ptr + row * table_stride + column, block, mask=column < max_num_blocks)


GATHERS = RepeatedLaunches(("slots_ptr", "num_blocks_ptr", "num_reqs", "first_theta_row"))
"""Of one engine, whose other tensors stay where they are; so are the following."""


def gather(
    slots: torch.Tensor,  # [num_reqs] int64, -1: no request
    shift: torch.Tensor,  # [max_num_reqs] int32
    num_blocks: torch.Tensor,  # [max_num_reqs] int32, blocks each request holds in this group
    source: torch.Tensor,  # [max_num_reqs, max_num_blocks] int32
    table: torch.Tensor,  # [rows, max_num_blocks] int32, out
    num_rows: int,
    first_theta_row: int,
    block_offset: int,
    block_size: int,
) -> Launch:
    """The launch that fills the first rows of an input table; see `ThetaBlockTables.gather`."""
    arguments = {
        "slots_ptr": slots,
        "shift_ptr": shift,
        "num_blocks_ptr": num_blocks,
        "source_ptr": source,
        "source_stride": source.stride(0),
        "table_ptr": table,
        "table_stride": table.stride(0),
        "num_reqs": slots.shape[0],
        "first_theta_row": first_theta_row,
        "block_offset": block_offset,
        "block_size": block_size,
        "max_num_blocks": table.shape[1],
        "BLOCK": min(BLOCK, triton.next_power_of_2(table.shape[1])),
    }
    return Launch(gather_kernel, (num_rows, 1, 1), arguments, NUM_WARPS)


@triton.jit
def null_kernel(
    query_start_loc_ptr,  # [num_reqs + 1] int32
    positions_ptr,  # [num_tokens] int64
    table_ptr,  # [max_num_reqs, max_num_blocks] int32, in/out
    table_stride,
    window,
    block_size,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    start, end = tl.load(query_start_loc_ptr + row), tl.load(query_start_loc_ptr + row + 1)
    first = tl.load(positions_ptr + start, mask=start < end, other=0)
    num_null = tl.maximum(first - window, 0) // block_size
    for i in range(0, num_null, BLOCK):
        column = i + tl.arange(0, BLOCK)
        tl.store(table_ptr + row * table_stride + column, 0, mask=column < num_null)


NULLS = RepeatedLaunches(("query_start_loc_ptr", "positions_ptr"))


def null_before_window(
    query_start_loc: torch.Tensor,  # [num_reqs + 1] int32
    positions: torch.Tensor,  # [num_tokens] int64, theta's
    table: torch.Tensor,  # [rows, max_num_blocks] int32, in/out
    num_reqs: int,
    window: int,
    block_size: int,
) -> Launch:
    """The launch that nulls the blocks of an input table that no query of these requests attends to."""
    arguments = {
        "query_start_loc_ptr": query_start_loc,
        "positions_ptr": positions,
        "table_ptr": table,
        "table_stride": table.stride(0),
        "window": window,
        "block_size": block_size,
        "BLOCK": BLOCK,
    }
    return Launch(null_kernel, (num_reqs, 1, 1), arguments, NUM_WARPS)


@triton.jit(do_not_specialize=["num_tokens_padded"])
def slot_mapping_kernel(
    query_start_loc_ptr,  # [num_reqs + 1] int32
    positions_ptr,  # [num_tokens] int64
    table_ptr,  # [max_num_reqs, max_num_blocks] int32, theta's input table
    table_stride,
    slot_mapping_ptr,  # [max_num_tokens] int64, out
    num_tokens_padded,
    block_size,
    max_num_blocks,
    PAD_ID: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    start = tl.load(query_start_loc_ptr + row)
    if row == tl.num_programs(0) - 1:
        for i in range(start, num_tokens_padded, BLOCK):
            offset = i + tl.arange(0, BLOCK)
            tl.store(slot_mapping_ptr + offset, PAD_ID, mask=offset < num_tokens_padded)
        return
    end = tl.load(query_start_loc_ptr + row + 1)
    for i in range(start, end, BLOCK):
        offset = i + tl.arange(0, BLOCK)
        mask = offset < end
        slot = _slots(positions_ptr + offset, mask, table_ptr + row * table_stride, block_size, max_num_blocks, PAD_ID)
        tl.store(slot_mapping_ptr + offset, slot, mask=mask)


SLOT_MAPPINGS = RepeatedLaunches(("query_start_loc_ptr", "positions_ptr", "num_tokens_padded"))


def slot_mapping(
    query_start_loc: torch.Tensor,  # [num_reqs + 1] int32
    positions: torch.Tensor,  # [num_tokens] int64, theta's
    table: torch.Tensor,  # [rows, max_num_blocks] int32, theta's input table
    slots: torch.Tensor,  # [max_num_tokens] int64, out
    num_reqs: int,
    num_tokens_padded: int,
    block_size: int,
    pad_id: int,
) -> Launch:
    """The launch that finds the slots of theta's positions, `pad_id` where there is no block or no token."""
    arguments = {
        "query_start_loc_ptr": query_start_loc,
        "positions_ptr": positions,
        "table_ptr": table,
        "table_stride": table.stride(0),
        "slot_mapping_ptr": slots,
        "num_tokens_padded": num_tokens_padded,
        "block_size": block_size,
        "max_num_blocks": table.shape[1],
        "PAD_ID": pad_id,
        "BLOCK": BLOCK,
    }
    return Launch(slot_mapping_kernel, (num_reqs + 1, 1, 1), arguments, NUM_WARPS)


@triton.jit(do_not_specialize=["num_tokens_padded"])
def decode_slots_kernel(
    positions_ptr,  # [num_tokens_padded] int64
    table_ptr,  # [max_num_reqs, max_num_blocks] int32, theta's input table
    table_stride,
    slot_mapping_ptr,  # [max_num_tokens] int64, out
    num_tokens_padded,
    max_num_reqs,
    block_size,
    max_num_blocks,
    PAD_ID: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = row < min(num_tokens_padded, max_num_reqs)
    slot = _slots(positions_ptr + row, mask, table_ptr + row * table_stride, block_size, max_num_blocks, PAD_ID)
    tl.store(slot_mapping_ptr + row, slot, mask=row < num_tokens_padded)


def decode_slots(
    positions: torch.Tensor,  # [num_tokens_padded] int64, theta's
    table: torch.Tensor,  # [rows, max_num_blocks] int32, theta's input table
    slots: torch.Tensor,  # [max_num_tokens] int64, out
    num_tokens_padded: int,
    block_size: int,
    pad_id: int,
) -> None:
    """The same where token i is request i's only one."""
    decode_slots_kernel[(triton.cdiv(num_tokens_padded, DECODE_BLOCK),)](
        positions,
        table,
        table.stride(0),
        slots,
        num_tokens_padded,
        table.shape[0],
        block_size,
        table.shape[1],
        PAD_ID=pad_id,
        BLOCK=DECODE_BLOCK,
    )

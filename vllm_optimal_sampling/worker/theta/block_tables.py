"""Theta's view of the requests' block tables: the same blocks, read from `shift / block_size` on."""

import torch
from vllm.triton_utils import tl, triton
from vllm.v1.attention.backends.utils import PAD_SLOT_ID
from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheSpec, MambaSpec, SlidingWindowSpec, UniformTypeKVCacheSpecs
from vllm.v1.worker.gpu.block_table import BlockTables
from vllm.v1.worker.utils import AttentionGroup

from vllm_optimal_sampling.worker.theta.requests import ThetaRequests

BLOCK = 1024
DECODE_BLOCK = 256
"""The same for every batch, so that one compiled kernel serves all."""

UNSHIFTED = 2**31 - 1
"""Tokens in a block that holds a state: it is the request's one block, whatever the tokens' positions."""


def _window(spec: KVCacheSpec) -> int | None:
    """How many tokens before a query its layers may still read; None where they read all."""
    specs = list(spec.kv_cache_specs.values()) if isinstance(spec, UniformTypeKVCacheSpecs) else [spec]
    if not all(isinstance(one, SlidingWindowSpec) for one in specs):
        return None
    return max(one.sliding_window - 1 + getattr(one, "extra_retained_tokens", 0) for one in specs)


class ThetaBlockTables:
    """Block tables and slot mappings in theta's positions (see `layout`), in buffers that CUDA graphs may keep.

    Stands where vLLM's speculators expect a `BlockTables`; allocation, growth and release stay with vLLM.

    Args:
        block_tables: the model runner's, shared with the teacher.
        requests: theta's state of the requests, for the shift of each.
        kv_cache_config: as the model runner has it, for the window of each group of layers.
        num_rows: of the input tables; the model runner's by default.
        block_offset: added to theta's block ids, where theta's cache is read through the teacher's (see `twin_layers`).
    """

    def __init__(
        self,
        block_tables: BlockTables,
        requests: ThetaRequests,
        kv_cache_config: KVCacheConfig,
        num_rows: int | None = None,
        block_offset: int = 0,
    ):
        self.source = block_tables
        self.requests = requests
        self.block_offset = block_offset
        self.num_kv_cache_groups = block_tables.num_kv_cache_groups
        self.cp_size = block_tables.cp_size
        self.input_block_tables = [
            table.new_zeros(table.shape[0] if num_rows is None else num_rows, table.shape[1])
            for table in block_tables.input_block_tables
        ]
        self.slot_mappings = torch.full_like(block_tables.slot_mappings, PAD_SLOT_ID)
        self.shifted_by = [
            UNSHIFTED if isinstance(group.kv_cache_spec, MambaSpec) else size
            for group, size in zip(kv_cache_config.kv_cache_groups, block_tables.block_sizes, strict=True)
        ]
        self.windows = [_window(group.kv_cache_spec) for group in kv_cache_config.kv_cache_groups]
        self._num_blocks: torch.Tensor | None = None

    def keep_block_counts(self) -> None:
        """Take over how many blocks each request holds in this step, for a `gather` after sampling.

        Once a step's tokens are on the host, the host may write the counts of the step after next where the device reads
        those of this one.
        """
        counts = self.source.num_blocks.gpu
        if self._num_blocks is None:
            self._num_blocks = counts.clone()
        else:
            self._num_blocks.copy_(counts)

    def gather(self, slots: torch.Tensor, num_reqs_padded: int, first_theta_row: int = 0) -> None:
        """Fill the input tables for the requests in `slots` [num_reqs]; rows up to `num_reqs_padded` become zero.

        Entries behind a request's own blocks are zero too, the id of vLLM's null block: a position that has no slot
        is never mistaken for another request's. Rows before `first_theta_row` are the teacher's.
        """
        num_blocks = self.source.num_blocks.gpu if self._num_blocks is None else self._num_blocks
        for group, table in enumerate(self.input_block_tables):
            source = self.source.block_tables[group].gpu
            _gather_kernel[(num_reqs_padded,)](
                slots,
                self.requests.shift.gpu,
                num_blocks[group],
                source,
                source.stride(0),
                table,
                table.stride(0),
                slots.shape[0],
                first_theta_row,
                self.block_offset,
                self.shifted_by[group],
                table.shape[1],
                BLOCK=min(BLOCK, triton.next_power_of_2(table.shape[1])),
            )

    def null_before_windows(
        self,
        query_start_loc: torch.Tensor,  # [num_reqs + 1] int32
        positions: torch.Tensor,  # [num_tokens] int64, theta's
        num_reqs: int,
    ) -> None:
        """Null the blocks that no query of these requests attends to, in the groups that have a window.

        They may be another request's by now, and where a tile of keys straddles the window's edge NaN in a masked key
        spreads. vLLM does the same with the teacher's tables from 0.33 on.
        """
        for group, (table, window) in enumerate(zip(self.input_block_tables, self.windows, strict=True)):
            if window is not None:
                _null_kernel[(num_reqs,)](
                    query_start_loc,
                    positions,
                    table,
                    table.stride(0),
                    window,
                    self.source.block_sizes[group],
                    BLOCK=BLOCK,
                )

    def compute_slot_mappings(
        self,
        query_start_loc: torch.Tensor,  # [num_reqs + 1] int32
        positions: torch.Tensor,  # [num_tokens] int64, theta's
        num_reqs: int,
        num_tokens_padded: int,
    ) -> torch.Tensor:
        """Slots [groups, num_tokens_padded] of theta's positions; PAD where there is no block or no token."""
        for group, table in enumerate(self.input_block_tables):
            _slot_mapping_kernel[(num_reqs + 1,)](
                query_start_loc,
                positions,
                table,
                table.stride(0),
                self.slot_mappings[group],
                num_tokens_padded,
                self.source.block_sizes[group],
                table.shape[1],
                PAD_ID=PAD_SLOT_ID,
                BLOCK=BLOCK,
            )
        return self.slot_mappings[:, :num_tokens_padded]

    def compute_decode_slots(self, positions: torch.Tensor, num_tokens_padded: int) -> torch.Tensor:
        """The same where token i is request i's only one; PAD for padding, whose rows in the tables are zero.

        Args:
            positions: [num_tokens_padded] int64, theta's.
            num_tokens_padded: at most as many as `gather` filled rows, but for padding beyond the tables.
        """
        for group, table in enumerate(self.input_block_tables):
            _decode_slots_kernel[(triton.cdiv(num_tokens_padded, DECODE_BLOCK),)](
                positions,
                table,
                table.stride(0),
                self.slot_mappings[group],
                num_tokens_padded,
                table.shape[0],
                self.source.block_sizes[group],
                table.shape[1],
                PAD_ID=PAD_SLOT_ID,
                BLOCK=DECODE_BLOCK,
            )
        return self.slot_mappings[:, :num_tokens_padded]

    # What vLLM's graph capture asks of block tables.

    def get_dummy_block_tables(self, num_reqs: int) -> tuple[torch.Tensor, ...]:
        return tuple(table[:num_reqs].zero_() for table in self.input_block_tables)

    def get_dummy_slot_mappings(self, num_tokens: int) -> torch.Tensor:
        self.slot_mappings.fill_(PAD_SLOT_ID)
        return self.slot_mappings[:, :num_tokens]


def widen_kernel_block_tables(attn_groups: list[list[AttentionGroup]], block_tables: BlockTables) -> None:
    """Make room for theta in the tables of backends that have smaller blocks of their own.

    vLLM makes them as wide as the model's length, and the tables that they are filled from are a block wider.
    """
    for group in (group for groups in attn_groups for group in groups):
        if group.kernel_block_size is None:
            continue
        assert group.kernel_block_table is not None
        kernel_blocks = group.kv_cache_spec.block_size // group.kernel_block_size
        ubatches, num_reqs, width = group.kernel_block_table.shape
        needed = block_tables.input_block_tables[group.kv_cache_group_id].shape[1] * kernel_blocks
        if width < needed:
            group.kernel_block_table = group.kernel_block_table.new_zeros(ubatches, num_reqs, needed)


@triton.jit(do_not_specialize=["num_reqs", "first_theta_row"])
def _gather_kernel(
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


@triton.jit
def _null_kernel(
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


@triton.jit(do_not_specialize=["num_tokens_padded"])
def _slot_mapping_kernel(
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


@triton.jit(do_not_specialize=["num_tokens_padded"])
def _decode_slots_kernel(
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


@triton.jit
def _slots(position_ptrs, mask, table_row_ptrs, block_size, max_num_blocks, PAD_ID: tl.constexpr):
    position = tl.load(position_ptrs, mask=mask, other=0)
    column = position // block_size
    block = tl.load(table_row_ptrs + column, mask=mask & (column < max_num_blocks), other=0)
    slot = block.to(tl.int64) * block_size + position % block_size
    # Block 0 is vLLM's null block: nobody's, never to be written.
    return tl.where(block == 0, PAD_ID, slot)

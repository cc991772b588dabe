"""Tensors of the CPU's memory and their copies on a device, with which these tests launch kernels on a GPU."""

import call
import torch
import triton
import triton.language as tl
from adversarial_rows import families
from triton.runtime.interpreter import InterpretedFunction
from vllm_optimal_sampling.kernels import Method

from support.device_copies import DeviceCopies, launches_on_copies


def test_copies_share_what_tensors_share() -> None:
    memory = torch.arange(24.0)
    rows, column, flags = memory.view(4, 6)[1:3, 2:], memory.view(4, 6)[:, 1], torch.tensor([True, False])
    copies = DeviceCopies("cpu")
    mine, mine_column, mine_flags = copies.of(rows), copies.of(column), copies.of(flags)
    assert torch.equal(mine, rows) and mine.stride() == rows.stride() and mine.data_ptr() != rows.data_ptr()
    mine[:] = -1
    mine.as_strided((1,), (1,), 7)[:] = -2  # of the column too
    mine_flags.logical_not_()
    assert mine_column.tolist() == [1, -2, 13, 19]
    assert memory.tolist() == list(range(24)) and flags.tolist() == [True, False]
    copies.copy_back()
    assert memory.tolist() == [*range(7), -2, *[-1] * 4, 12, 13, *[-1] * 4, *range(18, 24)]
    assert flags.tolist() == [False, True]
    assert copies.of(3) == 3 and copies.of(None) is None


@triton.jit
def swap_kernel(a_ptr, b_ptr, SIZE: tl.constexpr):
    lane = tl.arange(0, SIZE)
    a, b = tl.load(a_ptr + lane), tl.load(b_ptr + lane)
    tl.store(a_ptr + lane, b)
    tl.store(b_ptr + lane, a)


def test_a_kernel_works_on_copies() -> None:
    kernels = type(swap_kernel)
    device = "cpu" if kernels is InterpretedFunction else "cuda"
    memory = torch.arange(8.0)
    with launches_on_copies(kernels, device):
        swap_kernel[(1,)](memory[:4], memory[4:], SIZE=4)
    assert memory.tolist() == [4, 5, 6, 7, 0, 1, 2, 3]
    pairs = [pair for name in ("ordinary", "far") for pair in families(301)[name]]
    plain = call.mix(pairs, Method.KL_SYMMETRY)
    with launches_on_copies(kernels, device):
        copied = call.mix(pairs, Method.KL_SYMMETRY)
    assert torch.equal(plain.rows, copied.rows) and torch.equal(plain.record.alpha, copied.record.alpha)

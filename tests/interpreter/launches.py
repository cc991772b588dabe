"""Launch vLLM's sampling kernels and the mix, and write one digest of the output's bytes for each launch to standard output.

test_shortcuts.py runs it in processes of its own: `launches.py plain|shortcuts`. The first line says what it got.
"""

import hashlib
import sys

import torch
import triton
import triton.language as tl
from vllm.v1.sample.ops.topk_topp_triton import apply_top_k_top_p_triton
from vllm.v1.worker.gpu.sample.gumbel import gumbel_sample
from vllm.v1.worker.gpu.spec_decode.rejection_sampler_utils import rejection_sample
from vllm_optimal_sampling.kernels import MixRecord, MixScratch, MixSettings, mix_

from vllm_optimal_sampling.interpreter import gaps, shortcuts

REQUESTS, DRAFTS, VOCABULARY = 6, 3, 1500  # more than one block of the kernels, and not a multiple of it


@triton.jit
def blocks_kernel(x_ptr, kept_ptr, out_ptr, apart, ROWS: tl.constexpr, SIZE: tl.constexpr):
    """Loads, choices and stores of large blocks, with masks of every kind; `apart`: elements from one token to the next."""
    row = tl.arange(0, ROWS)[:, None]
    token = tl.arange(0, SIZE)[None, :]
    # The row that nobody reads is nowhere.
    x_row = x_ptr + tl.where(row == 1, 2**30, row * SIZE * apart)
    kept = tl.load(kept_ptr + row * SIZE + token) & (row != 1)
    x = tl.load(x_row + token * apart, mask=kept, other=float("-inf")).to(tl.float32)
    first = tl.load(x_ptr + token * apart + row * 0, mask=token < SIZE - 3, other=2.5).to(tl.float32)
    chosen = tl.where(kept, 0.25 - x * 3, tl.where(row == 0, first, -0.0))
    chosen = tl.where(token < SIZE, chosen, 7.0) + tl.where(x > 1e30, x, first)
    out_row = out_ptr + row * SIZE
    tl.store(out_row + token, chosen.to(tl.float16), mask=kept | (row == 2))
    tl.store(out_row + (SIZE - 1 - token), chosen, mask=(row == 3) & (token % 5 == 0))


def blocks(dtype: torch.dtype, apart: int, random: torch.Generator) -> torch.Tensor:
    """What the kernel writes over four rows of 1,024 tokens."""
    x = (torch.randn(4 * 1024 * apart, generator=random) * 4).to(dtype)
    x[::7], x[::11], x[::13], x[::17] = float("inf"), float("nan"), -0.0, 1e-39
    kept = torch.rand(4, 1024, generator=random) < torch.tensor([[0.5], [1.0], [1.0], [0.0]])
    out = torch.zeros(4, 1024)
    blocks_kernel[(1,)](x, kept, out, apart, ROWS=4, SIZE=1024)
    return torch.where(out.isnan(), torch.nan, out)  # of two nan an addition may give either


@triton.jit
def operators_kernel(x_ptr, y_ptr, out_ptr, number, SIZE: tl.constexpr, IS_INTEGER: tl.constexpr):
    """Each operator on two blocks, on a block and one number of memory, and on a block and a number that is written here."""
    token = tl.arange(0, SIZE)
    x, y = tl.load(x_ptr + token), tl.load(y_ptr + token)
    one = tl.load(y_ptr + 3)
    for place in tl.static_range(4):
        other = y if place == 0 else one if place == 1 else number if place == 2 else 3
        out = out_ptr + place * 16 * SIZE + token
        total = x + other
        tl.store(out, total.to(tl.float64))
        tl.store(out + SIZE, (other - x).to(tl.float64))
        tl.store(out + 2 * SIZE, (x * other).to(tl.float64))
        tl.store(out + 3 * SIZE, (x * 1.0 / other).to(tl.float64))
        tl.store(out + 4 * SIZE, (x < other) & (x != other))
        tl.store(out + 5 * SIZE, (x >= other) | (x == other))
        tl.store(out + 6 * SIZE, (x <= other) ^ (x > other))
        tl.store(out + 7 * SIZE, x.to(tl.int16).to(tl.float32) + token)
        tl.store(out + 8 * SIZE, total.dtype.primitive_bitwidth)
        if IS_INTEGER:
            tl.store(out + 9 * SIZE, ((x & other) ^ (x | other)).to(tl.float64))
            tl.store(out + 10 * SIZE, (x >> (y & 3)).to(tl.float64))
            tl.store(out + 11 * SIZE, (x << 2).to(tl.float64))


OPERANDS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint32, torch.float32, torch.float64)
OPERANDS += (torch.float16, torch.bfloat16)


def operators(number: float, random: torch.Generator) -> list[torch.Tensor]:
    """What the kernel writes for every two types."""
    outputs = []
    for first in OPERANDS:
        for second in OPERANDS:
            x, y = ((torch.randn(32, generator=random) * 40).abs().to(dtype) for dtype in (first, second))
            y = torch.where(y == 0, 7, y.to(torch.float64)).to(second)
            is_integer = not (first.is_floating_point or second.is_floating_point or isinstance(number, float))
            out = torch.zeros(4 * 16 * 32, dtype=torch.float64)
            for _ in range(2):  # the second time it is known which types they compute in
                operators_kernel[(1,)](x, y, out, number, SIZE=32, IS_INTEGER=is_integer)
            outputs.append(torch.where(out.isnan(), torch.nan, out))
    return outputs


@triton.jit
def arguments_kernel(out_ptr, x_ptr, small, large, is_set, share, nothing, SIZE: tl.constexpr, LAST: tl.constexpr = 7):
    """What it is called with: tensors and none, numbers of every size, values that are there by default."""
    x = tl.load(x_ptr + tl.arange(0, SIZE))
    row = out_ptr + tl.program_id(0) * 64 + tl.program_id(1) * 32
    tl.store(row + tl.arange(0, SIZE), x * share + small)
    tl.store(row + 16, large.to(tl.float64))
    tl.store(row + 17, small.dtype.primitive_bitwidth + large.dtype.primitive_bitwidth)
    if is_set and nothing is None:
        tl.store(row + LAST + 16, tl.num_programs(0) * 10 + tl.num_programs(1))


def arguments(random: torch.Generator) -> list[torch.Tensor]:
    """What the kernel writes, by how it is launched and with what."""
    x = torch.randn(64, generator=random)
    outputs = []
    for large in (5, 2**31, -(2**31) - 1, 2**40, 2**63):
        for is_set in (True, False):
            out = torch.zeros(4, 32, dtype=torch.float64)
            arguments_kernel[(2, 2)](out, x[3:], -2, large, is_set, 0.25, None, SIZE=16, num_warps=4)
            outputs.append(out)
    out = torch.zeros(8, 32, dtype=torch.float64)
    given = {"x_ptr": x, "small": 1, "large": 2**32, "is_set": True, "share": 2, "nothing": None, "SIZE": 4, "LAST": 9}
    arguments_kernel[lambda given: (given["SIZE"] - 1,)](out_ptr=out[1:], **given)
    return [*outputs, out]


def digest(*outputs: torch.Tensor) -> str:
    return hashlib.sha256(b"".join(output.numpy().tobytes() for output in outputs)).hexdigest()


def launches() -> dict[str, str]:
    random = torch.Generator().manual_seed(7)
    rows = REQUESTS * (DRAFTS + 1)
    teacher = torch.randn(rows, VOCABULARY, generator=random) * 3
    theta = teacher.view(REQUESTS, DRAFTS + 1, -1) + torch.randn(REQUESTS, DRAFTS + 1, VOCABULARY, generator=random)
    request = torch.arange(REQUESTS, dtype=torch.int32)
    request_of_row = request.repeat_interleave(DRAFTS + 1)
    temperature = torch.tensor([0.0, 0.7, 1.0, 1.0, 1.3, 1.0])
    seeds = torch.tensor([1, 2, 2**40 + 3, 4, 5, 6])
    positions = torch.arange(rows)
    digests = {}
    for use_fp64 in (False, True):
        tokens = gumbel_sample(
            theta.flatten(0, 1), request_of_row, temperature, seeds, positions,
            apply_temperature=True, is_drafting=True, use_fp64=use_fp64,
        )  # fmt: skip
        digests[f"gumbel, fp64 {use_fp64}"] = digest(tokens)
        drafts = tokens.roll(1)  # row j + 1 of a request holds what was drawn from its row j
        for use_block_verification in (False, True):
            sampled, count = rejection_sample(
                teacher, theta, drafts, torch.arange(0, rows + 1, DRAFTS + 1, dtype=torch.int32), positions, request,
                request_of_row, torch.arange(DRAFTS + 1).repeat(REQUESTS), temperature, seeds, DRAFTS,
                use_fp64=use_fp64, use_block_verification=use_block_verification,
            )  # fmt: skip
            drawn = [sampled[i, : int(count[i])] for i in range(REQUESTS)]  # the rest is never written
            digests[f"rejection, fp64 {use_fp64}, block {use_block_verification}"] = digest(count, *drawn)
    top_k, top_p = torch.full((rows,), 40, dtype=torch.int32), torch.full((rows,), 0.8)
    digests["top k, top p"] = digest(apply_top_k_top_p_triton(teacher.clone(), top_k, top_p))
    settings, record = MixSettings.allocate(REQUESTS, "cpu"), MixRecord.allocate(REQUESTS, DRAFTS + 1, "cpu")
    settings.first_position.zero_()
    settings.support_top_k[0], settings.support_top_p[1], settings.max_js_divergence[2] = 20, 0.9, 0.3
    mixed = teacher.clone()
    mix_(
        mixed, theta, request_of_row, torch.arange(DRAFTS + 1, dtype=torch.int32).repeat(REQUESTS), positions,
        settings, record, MixScratch.allocate(rows, VOCABULARY, "cpu"),
    )  # fmt: skip
    digests["mix"] = digest(mixed, record.alpha, record.kl_theta)
    wide = torch.randn(rows, 5000, generator=random) * 3
    wide_theta = (wide + torch.randn(rows, 5000, generator=random)).bfloat16().view(REQUESTS, DRAFTS + 1, -1)
    mix_(
        wide, wide_theta, request_of_row, torch.arange(DRAFTS + 1, dtype=torch.int32).repeat(REQUESTS), positions,
        settings, record, MixScratch.allocate(rows, 5000, "cpu"),
    )  # fmt: skip
    digests["mix, several tiles"] = digest(wide, record.alpha, record.kl_theta)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for apart in (1, 2):
            digests[f"blocks, {dtype}, {apart} apart"] = digest(blocks(dtype, apart, random))
    digests["arguments"] = digest(*arguments(random))
    for number in (2, 5.5, 0.0, -0.0):
        digests[f"operators, {number}"] = digest(*operators(number, random))
    return digests


if __name__ == "__main__":
    gaps.fill()
    taken = shortcuts.take() if sys.argv[1] == "shortcuts" else False
    lines = [f"shortcuts {taken}", *(f"{name}: {value}" for name, value in launches().items())]
    sys.stdout.write("\n".join(lines) + "\n")

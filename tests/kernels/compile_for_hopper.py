"""Compile kernels for sm_90 as `mix_` launches them there, and print their resources as JSON. Needs no GPU.

usage: compile_for_hopper.py [theta's dtype: bf16, fp16 or fp32 [name of a kernel]...]

Run without TRITON_INTERPRET: under it Triton's decorator does not make kernels that can be compiled.
"""

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import sass
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from vllm_optimal_sampling.kernels.read import read_kernel
from vllm_optimal_sampling.kernels.refine import refine_kernel
from vllm_optimal_sampling.kernels.scratch import LaunchShape
from vllm_optimal_sampling.kernels.search import search_kernel
from vllm_optimal_sampling.kernels.settings import Search
from vllm_optimal_sampling.kernels.settle import settle_kernel
from vllm_optimal_sampling.kernels.token_logprobs import token_logprobs_kernel
from vllm_optimal_sampling.kernels.write import write_kernel

from vllm_optimal_sampling.worker.relaxed_top_p_kernel import LANES, NUM_WARPS, relax_top_p_kernel

INT64 = {"token_positions_ptr", "first_position_ptr", "schedule_position_ptr", "theta_offset_ptr", "entry_ptr"}
INT32 = {
    "slots_ptr",
    "draft_positions_ptr",
    "method_ptr",
    "support_top_k_ptr",
    "schedule_steps_ptr",
    "top_k_ptr",
    "kind_ptr",
    "token_ids_ptr",
}


def type_of(name: str, theta_type: str) -> str:
    """The Triton type of a kernel argument, which its name tells."""
    if name == "theta_ptr":
        return f"*{theta_type}"
    if name in INT64:
        return "*i64"
    if name in INT32:
        return "*i32"
    if name == "fallback_ptr":
        return "*i1"
    return "*fp32" if name.endswith("_ptr") else "i32"


def variants(theta_type: str) -> Iterator[tuple[str, Any, dict[str, Any], int]]:
    """Name, kernel, constants and warps of every kernel at the launch shapes of few and of many rows."""
    each = 4 if theta_type == "fp32" else 8  # 16 bytes of theta; with eight of float32 a lane needs 166 registers
    for rows in (1, 160, 1280):
        shape = LaunchShape.choose(rows, 151_936, interpreted=False)
        tile = {"ROWS": shape.rows, "SUB": shape.sub, "LANES": shape.lanes}
        splits = triton.next_power_of_2(shape.splits)
        if rows == 1:
            for search in Search:
                constants = {"SEARCH": int(search), "ROWS": 1, "SUB": shape.sub, "LANES": shape.search_lanes}
                yield f"search_{search.name.lower()}", search_kernel, constants, shape.search_warps
            for name, of_read in (("read", shape), ("read_quickly", replace(shape, each=each))):
                quick = {"QUICK_LANES": of_read.quick_lanes, "EACH": of_read.each, "ALIGNED": True}
                yield name, read_kernel, tile | {"JOIN": shape.join} | quick, shape.num_warps
            constants = {"ROWS": shape.rows, "LANES": shape.lanes, "SPLITS": shape.settle_splits}
            yield "settle", settle_kernel, constants, shape.settle_warps
            yield "token_logprobs", token_logprobs_kernel, {"BLOCK": 128}, 4
            for has_top_k in (True, False):
                constants = {"HAS_TOP_K": has_top_k, "ROWS": 1, "LANES": LANES}
                yield f"relax_top_p_top_k={has_top_k}", relax_top_p_kernel, constants, NUM_WARPS
        constants = tile | {"SUB": shape.refine_sub, "SPLITS": splits, "JOIN": shape.join}
        yield f"refine_splits={splits}", refine_kernel, constants, shape.num_warps
        constants = {"ROWS": shape.rows, "BLOCK": shape.block, "SPLITS": splits}
        yield f"write_splits={splits}", write_kernel, constants, shape.num_warps


def resources(kernel: Any, constants: dict[str, Any], num_warps: int, theta_type: str) -> dict[str, Any]:
    signature = {name: "constexpr" if name in constants else type_of(name, theta_type) for name in kernel.arg_names}
    # What Triton's launcher would find: pointers, strides and sizes of a real vocabulary are multiples of 16.
    attributes = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(kernel.arg_names)
        if name.endswith(("_ptr", "_stride", "vocab", "split_size"))
    }
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(kernel.arg_names.index(name),): value for name, value in constants.items()},
        attrs=attributes,
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": num_warps})
    usage = dict(
        re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", sass.dump(compiled.asm["cubin"], "--dump-resource-usage"))
    )
    return {
        "registers": int(usage["REG"]),
        # Registers that were spilled live on the stack.
        "stack_bytes": int(usage["STACK"]) + int(usage["LOCAL"]),
        "shared_bytes": compiled.metadata.shared,
        "threads": 32 * num_warps,
        "loops": sass.loops(compiled.asm["cubin"]),
    }


def main() -> None:
    theta_type, *wanted = sys.argv[1:] or ["bf16"]
    report = {
        name: resources(kernel, constants, num_warps, theta_type)
        for name, kernel, constants, num_warps in variants(theta_type)
        if not wanted or name in wanted
    }
    json.dump(report, sys.stdout, indent=2)


if __name__ == "__main__":
    main()

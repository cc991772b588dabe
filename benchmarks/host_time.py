"""What a call of the mix costs the host: as Triton launches its kernels, and as they are launched once they were (`prepared`).

    python benchmarks/host_time.py

Needs no GPU, and takes none: kernels are compiled for an H200 and launched by Triton's own code on the driver of
driver_without_device.py, which runs nothing. What is in the figures is all that Python and Triton's launcher do in a call:
checks, the choice of a launch shape, arguments, Triton's bookkeeping. What is not is CUDA's driver: four launches and, as
Triton launches, a question for each tensor. `kernel.py` measures both ways with a GPU.

Times are of the thread (`time.thread_time`): what other processes take from it does not count, what they take from its
caches does.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from time import thread_time
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"  # it would leave nothing to be compiled and launched

import torch
from driver_without_device import DriverWithoutDevice
from recording import RESULTS, Spread, header, write
from vllm_optimal_sampling.kernels import MixRecord, MixScratch, MixSettings, Search, mix_
from vllm_optimal_sampling.kernels.mix import INTERPRETED, Rows, launches
from vllm_optimal_sampling.kernels.scratch import LaunchShape

VOCAB, POSITIONS = 151_936, 5
CALLS = 50
"""Calls that are timed at once."""


def microseconds(call: Callable[[], object], repeats: int) -> Spread:
    """Of a call, over `repeats` times `CALLS` of them."""
    for _ in range(CALLS):
        call()
    times = []
    for _ in range(repeats):
        begin = thread_time()
        for _ in range(CALLS):
            call()
        times.append((thread_time() - begin) / CALLS * 1e6)
    return Spread.of(times)


def measure(driver: DriverWithoutDevice, num_rows: int, repeats: int) -> dict[str, Any]:
    """One line of the result. The tensors' memory is never touched."""
    num_slots = -(-num_rows // POSITIONS)
    rows = Rows(
        teacher_logits=torch.empty(num_rows, VOCAB),
        theta_logits=torch.empty(num_slots, POSITIONS, VOCAB, dtype=torch.bfloat16),
        slots=torch.zeros(num_rows, dtype=torch.int64),
        draft_positions=torch.zeros(num_rows, dtype=torch.int32),
        token_positions=torch.zeros(num_rows, dtype=torch.int64),
    )
    rest = (
        MixSettings.allocate(num_slots, "cpu"),
        MixRecord.allocate(num_slots, POSITIONS, "cpu"),
        MixScratch.allocate(num_rows, VOCAB, "cpu"),
    )

    def as_triton_launches() -> None:
        shape = LaunchShape.choose(num_rows, VOCAB, interpreted=INTERPRETED)
        for step in launches(rows, *rest, shape, Search(0)):
            step.launch()

    def prepared() -> None:
        mix_(*rows, *rest, Search(0))

    prepared()
    before = driver.num_launches
    prepared()
    return {
        "rows": num_rows,
        "vocab": VOCAB,
        "launches": driver.num_launches - before,
        "microseconds": {
            "prepared": microseconds(prepared, repeats),
            "as_triton_launches": microseconds(as_triton_launches, repeats),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Time what a call of the mix costs the host, without a GPU.")
    parser.add_argument("--rows", type=int, nargs="+", default=[8, 40, 160])
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--output", type=Path, default=RESULTS / "host-time.json")
    arguments = parser.parse_args()

    driver = DriverWithoutDevice.install()
    result = header("host-time")
    result["machine"]["kernels"] = "compiled for sm_90, launched on a driver that runs nothing"
    result |= {
        "clock": "CPU time of the thread",
        "counted": "mix_ as the engine calls it, in Python and in Triton's launcher",
        "not_counted": "CUDA's driver: four launches a call, and a question for each tensor as Triton launches",
        "lines": [measure(driver, num_rows, arguments.repeats) for num_rows in arguments.rows],
    }
    for line in result["lines"]:
        times = ", ".join(f"{name} {time.median:.1f}" for name, time in line["microseconds"].items())
        print(f"{line['rows']:>5} rows, {line['launches']} launches, microseconds of the host: {times}")
    write(arguments.output, result)


if __name__ == "__main__":
    main()

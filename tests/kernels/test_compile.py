"""Every kernel compiles for Hopper as it is launched there, fits its registers, and spills none. Needs no GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from vllm_optimal_sampling.kernels import Search

SCRIPT = Path(__file__).parent / "compile_for_hopper.py"

# sm_90: 64 Ki registers an SM. `read` is what every row pays: four programs of 128 threads have to fit.
REGISTERS_PER_SM = 65536
PROGRAMS_OF_READ = 4
SHARED_LIMIT = 48 * 1024
# Of a thread, in a step.
TOKENS_OF_READ = 16
TOKENS_OF_QUICK = 8
# Of a search, whose lane takes a token of each tile.
TILES_OF_SEARCH = 8
TILES_OF_ROUND = 4
THRESHOLDS = 16


def compile_for_hopper(*arguments: str) -> dict[str, dict[str, Any]]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    result = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, env=environment, check=False
    )
    assert result.returncode == 0, result.stderr
    report: dict[str, dict[str, Any]] = json.loads(result.stdout)
    return report


def check(report: dict[str, dict[str, Any]]) -> None:
    for name, usage in report.items():
        assert usage["stack_bytes"] == 0, f"{name} spills: {usage}"
        assert usage["shared_bytes"] <= SHARED_LIMIT, f"{name}: {usage}"
        if name.startswith("read"):
            programs = REGISTERS_PER_SM // (usage["registers"] * usage["threads"])
            assert programs >= PROGRAMS_OF_READ, f"{name}: {usage}"


def test_kernels_of_every_row_compile_without_spills() -> None:
    check(
        compile_for_hopper(
            "bf16",
            "read",
            "refine_splits=32",
            "settle",
            "write_splits=16",
            "token_logprobs",
            "relax_top_p_top_k=True",
        )
    )


def test_the_quick_reading_costs_what_it_says() -> None:
    """Its loops, with a mask and without: 16 bytes a load, three exponentials a token, two thirds of `read`'s instructions."""
    report = compile_for_hopper("bf16", "read", "read_quickly")
    check(report)
    (usual,) = report["read"]["loops"]
    unmasked, masked, again = sorted(report["read_quickly"]["loops"], key=lambda loop: loop[0])
    per_token = usual[0] / TOKENS_OF_READ
    assert usual[1]["MUFU.EX2"] / TOKENS_OF_READ == pytest.approx(6.9, abs=0.1)
    assert again[0] / TOKENS_OF_READ == pytest.approx(per_token, rel=0.05)
    for instructions, counts in (masked, unmasked):
        loads = {name: count for name, count in counts.items() if name.startswith("LD")}
        assert loads == {"LDG.E.128": 3}
        assert counts["MUFU.EX2"] == 3 * TOKENS_OF_QUICK
        assert instructions / TOKENS_OF_QUICK < 0.7 * per_token


@pytest.mark.full
def test_a_search_costs_what_it_says() -> None:
    """The loops that read a row in a search: no barrier, and the instructions that `benchmarks/predictions/kernel.md` has."""
    report = compile_for_hopper("bf16", *(f"search_{search.name.lower()}" for search in Search))
    check(report)
    readings = [
        loop for usage in report.values() for loop in usage["loops"] if any(name.startswith("LDG") for name in loop[1])
    ]
    assert not any(name.startswith("BAR") for _, counts in readings for name in counts)
    thresholds = [loop for loop in readings if loop[1].get("FSET.BF.GE.AND", 0) >= THRESHOLDS * TILES_OF_SEARCH]
    places = [loop for loop in readings if loop[1].get("FMNMX", 0) >= 7 * TILES_OF_SEARCH]
    (of_round,) = [loop for loop in readings if "DFMA" in loop[1]]
    assert (len(thresholds), len(places)) == (2, 2)
    assert all(instructions < 60 * TILES_OF_SEARCH for instructions, _ in thresholds)
    assert all(instructions < 32 * TILES_OF_SEARCH for instructions, _ in places)
    spans = [loop for loop in readings if loop[1].get("MUFU.EX2", 0) > 5 * TILES_OF_SEARCH]
    assert len(spans) == 2
    for loops_of, tiles, most, most_slow in ((spans, TILES_OF_SEARCH, 50, 6), ([of_round], TILES_OF_ROUND, 66, 10)):
        for instructions, counts in loops_of:
            slow = sum(count for name, count in counts.items() if name.startswith(("F2F", "MUFU")))
            assert instructions < most * tiles
            assert slow < most_slow * tiles


@pytest.mark.full
@pytest.mark.parametrize("theta_type", ["bf16", "fp16", "fp32"])
def test_all_kernels_compile_without_spills(theta_type: str) -> None:
    check(compile_for_hopper(theta_type))

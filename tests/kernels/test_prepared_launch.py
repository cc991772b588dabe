"""The contract with Triton behind `prepared_launch.py`: a prepared launch hands CUDA's driver what Triton's own would.

Needs no GPU: Triton's launcher runs, and benchmarks/driver_without_device.c is the driver that it calls. A new release of
Triton is in `TESTED_TRITON` once this passes with it.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm_optimal_sampling.kernels import Method, MixRecord, MixScratch, MixSettings, Search, mix_
from vllm_optimal_sampling.kernels.prepared_launch import TESTED_TRITON, is_known_triton

SCRIPT = Path(__file__).parent / "launches_without_device.py"
KERNELS = 4 + len(Search)


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    if torch.cuda.is_available():
        pytest.skip("a GPU's own driver is loaded here; test_calls_again launches on it")
    if shutil.which(os.environ.get("CC", "cc")) is None:
        pytest.skip("no C compiler, with which Triton builds its launcher")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    result = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


def test_the_installed_triton_is_known() -> None:
    assert is_known_triton(), f"run this file with the installed Triton, then widen TESTED_TRITON = {TESTED_TRITON}"


def test_the_warm_up_compiles_kernels_side_by_side_in_the_background(found: dict[str, Any]) -> None:
    once = [[f"{name}_kernel", False] for name in ("read", "refine", "settle", "write")]
    searches = [["search_kernel", False]] * len(Search)
    of_records = [["drawn_tokens_kernel", True], ["token_logprobs_kernel", True]]  # small, and at the end
    assert sorted(found["compiled"]["warm-up"]) == sorted(once + searches + of_records)
    assert found["compiled"]["call"] == []
    assert not found["compiled"]["is_waited_for"]


def test_prepared_launches_are_tritons(found: dict[str, Any]) -> None:
    for name, call in found["mix"].items():
        assert call["prepared"] == KERNELS, name
        assert len(call["plain"]) == KERNELS
        # Kernel, grid, threads, shared memory, stream, every parameter; the second call is a prepared one in any case.
        assert call["first"] == call["plain"], name
        assert call["again"] == call["plain"], name


@pytest.mark.parametrize(
    "name",
    [
        *("drawn_tokens", "gather", "null_before_window", "slot_mapping", "round_inputs", "scoring_inputs"),
        *("tally", "token_logprobs", "relax_top_p_", "relax_top_p_ with top-k"),
    ],
)
def test_other_kernels_are_launched_as_triton_would(found: dict[str, Any], name: str) -> None:
    call = found["others"][name]
    assert call["is_prepared"]
    # The second call has more rows elsewhere; the third has rows that 16 does not divide, on which Triton compiles again.
    assert call["kinds"] == [1, 1, 2]
    for plain, first, again in call["calls"]:
        assert len(plain) == 1
        assert first == plain
        assert again == plain
    few, more, _ = (plain[0] for plain, _, _ in call["calls"])
    assert few[0] == more[0]
    assert few != more


def test_calls_differ_where_they_should(found: dict[str, Any]) -> None:
    rows, more, others, device = found["mix"].values()
    assert [call["was_new"] for call in (rows, more, others, device)] == [True, False, True, True]

    def functions(call: dict[str, Any]) -> list[int]:
        return [function for function, *_ in call["again"]]

    def streams(call: dict[str, Any]) -> set[int]:
        return {launched[4] for launched in call["again"]}

    assert functions(rows) == functions(more) == functions(others)
    assert not set(functions(rows)) & set(functions(device))
    assert (streams(rows), streams(more)) == ({0}, {0x5EED})
    for one, other in ((rows, more), (rows, others)):
        assert all(a != b for a, b in zip(one["again"], other["again"], strict=True))


def test_another_specialisation_is_another_variant(found: dict[str, Any]) -> None:
    old = {"as before", "other rows"}
    assert {name for name, is_new in found["new"].items() if not is_new} == old
    assert len(found["new"]) > len(old)


def test_what_triton_took_for_granted_does_not_change(found: dict[str, Any]) -> None:
    assert found["can_change"] == {
        "an address that 16 divides": False,
        "an address that stays divisible": True,
        "an address that was not": True,
        "a size that 16 divides": False,
        "a size that stays divisible": True,
        "a size that was 3": True,
        "a size that was 1": False,
        "a number that Triton does not look at": True,
        "a constant": False,
    }


def test_calls_again() -> None:
    """What a scratch remembers of calls changes nothing: each gives, bit for bit, what it gives with a scratch of its own.

    On a GPU all but the first few calls are prepared launches.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator().manual_seed(0)
    slots, positions, vocab, most_rows = 3, 2, 304, 6
    teacher = torch.randn(most_rows + 1, vocab, generator=generator).to(device)
    theta = torch.randn(slots, positions, vocab, generator=generator).bfloat16().to(device)
    asked = [MixSettings.allocate(slots, device) for _ in range(2)]
    for settings, method in zip(asked, (Method.KL_SYMMETRY, Method.FIXED), strict=True):
        settings.first_position.zero_()
        settings.method.fill_(method)
    shared = MixScratch.allocate(most_rows, vocab, device)
    row = torch.arange(most_rows, device=device)

    def mixed(scratch: MixScratch, settings: MixSettings, num_rows: int, slots_dtype: torch.dtype, offset: int) -> Any:
        memory = teacher.flatten().clone()[offset:]
        rows = memory[: num_rows * vocab].view(num_rows, vocab)
        record = MixRecord.allocate(slots, positions, device)
        of_slot = (row // positions)[:num_rows].to(slots_dtype)
        of_position = (row % positions)[:num_rows].int()
        mix_(rows, theta, of_slot, of_position, torch.zeros_like(row[:num_rows]), settings, record, scratch)
        return rows, record

    calls = [
        (asked[i], num_rows, slots_dtype, offset)
        for _ in range(2)
        for i in (0, 1)
        for num_rows, slots_dtype, offset in (
            (1, torch.int64, 0),
            (6, torch.int64, 0),
            (6, torch.int32, 0),
            (5, torch.int64, 1),
        )
    ]
    for call in calls:
        rows, record = mixed(shared, *call)
        wanted_rows, wanted_record = mixed(MixScratch.allocate(most_rows, vocab, device), *call)
        assert torch.equal(rows, wanted_rows)
        assert not torch.equal(rows, teacher.flatten()[call[3] :][: rows.numel()].view_as(rows))
        for name, tensor in vars(record).items():
            assert torch.equal(tensor, getattr(wanted_record, name)), name

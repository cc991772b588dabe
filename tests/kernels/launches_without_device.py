"""Launch kernels without a GPU, as Triton does it and as they were prepared; print what reached CUDA's driver as JSON.

Run without TRITON_INTERPRET.
"""

# mypy: disable-error-code="no-untyped-def"

import json
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from driver_without_device import DriverWithoutDevice, types_of
from vllm_optimal_sampling.kernels import (
    MixRecord,
    MixScratch,
    MixSettings,
    Search,
    WarmUp,
    drawn_tokens,
    mix_,
    token_logprobs,
)
from vllm_optimal_sampling.kernels.drawn_tokens import LAUNCHES as DRAWN_TOKENS
from vllm_optimal_sampling.kernels.drawn_tokens import launch_of as launch_of_drawn_tokens
from vllm_optimal_sampling.kernels.mix import INTERPRETED, Rows, launches, variant_of
from vllm_optimal_sampling.kernels.prepared_launch import Launch, PreparedLaunch, RepeatedLaunches, current_device
from vllm_optimal_sampling.kernels.scratch import LaunchShape
from vllm_optimal_sampling.kernels.tally import LAUNCHES as TALLIES
from vllm_optimal_sampling.kernels.tally import NUM_EDGES, TALLY_SIZE
from vllm_optimal_sampling.kernels.tally import launch_of as launch_of_tally
from vllm_optimal_sampling.kernels.token_logprobs import LAUNCHES as TOKEN_LOGPROBS
from vllm_optimal_sampling.kernels.token_logprobs import launch_of as launch_of_token_logprobs

from vllm_optimal_sampling.worker.relaxed_top_p_kernel import LAUNCHES as RELAXATIONS
from vllm_optimal_sampling.worker.relaxed_top_p_kernel import launch_of as launch_of_relaxation
from vllm_optimal_sampling.worker.theta.block_table_kernels import (
    GATHERS,
    NULLS,
    SLOT_MAPPINGS,
    gather,
    null_before_window,
    slot_mapping,
)
from vllm_optimal_sampling.worker.theta.inputs import ROUNDS, round_inputs
from vllm_optimal_sampling.worker.theta.scoring_inputs import FORWARDS, scoring_inputs

# Nothing is read or written, so memory is only promised. The kernels are those that compile_for_hopper.py compiles.
SLOTS, POSITIONS, VOCAB, MOST_ROWS = 8, 5, 151_936, 12


def rows(
    num_rows: int,
    *,
    teacher_offset: int = 0,
    theta_offset: int = 0,
    theta_dtype: torch.dtype = torch.bfloat16,
    slots_dtype: torch.dtype = torch.int64,
) -> Rows:
    """The tensors of a call; logits begin so many elements after an address that 16 divides."""
    teacher = torch.empty(num_rows * VOCAB + teacher_offset)
    theta = torch.empty(SLOTS * POSITIONS * VOCAB + theta_offset, dtype=theta_dtype)
    assert teacher.data_ptr() % 16 == theta.data_ptr() % 16 == 0
    return Rows(
        teacher_logits=teacher[teacher_offset:].view(num_rows, VOCAB),
        theta_logits=theta[theta_offset:].view(SLOTS, POSITIONS, VOCAB),
        slots=torch.zeros(num_rows, dtype=slots_dtype),
        draft_positions=torch.zeros(num_rows, dtype=torch.int32),
        token_positions=torch.zeros(num_rows, dtype=torch.int64),
    )


class Calls:
    """Calls of `mix_` with one scratch, and what they launched."""

    def __init__(self, driver: DriverWithoutDevice) -> None:
        self.driver = driver
        self.scratch = MixScratch.allocate(MOST_ROWS, VOCAB, "cpu")
        self.settings = MixSettings.allocate(SLOTS, "cpu")
        self.record = MixRecord.allocate(SLOTS, POSITIONS, "cpu")
        self.types: dict[int, list[str]] = {}

    def variant(self, call: Rows) -> Any:
        shape = LaunchShape.choose(len(call.slots), VOCAB, interpreted=INTERPRETED)
        return variant_of(call, self.settings, self.record, self.scratch, shape, Search.ALL, current_device())

    def launched(self, call: Rows) -> dict[str, Any]:
        """A call made three times: by Triton's launches alone, then twice by `mix_`."""
        rest = (self.settings, self.record, self.scratch)
        steps = launches(call, *rest, LaunchShape.choose(len(call.slots), VOCAB, interpreted=INTERPRETED))
        for step in steps:
            compiled = step.launch()
            self.types[compiled.function] = types_of(compiled)
        variant = self.variant(call)
        was_new = variant.is_new
        plain = self.driver.launches_of(lambda: [step.launch() for step in steps], self.types)
        first = self.driver.launches_of(lambda: mix_(*call, *rest), self.types)
        again = self.driver.launches_of(lambda: mix_(*call, *rest), self.types)
        assert self.variant(call) is variant
        return {
            "was_new": was_new,
            "prepared": len(variant.prepared),
            "plain": plain,
            "first": first,
            "again": again,
        }


def calls_of_mix(driver: DriverWithoutDevice) -> dict[str, Any]:
    calls = Calls(driver)
    found = {"three rows": calls.launched(rows(3))}
    driver.stream = 0x5EED
    found["more rows, elsewhere, in another stream"] = calls.launched(rows(MOST_ROWS))
    kept = calls.settings, calls.record
    calls.settings, calls.record = MixSettings.allocate(SLOTS, "cpu"), MixRecord.allocate(SLOTS, POSITIONS, "cpu")
    found["other settings and another record"] = calls.launched(rows(3))
    calls.settings, calls.record = kept
    driver.device = 1
    found["another device"] = calls.launched(rows(3))
    driver.device = 0
    return found


def compiled(driver: DriverWithoutDevice) -> dict[str, Any]:
    """The kernels that the warm-up had compiled, and that a call after it had, and whether its thread compiled them; and
    whether the warm-up was begun only once they were."""
    calls = Calls(driver)
    rest = (calls.settings, calls.record, calls.scratch)
    kernels: list[tuple[str, bool]] = []
    triton.knobs.compilation.listener = lambda *, src, **_: kernels.append(
        (src.name, threading.current_thread() is threading.main_thread())
    )
    warm_up = WarmUp(VOCAB, rows(1).theta_logits, *rest, raw_teacher_dtype=torch.bfloat16)
    warm_up.begin()
    assert warm_up.compiled is not None
    is_waited_for = warm_up.compiled.done()
    warm_up.finish()
    found = {"warm-up": list(kernels), "is_waited_for": is_waited_for}
    kernels.clear()
    call = rows(MOST_ROWS)
    mix_(*call, *rest)
    raw = torch.empty(MOST_ROWS + 1, VOCAB + 4, dtype=torch.bfloat16)[1:, :VOCAB]  # vLLM's head may be wider
    token_logprobs(call.slots, raw, call.theta_logits, call.slots, call.draft_positions, calls.record)
    counts = torch.zeros(4, dtype=torch.int32)
    drawn_tokens(torch.zeros(3, POSITIONS, dtype=torch.int64), counts[:3], counts, MOST_ROWS)
    triton.knobs.compilation.listener = None
    return found | {"call": kernels}


def new_variants(driver: DriverWithoutDevice) -> dict[str, bool]:
    """Whether a call is told apart from one that was made, so that Triton is asked about it. Nothing is launched."""
    calls = Calls(driver)
    calls.variant(rows(3)).is_new = False
    others = {
        "as before": rows(3),
        "other rows": rows(MOST_ROWS),
        "teacher's rows that 16 does not divide": rows(3, teacher_offset=1),
        "theta's rows that 16 does not divide": rows(3, theta_offset=1),
        "theta in float16": rows(3, theta_dtype=torch.float16),
        "slots of 32 bits": rows(3, slots_dtype=torch.int32),
        "teacher's rows in wider ones": rows(6)._replace(teacher_logits=torch.empty(3, VOCAB + 1)[:, :VOCAB]),
    }
    return {name: calls.variant(call).is_new for name, call in others.items()}


def calls_of_others(driver: DriverWithoutDevice) -> dict[str, Any]:
    """The kernels that a step calls beside the mix: a launch, one like it with more rows elsewhere, and one of another kind.

    Each is made three times: by Triton alone, then twice as its function makes it.
    """
    settings, record = MixSettings.allocate(SLOTS, "cpu"), MixRecord.allocate(SLOTS, POSITIONS, "cpu")
    edges = torch.zeros(2, NUM_EDGES)
    theta = rows(1).theta_logits

    def tally(num: int, offset: int = 0) -> Launch:
        slots, sampled = (torch.zeros(num + offset, dtype=torch.int32)[offset:] for _ in range(2))
        return launch_of_tally(slots, sampled, settings.first_position, edges, record, torch.zeros(TALLY_SIZE))

    def logprobs(num: int, offset: int = 0) -> Launch:
        call = rows(num, teacher_offset=offset)
        ids = torch.zeros(num, dtype=torch.int64)
        return launch_of_token_logprobs(ids, call.teacher_logits, theta, call.slots, call.draft_positions, record)

    def relaxation(num: int, offset: int = 0, *, with_top_k: bool) -> Launch:
        top_k = torch.zeros(num, dtype=torch.int32) if with_top_k else None
        return launch_of_relaxation(rows(num, teacher_offset=offset).teacher_logits, top_k, torch.zeros(num))

    # Of an engine: these stay where they are.
    counts, places = (torch.zeros(16 * SLOTS, dtype=dtype) for dtype in (torch.int32, torch.int64))
    prompts = torch.zeros(SLOTS, 64, dtype=torch.int32)

    def round_of_theta(num: int, offset: int = 0) -> Launch:
        slots = torch.zeros(num + offset, dtype=torch.int64)[offset:]
        sampled = torch.zeros(num, dtype=torch.int32)
        per_slot = (places, counts, counts, places, counts, places, places, counts, counts)
        return round_inputs(slots, sampled, *per_slot, 64, 512, None)

    def forward_of_theta(num: int, offset: int = 0) -> Launch:
        where = [torch.zeros(num + offset, dtype=torch.int64)[offset:] for _ in range(3)]
        batch = torch.zeros(num, dtype=torch.int32), torch.zeros(num, dtype=torch.int64)
        per_slot = (prompts, counts, counts, prompts, counts, places, counts)
        return scoring_inputs(*where, counts[: num + 1], *batch, *per_slot, num, num // 2, 64, 512, None)

    def tokens(num: int, offset: int = 0) -> Launch:
        ids = torch.zeros(num * POSITIONS + offset, dtype=torch.int64)[offset:]
        sampled = torch.zeros(num, POSITIONS, dtype=torch.int64)
        return launch_of_drawn_tokens(sampled, counts[:num], counts[: num + 1], ids)

    table, mapping = torch.zeros(MOST_ROWS, 24, dtype=torch.int32), torch.zeros(512, dtype=torch.int64)

    def gather_of_theta(num: int, offset: int = 0) -> Launch:
        slots = torch.zeros(num + offset, dtype=torch.int64)[offset:]
        num_blocks = torch.zeros(SLOTS, dtype=torch.int32)  # vLLM writes them to one of several buffers
        return gather(slots, counts, num_blocks, prompts, table, num + 1, num // 2, 7, 16)

    def batch_of_theta(num: int, offset: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(num + 1, dtype=torch.int32), torch.zeros(64 + offset, dtype=torch.int64)[offset:]

    def null_of_theta(num: int, offset: int = 0) -> Launch:
        return null_before_window(*batch_of_theta(num, offset), table, num, 48, 16)

    def slots_of_theta(num: int, offset: int = 0) -> Launch:
        return slot_mapping(*batch_of_theta(num, offset), table, mapping, num, 3 * num, 16, -1)

    def called(launches: RepeatedLaunches, launch_of: Callable[..., Launch]) -> dict[str, Any]:
        found: dict[str, Any] = {"kinds": [], "calls": []}
        launches.prepared.clear()
        for launch in (launch_of(3), launch_of(MOST_ROWS), launch_of(3, offset=1)):
            compiled = launch()
            types = {compiled.function: types_of(compiled)}
            ways = (launch, *[partial(launches.run, launch)] * 2)
            found["calls"].append([driver.launches_of(way, types) for way in ways])
            found["kinds"].append(len(launches.prepared))
        found["is_prepared"] = all(launches.prepared.values())
        return found

    return {
        "drawn_tokens": called(DRAWN_TOKENS, tokens),
        "gather": called(GATHERS, gather_of_theta),
        "null_before_window": called(NULLS, null_of_theta),
        "slot_mapping": called(SLOT_MAPPINGS, slots_of_theta),
        "round_inputs": called(ROUNDS, round_of_theta),
        "scoring_inputs": called(FORWARDS, forward_of_theta),
        "tally": called(TALLIES, tally),
        "token_logprobs": called(TOKEN_LOGPROBS, logprobs),
        "relax_top_p_": called(RELAXATIONS, partial(relaxation, with_top_k=False)),
        "relax_top_p_ with top-k": called(RELAXATIONS, partial(relaxation, with_top_k=True)),
    }


@triton.jit(do_not_specialize=["free"])
def small_kernel(x_ptr, size, free, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    tl.store(x_ptr + lane * size, tl.load(x_ptr + lane + free))


def refusals() -> dict[str, bool]:
    """Whether a launch can be made again with other values of some arguments."""
    memory = torch.empty(64)

    def can_change(changing: list[str], divisible: list[str], **arguments: Any) -> bool:
        given = {"x_ptr": memory, "size": 16, "free": 1, "BLOCK": 16} | arguments
        launch = Launch(small_kernel, (1, 1, 1), given, 1)
        return PreparedLaunch.of(launch, launch(), changing, divisible) is not None

    return {
        "an address that 16 divides": can_change(["x_ptr"], []),
        "an address that stays divisible": can_change(["x_ptr"], ["x_ptr"]),
        "an address that was not": can_change(["x_ptr"], [], x_ptr=memory[1:]),
        "a size that 16 divides": can_change(["size"], []),
        "a size that stays divisible": can_change(["size"], ["size"]),
        "a size that was 3": can_change(["size"], [], size=3),
        "a size that was 1": can_change(["size"], ["size"], size=1),
        "a number that Triton does not look at": can_change(["free"], []),
        "a constant": can_change(["BLOCK"], []),
    }


def main() -> None:
    driver = DriverWithoutDevice.install()
    found = {
        "compiled": compiled(driver),
        "mix": calls_of_mix(driver),
        "others": calls_of_others(driver),
        "new": new_variants(driver),
        "can_change": refusals(),
    }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()

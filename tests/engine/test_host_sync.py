"""The decode loop of a running batch never waits for the device: nothing of ours reads a tensor's value on the host."""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from vllm import LLM

import vllm_optimal_sampling
from support.cases import Case, generate, token_ids
from support.engines import find_runner, scoring_options, stop_engine
from vllm_optimal_sampling import kernels
from vllm_optimal_sampling.worker.theta.speculator import ThetaSpeculator

OURS = tuple(str(Path(module.__file__).parent) for module in (vllm_optimal_sampling, kernels) if module.__file__)

# Each makes the host wait for what the device has yet to compute.
WAITS = {
    *("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__"),
    *("nonzero", "masked_select", "unique", "argwhere", "equal", "allclose", "is_nonzero"),
}


class HostReads(TorchFunctionMode):
    """Counts the calls that read a tensor on the host, by the line of this package that makes them."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: Counter[str] = Counter()
        self.calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        name = getattr(func, "__name__", "")
        if name in WAITS or (name == "to" and torch.device("cpu") in args[1:]) or _boolean_index(name, args):
            frame = sys._getframe(1)
            if frame.f_code.co_filename.startswith(OURS):
                self.lines[f"{frame.f_code.co_filename}:{frame.f_lineno} {name}"] += 1
        return func(*args, **(kwargs or {}))


def _boolean_index(name: str, args: Any) -> bool:
    """Indexing with a boolean mask counts its entries first."""
    return name in ("__getitem__", "__setitem__") and isinstance(args[1], torch.Tensor) and args[1].dtype == torch.bool


def steady_state(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> HostReads:
    """Run a batch and listen to its steps without a prompt in them."""
    reads = HostReads()
    runner = find_runner(llm)
    execute_model, sample_tokens = runner.execute_model, runner.sample_tokens
    decoding = [False]

    def execute(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        decoding[0] = not scheduler_output.scheduled_new_reqs and not runner_in_prompt(runner, scheduler_output)
        if not decoding[0]:
            return execute_model(scheduler_output, *args, **kwargs)
        with reads:
            return execute_model(scheduler_output, *args, **kwargs)

    def sample(*args: Any, **kwargs: Any) -> Any:
        if not decoding[0]:
            return sample_tokens(*args, **kwargs)
        with reads:
            return sample_tokens(*args, **kwargs)

    monkeypatch.setattr(runner, "execute_model", execute)
    monkeypatch.setattr(runner, "sample_tokens", sample)
    rng = random.Random(5)
    generate(llm, [Case(token_ids(rng, 9), token_ids(rng, 5)) for _ in range(4)], max_tokens=10)
    assert reads.calls > 1000, "no step was listened to"
    return reads


def runner_in_prompt(runner: Any, scheduler_output: Any) -> bool:
    states = runner.req_states
    slots = [states.req_id_to_index[request] for request in scheduler_output.num_scheduled_tokens]
    return any(states.num_computed_tokens_np[slot] < states.prefill_len.np[slot] for slot in slots)


def test_nothing_is_read_on_the_host(engines: Callable[..., LLM], monkeypatch: pytest.MonkeyPatch) -> None:
    reads = steady_state(engines(num_speculative_tokens=2), monkeypatch)
    assert not reads.lines


@pytest.mark.parametrize("drafts", [0, 2])
def test_nothing_is_read_on_the_host_where_theta_scores(
    drafts: int, pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = LLM(**scoring_options(pair[0], drafts=drafts))
    try:
        reads = steady_state(llm, monkeypatch)
        assert find_runner(llm).theta.steps.fused > 5
    finally:
        stop_engine(llm)
    assert not reads.lines


def test_a_planted_read_is_found(engines: Callable[..., LLM], monkeypatch: pytest.MonkeyPatch) -> None:
    propose = ThetaSpeculator.propose  # runs beside a CUDA graph too

    def reading(self: ThetaSpeculator, *args: Any, **kwargs: Any) -> torch.Tensor:
        int(self.current_draft_step.item())
        return propose(self, *args, **kwargs)

    monkeypatch.setattr(ThetaSpeculator, "propose", reading)
    monkeypatch.setitem(globals(), "OURS", (*OURS, str(Path(__file__).parent)))
    reads = steady_state(engines(num_speculative_tokens=2), monkeypatch)
    assert any("item" in line for line in reads.lines)

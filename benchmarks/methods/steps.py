"""Where the time of an engine's steps goes, measured from inside its process.

Nothing is timed unless asked for: on a GPU every part begins and ends with a synchronisation, which costs more than
some of the parts, so the runs that count tokens per second never listen.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

PARTS = ("step", "theta_round", "theta_forward", "mix", "interpreter")


@dataclass
class Step:
    """Seconds of one engine step and of its parts, which overlap: kernels run inside of everything else.

    On a CPU all are seconds of processor time.
    """

    requests: int = 0
    new_requests: int = 0
    tokens: int = 0
    """Tokens that came out of it, of all requests."""
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    theta_forwards: int = 0


class StepTimer:
    """Times an engine's steps from `start` to `stop`.

    Args:
        llm: an engine in this process.
        runner: its model runner.
    """

    def __init__(self, llm: Any, runner: Any) -> None:
        self.llm, self.runner = llm, runner
        self.steps: list[Step] = []
        self._restore: list[Callable[[], None]] = []

    def start(self) -> None:
        self.steps = []
        engine, runner = self.llm.llm_engine, self.runner
        self._wrap(engine, "step", self._whole_step)
        self._wrap(engine.engine_core, "get_output", self._count_tokens)
        self._wrap(runner, "execute_model", self._note_batch)
        speculator = getattr(runner, "speculator", None)
        if speculator is not None:
            self._wrap(speculator, "propose", self._part("theta_round"))
            if hasattr(speculator, "_run_model"):
                self._wrap(speculator, "_run_model", self._part("theta_forward"))
        from vllm_optimal_sampling.worker.processor import OptimalSamplingLogitsProcessor

        self._wrap(OptimalSamplingLogitsProcessor, "apply", self._part("mix"))
        if not torch.cuda.is_available():
            from triton.runtime.interpreter import GridExecutor

            self._wrap(GridExecutor, "__call__", self._part("interpreter"))

    def stop(self) -> list[Step]:
        """The steps since `start`; nothing is timed any more."""
        for restore in reversed(self._restore):
            restore()
        self._restore.clear()
        return self.steps

    def _wrap(self, owner: Any, name: str, around: Callable[..., Any]) -> None:
        original = getattr(owner, name)
        own = vars(owner).get(name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            return around(original, *args, **kwargs)

        setattr(owner, name, wrapped)
        self._restore.append(lambda: delattr(owner, name) if own is None else setattr(owner, name, own))

    def _part(self, name: str) -> Callable[..., Any]:
        def timed(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            if not self.steps:
                return call(*args, **kwargs)
            begin = _now()
            try:
                return call(*args, **kwargs)
            finally:
                self.steps[-1].seconds[name] += _now() - begin
                self.steps[-1].theta_forwards += name == "theta_forward"

        return timed

    def _whole_step(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.steps.append(Step())
        return self._part("step")(call, *args, **kwargs)

    def _count_tokens(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        outputs = call(*args, **kwargs)
        self.steps[-1].tokens += sum(len(output.new_token_ids) for output in outputs.outputs)
        return outputs

    def _note_batch(self, call: Callable[..., Any], scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        self.steps[-1].requests = len(scheduler_output.num_scheduled_tokens)
        self.steps[-1].new_requests = len(scheduler_output.scheduled_new_reqs)
        return call(scheduler_output, *args, **kwargs)


def _now() -> float:
    """On a GPU the time after everything given to it; on a CPU processor time, which other processes move little."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


# Calls of the host: those that wait for the device, and those that give it work.
WAITS = (
    "cudaStreamSynchronize",
    "cudaDeviceSynchronize",
    "cudaEventSynchronize",
    "cudaMemcpy",
    "aten::_local_scalar_dense",
)
LAUNCHES = (
    "cudaMemcpyAsync",
    "cudaLaunchKernel",
    "cudaLaunchKernelExC",
    "cuLaunchKernel",
    "cuLaunchKernelEx",
    "cudaGraphLaunch",
)
LARGEST_KERNELS = 40


def profile(llm: Any, run: Callable[[], object], skip: int, count: int) -> dict[str, Any]:
    """Where the time of `count` steps goes, after the first `skip` of what `run` does.

    Returns:
        Per step: `wall_microseconds` (under the profiler), `device_microseconds` (of all kernels), `host_calls` (of WAITS and
        LAUNCHES, by name), and the largest `kernels`, each with its name, microseconds and calls.
    """
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    profiler = torch.profiler.profile(activities=activities)
    engine = llm.llm_engine
    step, done, clock = engine.step, [0], [0.0]

    def counted() -> Any:
        if done[0] in (skip, skip + count):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            clock[0] = time.perf_counter() - clock[0]
            (profiler.start if done[0] == skip else profiler.stop)()
        done[0] += 1
        return step()

    engine.step = counted
    try:
        run()
    finally:
        del engine.step
    if done[0] <= skip + count:
        raise ValueError(f"the run had {done[0]} steps; {skip + count + 1} are needed for {count} after {skip}")
    events = profiler.key_averages()
    kernels = sorted(
        (
            {"name": event.key[:90], "microseconds": event.self_device_time_total / count, "calls": event.count / count}
            for event in events
            if event.self_device_time_total and not event.self_cpu_time_total
        ),
        key=lambda kernel: -kernel["microseconds"],
    )
    return {
        "steps": count,
        "wall_microseconds": clock[0] / count * 1e6,
        "device_microseconds": sum(kernel["microseconds"] for kernel in kernels),
        "host_calls": {event.key: event.count / count for event in events if event.key in (*WAITS, *LAUNCHES)},
        "kernels": kernels[:LARGEST_KERNELS],
    }

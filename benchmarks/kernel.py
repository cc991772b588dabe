"""The mix kernel against its floor, a copy in the same run, and three ways to write it in torch.

    python benchmarks/kernel.py            on a GPU: check, time, print a table, write benchmarks/results/kernel.json
    python benchmarks/kernel.py --noise 1.0 2.8     rows as they come, and rows so far apart that alpha is refined
    python benchmarks/kernel.py --check    only check, on small shapes; without a GPU this is all that runs

Every row is KL symmetry over bf16 theta logits. The floor is the time to read the teacher's rows and theta's once and
write the teacher's once, at the speed of a device-to-device copy of the same size measured in this run. The peers:

    original   the algorithm of the reference implementation: probabilities clamped at 1e-10, twelve steps of bisection,
               row by row, each step waiting for the device with .item()
    batched    thirty steps of bisection over all rows at once, in log space
    compiled   the same through torch.compile

A peer that would need more than --peer-seconds for a call (it is timed once first) is left out of the table, and said
so. Beside them single calls from Python, of every way to find alpha and of vLLM's top-p: those count the host's time too.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from recording import RESULTS, header, set_cpu_environment, write

set_cpu_environment()

import torch  # noqa: E402
from bisection import batched, row_by_row  # noqa: E402
from vllm_optimal_sampling.kernels import (  # noqa: E402
    Method,
    MixRecord,
    MixScratch,
    MixSettings,
    Search,
    mix_,
    reference,
)
from vllm_optimal_sampling.kernels.mix import INTERPRETED, Rows, launch, launches  # noqa: E402
from vllm_optimal_sampling.kernels.scratch import LaunchShape  # noqa: E402

from vllm_optimal_sampling.worker.relaxed_top_p_kernel import relax_top_p_  # noqa: E402

ROWS = (1, 8, 32, 64, 160, 320, 1280)
VOCABULARIES = (32_000, 128_256, 151_936, 262_144)
NUM_POSITIONS = 5
SEED = 0
QUICK_EACH = 8
"""Tokens side by side of a lane of the quick first reading: 16 bytes of theta's row."""
PEERS = ("original", "batched", "compiled")

KL_GAP = 1e-3
TOTAL_VARIATION = 1e-4


@dataclass(frozen=True)
class Case:
    """One call's tensors. Rows are those of requests with `NUM_POSITIONS` rows each."""

    teacher: torch.Tensor
    theta: torch.Tensor
    slots: torch.Tensor
    draft_positions: torch.Tensor
    token_positions: torch.Tensor
    settings: MixSettings
    record: MixRecord
    scratch: MixScratch
    searches: Search

    @classmethod
    def make(cls, num_rows: int, vocab: int, noise: float, device: torch.device, **asked: Any) -> Case:
        """Rows like a language model's: shared normal logits of 2.5 nats, a few likely tokens, `noise` nats on each
        model. What is `asked` for goes to every slot, by the names of `MixSettings`."""
        generator = torch.Generator(device=device).manual_seed(SEED)
        num_slots = -(-num_rows // NUM_POSITIONS)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, device=device, generator=generator)

        shared = 2.5 * normal(num_slots * NUM_POSITIONS, vocab)
        likely = torch.randint(0, vocab, (num_slots * NUM_POSITIONS, 6), device=device, generator=generator)
        shared.scatter_add_(1, likely, 10 + 4 * normal(*likely.shape))
        theta = (shared + noise * normal(*shared.shape)).bfloat16().view(num_slots, NUM_POSITIONS, vocab)
        teacher = shared[:num_rows] + noise * normal(num_rows, vocab)
        rows = torch.arange(num_rows, device=device, dtype=torch.int32)
        settings = MixSettings.allocate(num_slots, device)
        settings.first_position.zero_()
        asked = {"method": Method.KL_SYMMETRY} | asked
        for name, value in asked.items():
            getattr(settings, name).fill_(value)
        return cls(
            teacher=teacher,
            theta=theta,
            slots=rows // NUM_POSITIONS,
            draft_positions=rows % NUM_POSITIONS,
            token_positions=torch.zeros(num_rows, dtype=torch.int64, device=device),
            settings=settings,
            record=MixRecord.allocate(num_slots, NUM_POSITIONS, device),
            scratch=MixScratch.allocate(num_rows, vocab, device),
            searches=Search.of(asked["method"], asked.get("support_top_k", 0), asked.get("support_top_p", 1.0)),
        )

    @property
    def theta_rows(self) -> torch.Tensor:
        return self.theta.flatten(0, 1)[: len(self.teacher)]

    @property
    def floor_bytes(self) -> int:
        num_rows, vocab = self.teacher.shape
        return num_rows * vocab * (4 + 4 + self.theta.element_size())

    def mix(self, rows: torch.Tensor) -> None:
        mix_(*self.tensors(rows), self.settings, self.record, self.scratch, self.searches)

    def mix_as_triton_launches(self, rows: torch.Tensor) -> None:
        """The same without what the scratch remembers of calls before."""
        shape = LaunchShape.choose(*self.teacher.shape, interpreted=INTERPRETED)
        for step in launches(self.tensors(rows), self.settings, self.record, self.scratch, shape, self.searches):
            step.launch()

    def mix_quickly(self, rows: torch.Tensor) -> None:
        """With the quick first reading (`kernels/quick_sums.py`), which is off until a GPU has timed it."""
        shape = LaunchShape.choose(*self.teacher.shape, interpreted=INTERPRETED)
        quick = replace(shape, each=QUICK_EACH)
        launch(*self.tensors(rows), self.settings, self.record, self.scratch, quick, self.searches)

    def tensors(self, rows: torch.Tensor) -> Rows:
        return Rows(rows, self.theta, self.slots, self.draft_positions, self.token_positions)


def errors(case: Case, log_q: torch.Tensor, sample: int = 4) -> tuple[float, float]:
    """Largest KL gap over all rows, and largest total variation to the float64 reference over the first `sample`."""
    gap = variation = 0.0
    for row in range(len(log_q)):
        u, v = case.theta_rows[row].double().log_softmax(0), case.teacher[row].double().log_softmax(0)
        q = log_q[row].double().softmax(0)
        gap = max(gap, abs(float((q * (v - u)).sum())))
        if row < sample:
            wanted = reference.mix(case.teacher[row].cpu(), case.theta_rows[row].cpu()).log_q.exp().to(q.device)
            variation = max(variation, float((q - wanted).abs().sum()) / 2)
    return gap, variation


def check(case: Case) -> tuple[float, float]:
    """`errors` of the kernel; raises if they are larger than allowed, or if the same call gives something else again."""
    rows, again = case.teacher.clone(), case.teacher.clone()
    case.mix(rows)
    case.mix(again)
    if not torch.equal(rows, again):
        raise RuntimeError(f"{list(rows.shape)}: a second call, whose launches are prepared, gave other rows")
    gap, variation = errors(case, rows)
    if gap > KL_GAP or variation > TOTAL_VARIATION:
        raise RuntimeError(
            f"{list(rows.shape)}: KL gap {gap:.1e} (allowed {KL_GAP}), TV {variation:.1e} (allowed {TOTAL_VARIATION})"
        )
    return gap, variation


@dataclass(frozen=True)
class Time:
    """Microseconds per call."""

    median: float
    p20: float
    p80: float


def timed(call: Callable[[], object], seconds: float, prepare: Callable[[], object] = lambda: None) -> Time:
    """Median and quantiles of single calls for about `seconds`, after a tenth of that as warm-up.

    Before each call, and outside its time, `prepare` runs and a buffer larger than the L2 cache is written, so that
    every call finds its rows in memory.
    """
    flush = torch.empty(256 * 2**20, dtype=torch.int8, device="cuda")
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def once() -> float:
        prepare()
        flush.zero_()
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e3

    def repeat(limit: float, fewest: int) -> list[float]:
        times: list[float] = []
        until = perf_counter() + limit
        while len(times) < fewest or perf_counter() < until:
            times.append(once())
        return times

    repeat(seconds / 10, 3)
    quantiles = torch.tensor(repeat(seconds, 20)).quantile(torch.tensor([0.5, 0.2, 0.8]))
    return Time(*(float(value) for value in quantiles))


def graph_of(call: Callable[[], object]) -> Callable[[], None]:
    """A CUDA graph of a call, warmed up."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def copy_time(num_bytes: int, seconds: float) -> Time:
    """A device-to-device copy that moves `num_bytes` in all, half of them read."""
    source = torch.empty(num_bytes // 2, dtype=torch.int8, device="cuda")
    target = torch.empty_like(source)
    return timed(graph_of(lambda: target.copy_(source)), seconds)


def host_microseconds(call: Callable[[], object], calls: int = 100) -> float:
    """What a call takes the host, which does not wait for the device."""
    torch.cuda.synchronize()
    begin = perf_counter()
    for _ in range(calls):
        call()
    taken = perf_counter() - begin
    torch.cuda.synchronize()
    return taken / calls * 1e6


def single_calls(seconds: float, rows: int = 40, vocab: int = 151_936) -> dict[str, Any]:
    """Microseconds of one call from Python for every way to find alpha, and of what stands beside the mix in a step."""
    from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

    device = torch.device("cuda")
    ways: dict[str, dict[str, Any]] = {method.name.lower(): {"method": method} for method in Method}
    ways["kl_budget"] |= {"kl_budget": 0.05, "kl_budget_end": 0.05}
    ways |= {
        "support_top_k=50": {"support_top_k": 50},
        "support_top_p=0.9": {"support_top_p": 0.9},
        "max_js_divergence=0.3": {"max_js_divergence": 0.3},
    }
    found = {}
    for name, asked in ways.items():
        case = Case.make(rows, vocab, 1.0, device, **asked)
        mixed = case.teacher.clone()
        case.mix(mixed)
        found[name] = timed(
            lambda case=case, mixed=mixed: case.mix(mixed),
            seconds,
            prepare=lambda case=case, mixed=mixed: mixed.copy_(case.teacher),
        ).median
    case = Case.make(rows, vocab, 1.0, device)
    top_p = torch.full((rows,), 0.95, device=device)
    flat = 0.05 * torch.randn(rows, vocab, device=device)
    logits = case.teacher.clone()
    found["relax_top_p"] = timed(
        lambda: relax_top_p_(logits, None, top_p), seconds, prepare=lambda: top_p.fill_(0.95)
    ).median
    for name, source in (("peaked", case.teacher), ("flat", flat)):
        apply_top_k_top_p(logits, None, top_p)
        found[f"vLLM's top-p=0.95, {name} rows"] = timed(
            lambda: apply_top_k_top_p(logits, None, top_p),
            seconds,
            prepare=lambda source=source: logits.copy_(source),
        ).median
    return {"rows": rows, "vocab": vocab, "microseconds": found}


def measure(case: Case, seconds: float, peer_seconds: float, peers_asked: Sequence[str]) -> dict[str, Any]:
    """One line of the table."""
    # Graphs are replayed, so that the device is timed and not the host's launches. The kernel works in place: its rows
    # are restored before each call, or it would soon mix theta with itself.
    rows = case.teacher.clone()
    replay = graph_of(lambda: case.mix(rows))
    times = {
        "copy": copy_time(case.floor_bytes, seconds),
        "kernel": timed(replay, seconds, prepare=lambda: rows.copy_(case.teacher)),
        "eager": timed(lambda: case.mix(rows), seconds, prepare=lambda: rows.copy_(case.teacher)),
    }
    quick = case.teacher.clone()
    times["quick"] = timed(
        graph_of(lambda: case.mix_quickly(quick)), seconds, prepare=lambda: quick.copy_(case.teacher)
    )
    quick.copy_(case.teacher)
    case.mix_quickly(quick)
    quick_gap, quick_variation = errors(case, quick[:8])
    eager = case.teacher.clone()
    case.mix(eager)
    rows.copy_(case.teacher)
    replay()
    torch.cuda.synchronize()
    peers: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
        "original": row_by_row,
        "batched": batched,
        "compiled": torch.compile(batched, dynamic=False),
    }
    left_out = []
    for name, peer in ((name, peers[name]) for name in peers_asked):
        try:
            peer(case.teacher, case.theta_rows)
            torch.cuda.synchronize()
            begin = perf_counter()
            peer(case.teacher, case.theta_rows)
            torch.cuda.synchronize()
        except torch.cuda.OutOfMemoryError:
            left_out.append(f"{name}: out of memory")
            continue
        if perf_counter() - begin > peer_seconds:
            left_out.append(f"{name}: {perf_counter() - begin:.1f} s a call")
            continue
        times[name] = timed(partial(peer, case.teacher, case.theta_rows), seconds)
    floor = times["copy"].median
    gigabytes = case.floor_bytes / 1e3
    return {
        "rows": len(case.teacher),
        "vocab": case.teacher.shape[1],
        "floor_bytes": case.floor_bytes,
        "microseconds": {name: asdict(time) for name, time in times.items()},
        "host_microseconds": host_microseconds(lambda: case.mix(rows)),
        "host_microseconds_as_triton_launches": host_microseconds(lambda: case.mix_as_triton_launches(rows)),
        "gigabytes_per_second": {name: gigabytes / times[name].median for name in ("copy", "kernel")},
        "times_floor": times["kernel"].median / floor,
        "graph_equals_eager": torch.equal(eager, rows),
        "quick_kl_gap": quick_gap,
        "quick_total_variation": quick_variation,
        "left_out": left_out,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Check and time the mix kernel.")
    parser.add_argument("--check", action="store_true", help="only check, on small shapes")
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--vocabularies", type=int, nargs="+", default=VOCABULARIES)
    parser.add_argument(
        "--noise", type=float, nargs="+", default=[1.0], help="nats between each model and what they share"
    )
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS), help="other ways to time beside it")
    parser.add_argument("--seconds", type=float, default=0.5, help="time for each measurement")
    parser.add_argument("--peer-seconds", type=float, default=1.0, help="leave out a peer that takes longer for a call")
    parser.add_argument("--output", type=Path, default=RESULTS / "kernel.json")
    arguments = parser.parse_args()

    if arguments.check or not torch.cuda.is_available():
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        for num_rows, vocab in ((1, 997), (8, 2048), (33, 515)):
            gap, variation = check(Case.make(num_rows, vocab, arguments.noise[0], device))
            print(f"{num_rows:>5} rows of {vocab:>6}: KL gap {gap:.1e}, TV {variation:.1e}")
        if not arguments.check:
            sys.exit("No GPU here: the kernel was checked, but not timed; times of Triton's interpreter mean nothing.")
        return

    device = torch.device("cuda")
    lines: list[dict[str, Any]] = []
    result = header("kernel") | {
        "seed": SEED,
        "theta_dtype": "bfloat16",
        "rows_per_request": NUM_POSITIONS,
        "l2_flushed_between_calls": True,
        "lines": lines,
    }
    titles = ("kernel us", "p20", "p80", "GB/s", "copy GB/s", "x floor", "original", "batched", "compiled")
    print(f"{'rows':>6} {'vocab':>8} " + " ".join(f"{title:>9}" for title in titles))
    for noise, vocab in itertools.product(arguments.noise, arguments.vocabularies):
        for num_rows in arguments.rows:
            case = Case.make(num_rows, vocab, noise, device)
            gap, variation = check(case)
            line = measure(case, arguments.seconds, arguments.peer_seconds, arguments.peers)
            line |= {"noise": noise, "kl_gap": gap, "total_variation": variation}
            lines.append(line)
            times, speed = line["microseconds"], line["gigabytes_per_second"]
            kernel = times["kernel"]
            ratios = [
                f"{times[name]['median'] / kernel['median']:>8.1f}x" if name in times else f"{'-':>9}"
                for name in ("original", "batched", "compiled")
            ]
            print(
                f"{num_rows:>6} {vocab:>8} {kernel['median']:>9.1f} {kernel['p20']:>9.1f} {kernel['p80']:>9.1f} "
                f"{speed['kernel']:>9.0f} {speed['copy']:>9.0f} {line['times_floor']:>9.2f} {' '.join(ratios)}"
            )
            del case
            torch.cuda.empty_cache()
            write(arguments.output, result)
    write(arguments.output, result | {"calls": single_calls(arguments.seconds)})


if __name__ == "__main__":
    main()

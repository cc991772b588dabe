"""The window of samples in flight, with a sampler whose samples end when the test says so."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vllm_optimal_sampling.data.generate.errors import RowError, RunError
from vllm_optimal_sampling.data.generate.input_row import InputRow
from vllm_optimal_sampling.data.generate.jobs import Sample, jobs
from vllm_optimal_sampling.data.generate.output import Output
from vllm_optimal_sampling.data.generate.progress import Figures, Progress
from vllm_optimal_sampling.data.generate.run import Run
from vllm_optimal_sampling.data.generate.samplers import Prepared
from vllm_optimal_sampling.data.generate.settings_from import settings_from
from vllm_optimal_sampling.data.generate.templates import Prompts


class Scripted:
    """A sampler whose samples wait for `gates`, by prompt; a prompt `refused` or `broken` fails."""

    max_in_flight = 4

    def __init__(self) -> None:
        self.gates: dict[str, asyncio.Event] = {}
        self.running = self.most = 0
        self.closed = False
        self.seeds: dict[str, int | None] = {}

    async def prepare(self, prompts: Prompts) -> Prepared:
        if prompts.theta == "unprepared":
            raise RowError("too long")
        return Prepared(prompts.theta, [1, 2])

    async def sample(self, prepared: Prepared, request_id: str, seed: int | None) -> list[Sample]:
        self.running += 1
        self.most = max(self.most, self.running)
        self.seeds[request_id] = seed
        try:
            await asyncio.sleep(0.001)
            if prepared.request in self.gates:
                await self.gates[prepared.request].wait()
            if prepared.request == "refused":
                raise RowError("no room")
            if prepared.request == "broken":
                raise RunError("the engine died")
        finally:
            self.running -= 1
        return [Sample("text", [3, 4], "stop")]

    async def figures(self) -> Figures:
        return Figures()

    async def close(self) -> None:
        self.closed = True


class Bench:
    """A run over given prompts."""

    def __init__(self, folder: Path, prompts: Iterator[str] | list[str], **changes: Any) -> None:
        given = {"input": "i", "output": "o.jsonl", "teacher": "t", "theta": "s", "theta_template": "{{ a }}"}
        settings = settings_from(given | changes)
        self.path = folder / "rows.jsonl"
        self.output = Output(self.path, folder / "sidecar", {}, {})
        self.sampler, self.said = Scripted(), io.StringIO()
        self.progress = Progress(0.01, self.said)
        rows = (InputRow("i", line, {"a": prompt}) for line, prompt in enumerate(prompts, 1))
        left = jobs(rows, settings, self.output.finished)
        self.run = Run(left, self.start, self.output, settings, self.progress)

    async def start(self) -> Scripted:
        return self.sampler

    def go(self, meanwhile: Callable[[], Any] | None = None) -> None:
        async def both() -> None:
            running = asyncio.create_task(self.run.run())
            if meanwhile is not None:
                await meanwhile()
            await asyncio.wait_for(running, 30)

        try:
            asyncio.run(both())
        finally:
            self.output.close()

    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path.read_bytes().splitlines()]


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(3000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come to this")


def test_a_slow_row_holds_up_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path, ["slow", *["quick"] * 50])
    bench.sampler.gates["slow"] = gate = asyncio.Event()

    async def meanwhile() -> None:
        await until(lambda: len(bench.rows()) == 50)
        gate.set()

    bench.go(meanwhile)
    assert [row["custom_id"] for row in bench.rows()][-1] == "i:1"
    assert len(bench.rows()) == 51
    assert bench.sampler.closed


def test_the_window_is_full_and_never_fuller(tmp_path: Path) -> None:
    bench = Bench(tmp_path, ["quick"] * 40, num_samples=3)
    bench.go()
    assert bench.sampler.most == Scripted.max_in_flight
    assert len(bench.rows()) == 120
    bench = Bench(tmp_path / "other", ["quick"] * 20, max_in_flight=2)
    bench.go()
    assert bench.sampler.most == 2


def test_the_input_is_read_no_further_than_the_window_asks(tmp_path: Path) -> None:
    read = []

    def endless() -> Iterator[str]:
        while True:
            read.append(1)
            yield "slow"

    bench = Bench(tmp_path, endless())
    bench.sampler.gates["slow"] = gate = asyncio.Event()

    async def meanwhile() -> None:
        await until(lambda: bench.sampler.running == 4)
        await asyncio.sleep(0.1)
        assert len(read) < 100
        os.kill(os.getpid(), signal.SIGTERM)
        await until(lambda: bench.run.stopped_by is not None)
        gate.set()

    bench.go(meanwhile)
    assert bench.run.stopped_by == signal.SIGTERM
    assert len(bench.rows()) == 4
    assert "SIGTERM: 4 samples are being finished" in bench.said.getvalue()


def test_a_second_signal_gives_up_what_is_in_flight(tmp_path: Path) -> None:
    bench = Bench(tmp_path, ["quick", "quick", "slow"])
    bench.sampler.gates["slow"] = asyncio.Event()

    async def meanwhile() -> None:
        await until(lambda: len(bench.rows()) == 2 and bench.sampler.running == 1)
        for number in (1, 2):
            os.kill(os.getpid(), signal.SIGINT)
            await until(lambda number=number: bench.run.stopped_by is not None and bench.sampler.running == 2 - number)  # type: ignore[misc]

    bench.go(meanwhile)
    assert len(bench.rows()) == 2
    assert bench.sampler.closed


def test_a_refused_row_is_one_error_whatever_its_samples(tmp_path: Path) -> None:
    bench = Bench(tmp_path, ["refused", "quick", "unprepared"], num_samples=3)
    bench.go()
    errors = {row["custom_id"]: (row["sample"], row["error"]) for row in bench.rows() if row["error"] is not None}
    assert errors == {"i:1": (None, "i line 1: no room"), "i:3": (None, "i line 3: too long")}
    assert sum(row["error"] is None for row in bench.rows()) == 3
    assert (bench.progress.rows, bench.progress.failed, bench.progress.samples) == (3, 2, 3)


def test_an_engine_that_dies_ends_the_run_and_keeps_the_rows(tmp_path: Path) -> None:
    bench = Bench(tmp_path, ["quick", "slow", "broken", *["quick"] * 1000])
    bench.sampler.gates["slow"] = asyncio.Event()
    with pytest.raises(RunError, match="the engine died"):
        bench.go()
    assert 1 <= len(bench.rows()) < 100
    assert bench.sampler.closed
    assert bench.sampler.running == 0


def test_rows_that_all_fail_start_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path, [" "] * 3)
    bench.go()
    assert len(bench.rows()) == 3
    assert not bench.sampler.closed


def test_progress_in_a_log(tmp_path: Path) -> None:
    bench = Bench(tmp_path, ["quick"] * 8)
    bench.progress.total = 8
    bench.go()
    bench.progress.figures = Figures(alpha_sum=4.0, alpha_count=10.0, drafted=100.0, accepted=90.0)
    bench.progress.close()
    last = bench.said.getvalue().splitlines()[-1]
    assert last.startswith("8 of 8 rows (100%), ")
    assert last.endswith("tok/s, alpha 0.40, 90% of drafts accepted, 0 failed, 0:00:00 left")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_on_a_terminal() -> None:
    terminal = Terminal()
    progress = Progress(10, terminal)
    progress.total, progress.skipped = 10, 4
    progress.begin()
    for number in range(6):
        progress.sample_done(100)
        progress.row_done(failed=number == 0)
    progress.figures = Figures(alpha_sum=1.0, alpha_count=4.0)
    progress.say("a line of its own")
    progress.close()
    shown = terminal.getvalue()
    assert "a line of its own\n" in shown
    last = shown.rstrip().split("\r")[-1]
    assert "6/6" in last
    assert "tok/s, alpha 0.25, 1 failed" in last


def test_each_sample_has_its_own_seed(tmp_path: Path) -> None:
    first = Bench(tmp_path / "a", ["quick"] * 3, num_samples=2, seed=5)
    first.go()
    again = Bench(tmp_path / "b", ["quick"] * 3, num_samples=2, seed=5)
    again.go()
    assert first.sampler.seeds == again.sampler.seeds
    assert len(set(first.sampler.seeds.values())) == 6


def test_tokens_are_counted_as_they_are_drawn() -> None:
    """At c2787b4 a log said 0.0 tok/s until the first samples were finished."""
    progress = Progress(10, io.StringIO())
    progress.begin()
    progress.figures = Figures(tokens=500)
    assert float(progress._words()[0].removesuffix(" tok/s")) > 0
    progress.sample_done(600)  # the engine's own count is behind
    assert progress._tokens == 600


@pytest.mark.parametrize(
    ("rows", "in_flight", "drawn", "left"),
    [
        (0, 4, 900, []),
        (5, 4, 1000, ["0:00:10 left"]),  # 5 of 10 rows with 1000 tokens in 10 s
        (5, 4, 1500, ["0:00:03 left"]),  # half of what is left is drawn already
        (5, 4, 3000, ["0:00:00 left"]),
        (6, 4, 1500, ["nothing left to begin"]),
        (10, 0, 2000, ["0:00:00 left"]),
    ],
)
def test_the_time_left_counts_what_is_in_flight(rows: int, in_flight: int, drawn: int, left: list[str]) -> None:
    progress = Progress(10, io.StringIO())
    progress.total, progress.in_flight = 10, in_flight
    for _ in range(rows):
        progress.sample_done(200)
        progress.row_done(failed=False)
    progress.figures = Figures(tokens=drawn)
    progress._start = time.monotonic() - 10
    assert progress._left() == left

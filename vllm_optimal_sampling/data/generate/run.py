"""Keeps a window of samples in flight and writes each row when it is finished.

Rows are read, rendered and compared with the output in a thread, a few at a time, so that a slow data set never holds up
the engine; a slow sample holds one place of the window and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from vllm_optimal_sampling.data.generate.candidates import keep_one
from vllm_optimal_sampling.data.generate.errors import RowError, RunError
from vllm_optimal_sampling.data.generate.jobs import Job, seed_of
from vllm_optimal_sampling.data.generate.output import Output
from vllm_optimal_sampling.data.generate.progress import Figures, Progress
from vllm_optimal_sampling.data.generate.samplers import Prepared, Sampler
from vllm_optimal_sampling.data.generate.settings import Settings

JOBS_AT_A_TIME = 32


@dataclass
class _Open:
    """A row with samples in flight."""

    job: Job
    prepared: Prepared
    left: int
    failed: bool = False


class Run:
    """One run over what is left of the input.

    Args:
        jobs: what is left. It is iterated in a thread.
        start: starts the sampler; not called where nothing has to be drawn.
        output: takes the rows.
        settings: the run's.
        progress: is told what happens.

    """

    def __init__(
        self,
        jobs: Iterator[Job],
        start: Callable[[], Awaitable[Sampler]],
        output: Output,
        settings: Settings,
        progress: Progress,
    ) -> None:
        self.jobs, self.start, self.output, self.settings, self.progress = jobs, start, output, settings, progress
        self.stopped_by: signal.Signals | None = None
        """The signal that ended the run before the input did."""
        self._sampler: Sampler | None = None
        self._before = Figures()
        self._tasks: set[asyncio.Task[None]] = set()
        self._place_free = asyncio.Event()
        self._broken: BaseException | None = None

    async def run(self) -> None:
        """Draw all that is left, until the end or a signal. The second signal gives up what is in flight.

        Raises:
            SettingsError: the sampler refuses the settings.
            RunError: nothing can be drawn or written any more. What was written stays.

        """
        ticker = asyncio.create_task(self._tick())
        try:
            while self._going and (jobs := await asyncio.to_thread(lambda: list(islice(self.jobs, JOBS_AT_A_TIME)))):
                for job in jobs:
                    if not self._going:
                        break
                    await self._give(job)
            while self._tasks:
                await asyncio.wait(self._tasks)
            if self._broken is not None:
                raise self._broken
        finally:
            for task in (ticker, *self._tasks):
                task.cancel()
            await asyncio.gather(ticker, *self._tasks, return_exceptions=True)
            self.progress.in_flight = 0
            if self._sampler is not None:
                with contextlib.suppress(Exception):
                    self.progress.figures = await self._sampler.figures() - self._before
                await self._sampler.close()

    @property
    def _going(self) -> bool:
        return self.stopped_by is None and self._broken is None

    def _signalled(self, number: signal.Signals) -> None:
        if self.stopped_by is None:
            self.stopped_by = number
            self._place_free.set()
            self.progress.say(
                f"{number.name}: {len(self._tasks)} samples are being finished; once more gives them up, and the next "
                "run draws them again"
            )
        else:
            for task in self._tasks:
                task.cancel()

    async def _begin(self) -> None:
        self._sampler = await self.start()
        self._before = await self._sampler.figures()
        self.progress.begin()
        # Only now: until here there is nothing to finish, and a signal ends the command at once.
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._signalled, number)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(0.25)
            if self.progress.is_due():
                self.progress.in_flight = len(self._tasks)
                if self._sampler is not None:
                    with contextlib.suppress(RunError):  # a sample in flight says it better
                        self.progress.figures = await self._sampler.figures() - self._before
                self.progress.show()

    async def _give(self, job: Job) -> None:
        """Put a job's samples in flight, each as soon as there is a place for it."""
        if job.error is None:
            if self._sampler is None:
                await self._begin()
            assert self._sampler is not None
            assert job.prompts is not None
            try:
                opened = _Open(job, await self._sampler.prepare(job.prompts), len(job.samples))
            except RowError as error:
                job.error = str(error)
        if job.error is not None:
            self.output.write(job.error_row(job.error))
            self.progress.row_done(failed=True)
            return
        window = max(1, (self.settings.max_in_flight or self._window) // (self.settings.best_of or 1))
        for sample in job.samples:
            while self._going and len(self._tasks) >= window:
                self._place_free.clear()
                await self._place_free.wait()
            if not self._going:
                return
            task = asyncio.create_task(self._draw(opened, sample))
            self._tasks.add(task)
            task.add_done_callback(self._done)

    @property
    def _window(self) -> int:
        assert self._sampler is not None
        return self._sampler.max_in_flight

    async def _draw(self, opened: _Open, index: int) -> None:
        job = opened.job
        assert self._sampler is not None
        seed = seed_of(self.settings.seed, job.custom_id, index)
        try:
            candidates = await self._sampler.sample(opened.prepared, f"{job.row.position}-{index}", seed)
            sample = keep_one(candidates, self.settings, seed)
            self.output.write(job.sample_row(index, sample, opened.prepared.theta_ids, self.settings.messages))
            self.progress.sample_done(sum(len(candidate.token_ids) for candidate in candidates))
        except RowError as error:
            # What is refused is the row, not the sample: one row says so, and none of the other samples.
            if not opened.failed:
                self.output.write(job.error_row(str(error)))
            opened.failed = True
        opened.left -= 1
        if opened.left == 0:
            self.progress.row_done(opened.failed)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._place_free.set()
        if not task.cancelled() and task.exception() is not None and self._broken is None:
            self._broken = task.exception()
            for other in self._tasks:
                other.cancel()

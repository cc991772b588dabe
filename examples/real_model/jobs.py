"""Jobs over several processes, each a file that others may wait for, until all are done or the time is up."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Job:
    """A call that leaves a file."""

    path: Path
    """Done when it exists."""
    function: Callable[..., None]
    arguments: tuple[Any, ...]
    needs: tuple[Path, ...] = ()
    """Files that have to exist before."""


def work_through(jobs: Sequence[Job], processes: int, deadline: float, goes_on: Callable[[], bool]) -> list[Job]:
    """Do the jobs in their order, as far as what they need is there.

    Args:
        deadline: of `time.monotonic`. What runs then is ended and leaves nothing; it is done anew by the next call.
        goes_on: called after each job; if it says no, nothing more is done.

    Returns:
        The jobs that are not done.

    Raises:
        RuntimeError: nothing runs and no job has what it needs.
    """
    left = [job for job in jobs if not job.path.exists()]
    running: dict[Future[None], Job] = {}
    pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))
    try:
        while left or running:
            ready = [job for job in left if all(path.exists() for path in job.needs)]
            for job in ready[: processes - len(running)]:
                running[pool.submit(job.function, *job.arguments)] = job
                left.remove(job)
            if not running:
                raise RuntimeError(f"{left[0].path} waits for what no job makes: {left[0].needs}; give the missing job")
            finished, _ = wait(running, timeout=max(0.0, deadline - time.monotonic()), return_when=FIRST_COMPLETED)
            if not finished:
                break
            for future in finished:
                del running[future]
                future.result()
            if not goes_on():
                break
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in multiprocessing.active_children():  # an engine may be in the middle of a batch
            child.kill()
    return [job for job in jobs if not job.path.exists()]

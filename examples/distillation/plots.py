"""The page's two plots, as PNG files beside the results."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from distillation.means import mean_of
from distillation.protocol import DRAWS, SETS, SOURCES

if TYPE_CHECKING:
    from distillation.findings import Results

COLOURS = {"theta": "#1e8449", "teacher": "#555555", "q*": "#c0392b"}
SIZE = {"dpi": 100, "bbox_inches": "tight", "metadata": {"Software": None}}


def draw(results: Results, folder: Path) -> None:
    """Write data.png and students.png."""
    for plot in (data, students):
        figure = plot(results)
        figure.savefig(folder / f"{plot.__name__}.png", **SIZE)
        plt.close(figure)


def colour(source: str) -> str:
    return COLOURS[SOURCES[source].family]


def frontier(places: dict[str, tuple[float, float]]) -> list[tuple[float, float]]:
    """Of points (KL, sound) those that no other beats in both, from the left to the right."""
    return sorted(
        (x, y)
        for x, y in places.values()
        if not any(a <= x and b >= y and (a, b) != (x, y) for a, b in places.values())
    )


def data(results: Results) -> plt.Figure:
    """The share of sound rows against the KL from theta, the means of the draws, with their frontier."""
    figure, axes = plt.subplots(figsize=(9, 5))
    count = len(results.draws)
    places = {
        name: (sum(results.data(name, "kl")) / count, sum(results.data(name, "sound")) / count) for name in SOURCES
    }
    axes.plot(*zip(*frontier(places), strict=True), color="#bbbbbb", linestyle="--", linewidth=1, zorder=0)
    right = max(x for x, _ in places.values())
    lowest, highest = (limit(y for _, y in places.values()) for limit in (min, max))
    ordered = sorted(SOURCES, key=lambda name: places[name][1])
    for place, name in enumerate(ordered):  # many lie close together: names in the order of the points, evenly apart
        x, y = places[name]
        height = lowest + (highest - lowest) * place / (len(ordered) - 1)
        axes.plot(x, y, "o", color=colour(name))
        axes.plot((x, 1.1 * right), (y, height), color="#dddddd", linewidth=0.6, zorder=0)
        axes.text(1.12 * right, height, SOURCES[name].label, color=colour(name), fontsize=8, va="center")
    axes.set_xlim(-0.05 * right, 1.7 * right)
    axes.set_xlabel("D_KL(q‖π_θ), nats a token: what a filter or a selection adds is not counted")
    axes.set_ylabel("sound rows, %")
    axes.set_title(f"Rows of {count} of {DRAWS} draws; dashed: nothing is both nearer to theta and sounder", fontsize=9)
    axes.grid(alpha=0.2)
    return figure


def students(results: Results) -> plt.Figure:
    """Students minus the teacher's, with 95 % intervals over draws, where there are two or more."""
    figure, grid = plt.subplots(1, len(SETS), figsize=(12, 5), sharey=True)
    names = [name for name in SOURCES if name != "teacher"][::-1]
    for axes, held_out in zip(grid, SETS, strict=True):
        theirs = results.students("teacher", held_out)
        for place, name in enumerate(["theta", *names]):
            ours = results.theta(held_out) if name == "theta" else results.students(name, held_out)
            found = mean_of([one - other for one, other in zip(ours, theirs, strict=True)])
            shade = "#999999" if name == "theta" else colour(name)
            axes.plot(found.value, place, "o", color=shade)
            if not math.isinf(found.low):
                axes.hlines(place, found.low, found.high, color=shade)
        axes.axvline(0, color="#555555", linewidth=1)
        axes.set_yticks(
            range(len(names) + 1), ["theta, not trained", *(SOURCES[name].label for name in names)], fontsize=8
        )
        axes.set_xlabel(f"{held_out}: points more than the teacher's students", fontsize=8)
        axes.grid(alpha=0.2)
    figure.suptitle(f"Greedy accuracy, mean of 4 and 16 epochs; {len(results.draws)} of {DRAWS} draws", fontsize=9)
    figure.tight_layout()
    return figure

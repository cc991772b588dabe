"""The plots of one result, as PNG files beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from distillation.intervals import t_interval
from distillation.report import SETS, WAYS, shares

COLOURS = {
    "ends": "#555555",
    "q*": "#c0392b",
    "other mixtures": "#2471a3",
    "filtered": "#1e8449",
    "written": "#b7950b",
}
SIZE = {"dpi": 90, "bbox_inches": "tight", "metadata": {"Software": None}}


def draw(result: dict[str, Any], folder: Path) -> None:
    """Write FORM-data.png, FORM-students.png and FORM-curves.png, and FORM-alpha.png."""
    for plot in (data, students, curves, alpha):
        figure = plot(result)
        figure.savefig(folder / f"{result['form']['name']}-{plot.__name__}.png", **SIZE)
        plt.close(figure)


def colour(result: dict[str, Any], name: str) -> str:
    return COLOURS[result["families"][name]]


def data(result: dict[str, Any]) -> plt.Figure:
    """The share of right rows against their log-likelihood under theta, with 95 % intervals."""
    figure, axes = plt.subplots(figsize=(8, 5))
    for number, (name, one) in enumerate(result["data"].items(), start=1):
        x, x_low, x_high = one["theta_logprob"]
        y, (y_low, y_high) = 100 * one["right"] / one["rows"], (100 * value for value in one["right_interval"])
        errors = {"xerr": [[x - x_low], [x_high - x]], "yerr": [[max(0, y - y_low)], [max(0, y_high - y)]]}
        # Many lie close together: a number at the point, its name beside the plot.
        label = f"{number:2d}  {result['labels'][name]}"
        axes.errorbar(x, y, **errors, fmt="o", color=colour(result, name), capsize=2, linewidth=1, label=label)
        axes.annotate(str(number), (x, y), xytext=(5, 5), textcoords="offset points", fontsize=8)
    axes.set_xlabel("log-likelihood under theta, nats a token (to the right: closer to what theta writes itself)")
    axes.set_ylabel("right answers, % of rows")
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8, frameon=False)
    return figure


def students(result: dict[str, Any]) -> plt.Figure:
    """What the students get right, with Student's interval over seeds; theta before training is in grey."""
    figure, grid = plt.subplots(2, 3, figsize=(12, 1.6 + 0.5 * len(result["students"])), sharey=True)
    names = list(result["students"])[::-1]
    for axes, (way, held_out) in zip(grid.flat, [(way, held_out) for way in WAYS for held_out in SETS], strict=True):
        middle, low, high = t_interval(shares(result["before"], held_out, way))
        axes.axvspan(100 * low, 100 * high, color="#cccccc", alpha=0.6)
        axes.axvline(100 * middle, color="#999999", linestyle="--", linewidth=1)  # greedy theta has no spread
        for place, name in enumerate(names):
            middle, low, high = (100 * value for value in t_interval(shares(result["students"][name], held_out, way)))
            error = [[middle - low], [high - middle]]
            axes.errorbar(middle, place, xerr=error, fmt="o", color=colour(result, name), capsize=2)
        axes.set_title(f"{SETS[held_out]}, {way}", fontsize=9)
        axes.set_ylim(-0.6, len(names) - 0.4)
        axes.set_yticks(range(len(names)), [result["labels"][name] for name in names], fontsize=8)
        axes.grid(alpha=0.3)
        axes.set_xlabel("right, %", fontsize=8)
    figure.tight_layout()
    return figure


def curves(result: dict[str, Any]) -> plt.Figure:
    """Held-out stories along the training, with Student's interval over seeds."""
    figure, grid = plt.subplots(1, 2, figsize=(12, 4.5))
    for axes, way in zip(grid, WAYS, strict=True):
        for number, (name, runs) in enumerate(result["students"].items()):
            steps = [point["step"] for point in runs[0]["curve"]]
            points = [
                [100 * value for value in t_interval([run["curve"][i][way]["right"] for run in runs])]
                for i in range(len(steps))
            ]
            middle, low, high = zip(*points, strict=True)
            style = ("-", "--", ":", "-.")[number // 10 % 4]
            (line,) = axes.plot(steps, middle, style, marker="o", markersize=3, label=result["labels"][name])
            if len(result["students"]) <= 6:
                axes.fill_between(steps, low, high, color=line.get_color(), alpha=0.15)
        axes.set_title(f"stories, {way}", fontsize=9)
        axes.set_xlabel("steps")
        axes.set_ylabel("right, %")
        axes.grid(alpha=0.3)
    grid[1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def alpha(result: dict[str, Any]) -> plt.Figure:
    """How alpha is distributed over the tokens, where it is chosen for each."""
    figure, axes = plt.subplots(figsize=(8, 3.5))
    for name, one in result["data"].items():
        if "alpha" in one and one["alpha"]["deviation"] > 0:
            histogram = one["alpha"]["histogram"]
            edges = [i / len(histogram) for i in range(len(histogram) + 1)]
            axes.stairs([100 * part for part in histogram], edges, label=result["labels"][name])
    axes.set_xlabel("alpha, the weight of the teacher")
    axes.set_ylabel("tokens, %")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    return figure

"""The plot of docs/parameters.md: two tokens, a teacher that is more and more sure of one, and what q* makes of it.

python docs/figures/surer_teacher.py    # writes surer_teacher.png beside this file; needs matplotlib
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from vllm_optimal_sampling.kernels import Method
from vllm_optimal_sampling.kernels.reference import mix

THETA = 0.3
"""What theta gives the token."""
BUDGET = 0.3
"""Nats."""
LINES: dict[str, dict[str, float]] = {
    "entropy": {"method": Method.ENTROPY},
    "fixed, alpha 0.5": {"method": Method.FIXED},
    "kl_symmetry": {"method": Method.KL_SYMMETRY},
    f"kl_budget {BUDGET}": {"method": Method.KL_BUDGET, "kl_budget": BUDGET},
}
COLORS = ("#1b7837", "#2166ac", "#b2182b", "#8c510a")


def log_odds(probability: float) -> float:
    """log(p / (1 - p))."""
    return math.log(probability / (1 - probability))


def mixed(teacher: float, **arguments: float) -> float:
    """What q* gives the token, by the kernels' float64 reference."""

    def row(probability: float) -> torch.Tensor:
        return torch.tensor([log_odds(probability), 0.0], dtype=torch.float64)

    method = Method(int(arguments.pop("method")))
    return float(mix(row(teacher), row(THETA), method, **arguments).log_q.softmax(-1)[0])  # type: ignore[arg-type]


def main() -> None:
    """Draw it."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    teachers = [
        1 / (1 + math.exp(-log_odds(0.3) - step * (log_odds(0.9995) - log_odds(0.3)) / 120)) for step in range(121)
    ]
    figure, axes = plt.subplots(figsize=(6.4, 3.4), constrained_layout=True)
    axes.plot(
        [log_odds(p) for p in teachers], [log_odds(p) for p in teachers], color="#777777", linestyle="--", linewidth=1
    )
    axes.annotate(
        "the teacher", (log_odds(0.96), log_odds(0.96)), xytext=(-66, 0), textcoords="offset points", color="#777777"
    )
    for (name, arguments), color in zip(LINES.items(), COLORS, strict=True):
        values = [log_odds(mixed(teacher, **arguments)) for teacher in teachers]
        axes.plot([log_odds(p) for p in teachers], values, color=color)
        axes.annotate(
            name,
            (log_odds(teachers[-1]), values[-1]),
            xytext=(5, 0),
            textcoords="offset points",
            color=color,
            va="center",
        )
    ticks = (0.3, 0.5, 0.7, 0.9, 0.97, 0.99, 0.999)
    axes.set_xticks([log_odds(p) for p in ticks], [f"{p:g}" for p in ticks])
    axes.set_yticks([log_odds(p) for p in ticks], [f"{p:g}" for p in ticks])
    axes.axhline(log_odds(THETA), color="#cccccc", linewidth=0.8)
    axes.annotate(
        "theta", (log_odds(0.985), log_odds(THETA)), xytext=(0, 3), textcoords="offset points", color="#999999"
    )
    axes.set_xlim(log_odds(0.3), log_odds(0.99997))
    axes.set_xlabel("probability of the token under the teacher (log-odds axis)")
    axes.set_ylabel("under q*")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=150)


if __name__ == "__main__":
    main()

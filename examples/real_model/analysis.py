"""What the draws say, by PROTOCOL.md, from the finished draws and nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distillation.decision import holm
from distillation.means import Mean, mean_of

from real_model import RESULTS
from real_model.protocol import CONTROLS, DEFAULT, FEWEST_DRAWS, LEVEL, RIVALS, SOURCES

Draws = Sequence[Mapping[str, Any]]


def load_draws(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """The finished draws in their order."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("draw-*.json"))]


def primary(evaluated: Mapping[str, Any]) -> float | None:
    """The mean of the tasks' shares of right answers in per cent; None where there is no student."""
    counts = evaluated["tasks"]
    return counts and sum(100 * one["right"] / one["problems"] for one in counts.values()) / len(counts)


def difference(draws: Draws, one: str, other: str) -> Mean | None:
    """The first source's endpoint minus the second's within each draw that has both; None with too few."""
    pairs = [[primary(draw["students"][name]) for name in (one, other)] for draw in draws]
    gaps = [ours - theirs for ours, theirs in pairs if ours is not None and theirs is not None]
    return mean_of(gaps, LEVEL) if len(gaps) >= FEWEST_DRAWS else None


def rivals(draws: Draws) -> dict[str, Mean | None]:
    """Each rival minus the default."""
    return {name: difference(draws, name, DEFAULT) for name in RIVALS}


def controls(draws: Draws) -> dict[str, Mean | None]:
    """The default minus each control."""
    return {name: difference(draws, DEFAULT, name) for name in CONTROLS}


def sentences(draws: Draws) -> list[str]:
    """All that may be said of students."""
    if len(draws) < FEWEST_DRAWS:
        return [f"{len(draws)} draws: nothing is said of students before there are {FEWEST_DRAWS}."]
    found, said = {name: one for name, one in rivals(draws).items() if one is not None}, []
    for name in RIVALS:
        if name in holm({one: gap.p for one, gap in found.items()}, LEVEL):
            label, default = SOURCES[name].label, SOURCES[DEFAULT].label
            winner, loser = (label, default) if found[name].value > 0 else (default, label)
            said.append(f"{loser} lost to {winner}.")
    gaps = list(controls(draws).values())
    if all(gap is not None and gap.low > 0 for gap in gaps):
        said.append("q* taught better here than each of theta's and the teacher's own texts.")
    return said or [f"{len(draws)} draws do not tell."]
